"""Composer's callbacks, optimizers and schedulers by the names that a file gives them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from composer import callbacks, optim
from composer.core import Callback
from composer.optim import ComposerScheduler
from torch.optim import Optimizer

from composer_cmi.errors import ConfigError
from composer_cmi.registry import nearest
from composer_cmi.run.parts.selection import EarlyStopper, ThresholdStopper

__all__ = ['OPTIMIZERS', 'SCHEDULERS', 'get_callback', 'get_scheduler', 'has_warmup', 'known_callbacks']

_CALLBACKS: dict[str, type[Callback]] = {
    'activation_monitor': callbacks.ActivationMonitor,
    'early_stopper': EarlyStopper,
    'lr_monitor': callbacks.LRMonitor,
    'memory_monitor': callbacks.MemoryMonitor,
    'memory_snapshot': callbacks.MemorySnapshot,
    'oom_observer': callbacks.OOMObserver,
    'optimizer_monitor': callbacks.OptimizerMonitor,
    'runtime_estimator': callbacks.RuntimeEstimator,
    'speed_monitor': callbacks.SpeedMonitor,
    'system_metrics_monitor': callbacks.SystemMetricsMonitor,
    'threshold_stopper': ThresholdStopper,
}
# Composer's other callbacks, and what does their work in a run.
_INSTEAD = {
    'checkpoint_saver': 'the section checkpoint writes checkpoints',
    'export_for_inference': 'every run exports its model to model/ in its folder',
    'free_outputs': 'it would take away what the terms read',
    'generate': 'a classifier generates no text',
    'image_visualizer': 'there are no images',
    'load_checkpoint': 'model.name_or_path starts from another run',
    'mlperf': 'it is for MLPerf submissions',
    'nan_monitor': 'every run looks for losses that are not finite',
}
OPTIMIZERS: dict[str, type[Optimizer]] = {
    'decoupled_adamw': optim.DecoupledAdamW,
    'decoupled_sgdw': optim.DecoupledSGDW,
}
SCHEDULERS: dict[str, type[ComposerScheduler]] = {
    'constant': optim.ConstantScheduler,
    'constant_with_warmup': optim.ConstantWithWarmupScheduler,
    'cosine_annealing': optim.CosineAnnealingScheduler,
    'cosine_annealing_warm_restarts': optim.CosineAnnealingWarmRestartsScheduler,
    'cosine_annealing_with_warmup': optim.CosineAnnealingWithWarmupScheduler,
    'exponential': optim.ExponentialScheduler,
    'linear': optim.LinearScheduler,
    'linear_with_warmup': optim.LinearWithWarmupScheduler,
    'multi_step': optim.MultiStepScheduler,
    'multi_step_with_warmup': optim.MultiStepWithWarmupScheduler,
    'polynomial': optim.PolynomialScheduler,
    'polynomial_with_warmup': optim.PolynomialWithWarmupScheduler,
    'step': optim.StepScheduler,
}


def known_callbacks() -> list[str]:
    """Names that :func:`get_callback` accepts."""
    return sorted(_CALLBACKS)


def get_callback(name: str) -> type[Callback]:
    """The callback class of that name.

    Raises:
        ConfigError: for an unknown name, and for one that has no place in a run.
    """
    if name in _INSTEAD:
        raise ConfigError(f'callbacks.{name} has no place in a run: {_INSTEAD[name]}.')
    return _get('callback', name, _CALLBACKS)


def get_scheduler(name: str) -> type[ComposerScheduler]:
    """The scheduler class of that name.

    Raises:
        ConfigError: for an unknown name.
    """
    return _get('scheduler', name, SCHEDULERS, 'scheduler.name: ')


def has_warmup(name: str) -> bool:
    """Whether the scheduler of that name begins with a warm-up."""
    return 't_warmup' in inspect.signature(get_scheduler(name)).parameters


def _get(kind: str, name: str, known: Mapping[str, Any], where: str = '') -> Any:
    if name not in known:
        raise ConfigError(f'{where}Unknown {kind} {name!r}.{nearest(name, known)} Known: {", ".join(sorted(known))}.')
    return known[name]
