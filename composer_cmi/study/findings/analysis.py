"""From runs to comparisons: what the paired differences between arms say, over seeds and rows together."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from composer_cmi.errors import ConfigError
from composer_cmi.study.findings import statistics
from composer_cmi.study.findings.crossed import Crossed, crossed
from composer_cmi.study.findings.predictions import SCALED_NLL
from composer_cmi.study.findings.runs import IN_NATS, LOWER_IS_BETTER, Run, read_runs
from composer_cmi.study.findings.statistics import McNemar, PairedDifference

__all__ = ['METRICS', 'SCORE', 'Comparison', 'Study', 'Table', 'compare', 'load_runs', 'verdict_of']

LEVEL = 0.05
FEWEST_ROWS = 100
# Scores are counts: with fewer seeds the same difference comes by chance, and a t test takes it for certainty.
FEWEST_SEEDS = 5
SCORE = 'score'  # each table's own primary metric
METRICS = {SCORE: 'score', 'nll': 'NLL', SCALED_NLL: 'Scaled NLL', 'ece': 'ECE'}
# ECE is no mean over rows and leans upward with few of them: it is shown, and decides nothing.
EXPLORATORY = ('ece',)
_UNDECIDABLE_TASKS = ('wnli',)
_NO_GAIN = 'no evidence of a gain'


class Table(NamedTuple):
    """One evaluation split of one setting: what a row of the report's tables is about."""

    setting: str
    split: str
    name: str
    metric: str
    rows: int
    majority: float
    apart: str
    """Why its score decides nothing, or empty."""


@dataclass(frozen=True)
class Study:
    """All finished runs below a folder, and the plan that they belong to where there is one.

    `remarks` say what was left out and what was set apart, a sentence each.
    """

    name: str
    runs: list[Run]
    arms: list[str]
    comparisons: list[tuple[str, str]]
    gain: float
    missing: list[str]
    tuning: list[dict[str, Any]]
    remarks: list[str]
    tables: list[Table]

    def of(self, setting: str, arm: str) -> dict[int, Run]:
        """The runs of one arm on one setting by seed, in the order of the seeds."""
        runs = [run for run in self.runs if (run.setting, run.arm) == (setting, arm)]
        return {run.seed: run for run in sorted(runs, key=lambda run: run.seed)}


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
    differences: list[float]
    difference: PairedDifference
    crossed: Crossed | None
    seeds_needed: int | None
    detectable: float
    apart: bool
    exploratory: bool
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


def load_runs(folder: str | Path, against: Sequence[str] = ()) -> Study:
    """Read every finished run below a folder (`runs.read_runs`), with the plan and the tries of tuning.

    Args:
        folder: a study's folder, or any folder with run folders in it.
        against: baselines, instead of the study's own.

    Raises:
        ConfigError: there is no such folder, no finished run in it, or no such baseline.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ConfigError(f'There is no folder {str(folder)!r} to report on.')
    plan = _read_json(folder / 'study.json', {}, lambda data: isinstance(data, dict))
    tried = {'setting', 'arm', 'values', 'scores', 'chosen'}
    tuning = _read_json(
        folder / 'tuning.json',
        [],
        lambda data: isinstance(data, list) and all(isinstance(row, dict) and tried <= set(row) for row in data),
    )
    runs, remarks = read_runs(folder, plan)
    found = list(dict.fromkeys(run.arm for run in runs))
    arms = [*(arm for arm in plan.get('arms', ()) if arm in found)]
    arms += [arm for arm in sorted(found, key=lambda arm: (arm != 'ce', arm)) if arm not in arms]
    there = {run.folder for run in runs}
    return Study(
        name=str(plan.get('name', folder.resolve().name)),
        runs=runs,
        arms=arms,
        comparisons=_pairs(arms, plan, against),
        gain=float(plan.get('gain', 1.0)),
        missing=[place for place in plan.get('runs', ()) if folder / place not in there],
        tuning=tuning,
        remarks=remarks,
        tables=_tables(runs),
    )


def _read_json(path: Path, default: Any, is_right: Callable[[Any], bool]) -> Any:
    if not path.is_file():
        return default
    try:
        data = json.loads(path.read_text(encoding='utf-8'))
    except (ValueError, OSError, RecursionError) as error:
        raise ConfigError(f'{path} is not valid JSON ({error}): start the sweep again, it rewrites it.') from error
    if not is_right(data):
        raise ConfigError(f'{path} is not what a sweep writes: start the sweep again, it rewrites it.')
    return data


def _pairs(arms: Sequence[str], plan: dict[str, Any], against: Sequence[str]) -> list[tuple[str, str]]:
    if plan.get('comparisons') and not against:
        return [(arm, baseline) for arm, baseline in plan['comparisons'] if arm in arms and baseline in arms]
    for name in against:
        if name not in arms:
            raise ConfigError(f'There is no arm {name!r} to compare with (arms: {", ".join(arms)}).')
    baselines = list(against) or [name for name in plan.get('baselines', ('ce', 'ce_tuned')) if name in arms]
    # A baseline is compared with those named before it: the tuned control with the plain one, not the other way round.
    return [
        (arm, baseline)
        for baseline in baselines
        for arm in arms
        if arm not in baselines[: baselines.index(baseline) + 1]
    ]


def _tables(runs: Sequence[Run]) -> list[Table]:
    tables = []
    for setting in dict.fromkeys(run.setting for run in runs):
        results = next(run.results for run in runs if run.setting == setting)
        for split in results.scores:
            rows = results.num_examples.get(split, 0)
            name = setting if len(results.scores) == 1 else f'{setting} ({split})'
            majority = 100 * results.majority.get(split, math.nan)
            tables.append(Table(setting, split, name, results.metric, rows, majority, _apart(results.task, rows)))
    return tables


def _apart(task: str, rows: int) -> str:
    if task in _UNDECIDABLE_TASKS:
        return 'its dev set is adversarial to its training set: a better fit scores worse'
    if 0 < rows < FEWEST_ROWS:
        return f'it has {rows} rows: one of them is {100 / rows:.1f} points'
    return ''


def compare(study: Study) -> dict[str, list[Comparison]]:
    """Every wanted pair of arms on every table by every metric of `METRICS`, judged as one family.

    The family is the study: all that may become a verdict, arms x metrics x settings, is corrected together by Holm's
    procedure, so that any false claim at all in a study has a chance of 5 % at most. Variants of a grid and arms
    written out by hand are in it alike. What cannot become a verdict is not: tables that cannot decide, exploratory
    metrics, fewer than five seeds.
    """
    asked = [(pair, table) for pair in study.comparisons for table in study.tables]
    by_metric = {metric: [c for pair, table in asked if (c := _raw(study, table, pair, metric))] for metric in METRICS}
    family = [each for found in by_metric.values() for each in found if _may_decide(each)]
    adjusted = {id(each): p for each, p in zip(family, statistics.holm([each.p for each in family]), strict=True)}
    return {
        metric: [_judged(each, adjusted.get(id(each), math.nan)) for each in found]
        for metric, found in by_metric.items()
    }


def _may_decide(each: Comparison) -> bool:
    return not each.apart and not each.exploratory and each.difference.n >= FEWEST_SEEDS


def _raw(study: Study, table: Table, pair: tuple[str, str], which: str) -> Comparison | None:
    metric = table.metric if which == SCORE else which
    arm, baseline = study.of(table.setting, pair[0]), study.of(table.setting, pair[1])
    seeds = [seed for seed in arm if seed in baseline]
    scores = [[runs[seed].score(table.split, metric) for seed in seeds] for runs in (arm, baseline)]
    if not seeds or not np.isfinite(scores).all():
        return None
    difference = statistics.paired_difference(*scores, higher_is_better=metric not in LOWER_IS_BETTER)
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
        seeds=seeds,
        differences=[a - b for a, b in zip(*scores, strict=True)],
        difference=difference,
        crossed=over_both,
        seeds_needed=(
            None if metric in IN_NATS else statistics.seeds_needed(sd, study.gain, row_variance=row_variance)
        ),
        detectable=statistics.detectable_gain(sd, difference.n, row_variance=row_variance),
        apart=bool(table.apart),
        exploratory=which in EXPLORATORY,
        mcnemar=_mcnemar(arm, baseline, seeds, table.split) if which == SCORE else {},
    )


def _judged(comparison: Comparison, holm_p: float) -> Comparison:
    return replace(comparison, holm_p=holm_p, verdict=verdict_of(comparison, holm_p))


def verdict_of(comparison: Comparison, holm_p: float) -> str:
    """What a user may conclude, in plain words."""
    difference = comparison.difference
    if comparison.apart:
        return 'set apart'
    if comparison.exploratory:
        return 'exploratory'
    if difference.n < FEWEST_SEEDS:
        return f'{_NO_GAIN} (fewer than {FEWEST_SEEDS} seeds prove nothing)'
    if math.isnan(holm_p):
        return f'{_NO_GAIN} (the same difference on every seed: no variance to test against)'
    if holm_p >= LEVEL:
        return _NO_GAIN
    better = difference.mean < 0 if comparison.metric in LOWER_IS_BETTER else difference.mean > 0
    return 'gain' if better else 'loss'


def _mcnemar(arm: dict[int, Run], baseline: dict[int, Run], seeds: Sequence[int], split: str) -> dict[int, McNemar]:
    found = {}
    for seed in seeds:
        first, second = (runs[seed].predictions.get(split) for runs in (arm, baseline))
        if first and second:
            found[seed] = statistics.mcnemar(*(list(each.answers == each.labels) for each in (first, second)))
    return found
