"""Knowledge distillation as a Composer algorithm: a frozen teacher, run beside the student or read from a cache.

A run of ours (see `composer_cmi.run.distill`) checks the teacher's accuracy first and fills the cache by the teacher's
own tokenizer, over the rows without labels too.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from composer.core import Event, State, get_precision_context
from composer.loggers import Logger
from torch import Tensor

from composer_cmi.algorithms.distillation_batch import check_partners, labelled_share
from composer_cmi.algorithms.loss import distillation_loss, get_total, replace_total
from composer_cmi.algorithms.plugin import PluginAlgorithm, move_to_end, refuse_mixtures
from composer_cmi.batch import class_labels, class_logits
from composer_cmi.registry import register_algorithm
from composer_cmi.teachers.matching import NOT_NOTED_BEFORE, DistillationArguments
from composer_cmi.teachers.steps import DistillationSteps

__all__ = ['KnowledgeDistillation', 'distillation_loss']


@register_algorithm('knowledge_distillation')
@dataclass(repr=False, eq=False)
class KnowledgeDistillation(DistillationArguments, PluginAlgorithm):
    """Train a student on `(1 - alpha) * CE + alpha * tau^2 * KL(teacher || student)` (arXiv 1503.02531).

    Rows whose label is -100 are distilled by the KL alone, mixed with labelled rows in one batch or not. The teacher is
    frozen, in eval mode at every call, under the run's precision, never part of `state.model`; of it a checkpoint
    holds a fingerprint. Works beside `CMIRegularization` and other algorithms in either order: it moves itself to the
    end of the list, since `AFTER_LOSS` runs backwards and the model's own loss is to be weighted before others add to
    it.

    Args:
        teacher: What `composer_cmi.teachers.teacher.load_teacher` takes: a Hugging Face folder or hub name, a run
            folder, a Composer checkpoint, a live module, or a list of these, which are averaged. None with a finished
            cache.
        alpha: Weight of the teacher, 0 to 1.
        temperature: `tau`, positive; its square multiplies the KL always.
        cache: None runs the teacher in every step. A folder: the teacher runs once over the training rows, its logits
            are stored there by `example_id`, and later epochs, ranks and runs read them. Also a cache file or an open
            `LogitCache`.
        assume_same_labels: Classes are compared by name and moved into the student's order. Where one side has no names
            (`LABEL_0`), this word says that the order is the same.
        teacher_weights: One for each teacher of a list, such as `[2, 1]`; equal without.
        loss: What is between teacher and student, times `tau^2`: `'kl'`; `'standardized'`, the KL of logits that each
            row standardises (arXiv 2403.01427); `'dist'`, correlations within rows and classes (arXiv 2205.10536),
            which depends on how a batch is cut into microbatches and ranks, and says so.
        raise_cmi: Where the logits are cached: raise their CMI without training the teacher, by a temperature for each
            class, fitted on the labelled training rows; this much of the accuracy there may be lost (0.01: one point).
        relation: Weight of how otherwise a row's features lie to the class means than in the teacher (cosines, Huber
            distance; after arXiv 1904.05068, without comparing rows). For one teacher without a cache.
        average: What is averaged of a list: `'logits'`, which commutes with the temperature, or `'probabilities'`, at
            temperature 1.
        allow_weak_teacher: Accept a teacher that is no better than the commonest class (a run of ours checks that).
        label_key: Where the labels are in a batch; `'labels'` in a mapping, else 1.
        id_key: Where the example ids are in a batch, for the cache.

    Raises:
        ValueError: For arguments out of range; at the start of the Trainer for a teacher that does not fit the student.
        FileNotFoundError: There is no such teacher or cache.
    """

    _: KW_ONLY
    allow_weak_teacher: bool = False
    label_key: str | int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        # What a run writes of the teacher into results.json; `composer_cmi.run.distill` fills it.
        self.teacher_facts: dict[str, Any] | None = None
        self.begin_anew()

    def begin_anew(self) -> None:
        """Set all that a run changes to what it is before one."""
        self.fingerprint: str | None = None
        self._saved: dict[str, Any] = {}
        self._steps: DistillationSteps | None = None
        self._applied = False
        self.release()

    def release(self) -> None:
        """Drop the tensors of the batch."""
        self._teacher_logits: Tensor | None = None
        self._labelled_share: Tensor | None = None
        self._labels: Tensor | None = None
        self._logged = False
        if self._steps is not None:
            self._steps.release()

    def __repr__(self) -> str:
        return f'KnowledgeDistillation(alpha={self.alpha}, temperature={self.temperature})'

    @property
    def objective(self) -> dict[str, Any]:
        """Beside the teacher; `cache` may change (the same logits), and so may the keys and the two permissions."""
        return self.loss_objective

    handlers = {
        Event.INIT: '_compare',
        Event.FIT_START: '_start',
        Event.BATCH_START: '_begin_batch',
        Event.BEFORE_TRAIN_BATCH: '_begin_pass',
        Event.BEFORE_FORWARD: '_ask_teacher',
        Event.AFTER_LOSS: '_weigh',
        Event.AFTER_TRAIN_BATCH: '_log',
        Event.BATCH_END: '_end_batch',
        Event.EPOCH_END: '_check_table',
        Event.FIT_END: '_end',
    }

    def _compare(self, state: State, logger: Logger) -> None:
        """INIT: everything that can be wrong between teacher and student, before anything is wrapped or trained."""
        check_partners(state.algorithms, cached=self.cache is not None)
        if self.relation:
            refuse_mixtures(self, state, 'relation is to classes, and a mixture of two examples has none')
        move_to_end(self, state)
        self._steps = DistillationSteps(self, state.model, getattr(state.model, 'tokenizer', None))
        self._steps.load_state_dict(self._saved)
        self.fingerprint = self._steps.fingerprint
        self._check_teacher()
        self._steps.require_same_on_all_ranks()

    def _start(self, state: State, logger: Logger) -> None:
        """FIT_START: open or fill the cache, place the table or the teacher on the device."""
        self.release()
        check_partners(state.algorithms, cached=self.cache is not None)
        move_to_end(self, state)
        loader: Any = state.train_dataloader
        self._running.begin(
            getattr(loader, 'dataset', None),
            getattr(loader, 'collate_fn', None),
            state.device.tensor_to_device(torch.zeros(())).device,
            precision=state.precision.value,
            context=lambda: _precision(state),
            model=state.model,
            label_key=self.label_key,
        )
        if (raised := self._running.raised) is not None:
            for name in ('cmi', 'accuracy'):
                before, after = raised[name]
                said: dict[str, Any] = {f'distillation/teacher_{name}': before, f'distillation/raised_{name}': after}
                logger.log_metrics(said)

    @property
    def raised(self) -> dict[str, Any] | None:
        """Temperatures, CMI and accuracy, before and after, of `raise_cmi`, once training has begun."""
        return None if self._steps is None else self._steps.raised

    def raised_words(self) -> str:
        """The same in a sentence; empty where it was not asked for."""
        return '' if self._steps is None else self._steps.raised_words()

    @property
    def _running(self) -> DistillationSteps:
        assert self._steps is not None  # since INIT
        return self._steps

    def _begin_batch(self, state: State, logger: Logger) -> None:
        # SAM passes a batch twice, the second time at other weights: the first pass is what is logged.
        self._logged = False

    def _begin_pass(self, state: State, logger: Logger) -> None:
        # Once per closure: a batch that is replayed after an out-of-memory error is not counted twice.
        self._running.begin_pass()

    def _ask_teacher(self, state: State, logger: Logger) -> None:
        """BEFORE_FORWARD: labels are hard yet, and the student's activations do not take up memory yet."""
        self._labelled_share = labelled_share(state, self.label_key)
        self._labels = class_labels(state.batch, self.label_key) if self.relation else None
        self._teacher_logits = self._running.ask(state.batch, _precision(state))

    def _weigh(self, state: State, logger: Logger) -> None:
        """AFTER_LOSS: replace the model's own loss by its mixture with the divergence, leaving other terms alone."""
        total, share = get_total(state.loss), self._labelled_share
        outputs: Any = state.outputs
        if share is None:
            raise RuntimeError('KnowledgeDistillation saw a loss without a forward pass before it.')
        own = outputs.get('loss', total) if isinstance(outputs, Mapping) else total
        divergence = total.new_zeros(1)
        if self._teacher_logits is not None:
            divergence = self._running.divergence(class_logits(outputs), self._teacher_logits)
            self._applied = True
        mixed = distillation_loss(own, divergence, share, self.alpha)
        if self._labels is not None:
            related = self._running.relation(state.batch, class_logits(outputs), self._labels)
            mixed = mixed if related is None else mixed + related.mean().to(mixed.dtype)
        state.loss = replace_total(state.loss, mixed if total is own else total - own + mixed)
        self._teacher_logits = self._labelled_share = self._labels = None

    def _end_batch(self, state: State, logger: Logger) -> None:
        self._running.end_step()

    def _log(self, state: State, logger: Logger) -> None:
        metrics: dict[str, Any] = {} if self._logged else self._running.end_pass()
        if metrics:
            self._logged = True
            # Tensors, not floats: whether to wait for the device is the logger's choice.
            logger.log_metrics(metrics)

    def _check_table(self, state: State, logger: Logger) -> None:
        self._running.check()

    def _end(self, state: State, logger: Logger) -> None:
        self._check_table(state, logger)
        if self.alpha and not self._applied:
            warnings.warn('KnowledgeDistillation: the teacher was never asked, since no batch was trained.')
        self.release()

    def state_dict(self) -> dict[str, Any]:
        """Plain values: what makes the objective; nothing of the teacher but its fingerprint."""
        beside = {} if self._steps is None else self._steps.state_dict()
        return {**super().state_dict(), 'fingerprint': self.fingerprint or '', **beside}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the same objective; ValueError for a newer schema, another alpha, temperature or teacher."""
        self.check_objective({**NOT_NOTED_BEFORE, **state})
        self._saved, self._used = state, False
        if self._steps is not None:
            self._steps.load_state_dict(state)
        self._check_teacher()

    def _check_teacher(self) -> None:
        saved, ours = self._saved.get('fingerprint'), self.fingerprint
        if not saved or ours is None:
            return
        if saved != ours:
            raise ValueError(
                f'The checkpoint was distilled from another teacher (weights {saved[:12]}, now {ours[:12]}): use the '
                'same to resume, or begin anew with load_weights_only=True.'
            )


def _precision(state: State) -> contextlib.AbstractContextManager[Any]:
    return get_precision_context(state.precision, state.precision_config)
