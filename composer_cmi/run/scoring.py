"""A task's official scores, NLL and calibration: torchmetrics, whose states are merged over ranks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torchmetrics import Metric
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
)

from composer_cmi.data.splits import UNLABELLED
from composer_cmi.data.tasks import Task

__all__ = [
    'F1',
    'Accuracy',
    'CalibrationError',
    'MacroF1',
    'MatthewsCorrelation',
    'NegativeLogLikelihood',
    'brier_score',
    'score',
    'task_metrics',
]

# One class per official name: Composer keys a model's metrics by class name. All take logits [N, C] and labels [N],
# in which -100 is skipped.


class Accuracy(MulticlassAccuracy):
    """Share of right answers."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes, average='micro', ignore_index=UNLABELLED)


class F1(MulticlassF1Score):
    """F1 of class 1 of two, as GLUE scores MRPC and QQP."""

    def __init__(self, num_classes: int = 2) -> None:
        super().__init__(num_classes, average='none', ignore_index=UNLABELLED)

    def compute(self) -> Tensor:
        """The score, 0-d."""
        return super().compute()[1]


class MacroF1(MulticlassConfusionMatrix):
    """Mean of the classes' F1; a class without rows or answers counts 0, as scikit-learn has it."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes, ignore_index=UNLABELLED)

    def compute(self) -> Tensor:
        """The score, 0-d."""
        # torchmetrics' own macro average leaves absent classes out, so its value would depend on the split.
        table = super().compute().double()
        both = table.sum(0) + table.sum(1)
        return (2 * table.diagonal() / both.clamp(min=1)).mean().float()


class MatthewsCorrelation(MulticlassConfusionMatrix):
    """Matthews correlation (Gorodkin's R_K); 0 for a constant answer, as GLUE and scikit-learn have it."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes, ignore_index=UNLABELLED)

    def compute(self) -> Tensor:
        """The score, 0-d."""
        # torchmetrics' own version replaces 0/0 by a value that is not 0: a collapsed model would score on CoLA.
        table = super().compute().double()
        total, right = table.sum(), table.diagonal().sum()
        true, given = table.sum(1), table.sum(0)
        covariance = right * total - true @ given
        spread = (total**2 - given @ given) * (total**2 - true @ true)
        return torch.where(spread > 0, covariance / spread.clamp(min=1).sqrt(), torch.zeros_like(spread)).float()


class NegativeLogLikelihood(Metric):
    """Mean of -ln p(label), in nats."""

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, num_classes: int | None = None) -> None:
        super().__init__()
        self.add_state('total', torch.zeros((), dtype=torch.float64), dist_reduce_fx='sum')
        self.add_state('count', torch.zeros((), dtype=torch.int64), dist_reduce_fx='sum')

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add rows: logits [N, C], labels [N]."""
        losses = cross_entropy(preds.float(), target, ignore_index=UNLABELLED, reduction='none')
        self.total = self.total + losses.sum(dtype=self.total.dtype)
        self.count = self.count + (target != UNLABELLED).sum()

    def compute(self) -> Tensor:
        """The mean, 0-d."""
        return (self.total / self.count).float()


class CalibrationError(Metric):
    """Expected calibration error of the top class, 15 equal bins (Guo et al. 2017)."""

    full_state_update = False
    sums: Tensor

    def __init__(self, num_classes: int | None = None, bins: int = 15) -> None:
        super().__init__()
        self.bins = bins
        # Sums per bin, not the rows: torchmetrics' own keeps lists, and a rank without rows then hangs the merge.
        self.add_state('sums', torch.zeros(3, bins, dtype=torch.float64), dist_reduce_fx='sum')

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add rows: logits [N, C], labels [N]."""
        confidence, answer = preds.double().softmax(-1).max(-1)
        labelled = (target != UNLABELLED).double()
        place = (confidence * self.bins).long().clamp(max=self.bins - 1)
        rows = torch.stack([labelled, labelled * confidence, labelled * (answer == target)])
        self.sums = self.sums.index_add(1, place, rows.to(self.sums.dtype))

    def compute(self) -> Tensor:
        """The mean distance between confidence and accuracy over rows, 0-d."""
        count, confidence, right = self.sums
        return ((confidence - right).abs().sum() / count.sum()).float()


_METRICS: dict[str, type[Metric]] = {
    'accuracy': Accuracy,
    'f1': F1,
    'macro_f1': MacroF1,
    'matthews_correlation': MatthewsCorrelation,
}


def task_metrics(task: Task) -> dict[str, Metric]:
    """Fresh metrics by name: the task's official ones, then 'nll' (nats) and 'ece'.

    For Composer: ``HuggingFaceModel(..., use_logits=True, eval_metrics=list(task_metrics(task).values()))``.
    """
    classes = task.num_classes
    official = {name: _METRICS[name](num_classes=classes) for name in task.metrics}
    return {**official, 'nll': NegativeLogLikelihood(classes), 'ece': CalibrationError(classes)}


def brier_score(logits: Tensor, labels: Tensor) -> float:
    """Mean of ``sum_c (p_c - [c = label])**2`` over the labelled rows, from 0 to 2 (Brier 1950).

    Args:
        logits: [N, C].
        labels: Class indices [N]; rows of -100 are skipped.
    """
    labelled = labels != UNLABELLED
    probabilities = logits[labelled].double().softmax(-1)
    truth = torch.nn.functional.one_hot(labels[labelled], logits.shape[1])
    return float((probabilities - truth).square().sum(-1).mean())


def score(task: Task, logits: Any, labels: Any) -> dict[str, float]:
    """Score one split: official metrics and 'ece' as shares, 'nll' in nats.

    Args:
        task: The task.
        logits: [N, C], a tensor or what becomes one.
        labels: Class indices [N]; rows of -100 are skipped.

    Raises:
        ValueError: The shapes do not fit, no row has a label, or a logit is not finite.
    """
    logits = torch.as_tensor(logits).detach().cpu().float()
    labels = torch.as_tensor(labels).detach().cpu().long()
    if logits.shape != (len(labels), task.num_classes):
        wanted = f'[{len(labels)}, {task.num_classes}]'
        raise ValueError(f'Task {task.name} is scored on logits of shape {wanted}, here is {list(logits.shape)}.')
    if not bool((labels != UNLABELLED).any()):
        raise ValueError('None of the rows to score has a label.')
    if not bool(logits.isfinite().all()):
        row = int((~logits.isfinite()).any(1).nonzero()[0])
        raise ValueError(f'The logits of row {row} are not finite: training has diverged.')
    metrics = task_metrics(task)
    for metric in metrics.values():
        metric.update(logits, labels)
    return {name: float(metric.compute()) for name, metric in metrics.items()}
