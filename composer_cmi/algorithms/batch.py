"""Where Composer's state keeps what the algorithms need: labels and logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from composer.core import State
from torch import Tensor

__all__ = ['class_logits', 'hard_labels']


def class_logits(outputs: Any) -> Tensor:
    """The class logits `[N, C]` of a Composer model's outputs."""
    if isinstance(outputs, Mapping):
        return outputs['logits']
    return outputs[0] if isinstance(outputs, (tuple, list)) else outputs


def hard_labels(state: State, key: str | int | None = None) -> Tensor:
    """The class of each example of `state.batch`, `[N]` integers.

    Args:
        state: Composer's.
        key: where the batch holds them; by default `'labels'` in a mapping, else index 1.

    Raises:
        ValueError: for anything that is not one class per example.
    """
    if key is None:
        key = 'labels' if isinstance(state.batch, Mapping) else 1
    labels = state.batch_get_item(key)
    if isinstance(labels, Tensor) and labels.ndim == 1 and not labels.is_floating_point():
        return labels
    got = f'{labels.dtype} of shape {list(labels.shape)}' if isinstance(labels, Tensor) else type(labels).__name__
    raise ValueError(
        f'Conditional mutual information needs one integer class per example in batch[{key!r}], got {got}; '
        'it is not defined for regression.'
    )
