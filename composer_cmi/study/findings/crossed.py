"""Seeds and rows as two sources of chance: would the difference hold for new seeds *and* new rows?

A t test over seeds takes the rows of the one evaluation set for the whole world: where some rows suit one arm, it
rejects a true null in 11-19 % (`benchmarks/statistics_coverage.py`).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

__all__ = ['Crossed', 'crossed']

Floats = NDArray[np.float64]


class Crossed(NamedTuple):
    """A mean over seeds and rows, in the unit of the differences; arrays where many samples were given at once.

    `row_variance` is the part of `standard_error ** 2` that more seeds on the same rows would not lessen.
    """

    mean: Floats
    low: Floats
    high: Floats
    p: Floats
    standard_error: Floats
    degrees: Floats
    row_variance: Floats


def crossed(differences: ArrayLike, confidence: float = 0.95) -> Crossed:
    """Interval and two-sided test of a mean over crossed seeds and rows.

    A two-way analysis of variance without replication, both factors random: with the mean squares of seeds, rows and
    residual, the variance of the mean is (MS_s + MS_i - MS_si) / (S N), here never below MS_s / (S N) or
    MS_i / (S N), which the estimate may be by chance; its degrees of freedom are Satterthwaite's (1946). For scores
    that are no mean over rows a row's influence stands for its value (`predictions.row_values`). Narrower than the
    multi-bootstrap (Sellam et al. 2022, arXiv 2106.16163), which counts the residual twice.

    Args:
        differences: `[..., S, N]`, arm minus baseline by seed and row.
        confidence: coverage.

    Returns:
        Crossed: of shape `[...]`. Interval and p are NaN with fewer than two seeds or rows, and where every difference
        is the same: no variance to test against (p is 1 where they are all zero).
    """
    values = np.asarray(differences, dtype=np.float64)
    seeds, rows = values.shape[-2:]
    mean = values.mean((-2, -1))
    if seeds < 2 or rows < 2:
        unknown = np.full_like(mean, np.nan)
        return Crossed(mean, *[unknown] * 6)
    of_seeds = rows * values.mean(-1).var(-1, ddof=1)
    of_rows = seeds * values.mean(-2).var(-1, ddof=1)
    total = np.square(values - mean[..., None, None]).sum((-2, -1))
    freedom = (seeds - 1) * (rows - 1)
    residual = np.maximum(total - (seeds - 1) * of_seeds - (rows - 1) * of_rows, 0.0) / freedom
    spread = np.maximum(of_seeds + of_rows - residual, np.maximum(of_seeds, of_rows))
    tiny = 1e-24 * np.maximum(np.square(mean), 1e-12)  # rounding, as of the same difference everywhere
    known = spread > tiny * seeds * rows
    with np.errstate(invalid='ignore', divide='ignore'):
        parts = of_seeds**2 / (seeds - 1) + of_rows**2 / (rows - 1) + residual**2 / freedom
        degrees = np.where(known, np.maximum(spread**2 / parts, 1.0), np.nan)
        error = np.sqrt(np.where(known, spread, np.nan) / (seeds * rows))
        p = 2 * stats.t.sf(np.abs(mean) / error, degrees)
    half = stats.t.ppf((1 + confidence) / 2, degrees) * error
    nothing = ~known & (mean == 0)
    half, p = np.where(nothing, 0.0, half), np.where(nothing, 1.0, p)
    row_variance = np.maximum(of_rows - residual, 0.0) / (seeds * rows)
    return Crossed(mean, mean - half, mean + half, p, error, degrees, row_variance)
