"""What a report reads from the predictions files of runs: what each row adds to a score, and NLL without its scale."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from composer_cmi.errors import ConfigError
from composer_cmi.run.calibrate.temperature import best_temperature
from composer_cmi.run.measures.tables import SCORES
from composer_cmi.run.outputs.files import read_checked

__all__ = ['SCALED_NLL', 'Predictions', 'check_scores', 'read_predictions', 'row_values', 'scaled_nll']

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

SCALED_NLL = 'scaled_nll'  # the one score that no run holds: it is read from the predictions
# Runs score in float32.
_ROUNDING = 1e-5


class Predictions(NamedTuple):
    """The labelled rows of one split in the order of their ids: `[N]`, `[N]`, `[N]` and logits `[N, C]`.

    Logits are NaN where only answers are known.
    """

    example_ids: Ints
    labels: Ints
    answers: Ints
    logits: Floats


def read_predictions(path: Path, rows: int | None = None) -> Predictions | None:
    """The labelled rows of a run's `predictions_*.csv`; None where there is no file or no labelled row.

    Args:
        path: the file.
        rows: how many rows it must have, labelled or not, as the run counted them.

    Raises:
        ConfigError: the file is not what a run writes, or has another number of rows.
    """
    if not path.is_file():
        return None
    remedy = f'delete {path.with_name("results.json")} and run again, which writes both anew from the last checkpoint'
    try:
        table = list(csv.DictReader(io.StringIO(read_checked(path, remedy).decode('utf-8'), newline='')))
        if rows is not None and len(table) != rows:
            raise ConfigError(f'{path} has {len(table)} rows, and the run was scored on {rows}.')
        labelled = [row for row in table if row['label']]
        if not labelled:
            return None
        columns = [name for name in labelled[0] if name and name.startswith('logit_')]
        names = ('example_id', 'label', 'prediction')
        whole = np.array([[int(row[name]) for name in names] for row in labelled], dtype=np.int64)
        logits = np.array([[float(row[name]) for name in columns] for row in labelled])
    except ConfigError:
        raise
    except (ValueError, TypeError, KeyError, OSError, OverflowError, csv.Error) as error:
        raise ConfigError(f'{path} is not a predictions file: {type(error).__name__}, {error}.') from error
    classes = logits.shape[1]
    if not classes or not np.isfinite(logits).all() or not ((whole[:, 1:] >= 0) & (whole[:, 1:] < classes)).all():
        raise ConfigError(f'{path} is not a predictions file: a logit is not finite, or a label is no class.')
    order = whole[:, 0].argsort(kind='stable')
    ids, labels, answers = whole[order].T
    if (np.diff(ids) == 0).any():
        raise ConfigError(f'{path} has an example_id twice.')
    return Predictions(ids, labels, answers, logits[order])


def check_scores(path: Path, found: Predictions, scores: Mapping[str, float]) -> None:
    """Compare the scores of a predictions file with those that the run has written.

    Raises:
        ConfigError: a score differs beyond rounding: one of the two files was changed.
    """
    for metric, stored in scores.items():
        values = row_values(found, metric)
        if values is None or not math.isfinite(stored):
            continue
        here = float(values.mean())
        if abs(here - stored) > _ROUNDING * (1 + 10 * abs(stored)):
            raise ConfigError(f'{path} gives {metric} {here:.6g}, where results.json has {stored:.6g}.')


def row_values(found: Predictions, metric: str) -> Floats | None:
    """What each row adds to a score: `[N]` values whose mean is the score; None for a score that has no such form.

    For a loss they are the rows' own losses. For scores of the table of labels and answers (accuracy, F1, macro F1,
    Matthews correlation) a row's value is the score plus the row's influence on it, (N - 1) times what leaving the row
    out takes away, centred (the jackknife; Efron 1982): for accuracy, 1 for a right answer and 0 for a wrong one.
    """
    if metric in ('nll', SCALED_NLL) and np.isnan(found.logits).any():
        return None
    if metric == 'nll':
        return _losses(found.logits, found.labels, 0.0)
    if metric == SCALED_NLL:
        return _scaled_losses(found.logits, found.labels)
    if metric not in SCORES:
        return None
    of_tables, classes, rows = SCORES[metric], found.logits.shape[1], len(found.labels)
    table = np.zeros((classes, classes))
    np.add.at(table, (found.labels, found.answers), 1)
    # Rows of one cell have one influence: as many tables are scored as there are cells with rows.
    cells, cell_of = np.unique(found.labels * classes + found.answers, return_inverse=True)
    score, without = float(of_tables(table)), np.empty(len(cells))
    for place, cell in enumerate(cells):
        table.flat[cell] -= 1
        without[place] = of_tables(table)
        table.flat[cell] += 1
    if rows == 1:
        return np.array([score])
    taken = -without[cell_of]
    return score + (rows - 1) * (taken - taken.mean())


def scaled_nll(logits: Floats, labels: Ints) -> float:
    """NLL after temperature scaling (Guo et al. 2017), in nats: what it is worth when the scale of logits is free.

    One temperature is fitted on all rows, and what it gains by having seen them is taken off: one fitted parameter
    lowers the mean loss of N rows by 1 / N more than that of new ones (Akaike 1974). So it is never more than 1 / N
    above NLL; a temperature fitted on half the rows would be without bound where that half has no error.

    Args:
        logits: `[N, C]`.
        labels: `[N]`, class indices.

    Returns:
        float: The mean over all rows; nan with fewer than two rows.
    """
    return float(_scaled_losses(logits, labels).mean()) if len(labels) > 1 else math.nan


def _scaled_losses(logits: Floats, labels: Ints) -> Floats:
    return _losses(logits, labels, math.log(best_temperature(logits, labels))) + 1 / len(labels)


def _losses(logits: Floats, labels: Ints, log_temperature: float) -> Floats:
    return -log_softmax(logits / math.exp(log_temperature), axis=1)[np.arange(len(labels)), labels]
