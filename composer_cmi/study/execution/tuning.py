"""Which of the values that were tried on a slice of train each tuned arm is reported with."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from composer_cmi.errors import ConfigError
from composer_cmi.run.outputs.results import load_results
from composer_cmi.study.config import StudyConfig, combinations
from composer_cmi.study.execution.plan import Cell
from composer_cmi.study.findings.predictions import Predictions, check_scores, read_predictions, row_values

__all__ = ['choose']


def choose(
    study: StudyConfig, tuning: Sequence[Cell], repeats: Mapping[str, Collection[int]] | None = None
) -> tuple[dict[tuple[str, str], dict[str, Any]], list[dict[str, Any]]]:
    """The best candidate of each tuned arm and setting, by the mean primary score over the tuning seeds.

    A candidate counts when all of its tuning runs have finished. Equal means are decided by NLL, then by order.

    Args:
        study: the study.
        tuning: its tuning runs.
        repeats: by setting, the held-out rows that repeat reported texts: they are scored on no account.

    Returns:
        The chosen values by setting and arm, and all tries as rows for `tuning.json`.
    """
    chosen: dict[tuple[str, str], dict[str, Any]] = {}
    rows: list[dict[str, Any]] = []
    for setting, arm in dict.fromkeys((cell.setting, cell.arm) for cell in tuning):
        tries = []
        for number, values in enumerate(combinations(study.arms[arm].tune)):
            mine = [cell for cell in tuning if (cell.setting, cell.arm, cell.candidate) == (setting, arm, number)]
            found = [_tuning_scores(cell.folder, (repeats or {}).get(setting, ())) for cell in mine]
            scores, nll = ([pair[place] for pair in found if pair is not None] for place in (0, 1))
            row = {'setting': setting, 'arm': arm, 'values': values, 'scores': scores, 'nll': nll, 'chosen': False}
            rows.append(row)
            if len(scores) == len(mine):
                tries.append(((round(float(np.mean(scores)), 9), -float(np.mean(nll)), -number), row))
        if tries:
            best = max(tries, key=lambda each: each[0])[1]
            best['chosen'] = True
            chosen[setting, arm] = best['values']
    return chosen, rows


def _tuning_scores(folder: str, repeats: Collection[int]) -> tuple[float, float] | None:
    """Primary score and NLL of a tuning run without the given rows; None while it has not finished."""
    run = load_results(folder)
    if run is None:
        return None
    split, scores = next(iter(run.scores.items()))
    if not repeats:
        return run.primary_score, scores.get('nll', 0.0)
    path = Path(folder) / f'predictions_{split}.csv'
    found = read_predictions(path, run.num_examples.get(split))
    if found is None:
        raise ConfigError(f'{path} is missing: delete the folder to do this tuning run again.')
    check_scores(path, found, scores)
    kept = ~np.isin(found.example_ids, list(repeats))
    rest = Predictions(found.example_ids[kept], found.labels[kept], found.answers[kept], found.logits[kept])
    values = [row_values(rest, metric) for metric in (run.metric, 'nll')]
    if any(each is None or not len(each) for each in values):
        raise ConfigError(f'{path}: {run.metric} cannot be had without the rows that repeat reported texts.')
    score, nll = (float(np.mean(each)) for each in values if each is not None)
    return score, nll
