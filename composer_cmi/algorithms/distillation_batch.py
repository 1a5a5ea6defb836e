"""What distillation asks of a Trainer's other algorithms, models, datasets and batches, each in one clear sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from composer.core import Algorithm, State
from torch import Tensor, nn

from composer_cmi.batch import class_labels, raw_labels

__all__ = [
    'check_partners',
    'example_ids',
    'known_ids',
    'labelled_share',
    'refuse_shared_weights',
]

IGNORED = -100


def check_partners(algorithms: Sequence[Algorithm], *, cached: bool) -> None:
    """Refuse a second distillation, and algorithms that mix examples in a way that the teacher does not see."""
    if sum(type(other).__name__ == 'KnowledgeDistillation' for other in algorithms) > 1:
        raise ValueError(
            'Only one KnowledgeDistillation can be used in a run: several teachers go into one list, `teacher=[...]`.'
        )
    for other in algorithms:
        name = type(other).__name__
        if name not in ('MixUp', 'CutMix'):
            continue
        if cached:
            raise ValueError(
                f'KnowledgeDistillation with a cache cannot be combined with {name}: the stored logits are those of '
                'single examples, not of mixtures; leave `cache` out.'
            )
        if getattr(other, 'interpolate_loss', False):
            raise ValueError(
                f'KnowledgeDistillation cannot be combined with {name}(interpolate_loss=True), which mixes a second '
                "cross-entropy into the teacher's term: use interpolate_loss=False."
            )


def refuse_shared_weights(spec: Any, student: nn.Module) -> None:
    """Refuse a live teacher (`spec`) that is, or holds, part of the student."""
    if not isinstance(spec, nn.Module):
        return
    own = {id(parameter) for parameter in student.parameters()}
    if any(id(parameter) in own for parameter in spec.parameters()):
        raise ValueError(
            'The teacher shares weights with the student, which it would freeze: give copy.deepcopy(model) as the '
            'teacher.'
        )


def known_ids(rows: Any, id_key: str) -> Tensor | None:
    """All example ids `[R]` of a dataset that can tell them at once, else None.

    Raises:
        ValueError: The dataset names its columns and the ids are not among them.
    """
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


def labelled_share(state: State, label_key: str | int | None) -> Tensor:
    """Labelled rows divided by all rows of `state.batch`, 0-d on its device; dense labels count as labelled.

    Raises:
        ValueError: The batch has no labels, or a list of them.
    """
    labels = raw_labels(state.batch, label_key)
    if isinstance(labels, Tensor) and (labels.ndim != 1 or labels.is_floating_point()):
        return torch.ones((), device=labels.device)  # dense labels: every row has one
    return (class_labels(state.batch, label_key) != IGNORED).float().mean()
