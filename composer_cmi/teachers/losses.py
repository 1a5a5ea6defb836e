"""How far a student's logits are from its teacher's: what `loss` of a distillation names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from composer_cmi.functional import distillation_divergence

__all__ = ['LOSSES', 'DistillationLoss', 'relation_distance', 'standardized_divergence']

DistillationLoss = Literal['kl', 'standardized', 'dist']


def standardized_divergence(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """`distillation_divergence` of logits that each row's own mean and deviation have standardised (arXiv 2403.01427).

    The student then learns the teacher's order and relative distances, and is free in its scale.

    Args:
        student_logits: `[N, C]`.
        teacher_logits: `[N, C]`; no gradient flows into them.
        temperature: positive `tau`.

    Returns:
        `[N]`, nats times `tau^2`.
    """
    return distillation_divergence(_standardized(student_logits), _standardized(teacher_logits), temperature)


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _standardized(logits: Tensor) -> Tensor:
    # Of a row without differences the deviation is 0, where the root has no gradient; the small number is added inside.
    logits = _at_least_float32(logits)
    centred = logits - logits.mean(-1, keepdim=True)
    return centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + 1e-12)


def relation_distance(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """DIST (arXiv 2205.10536, equations 9 and 10): how little two classifiers' probabilities correlate, times `tau^2`.

    `1 - correlation` over the classes of each row, plus the mean over classes of the same over the rows of each. That
    part is about the rows that are given together: it is **no mean over rows**, and a batch that is cut into
    microbatches or spread over ranks gives another value.

    Args:
        student_logits: `[N, C]`.
        teacher_logits: `[N, C]`; no gradient flows into them.
        temperature: positive `tau`.

    Returns:
        `[N]`, from 0 to 4 times `tau^2`; its mean is DIST's loss with both weights 1.
    """
    student = torch.softmax(_at_least_float32(student_logits) / temperature, -1)
    teacher = torch.softmax(_at_least_float32(teacher_logits.detach()) / temperature, -1)
    within_rows = 1 - _correlation(student, teacher)
    within_classes = 1 - _correlation(student.T, teacher.T)
    return temperature**2 * (within_rows + within_classes.mean())


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    a, b = (each - each.mean(-1, keepdim=True) for each in (a, b))
    return (a * b).sum(-1) * torch.rsqrt(a.square().sum(-1) * b.square().sum(-1) + 1e-16)


LOSSES: dict[DistillationLoss, Callable[[Tensor, Tensor, float], Tensor]] = {
    'kl': distillation_divergence,
    'standardized': standardized_divergence,
    'dist': relation_distance,
}
"""By name: `[N, C]` of the student, `[N, C]` of the teacher, tau -> `[N]`."""
