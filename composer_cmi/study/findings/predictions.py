"""What a report reads from the predictions files of runs: which rows were right, and NLL with the scale taken out."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from composer_cmi.run.outputs.files import read_checked

__all__ = ['Predictions', 'read_predictions', 'scaled_nll']

_WIDEST = math.log(100)  # temperatures from 1/100 to 100


class Predictions(NamedTuple):
    """The labelled rows of one split in the order of their ids: `[N]`, `[N]`, `[N]` and logits `[N, C]`."""

    example_ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    answers: NDArray[np.int64]
    logits: NDArray[np.float64]


def read_predictions(path: Path) -> Predictions | None:
    """The labelled rows of a run's `predictions_*.csv`; None where there is no file or no labelled row.

    Raises:
        ConfigError: if the file is not what the run wrote.
    """
    if not path.is_file():
        return None
    remedy = f'delete {path.with_name("results.json")} and run again, which writes both anew from the last checkpoint'
    file = io.StringIO(read_checked(path, remedy).decode('utf-8'))
    rows = [row for row in csv.DictReader(file) if row['label']]
    if not rows:
        return None
    columns = [name for name in rows[0] if name.startswith('logit_')]
    whole = np.array([[int(row[name]) for name in ('example_id', 'label', 'prediction')] for row in rows])
    order = whole[:, 0].argsort(kind='stable')
    logits = np.array([[float(row[name]) for name in columns] for row in rows])
    ids, labels, answers = whole[order].T
    return Predictions(ids, labels, answers, logits[order])


def scaled_nll(logits: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """NLL after temperature scaling (Guo et al. 2017), in nats: what it is worth when the scale of logits is free.

    The temperature that minimises NLL is found on every second row and used on the others, and the other way round, so
    that no row is scored by a temperature that it chose.

    Args:
        logits: `[N, C]`.
        labels: `[N]`, class indices.

    Returns:
        float: The mean over all rows; nan with fewer than two rows.
    """
    if len(labels) < 2:
        return math.nan
    losses = np.empty(len(labels))
    odd = np.arange(len(labels)) % 2 == 1
    for fitted, scored in ((odd, ~odd), (~odd, odd)):
        # NLL is convex in the inverse temperature, so it has one minimum in its logarithm too.
        best = minimize_scalar(
            lambda log_t, rows=fitted: _losses(logits[rows], labels[rows], log_t).mean(),
            bounds=(-_WIDEST, _WIDEST),
            method='bounded',
        )
        losses[scored] = _losses(logits[scored], labels[scored], best.x)
    return float(losses.mean())


def _losses(logits: NDArray[np.float64], labels: NDArray[np.int64], log_temperature: float) -> NDArray[np.float64]:
    return -log_softmax(logits / math.exp(log_temperature), axis=1)[np.arange(len(labels)), labels]
