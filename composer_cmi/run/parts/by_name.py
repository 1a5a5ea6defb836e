"""Algorithms, and Composer's callbacks, optimizers and schedulers, by the names that a file gives them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from composer import callbacks, optim
from composer.core import Algorithm, Callback
from composer.optim import ComposerScheduler
from torch import Tensor
from torch.optim import Optimizer

from composer_cmi import registry
from composer_cmi.errors import ConfigError
from composer_cmi.run.parts.selection import EarlyStopper, ThresholdStopper

__all__ = [
    'OPTIMIZERS',
    'SCHEDULERS',
    'get_algorithm',
    'get_callback',
    'get_scheduler',
    'has_warmup',
    'known_algorithms',
    'known_callbacks',
]


class ActivationMonitor(callbacks.ActivationMonitor):
    """Composer's, which ends at a module that is given a flag, a number or a cache: there is nothing to log of them."""

    def add_metrics(self, metrics: dict[str, Any], name: str, suffix: str, value: Any) -> None:
        """Those of a tensor; see Composer's."""
        if isinstance(value, Tensor):
            super().add_metrics(metrics, name, suffix, value)


_CALLBACKS: dict[str, type[Callback]] = {
    'activation_monitor': ActivationMonitor,
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
_CALLBACKS_INSTEAD = {
    'checkpoint_saver': 'the section checkpoint writes checkpoints',
    'export_for_inference': 'every run exports its model to model/ in its folder',
    'free_outputs': 'it would take away what the terms read',
    'generate': 'a classifier generates no text',
    'image_visualizer': 'there are no images',
    'load_checkpoint': 'model.name_or_path starts from another run',
    'mlperf': 'it is for MLPerf submissions',
    'nan_monitor': 'every run looks for losses that are not finite',
}
_IMAGES = 'it is for images'
_LAYERS = 'it puts layers of its own into the model, which no run folder could then be loaded with'
# Composer's algorithms that end in the midst of a run of a text classifier, or do nothing in one.
_ALGORITHMS_INSTEAD = {
    'alibi': _LAYERS,
    'augmix': _IMAGES,
    'blurpool': _IMAGES,
    'channels_last': _IMAGES,
    'colout': _IMAGES,
    'cutmix': _IMAGES,
    'cutout': _IMAGES,
    'factorize': _LAYERS,
    'gated_linear_units': _LAYERS,
    'ghost_batchnorm': _IMAGES,
    'gyro_dropout': 'it counts epochs where a run counts steps; model.config_overrides sets the dropout',
    'label_smoothing': 'train.label_smoothing smooths the labels',
    'layer_freezing': 'no checkpoint can be written beside it; peft trains few of the weights',
    'low_precision_groupnorm': _IMAGES,
    'mixup': 'tokens cannot be mixed',
    'no_op_model': 'it takes the model away',
    'progressive_resizing': _IMAGES,
    'randaugment': _IMAGES,
    'selective_backprop': 'it gives the model one tensor, and a language model takes several',
    'seq_length_warmup': 'it takes the label of a row for tokens; data.max_length sets the length',
    'squeeze_excite': _IMAGES,
    'stochastic_depth': _IMAGES,
    'weight_standardization': _IMAGES,
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


def known_algorithms() -> list[str]:
    """Names that :func:`get_algorithm` accepts, ours and plugins' first, then Composer's."""
    return [name for name in registry.known_algorithms() if _has_place(name)]


def get_algorithm(name: str) -> type[Algorithm]:
    """The algorithm class of that name.

    Raises:
        ConfigError: for an unknown name, and for one of Composer's that has no place in a run.
    """
    if not _has_place(name):
        raise ConfigError(f'algorithms.{name} has no place in a run: {_ALGORITHMS_INSTEAD[name]}.')
    try:
        return registry.get_algorithm(name)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _has_place(name: str) -> bool:
    return name not in _ALGORITHMS_INSTEAD or name in registry.algorithms  # a plugin may have one of the same name


def known_callbacks() -> list[str]:
    """Names that :func:`get_callback` accepts."""
    return sorted(_CALLBACKS)


def get_callback(name: str) -> type[Callback]:
    """The callback class of that name.

    Raises:
        ConfigError: for an unknown name, and for one that has no place in a run.
    """
    if name in _CALLBACKS_INSTEAD:
        raise ConfigError(f'callbacks.{name} has no place in a run: {_CALLBACKS_INSTEAD[name]}.')
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
        raise ConfigError(
            f'{where}Unknown {kind} {name!r}.{registry.nearest(name, known)} Known: {", ".join(sorted(known))}.'
        )
    return known[name]
