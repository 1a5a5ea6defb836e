"""What the differences between paired runs can prove, and how many runs would prove more.

Every function is pure and works on plain arrays. A difference is `arm - baseline` of the same seed, which shares
initialisation and data order, so the variance that counts is that of the differences. What the rows of the evaluation
set add to it is in `crossed.py`.
"""

from __future__ import annotations

import bisect
import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

__all__ = [
    'FEWEST_FOR_BOOTSTRAP',
    'Interval',
    'McNemar',
    'PairedDifference',
    'bootstrap_interval',
    'detectable_gain',
    'holm',
    'mcnemar',
    'paired_difference',
    'paired_t_test',
    'power_of_paired_t_test',
    'seeds_needed',
    't_interval',
    'wilcoxon_p',
]

Floats = NDArray[np.float64]

FEWEST_FOR_BOOTSTRAP = 8
"""Below it even the expanded interval is too short: with 5 seeds it covered 91 % (`benchmarks/`)."""


class Interval(NamedTuple):
    """A confidence interval; a field is an array where many samples were given at once."""

    low: Floats | float
    high: Floats | float


class PairedDifference(NamedTuple):
    """What `n` paired differences say; NaN where `n` is too small to say it."""

    n: int
    mean: float
    sd: float
    t_low: float
    t_high: float
    bootstrap_low: float
    bootstrap_high: float
    t_p: float
    wilcoxon_p: float
    wins: int
    ties: int
    losses: int


class McNemar(NamedTuple):
    """Rows that only the arm got right, rows that only the baseline got right, and the exact two-sided p."""

    only_arm: int
    only_baseline: int
    p: float


def _differences(differences: ArrayLike) -> Floats:
    values = np.asarray(differences, dtype=np.float64)
    if values.ndim == 0 or values.shape[-1] == 0:
        raise ValueError(f'paired differences must be a list of at least one number, got shape {values.shape}')
    if not np.isfinite(values).all():
        raise ValueError('paired differences must be finite; leave out the seeds whose run failed')
    return values


def t_interval(differences: ArrayLike, confidence: float = 0.95) -> Interval:
    """Student's t interval of the mean.

    Args:
        differences: `[..., S]`, one number per seed on the last axis.
        confidence: coverage under normal differences.

    Returns:
        Interval: of shape `[...]`; NaN where S is 1.
    """
    values = _differences(differences)
    seeds = values.shape[-1]
    mean = values.mean(-1)
    if seeds < 2:
        return Interval(np.full_like(mean, np.nan), np.full_like(mean, np.nan))
    half = stats.t.ppf((1 + confidence) / 2, seeds - 1) * values.std(-1, ddof=1) / math.sqrt(seeds)
    return Interval(mean - half, mean + half)


def bootstrap_interval(
    differences: ArrayLike, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """Bootstrap interval of the mean by the *expanded* percentile method.

    The plain percentile interval of eight numbers covers about 90 % where it says 95: the bootstrap's variance is
    too small by (n - 1) / n and its tails are the normal's. The expanded one reads wider percentiles that repair
    both: alpha' = Phi(-sqrt(n / (n - 1)) t_{n - 1, alpha / 2}) (Hesterberg, "What Teachers Should Know About the
    Bootstrap", 2015, section 3.3).

    Args:
        differences: `[..., S]`, one number per seed on the last axis.
        confidence: nominal coverage.
        resamples: bootstrap samples; the same ones for every row.
        seed: of the resampling, so that a report is reproducible.

    Returns:
        Interval: of shape `[...]`; NaN where S is 1.
    """
    values = _differences(differences)
    seeds = values.shape[-1]
    if seeds < 2:
        mean = values.mean(-1)
        return Interval(np.full_like(mean, np.nan), np.full_like(mean, np.nan))
    # The counts of each seed in a resample are all that its mean needs: one matrix product serves every row.
    counts = np.random.default_rng(seed).multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples)
    means = values @ (counts.T / seeds)
    quantile = stats.t.ppf((1 + confidence) / 2, seeds - 1) * math.sqrt(seeds / (seeds - 1))
    tail = stats.norm.sf(quantile)
    low, high = np.quantile(means, [tail, 1 - tail], axis=-1)
    return Interval(low, high)


def paired_t_test(differences: ArrayLike) -> float:
    """Two-sided p of the paired t test.

    Returns:
        float: 1.0 where every difference is zero; NaN where it cannot be tested (one seed, or the same non-zero
        difference on every seed, which leaves no variance to test against).
    """
    values = _differences(differences)
    if not values.any():
        return 1.0
    if len(values) < 2 or np.ptp(values) <= 1e-12 * np.abs(values).max():
        return math.nan
    return float(np.asarray(stats.ttest_1samp(values, 0.0))[1])


def wilcoxon_p(differences: ArrayLike) -> float:
    """Two-sided p of Wilcoxon's signed-rank test; 1.0 where every difference is zero."""
    values = _differences(differences)
    if not values.any():
        return 1.0
    return float(np.asarray(stats.wilcoxon(values))[1])


def paired_difference(
    arm: ArrayLike, baseline: ArrayLike, *, higher_is_better: bool = True, confidence: float = 0.95
) -> PairedDifference:
    """Everything that is said of one arm against one baseline on one setting.

    Args:
        arm: `[S]` scores of the arm, one per seed.
        baseline: `[S]` scores of the baseline, of the same seeds in the same order.
        higher_is_better: False for a loss (NLL, ECE): it decides what a win is, never the sign of the mean.
        confidence: of both intervals.

    Raises:
        ValueError: the two lists differ in length, are empty or hold something that is not finite.
    """
    first, second = np.asarray(arm, dtype=np.float64), np.asarray(baseline, dtype=np.float64)
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(f'paired scores need one number per seed in both arms, got {first.shape} and {second.shape}')
    # Scores are ratios of small counts: a difference below rounding is a tie, not a win.
    differences = _differences(np.round(first - second, 12))
    by_t, by_bootstrap = t_interval(differences, confidence), bootstrap_interval(differences, confidence)
    if len(differences) < FEWEST_FOR_BOOTSTRAP:
        by_bootstrap = Interval(math.nan, math.nan)
    better = differences if higher_is_better else -differences
    return PairedDifference(
        n=len(differences),
        mean=float(differences.mean()),
        sd=float(differences.std(ddof=1)) if len(differences) > 1 else math.nan,
        t_low=float(by_t.low),
        t_high=float(by_t.high),
        bootstrap_low=float(by_bootstrap.low),
        bootstrap_high=float(by_bootstrap.high),
        t_p=paired_t_test(differences),
        wilcoxon_p=wilcoxon_p(differences),
        wins=int((better > 0).sum()),
        ties=int((better == 0).sum()),
        losses=int((better < 0).sum()),
    )


def holm(p_values: ArrayLike) -> list[float]:
    """Holm's step-down adjustment of a family of p values (Holm 1979); NaN stays NaN and is not counted.

    It holds however the tests hang together, as those of one study do: they share baselines, seeds and rows.

    Returns:
        list[float]: adjusted p values in the given order, each at most 1.
    """
    values = np.asarray(p_values, dtype=np.float64)
    adjusted = np.full_like(values, np.nan)
    order = [i for i in np.argsort(values) if not math.isnan(values[i])]
    running = 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(order) - rank) * values[index]))
        adjusted[index] = running
    return adjusted.tolist()


def power_of_paired_t_test(n: int, gain: float, sd: float, alpha: float = 0.05, row_variance: float = 0.0) -> float:
    """Chance that a two-sided paired t test on `n` seeds sees a true gain, by the noncentral t distribution.

    `row_variance` is the part of the mean's variance that more seeds on the same rows do not lessen; the degrees of
    freedom then follow Satterthwaite.
    """
    if n < 2:
        return 0.0
    of_seeds = sd**2 / n
    variance = of_seeds + row_variance
    if variance == 0:
        return 1.0 if gain else alpha
    freedom = min((n - 1) * (variance / of_seeds) ** 2, 1e6) if of_seeds else 1e6
    shift = abs(gain) / math.sqrt(variance)
    critical = stats.t.ppf(1 - alpha / 2, freedom)
    # nctdtr loses the far tail for large shifts and returns NaN: by then the test cannot miss.
    power = stats.nct.sf(critical, freedom, shift) + stats.nct.cdf(-critical, freedom, shift)
    return 1.0 if math.isnan(power) else float(power)


def seeds_needed(
    sd: float, gain: float, power: float = 0.8, alpha: float = 0.05, limit: int = 100_000, row_variance: float = 0.0
) -> int | None:
    """Smallest number of paired seeds that sees a true `gain` with the wanted power.

    Args:
        sd: observed standard deviation of the paired differences, in the unit of `gain`.
        gain: the true difference that one wants to see.
        power: chance to see it.
        alpha: two-sided level of the test.
        limit: give up above it.
        row_variance: as `power_of_paired_t_test` takes it.

    Returns:
        int | None: None where `sd` is unknown (NaN) or more than `limit` seeds would be needed.

    Raises:
        ValueError: the gain is zero, which no number of seeds can show.
    """
    if gain == 0:
        raise ValueError('no number of seeds can show a gain of 0')
    if math.isnan(sd):
        return None

    def sees(n: int) -> bool:
        return power_of_paired_t_test(n, gain, sd, alpha, row_variance) >= power

    if not sees(limit):
        return None
    return 2 + bisect.bisect_left(range(2, limit), True, key=sees)


def detectable_gain(sd: float, n: int, power: float = 0.8, alpha: float = 0.05, row_variance: float = 0.0) -> float:
    """Smallest true gain that `n` paired seeds see with the wanted power; NaN where `n` is below 2."""
    if n < 2 or math.isnan(sd):
        return math.nan
    if sd == 0 and row_variance == 0:
        return 0.0
    low, high = 0.0, math.sqrt(sd**2 + row_variance)
    while power_of_paired_t_test(n, high, sd, alpha, row_variance) < power:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        seen = power_of_paired_t_test(n, middle, sd, alpha, row_variance) >= power
        low, high = (low, middle) if seen else (middle, high)
    return high


def mcnemar(arm_correct: ArrayLike, baseline_correct: ArrayLike) -> McNemar:
    """McNemar's exact test on the predictions of two models for the same rows.

    Args:
        arm_correct: `[N]` booleans, whether the arm's prediction of each row is right.
        baseline_correct: `[N]` the same of the baseline, in the same order.

    Raises:
        ValueError: the two differ in length.
    """
    arm, baseline = np.asarray(arm_correct, dtype=bool), np.asarray(baseline_correct, dtype=bool)
    if arm.shape != baseline.shape:
        raise ValueError(f'McNemar needs predictions of the same rows, got {arm.shape} and {baseline.shape}')
    only_arm, only_baseline = int((arm & ~baseline).sum()), int((~arm & baseline).sum())
    discordant = only_arm + only_baseline
    p = float(stats.binomtest(only_arm, discordant, 0.5).pvalue) if discordant else 1.0
    return McNemar(only_arm, only_baseline, p)
