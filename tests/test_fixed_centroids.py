"""`centroids='fixed'` reads the training rows once, each on one rank, and the training does not notice."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import toys
from composer_cmi.algorithms import CMIMaximization, CMIRegularization


class Batches(Callback):
    """Keeps the rows of each batch, and a number of each generator."""

    def __init__(self):
        self.seen: list[Tensor] = []

    def batch_end(self, state: State, logger: Logger) -> None:
        numbers = [random.random(), np.random.rand(), torch.rand(()).item()]  # noqa: NPY002
        self.seen.append(torch.cat([state.batch[0].flatten(), torch.tensor(numbers)]))


class Noisy(TensorDataset):
    """Draws from every generator for each row, as augmenting datasets do."""

    def __getitem__(self, i: Any) -> Any:
        random.random(), np.random.rand(), torch.rand(())  # noqa: NPY002
        return super().__getitem__(i)


def train(algorithms: list[Any], **kwargs: Any) -> tuple[Tensor, Tensor]:
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    data = Noisy(*toys.points(64).tensors)
    options = {'shuffle': True, 'generator': torch.Generator().manual_seed(3), **kwargs}
    batches, model = Batches(), toys.mlp(dropout=0.3)
    toys.trainer(
        model,
        data,
        algorithms,
        train_dataloader=DataLoader(data, batch_size=16, **options),
        callbacks=[batches],
        device_train_microbatch_size=5,
    ).fit()
    assert len(batches.seen) == 8
    return torch.stack(batches.seen), toys.weights(model)


@pytest.mark.parametrize('workers', [{}, {'num_workers': 1, 'persistent_workers': True}], ids=['none', 'persistent'])
def test_promise_02_the_training_deals_the_same_batches(workers):
    plain, weights = train([], **workers)
    fixed, with_term = train([CMIRegularization(1e-9, form='plain', centroids='fixed', start='2ba')], **workers)
    assert torch.equal(plain, fixed)
    torch.testing.assert_close(with_term, weights, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize('ranks', [pytest.param(n, marks=pytest.mark.world_size(n)) for n in (1, 2)])
@pytest.mark.parametrize('rows', [61, 64])
@pytest.mark.parametrize('size', [3, 8])
def test_promise_02_every_row_counts_once_over_the_ranks(ranks, rows, size):
    """Also where the loader drops the last rows, and where the microbatch divides nothing; labels of -100 do not."""
    data = toys.points(rows)
    data.tensors[1][:4] = -100
    model = toys.mlp(dropout=0.5)
    algorithm = CMIMaximization(centroids='fixed', start='1ba')
    trainer = toys.trainer(model, data, [algorithm], device_train_microbatch_size=size, max_duration='2ba')
    trainer.fit()
    trainer.close()
    counts = algorithm.class_centroids.statistics(algorithm.class_centroids.tables['reference']).counts
    assert counts.tolist() == torch.bincount(data.tensors[1][4:], minlength=toys.CLASSES).tolist()
    first, *others = dist.all_gather(algorithm.class_centroids.reference.log_centroids)
    assert all(torch.equal(first, other) for other in others)


class Stream(IterableDataset):
    def __iter__(self) -> Any:
        yield from zip(*toys.points(64).tensors, strict=True)


@pytest.mark.parametrize(
    ('loader', 'what'),
    [
        (lambda: DataLoader(Stream(), batch_size=16), 'Stream'),
        (lambda: DataLoader(toys.points(64), batch_size=None), 'TensorDataset'),
        (lambda: [toys.points(16).tensors] * 4, 'list'),
    ],
)
def test_promise_02_rows_that_cannot_be_read_twice_are_refused_before_training(loader, what):
    algorithm = CMIRegularization(form='plain', centroids='fixed', start='3ba')
    trainer = toys.trainer(
        toys.mlp(),
        toys.points(),
        [algorithm],
        train_dataloader=loader(),
        max_duration='4ba',
        device_train_microbatch_size=16,
    )
    with pytest.raises(ValueError, match=f"all training rows once .* got {what}: use centroids='ema'") as error:
        trainer.fit()
    assert trainer.state.timestamp.batch == 0 and str(error.value).count('. ') == 0
    trainer.close()


def test_promise_02_a_subset_of_batches_is_named():
    algorithm = CMIRegularization(form='plain', centroids='fixed', start='1ba')
    trainer = toys.trainer(toys.mlp(), toys.points(), [algorithm], train_subset_num_batches=2)
    with pytest.warns(UserWarning, match='takes all 64 training rows: which of them train_subset_num_batches'):
        trainer.fit()
    trainer.close()
