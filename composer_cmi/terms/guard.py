"""Names what can go wrong with a CMI term, from what the centroids know."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from composer_cmi.centroids import ClassCentroids

__all__ = ['Guard', 'diagnose']

_COLLAPSED = 0.1  # of the largest I(X;Z) seen
_NOISE = 3.0  # standard deviations of the running accuracy


class Guard:
    """Speaks once, when trouble is found twice in a row: a young model may be worse than chance for a while."""

    def __init__(self):
        self.peak_information = torch.zeros((), dtype=torch.float64)  # the largest I(X;Z) seen so far, nats
        self.alarms = 0  # how often in a row trouble was found
        self.warned = False  # whether it has been said

    def watch(self, centroids: ClassCentroids) -> None:
        """Once in a step; nothing waits for the device."""
        information = centroids.running.mutual_information
        self.peak_information = torch.maximum(self.peak_information.to(information.device), information)

    def speak(self, centroids: ClassCentroids) -> str | None:
        """What is wrong and has not been said yet, or None; waits for the device."""
        if self.warned:
            return None
        trouble = diagnose(centroids, self.peak_information.to(centroids.running.cmi.device))
        self.alarms = self.alarms + 1 if trouble else 0
        self.warned = self.alarms == 2
        return trouble if self.warned else None

    def state_dict(self) -> dict[str, Any]:
        """Plain values and a tensor on its device."""
        return {'peak_information': self.peak_information, 'alarms': self.alarms, 'warned': self.warned}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self.peak_information = state['peak_information'].clone()
        self.alarms, self.warned = state['alarms'], state['warned']


def diagnose(centroids: ClassCentroids, peak_information: Tensor) -> str | None:
    """Say what is wrong with the clusters, or `None`.

    *Collapse*: I(X;Z) has fallen to a tenth of its peak while the model predicts no better than the largest class.
    *Flip*: training accuracy is below one over the number of classes: clean clusters under the wrong labels, which CMI
    cannot tell apart.

    Args:
        centroids: of the run; read once (this waits for the device).
        peak_information: 0-d, the largest I(X;Z) seen so far, nats.

    Returns:
        One clause without a full stop.
    """
    prior, running = centroids.prior, centroids.tables['running']
    values = [
        centroids.running.mutual_information,
        peak_information,
        centroids.accuracy(running),
        1 / (prior > 0).sum().clamp(min=1),
        prior.max(),
        centroids.statistics(running).counts.sum(),
    ]
    information, peak, accuracy, chance, majority, support = torch.stack(values).tolist()
    noise = _NOISE * (chance * (1 - chance) / max(support, 1.0)) ** 0.5
    if chance < 1 and accuracy < chance - noise:
        return (
            f'the clusters have settled on the wrong labels: training accuracy is {accuracy:.3f}, below chance '
            f'({chance:.3f})'
        )
    if information < _COLLAPSED * peak and accuracy < majority + noise:
        return (
            f'the clusters have collapsed: I(X;Z) fell from {peak:.3g} to {information:.3g} nats while training '
            f'accuracy is {accuracy:.3f}, no better than the largest class ({majority:.3f})'
        )
    return None
