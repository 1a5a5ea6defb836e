"""What distillation asks of a teacher, a student and their rows, whatever trains the student."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from composer_cmi.teachers.average import Average
from composer_cmi.teachers.compatibility import check_numbers, label_names_of, label_order, num_labels_of
from composer_cmi.teachers.forward import PiecesOfPass, inputs_fingerprint, open_or_pass, run_teacher
from composer_cmi.teachers.logit_cache import CacheError, CacheKey, LogitCache
from composer_cmi.teachers.losses import LOSSES, DistillationLoss
from composer_cmi.teachers.teacher import Teacher, TeacherSpec, load_teacher
from composer_cmi.terms.ranges import Share, Temperature, Weight

__all__ = [
    'LOSSES',
    'NOT_NOTED_BEFORE',
    'DistillationArguments',
    'DistillationLoss',
    'Match',
    'example_ids',
    'match_teacher',
    'stored_logits',
]

NOT_NOTED_BEFORE = {'raise_cmi': None, 'relation': 0.0}
"""What a state of a version that did not have them yet was trained with."""

_BATCH = 64  # rows that a teacher reads at a time


@dataclass(repr=False, eq=False)
class DistillationArguments:
    """Of `composer_cmi.KnowledgeDistillation`, which says what they mean.

    Raises:
        ValueError: for values out of range, or without teacher and cache.
        FileNotFoundError: there is no such cache.
    """

    teacher: TeacherSpec | None = None
    alpha: Share = 0.5
    temperature: Temperature = 2.0
    cache: str | Path | LogitCache | None = None
    _: KW_ONLY
    assume_same_labels: bool = False
    id_key: str = 'example_id'
    teacher_weights: Sequence[float] | None = None
    average: Average = 'logits'
    loss: DistillationLoss = 'kl'
    raise_cmi: Share | None = None
    relation: Weight = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ValueError(f'alpha, the weight of the teacher, must lie between 0 and 1, got {self.alpha}.')
        if not 0 < self.temperature < math.inf:
            raise ValueError(f'temperature must be positive, got {self.temperature}.')
        cache = self.cache
        if isinstance(cache, (str, Path)) and (Path(cache).is_file() or Path(cache).suffix == '.safetensors'):
            self.cache = LogitCache.open(cache)
        if self.teacher is None and not isinstance(self.cache, LogitCache):
            raise ValueError('Distillation needs a teacher: set `teacher`, or `cache` to a finished cache file.')
        self.alpha, self.temperature = float(self.alpha), float(self.temperature)
        if self.loss not in LOSSES:
            raise ValueError(f'loss must be one of {", ".join(LOSSES)}, got {self.loss!r}.')
        if isinstance(self.teacher, (list, tuple)) and not self.teacher:
            raise ValueError('teacher is an empty list: name at least one.')
        self._check_additions()
        weights, several = self.teacher_weights, isinstance(self.teacher, (list, tuple))
        if (weights is not None or self.average != 'logits') and not several:
            raise ValueError('teacher_weights and average are for several teachers: `teacher` must be a list of them.')
        if self.average not in get_args(Average):
            raise ValueError(f"average must be 'logits' or 'probabilities', got {self.average!r}.")
        count = len(self.teacher) if isinstance(self.teacher, (list, tuple)) else 1
        if weights is not None and (len(weights) != count or not all(0 < weight < math.inf for weight in weights)):
            raise ValueError(
                f'teacher_weights must be {count} positive numbers, one for each teacher, got {list(weights)}.'
            )

    def _check_additions(self) -> None:
        if self.raise_cmi is not None and not 0 <= self.raise_cmi <= 1:
            raise ValueError(f'raise_cmi, a loss of accuracy, must lie between 0 and 1, got {self.raise_cmi}.')
        if self.raise_cmi is not None and self.cache is None:
            raise ValueError(
                "raise_cmi is fitted on the teacher's logits of all training rows, which only a cache has: set `cache` "
                'to a folder, or leave raise_cmi out.'
            )
        if not 0 <= self.relation < math.inf:
            raise ValueError(f'relation, a weight, must be at least 0, got {self.relation}.')
        if self.relation and self.cache is not None:
            raise ValueError(
                "relation compares features, and a cache holds a teacher's logits alone: leave `cache` out, so that "
                'the teacher runs in every step, or leave relation out.'
            )
        if self.relation and isinstance(self.teacher, (list, tuple)) and len(self.teacher) > 1:
            raise ValueError(f'relation is to the features of one teacher, {len(self.teacher)} are given: name one.')

    @property
    def loss_objective(self) -> dict[str, Any]:
        """What decides the loss, beside the teacher."""
        names = ('alpha', 'temperature', 'loss', 'raise_cmi', 'relation')
        return {name: getattr(self, name) for name in names}

    def load_teacher(self) -> Teacher | None:
        """The teacher that was asked for, averaged as was asked; None where a finished cache stands for it."""
        if self.teacher is None:
            return None
        return load_teacher(
            self.teacher,
            assume_same_labels=self.assume_same_labels,
            weights=self.teacher_weights,
            average=self.average,
        )


@dataclass(frozen=True)
class Match:
    """A teacher that fits a student.

    Attributes:
        teacher: None where a finished cache stands for it.
        order: Of the teacher's classes, in the student's; None where nothing is to be moved.
        fingerprint: Of the teacher's weights.
    """

    teacher: Teacher | None
    order: list[int] | None
    fingerprint: str


def match_teacher(arguments: DistillationArguments, student: nn.Module, tokenizer: Any) -> Match:
    """Load the teacher and find everything that can be wrong between it and the student.

    Args:
        arguments: What was asked for.
        student: The bare model.
        tokenizer: The student's, or None.

    Raises:
        ValueError: They do not fit.
    """
    spec, cache = arguments.teacher, arguments.cache
    for one in spec if isinstance(spec, (list, tuple)) else [spec]:
        _refuse_shared_weights(one, student)
    teacher = arguments.load_teacher()
    source: Any = teacher if teacher is not None else cache
    check_numbers(source.num_labels, num_labels_of(student))
    order = None
    if source.label_names is not None or hasattr(student, 'config'):  # of two plain modules neither can have names
        names = label_names_of(student)
        order = label_order(source.label_names, names, assume_same_labels=arguments.assume_same_labels)
    if not isinstance(cache, LogitCache) and teacher is not None:
        teacher.check_vocabulary(tokenizer)
    fingerprint = source.key.teacher if isinstance(source, LogitCache) else source.fingerprint
    if isinstance(cache, LogitCache) and cache.key.teacher != fingerprint:
        raise CacheError('The logit cache was filled by another teacher than `teacher`: name a folder instead.')
    return Match(teacher, order, fingerprint)


def stored_logits(
    arguments: DistillationArguments,
    found: Match,
    rows: Any,
    collate: Any,
    device: torch.device,
    *,
    precision: str,
    context: Callable[[], Any],
) -> LogitCache:
    """The table of the teacher's logits in the student's order of classes, on the device; filled where it is not yet.

    Args:
        arguments: Their `cache` is a folder or an open table.
        found: What `match_teacher` gave.
        rows: The training dataset, map-style; None where there is none.
        collate: Makes a batch of a list of rows.
        device: Where the teacher runs and the table is read.
        precision: The name of the precision that `context` makes.
        context: Makes the precision context to run the teacher in.

    Raises:
        ValueError: The dataset is not map-style or has no ids.
        MissingExamplesError: The table lacks examples of `rows`.
    """
    table = arguments.cache
    if not isinstance(table, LogitCache):
        teacher = found.teacher
        assert teacher is not None and table is not None
        if rows is None or not hasattr(rows, '__getitem__'):
            raise ValueError(
                'A cache folder needs a train dataloader with a map-style dataset: give an open LogitCache, or leave '
                '`cache` out.'
            )
        key = CacheKey(teacher.fingerprint, inputs_fingerprint(rows, collate), precision=precision)

        def run(kept: PiecesOfPass) -> tuple[Tensor, Tensor]:
            # The teacher moves its inputs to where it runs.
            options = {'batch_size': _BATCH, 'context': context, 'id_key': arguments.id_key, 'kept': kept}
            return run_teacher(teacher.to(device), rows, collate, **options)

        table = open_or_pass(table, key, run, batch_size=_BATCH, label_names=teacher.label_names)
    if table.by_text:
        raise CacheError(
            'The logit cache knows rows by their text, of which a dataset of tokens tells nothing: give the table of '
            'its rows, composer_cmi.teachers.by_text.of_rows(cache, example_ids, texts).'
        )
    if (ids := _known_ids(rows, arguments.id_key)) is not None:
        table.require(ids)
    return table.reordered(found.order).to(device)


def _refuse_shared_weights(spec: Any, student: nn.Module) -> None:
    if not isinstance(spec, nn.Module):
        return
    own = {id(parameter) for parameter in student.parameters()}
    if any(id(parameter) in own for parameter in spec.parameters()):
        raise ValueError(
            'The teacher shares weights with the student, which it would freeze: give copy.deepcopy(model) as the '
            'teacher.'
        )


def _known_ids(rows: Any, id_key: str) -> Tensor | None:
    """All example ids `[R]` of a dataset that can tell them at once, else None; ValueError if it has a wrong column."""
    ids = getattr(rows, 'example_ids', None)
    columns = getattr(rows, 'column_names', None)
    if ids is None and columns is not None:
        if id_key not in columns:
            raise ValueError(_no_ids(id_key))
        ids = rows[id_key]
    return None if ids is None else torch.as_tensor(ids).to(torch.int64)


def _no_ids(id_key: str) -> str:
    return (
        f'The batches have no {id_key!r}, by which the cached logits are found: keep that int64 column in the dataset '
        'and in the collate function, or leave `cache` out to run the teacher in every step.'
    )


def example_ids(batch: Any, id_key: str) -> Tensor:
    """The ids `[N]` of a batch.

    Raises:
        ValueError: It has none.
    """
    ids = batch.get(id_key) if isinstance(batch, Mapping) else None
    if not isinstance(ids, Tensor):
        raise ValueError(_no_ids(id_key))
    return ids
