"""Add to Composer's `state.loss` without touching what it holds: HF models alias it with `state.outputs['loss']`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

__all__ = ['add_to_loss', 'get_total', 'replace_total']


def get_total(loss: Any) -> Tensor:
    """The tensor that Composer back-propagates first: the loss itself, its `'total'`, or the first of several."""
    if isinstance(loss, Mapping):
        return loss['total'] if 'total' in loss else next(iter(loss.values()))
    return loss[0] if isinstance(loss, (tuple, list)) else loss


def replace_total(loss: Any, total: Tensor) -> Any:
    """The same kind of container with `total` in place of `get_total(loss)`; the argument is left as it was."""
    if isinstance(loss, Mapping):
        key = 'total' if 'total' in loss else next(iter(loss))
        return {**loss, key: total}
    return type(loss)([total, *loss[1:]]) if isinstance(loss, (tuple, list)) else total


def add_to_loss(loss: Any, term: Tensor) -> Any:
    """`loss + term` in the container of `loss`, out of place; `term` is a 0-d mean over the microbatch's rows."""
    total = get_total(loss)
    return replace_total(loss, total + term.to(total.dtype))
