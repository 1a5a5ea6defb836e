"""Names what can go wrong with a CMI term, from what the centroids know."""

from __future__ import annotations

import torch
from torch import Tensor

from composer_cmi.centroids import ClassCentroids

__all__ = ['diagnose']

_COLLAPSED = 0.1  # of the largest I(X;Z) seen
_NOISE = 3.0  # standard deviations of the running accuracy


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
    prior = centroids.prior
    running = centroids.tables['running']
    values = [
        centroids.mutual_information,
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
