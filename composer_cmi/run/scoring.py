"""Official scores of a task, plus NLL and calibration. SKELETON: signatures are final, bodies follow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor
from torchmetrics import Metric

from composer_cmi.run.tasks import Task


def task_metrics(task: Task) -> dict[str, Metric]:
    """{'accuracy': Accuracy(...), ..., 'nll':, 'ece':}. Each of its own class, as Composer's HuggingFaceModel keys by class
    name: `HuggingFaceModel(..., eval_metrics=list(task_metrics(task).values()), use_logits=True)`. update(logits[N,C], labels[N])."""
    raise NotImplementedError


def score(task: Task, logits: Tensor | Any, labels: Tensor | Any) -> dict[str, float]:
    """Shares in [0, 1] (nll in nats); rows labelled -100 are skipped."""
    raise NotImplementedError


def second_scores(task: Task, predictions_csv: str | Path) -> dict[str, float]:
    """The same official metrics from a run's predictions file, by a local `evaluate` module on scikit-learn."""
    raise NotImplementedError
