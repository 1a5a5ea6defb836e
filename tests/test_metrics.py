from __future__ import annotations

import math

import pytest
import torch
from composer.utils import dist

from composer_cmi import functional as F
from composer_cmi.metrics import ConditionalMutualInformation, MutualInformation, NormalizedCMI, RelativeCMI

METRICS = (ConditionalMutualInformation, MutualInformation, RelativeCMI, NormalizedCMI)


def make(n: int = 101, d: int = 5, c: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(c, (n,), generator=generator)
    return torch.randn(n, d, generator=generator) + labels[:, None], labels


def expected(metric: type, x: torch.Tensor, labels: torch.Tensor) -> float:
    log_f = F.log_distribution(x)
    stats = F.class_statistics(log_f, labels, 3)
    if metric is NormalizedCMI:
        return F.normalized_cmi(stats, F.sum_by_class(log_f, labels, 3)).item()
    function = {
        ConditionalMutualInformation: F.conditional_mutual_information,
        MutualInformation: F.mutual_information,
        RelativeCMI: F.relative_cmi,
    }[metric]
    return function(stats).item()


@pytest.mark.parametrize('metric', METRICS)
@pytest.mark.parametrize('batch_size', [1, 7, 101])
def test_any_batch_size_gives_the_value_of_the_whole(metric, batch_size):
    x, labels = make()
    measured = metric(num_classes=3, dim=5)
    for i in range(0, 101, batch_size):
        measured.update(x[i : i + batch_size], labels[i : i + batch_size])
    assert measured.compute().item() == pytest.approx(expected(metric, x, labels), rel=1e-6)
    measured.reset()
    measured.update(x[:0], labels[:0])
    assert measured.compute().item() == 0


def test_by_hand():
    """Two certain opposite predictions in one class: ln 2."""
    metric = ConditionalMutualInformation(num_classes=2)
    metric.update(torch.tensor([[50.0, 0.0], [0.0, 50.0]]), torch.tensor([1, 1]))
    assert metric.compute().item() == pytest.approx(math.log(2), abs=1e-9)


def test_ignored_labels_and_half_precision():
    x, labels = make()
    metric = ConditionalMutualInformation(num_classes=3, dim=5)
    metric.half()  # Composer casts metrics with the model; the sums must stay exact
    metric.update(torch.cat([x, x + 3]), torch.cat([labels, torch.full_like(labels, -100)]))
    assert metric.compute().item() == pytest.approx(expected(ConditionalMutualInformation, x, labels), rel=1e-6)


def test_wrong_shapes_are_named():
    metric = ConditionalMutualInformation(num_classes=3)
    with pytest.raises(ValueError, match=r'wants \[N, 3\] inputs and \[N\] labels, got \[4, 5\] and \[4\]'):
        metric.update(torch.randn(4, 5), torch.zeros(4, dtype=torch.long))


@pytest.mark.world_size(2)
@pytest.mark.parametrize('metric', METRICS)
def test_two_ranks_with_uneven_shares(metric):
    x, labels = make()
    mine = slice(0, 33) if dist.get_global_rank() == 0 else slice(33, 101)
    measured = metric(num_classes=3, dim=5)
    measured.update(x[mine], labels[mine])
    assert measured.compute().item() == pytest.approx(expected(metric, x, labels), rel=1e-6)
