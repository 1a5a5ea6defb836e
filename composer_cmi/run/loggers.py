"""Composer's logger destinations by name, for the ``loggers`` section of a run."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from composer.loggers import (
    CometMLLogger,
    FileLogger,
    LoggerDestination,
    MLFlowLogger,
    NeptuneLogger,
    SlackLogger,
    TensorboardLogger,
    WandBLogger,
)

from composer_cmi.errors import ConfigError, needs
from composer_cmi.registry import nearest

__all__ = ['build_logger', 'check_file_names', 'get_logger', 'known_loggers']

_LOGGERS: dict[str, type[LoggerDestination]] = {
    'comet_ml': CometMLLogger,
    'file': FileLogger,
    'mlflow': MLFlowLogger,
    'neptune': NeptuneLogger,
    'slack': SlackLogger,
    'tensorboard': TensorboardLogger,
    'wandb': WandBLogger,
}


_FILE_NAMES = ('run_name', 'rank', 'local_rank', 'world_size', 'local_world_size', 'node_rank')


def known_loggers() -> list[str]:
    """Names that :func:`get_logger` accepts."""
    return sorted(_LOGGERS)


def get_logger(name: str) -> type[LoggerDestination]:
    """The logger class of that name.

    Raises:
        ConfigError: for an unknown name, with the nearest known one and the list of all.
    """
    if name not in _LOGGERS:
        known = ', '.join(known_loggers())
        raise ConfigError(f'Unknown logger {name!r}.{nearest(name, _LOGGERS)} Known: {known}.')
    return _LOGGERS[name]


def check_file_names(name: str, kwargs: Mapping[str, Any]) -> None:
    """Refuse names in braces that Composer does not fill in: it looks at them after training has begun.

    Raises:
        ConfigError: in one sentence.
    """
    for key in ('filename', 'remote_file_name') if name == 'file' else ():
        if isinstance(pattern := kwargs.get(key), str):
            try:
                pattern.format(**dict.fromkeys(_FILE_NAMES, ''))
            except (LookupError, ValueError, AttributeError) as error:
                known = ', '.join(f'{{{each}}}' for each in ('task', 'seed', *_FILE_NAMES))
                raise ConfigError(f'loggers.{name}.{key}: {pattern!r} may hold {known} and no other braces.') from error


def build_logger(name: str, kwargs: dict[str, Any], folder: Path) -> LoggerDestination:
    """Construct a logger; those that write files write them below the run folder unless told otherwise.

    Raises:
        ConfigError: if its package is not installed or it refuses its arguments.
    """
    defaults = {
        'file': {'filename': str(folder / 'log-rank{rank}.txt')},
        'tensorboard': {'log_dir': str(folder)},
    }
    if name == 'tensorboard':  # one of our extras; for the other loggers Composer's own sentence names Composer's
        with needs('tensorboard', 'The logger tensorboard'):
            importlib.import_module('torch.utils.tensorboard')
    try:
        return get_logger(name)(**{**defaults.get(name, {}), **kwargs})
    except Exception as error:
        reason = str(error).strip().split('\n')[0]
        raise ConfigError(f'loggers.{name}: {reason}') from error
