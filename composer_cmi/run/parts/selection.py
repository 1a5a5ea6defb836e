"""What may end training early or choose among its weights: exact through any kill and resumption.

Composer's stoppers forget at a resumption what was best and that they have stopped; a checkpoint holds both here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from composer import callbacks
from composer.core import Callback, State, Time, Timestamp, TimeUnit
from composer.loggers import Logger
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
)
from torchmetrics import Metric

from composer_cmi.errors import ConfigError
from composer_cmi.registry import nearest
from composer_cmi.run.config.schema import TrainConfig

__all__ = [
    'EarlyStopper',
    'Ending',
    'KeepBest',
    'ThresholdStopper',
    'check_waiting',
    'lower_is_better',
    'metric_name',
    'settle_monitor',
]

Comparison = Literal['greater', 'gt', 'less', 'lt']
LOWER_IS_BETTER = ('nll', 'ece')


def lower_is_better(metric: str) -> bool:
    """Whether a metric by our name is a loss."""
    return metric in LOWER_IS_BETTER


def metric_name(key: str, metric: str, metrics: Mapping[str, Metric]) -> str:
    """The name under which Composer holds a metric that the user has named ``metric`` in ``key``.

    Raises:
        ConfigError: there is none.
    """
    if metric not in metrics:
        known = ', '.join(metrics)
        raise ConfigError(f'{key}: unknown metric {metric!r}.{nearest(metric, metrics)} Known here: {known}.')
    return type(metrics[metric]).__name__


class EarlyStopper(callbacks.EarlyStopper):
    """Ends training when a metric of an evaluation split has not become better for a while.

    Args:
        monitor: the metric, such as ``accuracy`` or ``nll``.
        dataloader_label: the evaluation split; the first one by default.
        comp: what is better, ``greater`` or ``less``; by default less for ``nll`` and ``ece``.
        min_delta: so much better a value must be to count.
        patience: for how long it may not: epochs (``1``, ``2ep``) or batches (``100ba``).
    """

    best: Tensor | None
    best_occurred: Timestamp | None

    def __init__(
        self,
        monitor: str,
        dataloader_label: str | None = None,
        comp: Comparison | None = None,
        min_delta: float = 0.0,
        patience: int | str | Time = 1,
    ) -> None:
        super().__init__(monitor, dataloader_label or '', comp, min_delta, patience)
        self.chosen = comp is not None
        if self.patience.unit not in (TimeUnit.EPOCH, TimeUnit.BATCH):
            raise ValueError(f"patience must be counted in 'ep' or 'ba' (given: {patience!r})")

    def _get_monitored_metric(self, state: State) -> Tensor:
        return torch.as_tensor(super()._get_monitored_metric(state)).cpu()

    def state_dict(self) -> dict[str, Any]:
        if self.best is None or self.best_occurred is None:
            return {}
        when = self.best_occurred
        return {'best': self.best.clone(), 'epoch': int(when.epoch), 'batch': int(when.batch)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state:
            self.best = state['best']
            self.best_occurred = Timestamp(epoch=state['epoch'], batch=state['batch'])


class ThresholdStopper(callbacks.ThresholdStopper):
    """Ends training when a metric of an evaluation split has reached a threshold.

    Args:
        monitor: the metric, such as ``accuracy`` or ``nll``.
        threshold: the value.
        dataloader_label: the evaluation split; the first one by default.
        comp: which side of the threshold is meant, ``greater`` or ``less``; by default less for ``nll`` and ``ece``.
    """

    def __init__(
        self, monitor: str, threshold: float, dataloader_label: str | None = None, comp: Comparison | None = None
    ) -> None:
        super().__init__(monitor, dataloader_label or '', threshold, comp=comp)
        self.chosen = comp is not None


def settle_monitor(callback: Callback, metrics: Mapping[str, Metric], splits: Sequence[str], where: str) -> None:
    """Point a stopper at what the run measures, in Composer's names; other callbacks are left alone.

    Raises:
        ConfigError: it names a metric or a split that the run does not have.
    """
    if not isinstance(callback, EarlyStopper | ThresholdStopper):
        return
    name = callback.monitor
    callback.monitor = metric_name(f'{where}.monitor', name, metrics)
    if not callback.chosen:
        # By Composer's rule, a word in the name, the negative log-likelihood would have to rise.
        callback.comp_func = torch.less if lower_is_better(name) else torch.greater
    callback.dataloader_label = callback.dataloader_label or splits[0]
    if callback.dataloader_label not in splits:
        raise ConfigError(
            f'{where}.dataloader_label: {callback.dataloader_label!r} is no evaluation split of this run (those are: '
            f'{", ".join(splits)}).'
        )


def check_waiting(
    callbacks: Mapping[str, Callback], config: TrainConfig, metrics: Mapping[str, Metric], splits: Sequence[str]
) -> None:
    """Settle what waits for evaluations in training: the stoppers among the callbacks, and ``train.keep_best``.

    Raises:
        ConfigError: for a metric or a split that there is not, and where ``train.eval_interval`` asks for none.
    """
    for name, callback in callbacks.items():
        settle_monitor(callback, metrics, splits, f'callbacks.{name}')
    waiting = [name for name in callbacks if name.endswith('_stopper')]
    if config.keep_best is not None:
        metric_name('train.keep_best', config.keep_best, metrics)
        waiting.append('keep_best')
    if waiting and Time.from_timestring(config.eval_interval).value == 0:
        raise ConfigError(
            f'{waiting[0]} waits for evaluations in training, and train.eval_interval: {config.eval_interval!r} asks '
            'for none.'
        )


class Ending(Callback):
    """Keeps in a checkpoint that training has ended before its time, so that the next start does not go on.

    Args:
        steps: what was asked for.
    """

    def __init__(self, steps: int) -> None:
        self.steps, self.reached = steps, False
        self._state: State | None = None

    def init(self, state: State, logger: Logger) -> None:
        self._state = state

    def state_dict(self) -> dict[str, Any]:
        duration = None if self._state is None else self._state.max_duration
        return {'reached': self.reached or (duration is not None and int(duration) < self.steps)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.reached = state['reached']


class KeepBest(Callback):
    """Keeps the weights of the best evaluation of training, in memory and in every checkpoint.

    Args:
        module: the model itself, within any wrapper.
        split: the evaluation split that is looked at.
        metric: by Composer's name.
        lower: whether less is better. Of equal values the first is kept.
        sharded: whether its weights are shared out among the ranks; rank 0 then holds what is kept.
    """

    def __init__(self, module: nn.Module, split: str, metric: str, *, lower: bool, sharded: bool) -> None:
        self.module, self.split, self.metric, self.lower, self.sharded = module, split, metric, lower, sharded
        self.value: float | None = None
        self.step = self.evaluations = 0
        self._weights: dict[str, Any] = {}

    def eval_end(self, state: State, logger: Logger) -> None:
        if state.dataloader_label != self.split:
            return
        self.evaluations += 1
        value = float(state.eval_metrics[self.split][self.metric].compute())
        better = self.value is None or (value < self.value if self.lower else value > self.value)
        if value == value and better:  # nan is never better, not even than nothing
            self.value, self.step = value, int(state.timestamp.batch)
            self._weights = {name: tensor.detach().cpu().clone() for name, tensor in self._whole().items()}

    def _whole(self) -> dict[str, Any]:
        if not self.sharded:
            return self.module.state_dict()
        return get_model_state_dict(self.module, options=StateDictOptions(full_state_dict=True, cpu_offload=True))

    def restore(self) -> None:
        """Give the model the weights that were kept; all ranks call it."""
        if self.value is None:
            return
        if self.sharded:
            options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
            set_model_state_dict(self.module, self._weights, options=options)
        else:
            self.module.load_state_dict(self._weights)

    def state_dict(self) -> dict[str, Any]:
        counts = {'value': self.value, 'step': self.step, 'evaluations': self.evaluations}
        return {**counts, 'weights': self._weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.value, self.step, self.evaluations = state['value'], state['step'], state['evaluations']
        self._weights = state['weights']
