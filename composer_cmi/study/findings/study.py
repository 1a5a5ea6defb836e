"""What a report is about: runs with their places, what is compared, and the tables that the scores are in."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from composer_cmi.errors import ConfigError
from composer_cmi.study.findings.predictions import SCALED_NLL
from composer_cmi.study.findings.runs import Run, read_runs

__all__ = [
    'METRICS',
    'SCORE',
    'Metric',
    'Study',
    'Table',
    'load_runs',
    'pairs_of',
    'undecided',
]

FEWEST_ROWS = 100
SCORE = 'score'  # each table's own primary metric
_UNDECIDABLE_TASKS = ('wnli',)


class Metric(NamedTuple):
    """How a kind of score is read; `unit` is 'points' (of 100), 'nats' or, where nobody has said, empty."""

    name: str
    unit: str = 'points'
    lower_is_better: bool = False
    exploratory: bool = False


# ECE is no mean over rows and leans upward with few of them: it is shown, and decides nothing.
METRICS = {
    SCORE: Metric('score'),
    'nll': Metric('NLL', 'nats', lower_is_better=True),
    SCALED_NLL: Metric('Scaled NLL', 'nats', lower_is_better=True),
    'ece': Metric('ECE', lower_is_better=True, exploratory=True),
}


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
    """All finished runs below a folder, or scores from elsewhere, and the plan that they belong to where there is one.

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
    metrics: dict[str, Metric] = field(default_factory=lambda: METRICS)

    @property
    def of_folders(self) -> bool:
        """Whether there are run folders behind the scores, with all that they hold."""
        return all(run.stored is not None for run in self.runs)

    def of(self, setting: str, arm: str) -> dict[int, Run]:
        """The runs of one arm on one setting by seed, in the order of the seeds."""
        runs = [run for run in self.runs if (run.setting, run.arm) == (setting, arm)]
        return {run.seed: run for run in sorted(runs, key=lambda run: run.seed)}


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
        comparisons=pairs_of(arms, plan, against),
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


def pairs_of(arms: Sequence[str], plan: dict[str, Any], against: Sequence[str]) -> list[tuple[str, str]]:
    """What is compared with what: as the plan has it, or every arm with the baselines.

    Raises:
        ConfigError: there is no such baseline.
    """
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
            tables.append(Table(setting, split, name, results.metric, rows, majority, undecided(results.task, rows)))
    return tables


def undecided(task: str, rows: int) -> str:
    """Why a score on so many rows of a task decides nothing; empty where it may."""
    if task in _UNDECIDABLE_TASKS:
        return 'its dev set is adversarial to its training set: a better fit scores worse'
    if 0 < rows < FEWEST_ROWS:
        return f'it has {rows} rows: one of them is {100 / rows:.1f} points'
    return ''
