"""A teacher through the steps of a training, whatever trains the student."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn

from composer_cmi.features import FeatureReader
from composer_cmi.teachers.average import raise_cmi, with_temperatures
from composer_cmi.teachers.forward import labels_of_rows
from composer_cmi.teachers.logit_cache import LogitCache
from composer_cmi.teachers.losses import LOSSES
from composer_cmi.teachers.matching import DistillationArguments, example_ids, match_teacher, stored_logits
from composer_cmi.terms.objective import from_first_rank, require_same_on_all_ranks
from composer_cmi.terms.relation import ClassRelation

__all__ = ['DistillationSteps']

log = logging.getLogger(__name__)


class DistillationSteps:
    """The distillation of one training; its host tells it of the events.

    Args:
        arguments: What was asked for.
        student: The bare model.
        tokenizer: The student's, or None.

    Raises:
        ValueError: Teacher and student do not fit, or differ between the ranks.
    """

    name = 'KnowledgeDistillation'

    def __init__(self, arguments: DistillationArguments, student: nn.Module, tokenizer: Any):
        self.arguments = arguments
        self._found = match_teacher(arguments, student, tokenizer)
        self.fingerprint = self._found.fingerprint
        self.table: LogitCache | None = None
        self.raised: dict[str, Any] | None = None  # what temperatures made of the teacher's CMI, once fitted
        self._readers = self._find_features(student) if arguments.relation else None  # of student and teacher
        self._relation = ClassRelation()
        self._theirs: Tensor | None = None  # the teacher's features of a microbatch
        self._related: Tensor | None = None  # the sum of the relation's rows since the pass began
        self._columns: Tensor | None = None  # of the teacher's classes, in the student's order
        self._passes = 0  # over parts of this step's rows
        self._told = False
        self._sums: Tensor | None = None  # of the divergence, of agreeing rows, of rows: since the pass began

    @property
    def objective(self) -> dict[str, Any]:
        """What decides the loss."""
        return {**self.arguments.loss_objective, 'teacher': self.fingerprint}

    def require_same_on_all_ranks(self) -> None:
        """ValueError where another rank has another objective or order of the classes."""
        require_same_on_all_ranks(self.name, {**self.objective, 'order of classes': self._found.order})

    def _find_features(self, student: nn.Module) -> tuple[FeatureReader, FeatureReader]:
        teacher = self._found.teacher
        assert teacher is not None  # without one there is a cache, which is refused
        first, *others = teacher.members
        if others:
            raise ValueError(f'relation is to the features of one teacher, {len(teacher.members)} are given: name one.')
        return FeatureReader(student), FeatureReader(first.module, num_classes=teacher.num_labels)

    def begin_anew(self) -> None:
        """Another training: nothing of an earlier one is left."""
        self._relation, self.raised = ClassRelation(), None

    def begin(
        self,
        rows: Any,
        collate: Any,
        device: torch.device,
        precision: str,
        context: Callable[[], AbstractContextManager[Any]],
        model: nn.Module,
        label_key: Any = None,
    ) -> None:
        """A training begins: fill or open the cache, or place the teacher.

        Args:
            rows: As of `matching.stored_logits`, like the next ones.
            collate: See there.
            device: See there.
            precision: See there.
            context: See there.
            model: The student, by now perhaps wrapped.
            label_key: Where a batch holds its labels.
        """
        order, teacher = self._found.order, self._found.teacher
        self._columns = None if order is None else torch.tensor(order, device=device)
        if self.arguments.cache is not None:
            options = {'precision': precision, 'context': context}
            self.table = stored_logits(self.arguments, self._found, rows, collate, device, **options)
            if self.arguments.raise_cmi is not None:
                self.table = self._raised(self.table, rows, collate, label_key)
        elif teacher is not None:
            teacher.to(device)
        if self._readers is not None and teacher is not None:
            self._readers[0].attach(model)
            self._readers[1].attach(teacher.members[0].module, always=True)

    def _raised(self, table: LogitCache, rows: Any, collate: Any, label_key: Any) -> LogitCache:
        """Put temperatures between the stored logits and the student: fitted once, and kept through a resume."""
        a = self.arguments
        assert a.raise_cmi is not None
        if (raised := self.raised) is None:
            if rows is None or not hasattr(rows, '__getitem__'):
                raise ValueError('raise_cmi reads the labels of all training rows, which needs a map-style dataset.')
            ids, labels = labels_of_rows(rows, collate, id_key=a.id_key, label_key=label_key)
            table.require(ids)
            logits = table.lookup(ids.to(table.logits.device))
            found = raise_cmi(logits, labels, temperature=a.temperature, loss_of_accuracy=a.raise_cmi)
            # Machines may round differently: all ranks take what the first has found.
            self.raised = raised = from_first_rank(found._asdict())
            log.info(self.raised_words())
        logits = with_temperatures(table.logits, raised['temperatures'])
        return LogitCache(table.example_ids, logits, key=table.key, label_names=table.label_names)

    def raised_words(self) -> str:
        """What `raise_cmi` has done, in a sentence; empty where it was not asked for."""
        if self.raised is None:
            return ''
        (cmi, now), (right, still) = self.raised['cmi'], self.raised['accuracy']
        return (
            f'Teacher: CMI of its stored logits raised from {cmi:.4f} to {now:.4f} nats, accuracy {right:.4f} to '
            f'{still:.4f}, on the labelled training rows.'
        )

    def begin_pass(self) -> None:
        """Before a pass over the rows of a step; one that is repeated is not counted twice."""
        self._sums, self._passes = None, 0
        self._theirs = self._related = None
        self._relation.begin()

    def release(self) -> None:
        """Let go of both models and of the tensors of a batch; an exception may have left them."""
        for reader in self._readers or ():
            reader.detach()
        self.begin_pass()
        self._relation.clear()

    def ask(self, batch: Any, context: AbstractContextManager[Any], ids: Tensor | None = None) -> Tensor | None:
        """The teacher's logits `[N, C]` in the student's order; before the student's forward takes up memory.

        Args:
            batch: What the student is given.
            context: To run the teacher in.
            ids: Of the rows, `[N]`, where the batch does not hold them.

        Returns:
            None where the teacher has no weight.
        """
        if self.arguments.alpha == 0 and not self.arguments.relation:
            return None
        if self.table is not None:
            key = self.arguments.id_key
            return self.table.lookup(example_ids(batch if ids is None else {key: ids}, key))
        assert self._found.teacher is not None
        for reader in self._readers or ():
            reader.clear()
        with context:
            logits = self._found.teacher.logits(batch)
        if self._readers is not None:
            self._theirs = self._readers[1].read(batch, logits)
            self._readers[1].clear()
        return logits if self._columns is None else logits.index_select(1, self._columns)

    def divergence(self, student: Tensor, teacher: Tensor) -> Tensor:
        """What `loss` names of each row, times `tau^2`, `[N]`; ValueError for other shapes of the logits."""
        if student.shape != teacher.shape:
            raise ValueError(
                f"The teacher's logits have shape {list(teacher.shape)}, the student's {list(student.shape)}: both "
                'must be [rows, classes] of the same classes.'
            )
        teacher = teacher.to(student.device)
        self._warn_of_parts()
        divergence = LOSSES[self.arguments.loss](student, teacher, self.arguments.temperature)
        with torch.no_grad():
            agreeing = (student.argmax(-1) == teacher.argmax(-1)).float().sum()
            sums = torch.stack([divergence.float().sum(), agreeing, torch.full_like(agreeing, len(student))])
            self._sums = sums if self._sums is None else self._sums + sums
        return divergence

    def relation(self, batch: Any, logits: Tensor, labels: Tensor, rows: int | None = None) -> Tensor | None:
        """`relation` times how otherwise each row lies to the classes than in the teacher, `[N]`; None at weight 0.

        Args:
            batch: What the student was given.
            logits: `[N, C]`, as the student gave them.
            labels: `[N]` int64; outside `0..C-1` a row has no class.
            rows: How many count, from the first on; all by default.
        """
        if self._readers is None or self._theirs is None:
            return None
        ours = self._readers[0].read(batch, logits)
        self._readers[0].clear()
        term = self._relation.rows(ours[:rows], self._theirs.to(ours.device)[:rows], labels[:rows], logits.shape[-1])
        self._theirs = None
        self._related = term.detach().sum() + (0 if self._related is None else self._related)
        return self.arguments.relation * term

    def _warn_of_parts(self) -> None:
        self._passes += 1
        ranks = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
        if self.arguments.loss == 'dist' and not self._told and (self._passes > 1 or ranks > 1):
            self._told = True
            warnings.warn(
                "KnowledgeDistillation(loss='dist') compares the rows of one forward pass on one rank with each other: "
                'the result depends on the microbatch size and the number of ranks.'
            )

    def end_pass(self) -> dict[str, Tensor]:
        """What to log of the pass, of this rank's rows; nothing waits for the device."""
        self._relation.finish()
        if self._sums is None:
            return {}
        divergence, agreeing, rows = self._sums
        related = {} if self._related is None else {'distillation/relation': self._related / rows}
        return {'distillation/loss': divergence / rows, 'distillation/agreement': agreeing / rows, **related}

    def end_step(self) -> None:
        """After a step: what its rows say of the classes counts from the next one on."""
        self._relation.commit()

    def state_dict(self) -> dict[str, Any]:
        """Beside the objective: plain types and CPU tensors, equal on all ranks."""
        return {**({} if self.raised is None else {'raised': self.raised}), **self._relation.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self.raised = state.get('raised')
        self._relation.load_state_dict(state)

    def check(self) -> None:
        """Raise if a lookup on a GPU met an unknown id; waits for the device."""
        if self.table is not None:
            self.table.check()
