"""The terms in the steps of a `transformers.Trainer`: what a microbatch adds, what a step leaves behind.

Sums over rows everywhere: the trainer divides by the rows of the whole step, so that nothing depends on how it was cut.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from composer_cmi.batch import class_labels, class_logits
from composer_cmi.centroids import ClassCentroids
from composer_cmi.features import FeatureReader
from composer_cmi.functional import log_distribution
from composer_cmi.hf.start import Start
from composer_cmi.teachers.compatibility import num_labels_of
from composer_cmi.teachers.logit_cache import LogitCache
from composer_cmi.teachers.losses import LOSSES
from composer_cmi.teachers.matching import DistillationArguments, example_ids, match_teacher, stored_logits
from composer_cmi.terms.arguments import RegularizationArguments
from composer_cmi.terms.cmi import Term
from composer_cmi.terms.guard import Guard
from composer_cmi.terms.objective import SCHEMA_VERSION, check_objective, require_same_on_all_ranks

__all__ = ['CMISteps', 'DistillationSteps']

_ANEW = 'without resume_from_checkpoint'


class CMISteps:
    """The CMI term of one training; Composer's `CMIAlgorithm` with the events of another host.

    Args:
        name: Of the Composer class, for messages and checkpoints.
        arguments: Its arguments.
        model: The bare model.
    """

    def __init__(self, name: str, arguments: RegularizationArguments, model: nn.Module):
        self.name, self.arguments = name, arguments
        self._begin_anew(model)  # what cannot work is said before training

    def _begin_anew(self, model: nn.Module) -> None:
        a = self.arguments
        self.start, self.guard = Start(a.start, a.ramp), Guard()
        self.centroids, self.term = ClassCentroids(a.centroids, a.decay), Term(a.form, a.max_cmi, a.max_growth)
        self.metrics: dict[str, Tensor] = {}
        self._reader = None
        if a.space == 'features':
            self._reader = FeatureReader(model, module=a.feature_module, position=a.feature_position)
            self._shape = self._reader.num_classes, self._reader.dim
        else:
            self._shape = (num_labels_of(model) or 0,) * 2

    @property
    def objective(self) -> dict[str, Any]:
        """All arguments, as plain values."""
        return {**dataclasses.asdict(self.arguments), **self.start.texts}

    def begin(self, model: nn.Module, wrapped: nn.Module, device: torch.device, saved: dict[str, Any] | None) -> None:
        """A training begins, anew or from what `state_dict` gave."""
        self._begin_anew(model)
        require_same_on_all_ranks(self.name, {**self.objective, 'number of classes': self._shape[0]})
        if saved is not None:
            self._load(saved)
        self.centroids.allocate(self._shape[0], self._shape[1], device)
        self.term.to(device)
        if self._reader is not None:
            self._reader.attach(wrapped)

    def begin_step(self, done: int, fix: Callable[[], None]) -> None:
        """Before a step, after `done` of them: `fix` makes the centroids where they are fixed and it is time."""
        self.centroids.clear()
        self.centroids.begin()
        self.term.weight = None
        weight = self.arguments.weight * self.start.progress(done)
        if weight and self.arguments.centroids == 'fixed' and not self.centroids.fixed:
            fix()
            self.centroids.begin()
        if weight:
            self.term.start_batch(self.centroids, self.arguments.sign * weight)

    def clear(self) -> None:
        """Before a forward."""
        if self._reader is not None:
            self._reader.clear()

    def loss(self, batch: Any, logits: Tensor, labels: Tensor, kept: int) -> Tensor | float:
        """What the first `kept` rows of a microbatch add, a sum; the centroids take them in at the end of the step."""
        x = logits if self._reader is None else self._reader.read(batch, logits)
        self.clear()
        if not kept:
            return 0.0
        x, logits, labels = x[:kept], logits[:kept], labels[:kept]
        finite = torch.isfinite(x).all(-1)
        log_f = log_distribution(torch.where(finite[:, None], x, 0.0), self.arguments.temperature)
        weighed = self.term.weight is not None
        added = self.term.value(log_f, labels, finite, self.centroids) if weighed else None
        self.centroids.add(log_f.detach(), labels, logits.argmax(-1) == labels, finite, added)
        return 0.0 if added is None else added * kept

    def end_step(self) -> None:
        """After a step of the optimizer: one all-reduce, one commit; nothing waits for the device."""
        self.centroids.finish()
        batch, added = self.centroids.commit()
        running, weight = self.centroids.running, self.term.weight
        self.metrics = {
            'cmi/cmi': running.cmi,
            'cmi/mutual_information': running.mutual_information,
            'cmi/relative_cmi': running.relative_cmi,
            'cmi/weight': torch.zeros_like(added) if weight is None else weight.abs(),
            'cmi/loss': added,
            'cmi/train_accuracy': self.centroids.accuracy(batch),
            'cmi/skipped_rows': self.centroids.skipped,
        }
        self.term.end_batch(added)
        self.guard.watch(self.centroids)

    def fix(self, model: nn.Module, wrapped: nn.Module, batches: Iterable[dict[str, Any]]) -> None:
        """Take the centroids of the model as it stands from `batches`, this rank's share (arXiv 2401.08732)."""
        training = model.training
        model.eval()
        if self._reader is not None:
            self._reader.attach(model, always=True)
        with torch.no_grad():
            for batch in batches:
                labels = class_labels(batch)
                inputs = {key: value for key, value in batch.items() if key != 'labels'}
                self.clear()
                self.loss(inputs, class_logits(model(**inputs)), labels, len(labels))
        self.centroids.fix()
        model.train(training)
        if self._reader is not None:
            self._reader.attach(wrapped)

    def check(self) -> None:
        """Let the guard speak; waits for the device."""
        if self.arguments.weight and self.start.on and (trouble := self.guard.speak(self.centroids)):
            warnings.warn(
                f'{self.name}: {trouble}; start later ({self.start} now) or lower the weight '
                f'({self.arguments.weight} now).'
            )

    def end(self, done: int) -> None:
        """After training: say what was asked for and not done, and let go of the model."""
        self.check()
        why = self.term.why_never_added() if self.start.on else 'training ended before it was due'
        if self.arguments.weight and why is not None:
            warnings.warn(f'{self.name}: the term was never added to the loss until step {done} ({self.start}): {why}.')
        if self._reader is not None:
            self._reader.detach()
        self.centroids.clear()

    def state_dict(self) -> dict[str, Any]:
        """Plain types and CPU tensors; equal on all ranks."""
        tensors = {**self.term.state_dict(), 'peak_information': self.guard.peak_information}
        return {
            'schema_version': SCHEMA_VERSION,
            **self.objective,
            'centroids': self.centroids.state_dict(),
            'schedule': self.start.state_dict(),
            'alarms': self.guard.alarms,
            'warned': self.guard.warned,
            **{name: tensor.detach().cpu().clone() for name, tensor in tensors.items()},
        }

    def _load(self, state: dict[str, Any]) -> None:
        check_objective(self.name, {**state, 'centroids': state['centroids']['mode']}, self.objective, _ANEW)
        self.centroids.load_state_dict(state['centroids'])
        self.term.load_state_dict({name: state[name].clone() for name in self.term.state_dict()})
        self.guard = Guard(state['peak_information'].clone(), state['alarms'], state['warned'])
        self.start.load_state_dict(state['schedule'])


class DistillationSteps:
    """Distillation in one training; Composer's `KnowledgeDistillation` with the events of another host.

    Args:
        arguments: Its arguments.
        model: The bare student.
        tokenizer: The student's, or None.
    """

    name = 'KnowledgeDistillation'

    def __init__(self, arguments: DistillationArguments, model: nn.Module, tokenizer: Any):
        self.arguments = arguments
        self._found = match_teacher(arguments, model, tokenizer)
        self._table: LogitCache | None = None
        self._sums: Tensor | None = None
        self.metrics: dict[str, Tensor] = {}

    @property
    def objective(self) -> dict[str, Any]:
        """What decides the loss."""
        facts = {name: getattr(self.arguments, name) for name in ('alpha', 'temperature', 'loss')}
        return {**facts, 'teacher': self._found.fingerprint}

    def begin(
        self, rows: Any, collate: Any, device: torch.device, precision: str, context: Any, saved: dict[str, Any] | None
    ) -> None:
        """A training begins: fill or open the cache, or place the teacher; `context` makes its precision context."""
        require_same_on_all_ranks(self.name, {**self.objective, 'order of classes': self._found.order})
        if saved is not None:
            check_objective(self.name, saved, self.objective, _ANEW)
        order = self._found.order
        self._columns = None if order is None else torch.tensor(order, device=device)
        self._context, self.metrics = context, {}
        if self.arguments.cache is not None:
            options = {'precision': precision, 'context': context}
            self._table = stored_logits(self.arguments, self._found, rows, collate, device, **options)
        elif self._found.teacher is not None:
            self._found.teacher.to(device)

    def begin_step(self) -> None:
        """Before a step."""
        self._sums = None

    def ask(self, batch: Any, ids: Tensor | None) -> Tensor | None:
        """The teacher's logits `[N, C]` in the student's order; before the student's forward takes up memory."""
        if self.arguments.alpha == 0:
            return None
        if self._table is not None:
            return self._table.lookup(example_ids({self.arguments.id_key: ids}, self.arguments.id_key))
        assert self._found.teacher is not None
        with self._context():
            logits = self._found.teacher.logits(batch)
        return logits if self._columns is None else logits.index_select(1, self._columns)

    def loss(self, logits: Tensor, taught: Tensor) -> Tensor:
        """The sum of `tau^2 KL(teacher || student)` over the rows."""
        if logits.shape != taught.shape:
            raise ValueError(
                f"The teacher's logits have shape {list(taught.shape)}, the student's {list(logits.shape)}: both must "
                'be [rows, classes] of the same classes.'
            )
        total = LOSSES[self.arguments.loss](logits, taught, self.arguments.temperature).sum()
        with torch.no_grad():
            agreeing = (logits.argmax(-1) == taught.argmax(-1)).float().sum()
            sums = torch.stack([total.float(), agreeing, torch.full_like(agreeing, len(logits))])
            self._sums = sums if self._sums is None else self._sums + sums
        return total

    def end_step(self) -> None:
        """After a step: of this rank's rows."""
        if self._sums is not None:
            divergence, agreeing, rows = self._sums
            self.metrics = {'distillation/loss': divergence / rows, 'distillation/agreement': agreeing / rows}

    def check(self) -> None:
        """Raise if a lookup on a GPU met an unknown id; waits for the device."""
        if self._table is not None:
            self._table.check()

    def state_dict(self) -> dict[str, Any]:
        """Plain values; nothing of the teacher but its fingerprint."""
        return {'schema_version': SCHEMA_VERSION, **self.objective}
