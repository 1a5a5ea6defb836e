"""The average of several teachers' answers: of their logits, or of their probabilities."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor

__all__ = ['Average', 'average_logits', 'shares_of']

Average: TypeAlias = Literal['logits', 'probabilities']


def shares_of(weights: Sequence[float]) -> list[float]:
    """Weights with a mean of 1, exactly 1 each where they are equal."""
    mean = sum(weights) / len(weights)
    return [weight / mean for weight in weights]


def average_logits(parts: Sequence[Tensor], shares: Sequence[float], average: Average) -> Tensor:
    """Logits `[N, C]` that stand for several.

    Args:
        parts: Logits `[N, C]` each.
        shares: A weight for each, adding up to their number.
        average: `'logits'`: the weighted mean of the logits, so the normalised geometric mean of the distributions.
            `'probabilities'`: the logarithm of the weighted mean of the distributions at temperature 1.
    """
    if len(parts) == 1:
        return parts[0]
    pairs = zip(parts, shares, strict=True)
    if average == 'probabilities':
        return torch.stack([part.log_softmax(-1) + math.log(share / len(parts)) for part, share in pairs]).logsumexp(0)
    return functools.reduce(torch.add, [part * share for part, share in pairs]) / len(parts)
