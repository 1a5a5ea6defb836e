"""From runs to comparisons: what the paired differences between arms say, over seeds and rows together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from composer_cmi.study.findings import statistics
from composer_cmi.study.findings.crossed import Crossed, crossed
from composer_cmi.study.findings.runs import Run
from composer_cmi.study.findings.statistics import McNemar, PairedDifference
from composer_cmi.study.findings.study import SCORE, Metric, Study, Table

__all__ = ['FEWEST_SEEDS', 'Comparison', 'compare', 'verdict_of']

LEVEL = 0.05
# Scores are counts: with fewer seeds the same difference comes by chance, and a t test takes it for certainty.
FEWEST_SEEDS = 5
_NO_GAIN = 'no evidence of a gain'


@dataclass(frozen=True)
class Comparison:
    """One arm against one baseline on one table by one metric; differences are arm minus baseline.

    `crossed` is None where predictions are missing; `holm_p` is NaN where nothing is decided.
    """

    table: str
    arm: str
    baseline: str
    metric: str
    seeds: list[int]
    kind: Metric
    differences: list[float]
    difference: PairedDifference
    crossed: Crossed | None
    seeds_needed: int | None
    detectable: float
    apart: bool
    holm_p: float = math.nan
    verdict: str = ''
    mcnemar: dict[int, McNemar] = field(default_factory=dict)

    @property
    def rests_on(self) -> str:
        """What interval, p and verdict take for chance."""
        return 'seeds alone' if self.crossed is None else 'seeds and rows'

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval that the verdict rests on."""
        if self.crossed is None:
            return self.difference.t_low, self.difference.t_high
        return float(self.crossed.low), float(self.crossed.high)

    @property
    def p(self) -> float:
        """The two-sided p that the verdict rests on, before correction."""
        return self.difference.t_p if self.crossed is None else float(self.crossed.p)


def compare(study: Study) -> dict[str, list[Comparison]]:
    """Every wanted pair of arms on every table by every metric of the study, judged as one family.

    The family is the study: all that may become a verdict, arms x metrics x settings, is corrected together by Holm's
    procedure, so that any false claim at all in a study has a chance of 5 % at most. Variants of a grid and arms
    written out by hand are in it alike. What cannot become a verdict is not: tables that cannot decide, exploratory
    metrics, fewer than five seeds.
    """
    asked = [(pair, table) for pair in study.comparisons for table in study.tables]
    by_metric = {
        metric: [c for pair, table in asked if (c := _raw(study, table, pair, metric))] for metric in study.metrics
    }
    family = [each for found in by_metric.values() for each in found if _may_decide(each)]
    adjusted = {id(each): p for each, p in zip(family, statistics.holm([each.p for each in family]), strict=True)}
    return {
        metric: [_judged(each, adjusted.get(id(each), math.nan)) for each in found]
        for metric, found in by_metric.items()
    }


def _may_decide(each: Comparison) -> bool:
    return not each.apart and not each.kind.exploratory and each.difference.n >= FEWEST_SEEDS


def _raw(study: Study, table: Table, pair: tuple[str, str], which: str) -> Comparison | None:
    metric, kind = table.metric if which == SCORE else which, study.metrics[which]
    arm, baseline = study.of(table.setting, pair[0]), study.of(table.setting, pair[1])
    seeds = [seed for seed in arm if seed in baseline]
    scores = [[runs[seed].score(table.split, metric) for seed in seeds] for runs in (arm, baseline)]
    if not seeds or not np.isfinite(scores).all():
        return None
    difference = statistics.paired_difference(*scores, higher_is_better=not kind.lower_is_better)
    rows = [[runs[seed].rows(table.split, metric) for seed in seeds] for runs in (arm, baseline)]
    known = not any(values is None for of_arm in rows for values in of_arm)
    over_both = crossed(np.subtract(*map(np.array, rows))) if known else None
    # The same difference on every seed says nothing about how much the next one would vary.
    sd = difference.sd if difference.sd > 1e-9 else math.nan
    row_variance = 0.0 if over_both is None or math.isnan(over_both.row_variance) else float(over_both.row_variance)
    return Comparison(
        table=table.name,
        arm=pair[0],
        baseline=pair[1],
        metric=metric,
        kind=kind,
        seeds=seeds,
        differences=[a - b for a, b in zip(*scores, strict=True)],
        difference=difference,
        crossed=over_both,
        seeds_needed=(
            statistics.seeds_needed(sd, study.gain, row_variance=row_variance) if kind.unit == 'points' else None
        ),
        detectable=statistics.detectable_gain(sd, difference.n, row_variance=row_variance),
        apart=bool(table.apart),
        mcnemar=_mcnemar(arm, baseline, seeds, table.split) if which == SCORE else {},
    )


def _judged(comparison: Comparison, holm_p: float) -> Comparison:
    return replace(comparison, holm_p=holm_p, verdict=verdict_of(comparison, holm_p))


def verdict_of(comparison: Comparison, holm_p: float) -> str:
    """What a user may conclude, in plain words."""
    difference = comparison.difference
    if comparison.apart:
        return 'set apart'
    if comparison.kind.exploratory:
        return 'exploratory'
    if difference.n < FEWEST_SEEDS:
        return f'{_NO_GAIN} (fewer than {FEWEST_SEEDS} seeds prove nothing)'
    if math.isnan(holm_p):
        return f'{_NO_GAIN} (the same difference on every seed: no variance to test against)'
    if holm_p >= LEVEL:
        return _NO_GAIN
    better = difference.mean < 0 if comparison.kind.lower_is_better else difference.mean > 0
    return 'gain' if better else 'loss'


def _mcnemar(arm: dict[int, Run], baseline: dict[int, Run], seeds: Sequence[int], split: str) -> dict[int, McNemar]:
    found = {}
    for seed in seeds:
        first, second = (runs[seed].predictions.get(split) for runs in (arm, baseline))
        if first and second:
            found[seed] = statistics.mcnemar(*(list(each.answers == each.labels) for each in (first, second)))
    return found
