"""From run folders to a study: which runs there are, which of them are alike, and which cannot be read."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from composer_cmi.errors import ConfigError
from composer_cmi.run.outputs.results import RESULTS_FILE, RunResults, load_results
from composer_cmi.study.findings.predictions import (
    SCALED_NLL,
    Floats,
    Predictions,
    check_scores,
    read_predictions,
    row_values,
)

__all__ = ['IN_NATS', 'Run', 'in_points', 'read_runs']

IN_NATS = ('nll', SCALED_NLL)


@dataclass(frozen=True)
class Run:
    """What one seed of one arm has scored on one setting.

    Attributes:
        scores: by split and metric, as the report prints them: shares in points of 100, NLL in nats.
        folder: of a finished run; with `stored`, its results. Scores from elsewhere have neither.
        predictions: of the splits whose file is there and whole.
    """

    setting: str
    arm: str
    seed: int
    scores: dict[str, dict[str, float]] = field(repr=False)
    folder: Path = Path()
    stored: RunResults | None = field(default=None, repr=False)
    predictions: dict[str, Predictions] = field(default_factory=dict, repr=False, compare=False)
    _rows: dict[tuple[str, str], Floats | None] = field(default_factory=dict, repr=False, compare=False)

    @property
    def results(self) -> RunResults:
        """Of a run folder; LookupError for scores from elsewhere."""
        if self.stored is None:
            raise LookupError(f'{self.setting}, {self.arm}, seed {self.seed} has scores and no run folder')
        return self.stored

    def score(self, split: str, metric: str) -> float:
        """A score as the report prints it; nan where the run has none."""
        if metric == SCALED_NLL:
            values = self.rows(split, metric)
            return math.nan if values is None else float(values.mean())
        return self.scores[split].get(metric, math.nan)

    def rows(self, split: str, metric: str) -> Floats | None:
        """What each labelled row adds to that score, `[N]` in its unit; None where the predictions do not say."""
        if (split, metric) not in self._rows:
            found = self.predictions.get(split)
            values = None if found is None else row_values(found, metric)
            self._rows[split, metric] = values if values is None or metric in IN_NATS else 100 * values
        return self._rows[split, metric]


def in_points(scores: Mapping[str, float]) -> dict[str, float]:
    """Scores of a run as a report prints them: shares in points of 100, NLL in nats."""
    # Shares come in float32: rounded, so that equal counts are equal scores, and equal differences are ties.
    return {metric: value if metric in IN_NATS else round(100 * value, 4) for metric, value in scores.items()}


def read_runs(folder: Path, plan: dict[str, Any]) -> tuple[list[Run], list[str]]:
    """Every finished run below a folder, and what a reader must be told of it, a sentence each.

    A study's folder has its runs at `runs/SETTING/ARM/seedN`, and those of its plan count. Below any other folder, the
    last part of a run's path is its arm and its task is the setting, unless the path ends like a study's. What cannot
    be read is left out; runs that differ in data, task, metric, evaluation splits or number of classes are settings of
    their own.

    Raises:
        ConfigError: there is no finished run, or two are the same seed of one arm on one setting.
    """
    remarks: list[str] = []
    runs = _found(folder, plan, remarks)
    if not runs:
        left_out = ''.join(f' {remark}' for remark in remarks)
        raise ConfigError(f'There is no finished run (no {RESULTS_FILE}) below {str(folder)!r}.{left_out}')
    runs = _settings_of_like_runs(runs, bool(plan), remarks)
    _keep_one_set_of_rows(runs, remarks)
    _refuse_doubles(runs)
    return runs, remarks


def _found(folder: Path, plan: dict[str, Any], remarks: list[str]) -> list[Run]:
    root = folder / 'runs' if plan else folder
    planned = {folder / place for place in plan.get('runs', ())}
    runs, unplanned = [], 0
    for path in sorted(root.rglob(RESULTS_FILE)):
        parts = path.parent.relative_to(root).parts
        if not plan and 'tuning' in parts:
            continue
        if planned and path.parent not in planned:
            unplanned += 1
            continue
        try:
            results = load_results(path.parent)
            if results is None:
                continue
            _check_complete(path, results)
        except (ValueError, OSError, RecursionError) as error:
            reason = ' '.join(str(error).split()).removeprefix(f'{path} ')
            remarks.append(f'LEFT OUT, a run that cannot be read: {path}: {reason}')
            continue
        scores = {split: in_points(found) for split, found in results.scores.items()}
        run = Run(*_place(parts, results), scores, path.parent, results)
        runs.append(_with_predictions(run, results, remarks))
    if unplanned:
        remarks.append(f'LEFT OUT: {unplanned} finished runs below {root} are not in the plan of the last sweep.')
    return runs


def _check_complete(path: Path, results: RunResults) -> None:
    if not results.scores or any(results.metric not in scores for scores in results.scores.values()):
        raise ConfigError(f'{path} has no score by {results.metric!r} for every split.')
    if not {'features', 'logits'} <= set(results.cmi.get('after', {})):
        raise ConfigError(f'{path} has no information after training.')


def _with_predictions(run: Run, results: RunResults, remarks: list[str]) -> Run:
    for split, scores in results.scores.items():
        path = run.folder / f'predictions_{split}.csv'
        try:
            found = read_predictions(path, results.num_examples.get(split))
            if found is not None:
                check_scores(path, found, scores)
                run.predictions[split] = found
        except ConfigError as error:
            remarks.append(f'PREDICTIONS NOT USED: {error} Nothing of this run that needs them is in the report.')
    return run


def _place(parts: Sequence[str], results: RunResults) -> tuple[str, str, int]:
    if len(parts) >= 3 and parts[-1] == f'seed{results.seed}':
        return parts[-3], parts[-2], results.seed
    return results.task, parts[-1] if parts else Path(results.run_name).name, results.seed


def _settings_of_like_runs(runs: list[Run], is_planned: bool, remarks: list[str]) -> list[Run]:
    """Runs of one setting are of one task, metric, kind of evaluation and data; others get a setting of their own.

    The arms of a planned study may train on other data on purpose: there, data count as changed where runs of the same
    `data` section saw different ones.
    """
    classes = {
        run.results.data_fingerprint: found.logits.shape[1] for run in runs for found in run.predictions.values()
    }
    seen: dict[Hashable, set[str]] = defaultdict(set)
    for run in runs:
        seen[_asked_data(run)].add(run.results.data_fingerprint)

    def traits(run: Run) -> tuple[str, ...]:
        results, mark = run.results, run.results.data_fingerprint
        rows = [f'{split} of {results.num_examples.get(split, 0)} rows' for split in results.scores]
        count = f'{classes[mark]} classes' if mark in classes else ''
        own_data = not is_planned or len(seen[_asked_data(run)]) > 1
        data = f'data {mark}' if own_data else ''
        return f'task {results.task}', f'by {results.metric}', ' and '.join(rows), count, data

    named: list[Run] = []
    for setting in dict.fromkeys(run.setting for run in runs):
        mine = [(run, traits(run)) for run in runs if run.setting == setting]
        kinds = list(dict.fromkeys(kind for _, kind in mine))
        telling = [place for place in range(len(kinds[0])) if len({kind[place] for kind in kinds}) > 1]
        names = {kind: ', '.join(kind[place] for place in telling if kind[place]) for kind in kinds}
        names = {kind: f'{setting} ({name})' if telling else setting for kind, name in names.items()}
        named += [replace(run, setting=names[kind]) for run, kind in mine]
        if telling:
            remarks.append(
                f'{setting}: its runs are not alike, and are settings of their own: {"; ".join(names.values())}.'
            )
    return named


def _asked_data(run: Run) -> Hashable:
    asked = run.results.config.get('data') or {}
    return run.setting, json.dumps({**asked, 'cache_dir': None}, sort_keys=True, default=str)


def _keep_one_set_of_rows(runs: list[Run], remarks: list[str]) -> None:
    """Predictions of one split are of the same rows with the same labels in every run; others are not used."""

    def rows(found: Predictions) -> bytes:
        return found.example_ids.tobytes() + found.labels.tobytes()

    for setting, split in dict.fromkeys((run.setting, split) for run in runs for split in run.predictions):
        mine = [run for run in runs if run.setting == setting and split in run.predictions]
        usual = Counter(rows(run.predictions[split]) for run in mine).most_common(1)[0][0]
        for run in mine:
            if rows(run.predictions[split]) != usual:
                del run.predictions[split]
                path = run.folder / f'predictions_{split}.csv'
                remarks.append(f'PREDICTIONS NOT USED: {path} has other rows or labels than other runs of {setting}.')


def _refuse_doubles(runs: list[Run]) -> None:
    claimed: dict[tuple[str, str, int], Path] = {}
    for run in runs:
        first = claimed.setdefault((run.setting, run.arm, run.seed), run.folder)
        if first != run.folder:
            raise ConfigError(
                f'{first} and {run.folder} are both seed {run.seed} of the arm {run.arm!r} on {run.setting!r}: '
                'report on a folder that holds one of them.'
            )
