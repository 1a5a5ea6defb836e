"""What makes a run this run: its settings, and fingerprints of the data, the model, the teacher and the user's code."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from composer_cmi import registry
from composer_cmi.data.splits import fingerprint
from composer_cmi.data.task_data import TaskData
from composer_cmi.errors import ConfigError
from composer_cmi.run.config.schema import ModelConfig, RunConfig
from composer_cmi.run.outputs.files import file_digest

__all__ = ['fingerprints', 'refuse_other', 'settings']

# Settings that do not change what a run computes.
_IMMATERIAL = {'output_dir', 'run_name', 'arms', 'loggers', 'checkpoint', 'data.cache_dir'}
_IMMATERIAL |= {f'train.{key}' for key in ('progress_bar', 'num_workers', 'device', 'eval_batch_size')}
_NO_PART_OF_A_MODEL = {'.md', '.png', '.csv', '.yaml'}


def settings(resolved: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that decide what a run computes, by dotted key; those left empty are not in it."""
    flat = dict(_flat(resolved))
    return {k: v for k, v in flat.items() if not any(k == skip or k.startswith(f'{skip}.') for skip in _IMMATERIAL)}


def fingerprints(config: RunConfig, data: TaskData) -> dict[str, str]:
    """Hashes of everything that a run reads, by what it is: ``'data: train'``, ``'model: config.json'``.

    Files are read in full: a size and a date prove nothing. Of a model on the hub the commit is known once it has been
    loaded; what is not there (the teacher of an arm that has not run yet) is left out.
    """
    found = {'data: classes': fingerprint(data.task.name, data.label_names), 'data: train': fingerprint(data.train)}
    for name, rows in (('unlabelled', data.unlabelled), ('calibration', data.calibration)):
        if rows is not None:
            found[f'data: {name}'] = fingerprint(rows)
    found |= {f'data: {name}': fingerprint(split) for name, split in data.eval_splits.items()}
    found |= {f'model: {k}': v for k, v in _model(config.model, data.label_names, config.seed).items()}
    for arguments in config.algorithms.values():
        teacher, cache = arguments.get('teacher'), arguments.get('cache')
        for one in teacher if isinstance(teacher, list) else [teacher]:
            if isinstance(one, str):
                found |= {f'teacher: {one}/{name}': digest for name, digest in _files(one).items()}
        if teacher is None and isinstance(cache, str) and Path(cache).is_file():
            found[f'teacher: {cache}'] = _short(Path(cache))
    for path in config.code_paths:
        found |= {f'code_paths: {path}/{name}': digest for name, digest in _files(path, '**/*.py').items()}
    return found


def refuse_other(
    config: RunConfig, here: Mapping[str, Mapping[str, Any]], there: Mapping[str, Mapping[str, Any]], state: str
) -> None:
    """Compare two runs, each with ``'settings'`` and ``'inputs'`` (:func:`settings`, :func:`fingerprints`).

    Raises:
        ConfigError: with the first difference, what it was and what it is, and how to go on.
    """
    way_out = 'choose another run_name, or delete the folder'
    # A key that one side does not know is of another version, which did what the key's default says.
    before, now = ({**_defaults(), **side['settings']} for side in (there, here))
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key):
            raise ConfigError(
                f'The folder {str(config.folder)!r} holds {state} run with {key} = {before.get(key)!r}, not '
                f'{now.get(key)!r}: {way_out}.'
            )
    before, now = there.get('inputs', {}), here.get('inputs', {})
    # What is of a kind that one side knows nothing of (a hub model, an earlier version) cannot be compared.
    kinds = {_kind(key) for key in before} & {_kind(key) for key in now}
    for key in sorted(key for key in before.keys() | now.keys() if _kind(key) in kinds):
        if before.get(key) != now.get(key):
            raise ConfigError(
                f'The folder {str(config.folder)!r} holds {state} run of other contents: {key} was '
                f'{before.get(key, "not there")}, is {now.get(key, "not there")}: {way_out}, or put the old contents '
                'back.'
            )


@functools.cache
def _defaults() -> dict[str, Any]:
    return settings(RunConfig(task='x', run_name='x', model=ModelConfig(name_or_path='x')).resolved())  # pyright: ignore


def _kind(key: str) -> str:
    return key.partition(':')[0]


def _flat(value: Mapping[str, Any], prefix: str = '') -> Iterator[tuple[str, Any]]:
    for key, inner in value.items():
        if isinstance(inner, Mapping) and inner:
            yield from _flat(inner, f'{prefix}{key}.')
        elif inner not in (None, {}):
            yield f'{prefix}{key}', inner


def _model(config: ModelConfig, label_names: tuple[str, ...], seed: int) -> dict[str, str]:
    name = config.name_or_path
    if name not in registry.known_models():
        return _files(name, revision=config.revision)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = registry.get_model(name)(tuple(label_names))
    return {'weights': _weights(made[0])} if isinstance(made, tuple) else _files(str(made))


def _weights(module: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(f'{name} {tuple(tensor.shape)} {tensor.dtype}'.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _files(name: str, pattern: str = '*', revision: str | None = None) -> dict[str, str]:
    path = Path(name).expanduser()
    if path.is_file():
        return {path.name: _short(path)}
    if not path.is_dir():
        return _commit(name, revision)
    # A run folder stands for its exported model.
    folder = path if (path / 'config.json').is_file() or pattern != '*' else path / 'model'
    return {
        file.relative_to(folder).as_posix(): _short(file)
        for file in sorted(folder.glob(pattern))
        if file.is_file() and not file.name.startswith('.') and file.suffix not in _NO_PART_OF_A_MODEL
    }


def _commit(name: str, revision: str | None) -> dict[str, str]:
    try:
        cached = try_to_load_from_cache(name, 'config.json', revision=revision)
    except HFValidationError:  # a path, and nothing is there
        return {}
    return {'commit': Path(cached).parent.name} if isinstance(cached, str) else {}


def _short(path: Path) -> str:
    return file_digest(path)[:16]
