"""What is made of teachers' logits before a student sees them: the average of several, temperatures that raise CMI."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from composer_cmi import functional as cmi_f

__all__ = ['Average', 'Raised', 'average_logits', 'raise_cmi', 'shares_of', 'with_temperatures']

Average: TypeAlias = Literal['logits', 'probabilities']

_HOTTEST = 10.0


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


class Raised(NamedTuple):
    """Temperatures of a teacher's classes, and what they do on the rows that they were fitted on.

    Attributes:
        temperatures: One a class, from 1 to 10.
        cmi: Of the logits at the distillation's temperature, nats: before, after.
        accuracy: Before, after.
    """

    temperatures: list[float]
    cmi: tuple[float, float]
    accuracy: tuple[float, float]


def with_temperatures(logits: Tensor, temperatures: Sequence[float] | Tensor) -> Tensor:
    """Logits `[N, C]`, each row's mean taken out, each class's divided by its temperature `[C]`."""
    divisors = torch.as_tensor(temperatures, dtype=logits.dtype, device=logits.device)
    return (logits - logits.mean(-1, keepdim=True)) / divisors


def raise_cmi(logits: Tensor, labels: Tensor, *, temperature: float, loss_of_accuracy: float) -> Raised:
    """A temperature for each class at which a teacher's stored logits have the most CMI, and nearly its accuracy.

    The aim of CMI-max (arXiv 2401.08732) without training a teacher for it. The objective of the temperatures is CMI
    alone, by L-BFGS in float64 from the best single temperature; then they are taken back towards 1, in their
    logarithms, until accuracy has lost no more than it may. None is below 1: sharper logits raise the CMI of a teacher
    that errs by its errors. CMI never falls: all temperatures 1 is among what is tried.

    Args:
        logits: `[R, C]`, finite.
        labels: `[R]` int64; rows outside `0..C-1` are left out.
        temperature: That of the distillation, at which CMI counts.
        loss_of_accuracy: The share of the rows that may be got right before and wrong after, net.

    Raises:
        ValueError: No row has a label.
    """
    num_classes = logits.shape[1]
    kept = (labels >= 0) & (labels < num_classes)
    logits, labels = logits[kept].detach().cpu().double(), labels[kept].cpu()
    if not len(labels):
        raise ValueError('raise_cmi is fitted on labelled training rows, and there are none: leave it out.')

    def cmi(logs: Tensor) -> Tensor:
        log_f = cmi_f.log_distribution(with_temperatures(logits, logs.exp()), temperature)
        return cmi_f.conditional_mutual_information(cmi_f.class_statistics(log_f, labels, num_classes))

    def accuracy(logs: Tensor) -> float:
        return (with_temperatures(logits, logs.exp()).argmax(-1) == labels).double().mean().item()

    widest = math.log(_HOTTEST)
    same = torch.ones(num_classes, dtype=torch.float64)
    single = [widest * step / 20 for step in range(1, 20)]
    best = max(single, key=lambda each: float(cmi(each * same)))
    free = torch.logit(best / widest * same).requires_grad_()
    fit = torch.optim.LBFGS([free], max_iter=200, line_search_fn='strong_wolfe')

    def closure() -> Tensor:
        fit.zero_grad()
        loss = -cmi(widest * torch.sigmoid(free))
        loss.backward()
        return loss

    with torch.enable_grad():
        fit.step(closure)
    hottest = widest * torch.sigmoid(free.detach())
    least = accuracy(0 * same) - loss_of_accuracy - 1e-9
    paths = [step / 50 * end for end in (hottest, best * same) for step in range(51)]
    logs = max((each for each in paths if accuracy(each) >= least), key=lambda each: float(cmi(each)))
    found = (float(cmi(0 * same)), float(cmi(logs))), (accuracy(0 * same), accuracy(logs))
    return Raised(logs.exp().tolist(), *found)
