"""Knowledge distillation as a Composer algorithm: a frozen teacher, run beside the student or read from a cache.

In a plain Trainer::

    Trainer(..., algorithms=KnowledgeDistillation('path/of/teacher', alpha=0.5, temperature=2.0, cache='logits'))

A run of ours (see `composer_cmi.run.distill`) checks the teacher's accuracy first and fills the cache
by the teacher's own tokenizer, over the rows without labels too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from composer.core import Algorithm, Event, State, get_precision_context
from composer.loggers import Logger
from torch import Tensor

from composer_cmi.algorithms.distillation_batch import (
    check_partners,
    example_ids,
    known_ids,
    labelled_share,
    refuse_shared_weights,
)
from composer_cmi.algorithms.loss import get_total, replace_total
from composer_cmi.arguments import Share, Temperature
from composer_cmi.functional import distillation_divergence
from composer_cmi.registry import register_algorithm
from composer_cmi.teachers.compatibility import check_numbers, label_names_of, label_order, num_labels_of
from composer_cmi.teachers.forward import rows_fingerprint, run_teacher
from composer_cmi.teachers.logit_cache import CacheError, CacheKey, LogitCache, open_or_build
from composer_cmi.teachers.teacher import Teacher, TeacherSpec, load_teacher, outputs_to_logits

__all__ = ['KnowledgeDistillation', 'distillation_loss']

_SCHEMA_VERSION = 1


def distillation_loss(own: Tensor, divergence: Tensor, labelled_share: Tensor, alpha: float) -> Tensor:
    """`(1 - alpha) * share * CE + alpha * mean(tau^2 KL)` (arXiv 1503.02531; rows without labels give KL alone).

    `own` is a mean over the labelled rows only; times their share it is a sum over labelled rows divided by all rows,
    so that every split of a batch into microbatches gives the same gradient.

    Args:
        own: 0-d, the model's own loss, a mean over labelled rows; NaN where there is none.
        divergence: `[N]`, `composer_cmi.functional.distillation_divergence` of each row.
        labelled_share: 0-d, labelled rows divided by all rows.
        alpha: weight of the teacher, 0 to 1. At 0 the result is `own` (bit for bit if all rows are labelled), at 1 the
            divergence alone.

    Returns:
        0-d, in the dtype of `own`.
    """
    # A batch without labels makes `own` NaN with zero gradient; choosing on the device costs no wait for it.
    labelled = torch.where(labelled_share > 0, own * ((1 - alpha) * labelled_share), 0.0).to(own.dtype)
    taught = divergence.mean().to(own.dtype)
    if alpha == 0:
        return labelled
    return taught if alpha == 1 else labelled + alpha * taught


@register_algorithm('knowledge_distillation')
class KnowledgeDistillation(Algorithm):
    """Train a student on `(1 - alpha) * CE + alpha * tau^2 * KL(teacher || student)` (arXiv 1503.02531).

    Rows whose label is -100 are distilled by the KL alone, mixed with labelled rows in one batch or not. The teacher is
    frozen, in eval mode at every call, under the run's precision, never part of `state.model`; of it a checkpoint
    holds a fingerprint. Works beside `CMIRegularization` and other algorithms in either order: it moves itself to the
    end of the list, since `AFTER_LOSS` runs backwards and the model's own loss is to be weighted before others add to
    it.

    Args:
        teacher: What `composer_cmi.teachers.teacher.load_teacher` takes: a Hugging Face folder or hub name, a run
            folder, a Composer checkpoint, a live module, or a list of these, whose logits are averaged. None with a
            finished cache.
        alpha: Weight of the teacher, 0 to 1.
        temperature: `tau`, positive; its square multiplies the KL always.
        cache: None runs the teacher in every step. A folder: the teacher runs once over the training rows, its logits
            are stored there by `example_id`, and later epochs, ranks and runs read them. Also a cache file or an open
            `LogitCache`.
        assume_same_labels: Classes are compared by name and moved into the student's order. Where one side has no names
            (`LABEL_0`), this word says that the order is the same.
        allow_weak_teacher: Accept a teacher that is no better than the commonest class (a run of ours checks that).
        label_key: Where the labels are in a batch; `'labels'` in a mapping, else 1.
        id_key: Where the example ids are in a batch, for the cache.

    Raises:
        ValueError: For arguments out of range; at the start of the Trainer for a teacher that does not fit the student.
        FileNotFoundError: There is no such teacher or cache.
    """

    def __init__(
        self,
        teacher: TeacherSpec | None = None,
        alpha: Share = 0.5,
        temperature: Temperature = 2.0,
        cache: str | Path | LogitCache | None = None,
        *,
        assume_same_labels: bool = False,
        allow_weak_teacher: bool = False,
        label_key: str | int | None = None,
        id_key: str = 'example_id',
    ):
        if not 0 <= alpha <= 1:
            raise ValueError(f'alpha, the weight of the teacher, must lie between 0 and 1, got {alpha}.')
        if not temperature > 0:
            raise ValueError(f'temperature must be positive, got {temperature}.')
        if isinstance(cache, (str, Path)) and (Path(cache).is_file() or Path(cache).suffix == '.safetensors'):
            cache = LogitCache.open(cache)
        if teacher is None and not isinstance(cache, LogitCache):
            raise ValueError('Distillation needs a teacher: set `teacher`, or `cache` to a finished cache file.')
        self.teacher, self.cache = teacher, cache
        # What a run writes of the teacher into results.json; `composer_cmi.run.distill` fills it.
        self.teacher_facts: dict[str, Any] | None = None
        self.alpha, self.temperature = float(alpha), float(temperature)
        self.assume_same_labels, self.allow_weak_teacher = assume_same_labels, allow_weak_teacher
        self.label_key, self.id_key = label_key, id_key
        self.fingerprint: str | None = None
        self._saved_fingerprint: str | None = None
        self._teacher: Teacher | None = None
        self._order: list[int] | None = None
        self._table: LogitCache | None = None
        self._teacher_logits: Tensor | None = None
        self._labelled_share: Tensor | None = None
        self._logged = False
        self._sums: Tensor | None = None  # of the divergence, of agreeing rows, of rows: since the batch began

    def __repr__(self) -> str:
        return f'KnowledgeDistillation(alpha={self.alpha}, temperature={self.temperature})'

    def match(self, event: Event, state: State) -> bool:
        """Whether `event` is one of those that `apply` handles."""
        return event in _HANDLERS

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Do this event's part of the work; see `_HANDLERS`."""
        getattr(self, _HANDLERS[event])(state, logger)

    # --- before training --------------------------------------------------------------------------------------------

    def _compare(self, state: State, logger: Logger) -> None:
        """INIT: everything that can be wrong between teacher and student, before anything is wrapped or trained."""
        check_partners(state.algorithms, cached=self.cache is not None)
        _move_to_end(self, state)
        for spec in self.teacher if isinstance(self.teacher, (list, tuple)) else [self.teacher]:
            refuse_shared_weights(spec, state.model)
        student = state.model
        if self.teacher is not None:
            self._teacher = load_teacher(self.teacher, assume_same_labels=self.assume_same_labels)
        source = self._teacher if self._teacher is not None else self.cache
        assert isinstance(source, (Teacher, LogitCache))
        check_numbers(source.num_labels, num_labels_of(student))
        nameless = source.label_names is None and not hasattr(student, 'config')
        if not nameless:  # of two plain modules neither can have names
            self._order = label_order(
                source.label_names, label_names_of(student), assume_same_labels=self.assume_same_labels
            )
        self.fingerprint = source.key.teacher if isinstance(source, LogitCache) else source.fingerprint
        if isinstance(self.cache, LogitCache) and self.cache.key.teacher != self.fingerprint:
            raise CacheError('The logit cache was filled by another teacher than `teacher`: name a folder instead.')
        if not isinstance(self.cache, LogitCache) and self._teacher is not None:
            self._teacher.check_vocabulary(getattr(student, 'tokenizer', None))
        self._check_fingerprint()

    def _start(self, state: State, logger: Logger) -> None:
        """FIT_START: open or fill the cache, place the table or the teacher on the device."""
        device = state.device.tensor_to_device(torch.zeros(())).device
        check_partners(state.algorithms, cached=self.cache is not None)
        _move_to_end(self, state)
        if self.cache is None:
            assert self._teacher is not None
            self._teacher.to(device)
            return
        rows = getattr(state.train_dataloader, 'dataset', None)
        table = self.cache if isinstance(self.cache, LogitCache) else self._open_or_build(state, rows, device)
        if (ids := known_ids(rows, self.id_key)) is not None:
            table.require(ids)
        self._table = table.reordered(self._order).to(device)

    def _open_or_build(self, state: State, rows: Any, device: torch.device) -> LogitCache:
        assert self._teacher is not None and isinstance(self.cache, (str, Path))
        if rows is None or not hasattr(rows, '__getitem__'):
            raise ValueError(
                'A cache folder needs a train dataloader with a map-style dataset: give an open LogitCache, or leave '
                '`cache` out.'
            )
        teacher, names = self._teacher, self._teacher.label_names
        key = CacheKey(teacher.fingerprint, rows_fingerprint(rows), precision=state.precision.value)

        def build() -> LogitCache:
            ids, logits = run_teacher(
                teacher.to(device),
                rows,
                lambda items: state.device.batch_to_device(state.train_dataloader.collate_fn(items)),  # type: ignore
                context=lambda: _precision(state),
                id_key=self.id_key,
            )
            return LogitCache(ids, logits, key=key, label_names=names)

        return open_or_build(self.cache, key, build)

    # --- in a step --------------------------------------------------------------------------------------------------

    def _begin_batch(self, state: State, logger: Logger) -> None:
        # SAM passes a batch twice, the second time at other weights: the first pass is what is logged.
        self._logged = False

    def _begin_pass(self, state: State, logger: Logger) -> None:
        # Once per closure: a batch that is replayed after an out-of-memory error is not counted twice.
        self._sums = None

    def _ask_teacher(self, state: State, logger: Logger) -> None:
        """BEFORE_FORWARD: labels are hard yet, and the student's activations do not take up memory yet."""
        self._labelled_share = labelled_share(state, self.label_key)
        if self.alpha == 0:
            return
        if self._table is not None:
            self._teacher_logits = self._table.lookup(example_ids(state.batch, self.id_key))
            return
        assert self._teacher is not None
        with _precision(state):
            logits = self._teacher.logits(state.batch)
        self._teacher_logits = logits if self._order is None else logits[:, self._order]

    def _weigh(self, state: State, logger: Logger) -> None:
        """AFTER_LOSS: replace the model's own loss by its mixture with the divergence, leaving other terms alone."""
        total, share = get_total(state.loss), self._labelled_share
        outputs: Any = state.outputs
        if share is None:
            raise RuntimeError('KnowledgeDistillation saw a loss without a forward pass before it.')
        own = outputs.get('loss', total) if isinstance(outputs, Mapping) else total
        divergence = total.new_zeros(1)
        if self.alpha > 0:
            divergence = self._divergence(outputs_to_logits(outputs))
        mixed = distillation_loss(own, divergence, share, self.alpha)
        state.loss = replace_total(state.loss, mixed if total is own else total - own + mixed)
        self._teacher_logits = self._labelled_share = None

    def _divergence(self, student: Tensor) -> Tensor:
        teacher = self._teacher_logits
        assert teacher is not None
        if student.shape != teacher.shape:
            raise ValueError(
                f"The teacher's logits have shape {list(teacher.shape)}, the student's {list(student.shape)}: both "
                'must be [rows, classes] of the same classes.'
            )
        teacher = teacher.to(student.device)
        divergence = distillation_divergence(student, teacher, self.temperature)
        with torch.no_grad():
            agreeing = (student.argmax(-1) == teacher.argmax(-1)).float().sum()
            sums = torch.stack([divergence.float().sum(), agreeing, torch.full_like(agreeing, len(student))])
            self._sums = sums if self._sums is None else self._sums + sums
        return divergence

    def _log(self, state: State, logger: Logger) -> None:
        if self._sums is None or self._logged:
            return
        self._logged = True
        # Tensors, not floats: whether to wait for the device is the logger's choice. Of this rank's rows.
        divergence, agreeing, rows = self._sums
        metrics: dict[str, Any] = {'distillation/loss': divergence / rows, 'distillation/agreement': agreeing / rows}
        logger.log_metrics(metrics)

    def _check_table(self, state: State, logger: Logger) -> None:
        if self._table is not None:
            self._table.check()

    # --- state ------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Plain values: what makes the objective; nothing of the teacher but its fingerprint."""
        return {
            'repr': repr(self),
            'schema_version': _SCHEMA_VERSION,
            'fingerprint': self.fingerprint or '',
            'alpha': self.alpha,
            'temperature': self.temperature,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Check that a resumed run goes on with the objective that it began with.

        Raises:
            ValueError: A newer schema, another alpha or temperature, or another teacher.
        """
        version = state.get('schema_version')
        if not isinstance(version, int) or version > _SCHEMA_VERSION:
            raise ValueError(
                f"The checkpoint's KnowledgeDistillation has schema version {version}, this composer-cmi reads up to "
                f'{_SCHEMA_VERSION}: upgrade composer-cmi.'
            )
        for name in ('alpha', 'temperature'):
            if state[name] != getattr(self, name):
                raise ValueError(
                    f"The checkpoint's KnowledgeDistillation has {name}={state[name]}, this run asks for "
                    f'{getattr(self, name)}: use the same to resume, or begin anew with load_weights_only.'
                )
        self._saved_fingerprint = state['fingerprint'] or None
        self._check_fingerprint()

    def _check_fingerprint(self) -> None:
        saved, ours = self._saved_fingerprint, self.fingerprint
        if saved is not None and ours is not None and saved != ours:
            raise ValueError(
                f'The checkpoint was distilled from another teacher (weights {saved[:12]}, now {ours[:12]}): use the '
                'same to resume, or begin anew with load_weights_only.'
            )


_HANDLERS = {
    Event.INIT: '_compare',
    Event.FIT_START: '_start',
    Event.BATCH_START: '_begin_batch',
    Event.BEFORE_TRAIN_BATCH: '_begin_pass',
    Event.BEFORE_FORWARD: '_ask_teacher',
    Event.AFTER_LOSS: '_weigh',
    Event.AFTER_TRAIN_BATCH: '_log',
    Event.EPOCH_END: '_check_table',
    Event.FIT_END: '_check_table',
}


def _move_to_end(algorithm: KnowledgeDistillation, state: State) -> None:
    if any(other is algorithm for other in state.algorithms) and state.algorithms[-1] is not algorithm:
        state.algorithms = [*(other for other in state.algorithms if other is not algorithm), algorithm]


def _precision(state: State) -> contextlib.AbstractContextManager[Any]:
    return get_precision_context(state.precision, state.precision_config)
