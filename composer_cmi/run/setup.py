"""The parts of a Composer ``Trainer``, made from a configuration."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import composer
import torch
from composer.core import Algorithm, Callback, Precision, Time, TimeUnit
from composer.devices import Device, DeviceCPU, DeviceGPU
from composer.optim import ComposerScheduler
from composer.trainer import _patch_pytorch
from composer.utils import dist
from composer.utils.parallelism import FSDP2Config

from composer_cmi import registry
from composer_cmi.algorithms.schedule import Schedule
from composer_cmi.arguments import argument_types
from composer_cmi.data.delimited import DataError
from composer_cmi.errors import ConfigError
from composer_cmi.run.config.loading import check_values
from composer_cmi.run.config.schema import OptimizerConfig, RunConfig, TrainConfig
from composer_cmi.run.parts.by_name import OPTIMIZERS, get_algorithm, get_callback, get_scheduler, has_warmup

__all__ = [
    'DISTILLATION',
    'build_algorithms',
    'build_callbacks',
    'build_optimizer',
    'build_parallelism',
    'build_scheduler',
    'check_starts',
    'choose_precision',
    'cpu_bfloat16',
    'is_here',
    'microbatch_size',
    'to_steps',
    'user_errors',
]

DISTILLATION = 'knowledge_distillation'
_STEPS = (TimeUnit.EPOCH, TimeUnit.BATCH, TimeUnit.SAMPLE, TimeUnit.DURATION)


@contextmanager
def user_errors(where: str = '') -> Iterator[None]:
    """Turn what setting up a run raises about the user's input into one sentence with the YAML section in front.

    Raises:
        ConfigError: for a ValueError, TypeError, LookupError or missing file raised inside.
    """
    try:
        yield
    except ConfigError:
        raise
    except (ValueError, TypeError, LookupError, FileNotFoundError) as error:
        said = error.args[0] if isinstance(error, KeyError) and error.args else error  # str() would quote it
        # A file's faults stand on a line each; other libraries' messages are broken anywhere.
        message = str(error) if isinstance(error, DataError) else ' '.join(str(said).split())
        raise ConfigError(f'{where}: {message}' if where else message) from error


def to_steps(time: str, *, steps_per_epoch: int, batch_size: int, total: int | None = None) -> int:
    """Optimizer steps in a Composer time string: ``'3ep'``, ``'100ba'``, ``'5000sp'`` or ``'0.1dur'`` of ``total``.

    Composer itself counts a share of ``'3ep'`` in whole epochs, so that a warm-up of ``'0.1dur'`` would be none.
    """
    parsed = Time.from_timestring(time)
    if parsed.unit is TimeUnit.EPOCH:
        return parsed.value * steps_per_epoch
    if parsed.unit is TimeUnit.BATCH:
        return parsed.value
    if parsed.unit is TimeUnit.SAMPLE:
        return math.ceil(parsed.value / batch_size)
    if parsed.unit is TimeUnit.DURATION and total is not None:
        return math.floor(round(parsed.value * total, 6))  # 0.29 * 100 is 28.999999999999996
    raise ConfigError(f"{time!r} cannot be counted in steps: use 'ep', 'ba', 'sp' or 'dur'.")


def build_optimizer(model: torch.nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """AdamW with bias correction, or one of Composer's; biases and normalisation weights are not decayed.

    Source: Mosbach et al. 2021.

    Raises:
        ConfigError: if the optimizer refuses its arguments.
    """
    no_decay = {
        id(parameter)
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if name == 'bias' or 'norm' in type(module).__name__.lower()
    }
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {'params': [p for p in trained if id(p) not in no_decay]},
        {'params': [p for p in trained if id(p) in no_decay], 'weight_decay': 0.0},
    ]
    groups = [group for group in groups if group['params']]
    if config.name != 'adamw':
        with user_errors('optimizer.arguments'):
            return OPTIMIZERS[config.name](groups, lr=config.lr, **config.arguments)  # pyright: ignore[reportCallIssue]
    options = {'weight_decay': config.weight_decay, 'betas': config.betas, 'eps': config.eps}
    return torch.optim.AdamW(groups, lr=config.lr, fused=True, **options)


def build_scheduler(
    warmup_steps: int,
    total_steps: int,
    name: str = 'linear_with_warmup',
    arguments: Mapping[str, Any] | None = None,
) -> ComposerScheduler:
    """One of Composer's schedulers; by default linear warm-up, then linear decay to 0 at ``total_steps``.

    Raises:
        ConfigError: if the warm-up is as long as the training, or the scheduler refuses its arguments.
    """
    if warmup_steps >= total_steps:
        raise ConfigError(
            f'scheduler.warmup: {warmup_steps} steps leave nothing of the {total_steps} steps of training.'
        )
    cls = get_scheduler(name)
    options = dict(arguments or {})
    if 't_max' in inspect.signature(cls).parameters:
        options.setdefault('t_max', f'{total_steps}ba')  # whatever ends training early
    if warmup_steps and has_warmup(name):
        options['t_warmup'] = f'{warmup_steps}ba'
    elif has_warmup(name):
        # Composer warns at every step of a warm-up of no length: the same without one, with the same defaults.
        defaults = {p.name: p.default for p in inspect.signature(cls).parameters.values()}
        cls = get_scheduler(name.removesuffix('_with_warmup'))
        options = {key: defaults[key] for key in inspect.signature(cls).parameters if key in defaults} | options
    with user_errors('scheduler.arguments'):
        return cls(**options)


def build_callbacks(sections: Mapping[str, Mapping[str, Any]]) -> dict[str, Callback]:
    """Construct each callback from its YAML section, by name.

    Raises:
        ConfigError: if a callback refuses its arguments.
    """
    built = {}
    for name, kwargs in sections.items():
        with user_errors(f'callbacks.{name}'):
            try:
                built[name] = get_callback(name)(**kwargs)
            except ImportError as error:
                raise ConfigError(f'callbacks.{name}: {" ".join(str(error).split())}') from error
    return built


def build_algorithms(sections: Mapping[str, Mapping[str, Any]]) -> dict[str, Algorithm]:
    """Construct each algorithm from its YAML section, by name.

    Raises:
        ConfigError: if an algorithm refuses its arguments.
    """
    built = {}
    for name, kwargs in sections.items():
        with user_errors(f'algorithms.{name}'):
            built[name] = get_algorithm(name)(**kwargs)
    return built


def check_starts(algorithms: Mapping[str, Algorithm], config: RunConfig, *, steps_per_epoch: int) -> None:
    """Refuse a term that the training would end before.

    Raises:
        ConfigError: with the key, when the term would start, and when the training ends.
    """
    count = {'steps_per_epoch': steps_per_epoch, 'batch_size': config.train.batch_size}
    steps = to_steps(config.train.max_duration, **count)
    for name, algorithm in algorithms.items():
        schedule = getattr(algorithm, 'schedule', None)
        if (
            not isinstance(schedule, Schedule)
            or not getattr(algorithm, 'weight', 0)
            or schedule.start.unit not in _STEPS
        ):
            continue
        if to_steps(schedule.start.to_timestring(), **count, total=steps) >= steps:
            given = config.algorithms[name].get('start', schedule.start.to_timestring())
            raise ConfigError(
                f'algorithms.{name}.start: {given!r} is not before the end of the training '
                f'at {steps} steps: the term would never be added (weight: 0 measures without one).'
            )


def is_here(device: str | None) -> bool:
    """Whether this machine has the device that ``train.device`` names."""
    there = {'gpu': torch.cuda.is_available, 'mps': torch.backends.mps.is_available}
    return device not in there or there[device]()


def choose_precision(config: TrainConfig, device: Device) -> Precision:
    """What Composer runs in: fp32 on a CPU and amp_bf16 on a GPU unless the configuration says otherwise.

    On a CPU amp_bf16 is not Composer's, which does not do it there, but the model's in training (:func:`cpu_bfloat16`).

    Raises:
        ConfigError: if a device is asked for mixed precision that it does not have.
    """
    on_gpu = isinstance(device, DeviceGPU)
    if config.precision is None:
        return Precision.AMP_BF16 if on_gpu else Precision.FP32
    if cpu_bfloat16(config, device):
        return Precision.FP32
    if not on_gpu and config.precision != 'fp32':
        raise ConfigError(
            f'train.precision: {config.precision!r} needs a GPU; on this device it must be fp32'
            f'{" or amp_bf16" if isinstance(device, DeviceCPU) else ""}.'
        )
    return Precision(config.precision)


def cpu_bfloat16(config: TrainConfig, device: Device) -> bool:
    """Whether the forward passes of training run in bfloat16 on a CPU; evaluation and teachers stay in fp32."""
    return isinstance(device, DeviceCPU) and config.precision == 'amp_bf16'


def microbatch_size(config: TrainConfig, device: Device) -> int | str:
    """The rows of one forward pass, by default all of a rank's batch; 'auto' where Composer can search for it.

    Raises:
        ConfigError: if the ranks do not divide the batch, and for a search on what is no GPU.
    """
    world_size = dist.get_world_size()
    if config.batch_size % world_size:
        raise ConfigError(f'train.batch_size: {config.batch_size} rows cannot be shared evenly by {world_size} ranks.')
    if config.microbatch_size == 'auto' and not isinstance(device, DeviceGPU):
        raise ConfigError(
            f"train.microbatch_size: 'auto' needs a GPU, and this is a {device.name}: give the number of rows, or "
            'leave it out.'
        )
    return config.microbatch_size or config.batch_size // world_size


def build_parallelism(config: RunConfig) -> dict[str, Any] | None:
    """The ``fsdp`` section as Composer's FSDP2 configuration; None leaves several ranks to DDP.

    Raises:
        ConfigError: for a key that FSDP2 does not have, or a microbatch size that Composer cannot search for.
    """
    if config.fsdp is None:
        return None
    # Composer 0.32.1 defines what the search calls for torch < 2.7.1 only: a NameError in the midst of the first step.
    if config.train.microbatch_size == 'auto' and not hasattr(_patch_pytorch, 'unshard_with_sync'):
        raise ConfigError(
            f"train.microbatch_size: 'auto' together with fsdp fails in Composer {composer.__version__} beside torch "
            f'{torch.__version__}: give the number of rows, or use torch < 2.7.1.'
        )
    known = sorted(FSDP2Config.settable_attrs() - {'device_mesh', 'state_dict_type'})
    for key in config.fsdp:
        if key not in known:
            suggestion = registry.nearest(key, known)
            raise ConfigError(f'unknown key {f"fsdp.{key}"!r}.{suggestion} Known here: {", ".join(known)}.')
    check_values(argument_types(FSDP2Config), config.fsdp, 'fsdp')
    state_dict_type = 'sharded' if config.checkpoint.save_sharded else 'full'
    return {'fsdp': FSDP2Config(**config.fsdp, state_dict_type=state_dict_type)}
