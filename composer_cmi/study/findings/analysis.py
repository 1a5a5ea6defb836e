"""From run folders to comparisons: which runs there are, and what the paired differences between arms say."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from composer_cmi.errors import ConfigError
from composer_cmi.run.outputs.results import RunResults, load_results
from composer_cmi.study.findings import statistics
from composer_cmi.study.findings.predictions import read_predictions, scaled_nll
from composer_cmi.study.findings.statistics import McNemar, PairedDifference

__all__ = [
    'IN_NATS',
    'LOWER_IS_BETTER',
    'SCALED_NLL',
    'Comparison',
    'Run',
    'Study',
    'Table',
    'compare',
    'load_runs',
    'verdict_of',
]

LEVEL = 0.05
FEWEST_ROWS = 100
# Scores are counts: with fewer seeds the same difference comes by chance, and a t test takes it for certainty.
FEWEST_SEEDS = 5
SCALED_NLL = 'scaled_nll'  # the one score that no run holds: it is read from the predictions
IN_NATS = ('nll', SCALED_NLL)
LOWER_IS_BETTER = (*IN_NATS, 'ece')
_UNDECIDABLE_TASKS = ('wnli',)
_NO_GAIN = 'no evidence of a gain'


@dataclass(frozen=True)
class Run:
    """A finished run with its place in the study."""

    setting: str
    arm: str
    seed: int
    folder: Path
    results: RunResults
    _scaled: dict[str, float] = field(default_factory=dict, repr=False, compare=False)

    def score(self, split: str, metric: str) -> float:
        """A score as the report prints it: shares in points of 100, NLL in nats; nan where the run has none."""
        if metric == SCALED_NLL:
            return self._scaled_nll(split)
        value = self.results.scores[split].get(metric, math.nan)
        # Shares come in float32: rounded, so that equal counts are equal scores, and equal differences are ties.
        return value if metric in IN_NATS else round(100 * value, 4)

    def _scaled_nll(self, split: str) -> float:
        if split not in self._scaled:
            found = read_predictions(self.predictions(split))
            self._scaled[split] = math.nan if found is None else scaled_nll(found.logits, found.labels)
        return self._scaled[split]

    def predictions(self, split: str) -> Path:
        """Where the run's predictions of a split lie."""
        return self.folder / f'predictions_{split}.csv'


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
    """All finished runs below a folder, and the plan that they belong to where there is one."""

    name: str
    runs: list[Run]
    arms: list[str]
    comparisons: list[tuple[str, str]]
    gain: float
    missing: list[str]
    tuning: list[dict[str, Any]]
    tables: list[Table] = field(default_factory=list)

    def of(self, setting: str, arm: str) -> dict[int, Run]:
        """The runs of one arm on one setting by seed, in the order of the seeds."""
        runs = [run for run in self.runs if (run.setting, run.arm) == (setting, arm)]
        return {run.seed: run for run in sorted(runs, key=lambda run: run.seed)}


@dataclass(frozen=True)
class Comparison:
    """One arm against one baseline on one table by one metric; differences are arm minus baseline."""

    table: str
    arm: str
    baseline: str
    metric: str
    seeds: list[int]
    differences: list[float]
    difference: PairedDifference
    holm_p: float
    verdict: str
    seeds_needed: int | None
    detectable: float
    apart: bool
    mcnemar: dict[int, McNemar] = field(default_factory=dict)


def load_runs(folder: str | Path, against: Sequence[str] = ()) -> Study:
    """Read every finished run below a folder.

    A study's folder has its runs at `runs/SETTING/ARM/seedN`. Below any other folder, the last part of a run's path
    is its arm and its task is the setting, unless the path ends like a study's.

    Args:
        folder: a study's folder, or any folder with run folders in it.
        against: baselines, instead of the study's own.

    Raises:
        ConfigError: there is no such folder, no finished run in it, or no such baseline.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ConfigError(f'There is no folder {str(folder)!r} to report on.')
    plan = _read_json(folder / 'study.json', {})
    root = folder / 'runs' if plan else folder
    runs, claimed = [], {}
    for path in sorted(root.rglob('results.json')):
        results = load_results(path.parent)
        if results is None or (not plan and 'tuning' in path.relative_to(root).parts):
            continue
        run = Run(*_place(path.parent.relative_to(root).parts, results), path.parent, results)
        key = (run.setting, run.arm, run.seed)
        if key in claimed:
            raise ConfigError(
                f'{claimed[key]} and {run.folder} are both seed {run.seed} of the arm {run.arm!r} on {run.setting!r}: '
                'report on a folder that holds one of them.'
            )
        claimed[key] = run.folder
        runs.append(run)
    if not runs:
        raise ConfigError(f'There is no finished run (no results.json) below {str(folder)!r}.')
    found = list(dict.fromkeys(run.arm for run in runs))
    arms = [*(arm for arm in plan.get('arms', ()) if arm in found)]
    arms += [arm for arm in sorted(found, key=lambda arm: (arm != 'ce', arm)) if arm not in arms]
    missing = [place for place in plan.get('runs', ()) if not (folder / place / 'results.json').is_file()]
    study = Study(
        name=plan.get('name', folder.resolve().name),
        runs=runs,
        arms=arms,
        comparisons=_pairs(arms, plan, against),
        gain=float(plan.get('gain', 1.0)),
        missing=missing,
        tuning=_read_json(folder / 'tuning.json', []),
    )
    study.tables.extend(_tables(study))
    return study


def _read_json(path: Path, default: Any) -> Any:
    if not path.is_file():
        return default
    try:
        return json.loads(path.read_text(encoding='utf-8'))
    except json.JSONDecodeError as error:
        raise ConfigError(f'{path} is not valid JSON ({error}): start the sweep again, it rewrites it.') from error


def _place(parts: Sequence[str], results: RunResults) -> tuple[str, str, int]:
    if len(parts) >= 3 and parts[-1] == f'seed{results.seed}':
        return parts[-3], parts[-2], results.seed
    return results.task, parts[-1] if parts else Path(results.run_name).name, results.seed


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


def _tables(study: Study) -> list[Table]:
    tables = []
    for setting in dict.fromkeys(run.setting for run in study.runs):
        results = next(run.results for run in study.runs if run.setting == setting)
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


def compare(study: Study, metric: str | None = None) -> list[Comparison]:
    """Every wanted pair of arms on every table, with Holm's correction over the tables of a pair.

    The variants of a grid (`mincmi,weight=0.2`) count as one arm: all of them are in one family, so that the best of
    ten is not mistaken for a finding. Tables that cannot decide are in no family.

    Args:
        study: the runs.
        metric: 'nll', 'scaled_nll', 'ece' or another score's name; None takes each table's own primary metric.
    """
    raw = [_raw(study, table, pair, metric or table.metric) for pair in study.comparisons for table in study.tables]
    found = [each for each in raw if each is not None]
    families: dict[tuple[str, str], list[Comparison]] = {}
    for each in found:
        if not each.apart:
            families.setdefault((each.arm.split(',')[0], each.baseline), []).append(each)
    adjusted: dict[int, float] = {}
    for family in families.values():
        p_values = statistics.holm([each.difference.t_p for each in family])
        adjusted.update({id(each): p for each, p in zip(family, p_values, strict=True)})
    return [_judged(each, adjusted.get(id(each), math.nan)) for each in found]


def _raw(study: Study, table: Table, pair: tuple[str, str], metric: str) -> Comparison | None:
    arm, baseline = study.of(table.setting, pair[0]), study.of(table.setting, pair[1])
    seeds = [seed for seed in arm if seed in baseline]
    scores = [[runs[seed].score(table.split, metric) for seed in seeds] for runs in (arm, baseline)]
    if not seeds or not np.isfinite(scores).all():
        return None
    difference = statistics.paired_difference(*scores, higher_is_better=metric not in LOWER_IS_BETTER)
    # The same difference on every seed says nothing about how much the next one would vary.
    sd = difference.sd if difference.sd > 1e-9 else math.nan
    return Comparison(
        table=table.name,
        arm=pair[0],
        baseline=pair[1],
        metric=metric,
        seeds=seeds,
        differences=[a - b for a, b in zip(*scores, strict=True)],
        difference=difference,
        holm_p=math.nan,
        verdict='',
        seeds_needed=statistics.seeds_needed(sd, study.gain) if metric not in IN_NATS else None,
        detectable=statistics.detectable_gain(sd, difference.n),
        apart=bool(table.apart),
        mcnemar=_mcnemar(arm, baseline, seeds, table.split) if metric == table.metric else {},
    )


def _judged(comparison: Comparison, holm_p: float) -> Comparison:
    return Comparison(**{**comparison.__dict__, 'holm_p': holm_p, 'verdict': verdict_of(comparison, holm_p)})


def verdict_of(comparison: Comparison, holm_p: float) -> str:
    """What a user may conclude, in plain words."""
    difference = comparison.difference
    if comparison.apart:
        return 'set apart'
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
        first, second = (read_predictions(runs[seed].predictions(split)) for runs in (arm, baseline))
        if first and second and np.array_equal(first.example_ids, second.example_ids):
            found[seed] = statistics.mcnemar(*(list(each.answers == each.labels) for each in (first, second)))
    return found
