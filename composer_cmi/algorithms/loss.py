"""Add to Composer's `state.loss` without touching what it holds: HF models alias it with `state.outputs['loss']`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ['add_to_loss', 'distillation_loss', 'get_total', 'replace_total']


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
