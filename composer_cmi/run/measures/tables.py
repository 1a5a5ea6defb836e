"""What a set of rows adds up to in one table a class, and what is read off it: NLL, CMI and the scores of a task."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from composer_cmi import functional

__all__ = ['SCORES', 'read_table', 'table_of_rows']

Floats = NDArray[np.float64]

# Columns behind the D sums of f_x and the C counts of answers.
_NEGENTROPY, _NLL, _COUNT = -3, -2, -1
_EXTRA_COLUMNS = 3


def table_of_rows(features: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    """Sums over the rows of each class; tables of parts add up to that of the whole. Waits for no device.

    Args:
        features: `[N, D]`.
        logits: `[N, C]`.
        labels: `[N]` int64; rows outside `0..C-1`, and rows that are not finite, are left out.

    Returns:
        `[C, D + C + 3]` float64: sums of `f_x`, how often each class was the answer, sums of `-H(f_x)` and of
        `-ln p(label)` (nats), and the number of rows.
    """
    if logits.device.type == 'mps':  # has no float64
        features, logits, labels = features.cpu(), logits.cpu(), labels.cpu()
    features, logits = features.detach(), logits.detach().float()
    finite = torch.isfinite(features).all(-1) & torch.isfinite(logits).all(-1)
    counts = finite & (labels >= 0) & (labels < logits.shape[1])
    logits = torch.where(finite[:, None], logits, 0.0)
    # In float64, as the final scores are: CMI is a difference of entropies a thousand times larger.
    log_f = functional.log_distribution(torch.where(finite[:, None], features, 0.0).double())
    answers = torch.zeros_like(logits).scatter_(1, logits.argmax(-1, keepdim=True), 1.0)
    losses = cross_entropy(logits, torch.where(counts, labels, 0), reduction='none')
    f = log_f.exp()
    rest = torch.stack([(f * log_f).sum(-1), losses, torch.ones_like(losses)], dim=1)
    return functional.sum_by_class(
        torch.cat([f, answers.to(f.dtype), rest.to(f.dtype)], dim=1), torch.where(counts, labels, -100), logits.shape[1]
    )


def read_table(table: Tensor, metric: str) -> dict[str, float]:
    """The task's `metric` as a share, 'nll', and 'cmi', 'mutual_information' (nats) and 'relative_cmi' of features.

    Args:
        table: of `table_of_rows`.
        metric: one of `SCORES`.

    Returns:
        Empty where the table has no rows.
    """
    classes, table = len(table), table.cpu()
    rows = float(table[:, _COUNT].sum())
    if not rows:
        return {}
    sums, answers = table[:, : -classes - _EXTRA_COLUMNS], table[:, -classes - _EXTRA_COLUMNS : -_EXTRA_COLUMNS]
    stats = functional.ClassStatistics(table[:, _COUNT], sums, table[:, _NEGENTROPY])
    return {
        metric: float(SCORES[metric](answers.numpy())),
        'nll': float(table[:, _NLL].sum()) / rows,
        'cmi': functional.conditional_mutual_information(stats).item(),
        'mutual_information': functional.mutual_information(stats).item(),
        'relative_cmi': functional.relative_cmi(stats).item(),
    }


def _accuracy(table: Floats) -> float:
    return table.trace() / table.sum()


def _f1(table: Floats) -> float:
    return _class_f1(table)[1]


def _macro_f1(table: Floats) -> float:
    return _class_f1(table).mean()


def _class_f1(table: Floats) -> Floats:
    return 2 * table.diagonal() / np.maximum(table.sum(0) + table.sum(1), 1)


def _matthews(table: Floats) -> float:
    total, right, true, given = table.sum(), table.trace(), table.sum(1), table.sum(0)
    spread = (total**2 - given @ given) * (total**2 - true @ true)
    return (right * total - true @ given) / math.sqrt(spread) if spread > 0 else 0.0


# As `run/scoring.py` has them, of a table of counts [label, answer].
SCORES: dict[str, Callable[[Floats], float]] = {
    'accuracy': _accuracy,
    'f1': _f1,
    'macro_f1': _macro_f1,
    'matthews_correlation': _matthews,
}
"""The official scores of tasks as functions of a table of counts `[label, answer]`."""
