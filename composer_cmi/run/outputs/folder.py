"""The run folder before training: is it new, to be resumed, or of another configuration?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from composer.utils import dist

from composer_cmi.errors import ConfigError
from composer_cmi.run.config.schema import RunConfig
from composer_cmi.run.config.yaml_loader import read_yaml
from composer_cmi.run.outputs.files import write_yaml
from composer_cmi.run.outputs.results import RunResults, load_results

__all__ = ['CONFIG_FILE', 'finished_results', 'open_folder']

CONFIG_FILE = 'config.yaml'
# Settings that do not change what a run computes.
_IMMATERIAL = {'output_dir', 'run_name', 'arms', 'loggers', 'checkpoint', 'data.cache_dir'}
_IMMATERIAL |= {f'train.{key}' for key in ('progress_bar', 'num_workers', 'device', 'eval_batch_size')}


def finished_results(config: RunConfig) -> RunResults | None:
    """The results of this very run where it has finished before, else None.

    Raises:
        ConfigError: if the folder holds a finished run with other settings.
    """
    results = load_results(config.folder)
    if results is not None:
        _refuse_other(config, results.config, 'a finished')
    return results


def open_folder(config: RunConfig) -> None:
    """Make the folder, or enter that of an interrupted run, and write the resolved configuration. All ranks call it.

    Raises:
        ConfigError: if the folder holds an interrupted run with other settings.
    """
    path = config.folder / CONFIG_FILE
    has_checkpoints = any((config.folder / 'checkpoints').glob('*'))
    if has_checkpoints and config.checkpoint.autoresume and path.is_file():
        _refuse_other(config, read_yaml(path), 'an interrupted')
    dist.barrier()
    if dist.get_global_rank() == 0:
        write_yaml(path, config.resolved())
    dist.barrier()


def _refuse_other(config: RunConfig, stored: Mapping[str, Any], state: str) -> None:
    here, there = dict(_flat(config.resolved())), dict(_flat(stored))
    for key in sorted(here.keys() | there.keys()):
        if any(key == skip or key.startswith(f'{skip}.') for skip in _IMMATERIAL):
            continue
        if here.get(key) != there.get(key):
            raise ConfigError(
                f'The folder {str(config.folder)!r} holds {state} run with {key} = {there.get(key)!r}, not '
                f'{here.get(key)!r}: choose another run_name, or delete the folder.'
            )


def _flat(value: Mapping[str, Any], prefix: str = '') -> Iterator[tuple[str, Any]]:
    for key, inner in value.items():
        if isinstance(inner, Mapping) and inner:
            yield from _flat(inner, f'{prefix}{key}.')
        elif inner not in (None, {}):
            yield f'{prefix}{key}', inner
