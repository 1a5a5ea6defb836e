"""Runs that are interrupted and continued: what is trained, and how two ends of training are compared bit by bit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from composer import Trainer
from composer.core import Algorithm, Callback, State
from composer.loggers import InMemoryLogger, Logger
from composer.models import ComposerModel
from torch import Tensor

import toys
from composer_cmi.algorithms import CMIMaximization, CMIRegularization, KnowledgeDistillation

EPOCHS, BATCHES = 3, 4  # of 16 rows


def distillation(**kwargs: Any) -> KnowledgeDistillation:
    """A fixed random teacher."""
    teacher = toys.mlp(seed=5).module
    return KnowledgeDistillation(teacher, alpha=0.7, temperature=2.0, assume_same_labels=True, **kwargs)


CASES: dict[str, Callable[[], list[Algorithm]]] = {
    'regularization': lambda: [CMIRegularization(1.0)],
    'regularization, logits': lambda: [CMIRegularization(0.3, space='logits', start='1ba', ramp='6ba')],
    'regularization, fixed': lambda: [CMIRegularization(3.0, form='plain', start='5ba', centroids='fixed')],
    'regularization, relative': lambda: [CMIRegularization(0.5, form='relative', start='1ba')],
    'regularization, contrastive': lambda: [
        CMIRegularization(0.3, space='centered', form='contrastive', tau=0.5, start='0ba')
    ],
    'regularization, normalized': lambda: [CMIRegularization(3.0, form='normalized', temperature=[1.0, 2.0])],
    'maximization': lambda: [CMIMaximization(start='1ba')],
    'maximization, fixed': lambda: [CMIMaximization(centroids='fixed', start='2ba')],
    'distillation': lambda: [distillation()],
    'distillation, regularization': lambda: [distillation(), CMIRegularization(1.0)],
}


def trainer(
    algorithms: list[Algorithm], folder: Path | None = None, model: ComposerModel | None = None, **kwargs: Any
) -> Trainer:
    """Three epochs of four batches with dropout, momentum and shuffling: every generator's state matters."""
    model = toys.mlp(dropout=0.2) if model is None else model
    if folder is not None:
        names = {'save_filename': 'ba{batch}-rank{rank}.pt', 'save_latest_filename': 'latest-rank{rank}.pt'}
        kwargs = {'save_folder': str(folder), 'save_interval': '1ba', 'save_weights_only': False, **names, **kwargs}
    options = {
        'max_duration': f'{EPOCHS}ep',
        'optimizers': torch.optim.AdamW(model.parameters(), lr=0.02),
        'train_dataloader': toys.loader(toys.points(16 * BATCHES), shuffle=True),
        'loggers': [InMemoryLogger()],
        'device_train_microbatch_size': 4,
    }
    return toys.trainer(model, toys.points(), algorithms, **{**options, **kwargs})


def snapshot(trainer: Trainer) -> dict[str, Any]:
    """All that a run leaves: weights, optimizer, algorithms, metrics, and what it logged in each batch."""
    state = trainer.state.state_dict()
    logged = next(d for d in trainer.logger.destinations if isinstance(d, InMemoryLogger)).data
    return {
        'model': {name: _local(p) for name, p in trainer.state.model.state_dict().items()},
        'optimizers': state['optimizers'],
        'algorithms': dict(state['algorithms']),
        'train_metrics': {name: metric.compute() for name, metric in trainer.state.train_metrics.items()},
        'batch': state['timestamp']['Timestamp']['batch'],
        'logged': {
            name: [float(value) for _, value in values]
            for name, values in logged.items()
            if name.startswith(('cmi/', 'distillation/', 'loss/'))
        },
    }


def after(whole: dict[str, Any], batch: int) -> dict[str, Any]:
    """The snapshot of a whole run, without what was logged up to `batch`: what a continuation from there must leave."""
    return {**whole, 'logged': {name: values[batch:] for name, values in whole['logged'].items()}}


def _local(value: Any) -> Any:
    return value.to_local() if hasattr(value, 'to_local') else value


def differences(one: Any, other: Any, where: str = '') -> list[str]:
    """The paths at which two nested values are not bit for bit the same."""
    one, other = _local(one), _local(other)
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        keys = list(dict.fromkeys([*one, *other]))
        missing = [f'{where}/{key}' for key in keys if (key in one) != (key in other)]
        shared = [key for key in keys if key in one and key in other]
        return missing + [d for key in shared for d in differences(one[key], other[key], f'{where}/{key}')]
    if isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        return [d for i, pair in enumerate(zip(one, other, strict=True)) for d in differences(*pair, f'{where}/{i}')]
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        same = one.shape == other.shape and one.dtype == other.dtype and torch.equal(one, other)
    else:
        same = type(one) is type(other) and (one == other or one != one)
    return [] if same else [f'{where}: {one} and {other}']


class Stop(Callback):
    """Ends a run by an exception when a batch begins, after its predecessor has been saved."""

    def __init__(self, batch: int):
        self.batch = batch

    def batch_start(self, state: State, logger: Logger) -> None:
        if state.timestamp.batch == self.batch:
            raise KeyboardInterrupt


def finish(trainer: Trainer) -> dict[str, Any]:
    """Train to the end and take the snapshot."""
    trainer.fit()
    result = snapshot(trainer)
    trainer.close()
    return result
