"""What distillation asks of Composer's other algorithms and of a batch's labels, each in one clear sentence."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from composer.core import Algorithm, State
from torch import Tensor

from composer_cmi.batch import class_labels, raw_labels

__all__ = ['check_partners', 'labelled_share']

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


def labelled_share(state: State, label_key: str | int | None) -> Tensor:
    """Labelled rows divided by all rows of `state.batch`, 0-d on its device; dense labels count as labelled.

    Raises:
        ValueError: The batch has no labels, or a list of them.
    """
    labels = raw_labels(state.batch, label_key)
    if isinstance(labels, Tensor) and (labels.ndim != 1 or labels.is_floating_point()):
        return torch.ones((), device=labels.device)  # dense labels: every row has one
    return (class_labels(state.batch, label_key) != IGNORED).float().mean()
