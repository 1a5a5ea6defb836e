"""The configuration of a run, checked before anything is loaded.

The keys are the fields of :mod:`composer_cmi.run.config.schema`. The sections of ``algorithms`` and ``loggers`` are
arguments of the class of that name, with no second vocabulary. ``arms`` repeats the run with changes, each
arm from the same seed and data, for paired comparison.
"""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from composer.core import Time
from pydantic import ValidationError

from composer_cmi import registry
from composer_cmi.arguments import argument_types, fault, is_number, path_arguments, with_defaults
from composer_cmi.errors import ConfigError
from composer_cmi.run.config.schema import RunConfig, path_fault
from composer_cmi.run.config.sentences import check_plain, sentence, shown
from composer_cmi.run.config.yaml_loader import parse_value, read_yaml

__all__ = [
    'arm_configs',
    'build_config',
    'check_values',
    'deep_merge',
    'leaves',
    'load_config',
    'overlap',
    'said_twice',
]


def load_config(path: str | Path, overrides: Iterable[str] = ()) -> RunConfig:
    """Read and check a run's YAML file.

    Args:
        path: The file.
        overrides: ``key.sub=value`` from the command line; values are read as YAML.

    Raises:
        ConfigError: in one sentence, for whatever is wrong in the file or the overrides.
    """
    path = Path(path).expanduser()
    data = read_yaml(path)
    for override in overrides:
        key, equals, value = override.partition('=')
        if not equals or not key.strip():
            raise ConfigError(f'{override!r} is not an override: write key.sub=value, e.g. train.max_duration=1ep.')
        data = deep_merge(data, _nested(key.strip(), parse_value(value)))
    return build_config(data, source=str(path))


def build_config(data: Mapping[str, Any], source: str = 'config', *, here: bool = True) -> RunConfig:
    """Check a mapping, its arms included, against the schema and the registries.

    Args:
        data: the keys and values.
        source: what a sentence about them begins with.
        here: whether the run is to be trained on this machine: ``train.device`` must be there.

    Raises:
        ConfigError: in one sentence.
    """
    from composer_cmi.run.setup import is_here

    config = _validate(data, source)
    try:
        registry.import_user_code(config.code_paths)
    except (ValueError, FileNotFoundError) as error:
        raise ConfigError(f'{source}: {error}') from error
    arms = arm_configs(config, source)
    for name, arm in arms.items():
        where = f'{source}, arm {name}' if config.arms else source
        _check_names(arm, where)
        if here and not is_here(device := arm.train.device):
            raise ConfigError(
                f'{where}: train.device: there is no {device!r} on this machine: leave the key out, or say cpu.'
            )
    if config.arms:
        _check_differences(arms, source)
    return config


def _check_differences(arms: Mapping[str, RunConfig], source: str) -> None:
    # Arms that differ in speed alone, by workers or by what is measured, are set side by side for their times.
    known: dict[str, str] = {}
    for name, arm in arms.items():
        facts = arm.model_dump(mode='json', exclude={'run_name'})
        facts['algorithms'] = {
            key: with_defaults(registry.get_algorithm(key), given) for key, given in arm.algorithms.items()
        }
        if (before := known.setdefault(json.dumps(facts, sort_keys=True, default=str), name)) != name:
            raise ConfigError(
                f'{source}: the arms {before} and {name} are the same run: nothing would be compared. Look for a value '
                'that the rest of the file, or a default, has already.'
            )


def arm_configs(config: RunConfig, source: str = 'config') -> dict[str, RunConfig]:
    """The runs that a configuration asks for: its arms by name, or itself under the last part of its name.

    An arm's own settings are merged over the others; ``arm:NAME`` stands for the folder of an earlier arm.

    Raises:
        ConfigError: if an arm does not fit the schema or refers to an arm that does not come before it.
    """
    if config.arms is None:
        return {Path(config.run_name).name: config}
    base = config.model_dump(exclude_unset=True)
    base.pop('arms')
    arms: dict[str, RunConfig] = {}
    for name, changes in config.arms.items():
        where = f'{source}, arms.{name}'
        for key in ('arms', 'run_name', 'output_dir', 'code_paths'):
            if key in changes:
                raise ConfigError(f'{where}: {key!r} belongs to the whole file and cannot differ between arms.')
        if (key := said_twice(changes)) is not None:
            raise ConfigError(f'{where}: {key!r} stands there twice, dotted and in its section.')
        data = copy.deepcopy(base)
        for key, value in changes.items():
            data = deep_merge(data, _nested(key, value))
        data['run_name'] = f'{config.run_name}/{name}'
        folders = {earlier: str(arm.folder) for earlier, arm in arms.items()}
        arms[name] = _validate(_resolve_arms(data, folders, where), where)
    return arms


def deep_merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``changes`` over ``base``: mappings are merged key by key, everything else is replaced."""
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        merged[key] = deep_merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def leaves(changes: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every value of nested and dotted keys by its whole dotted key; a mapping only where it is empty."""
    for key, value in changes.items():
        if isinstance(value, Mapping) and value:
            yield from ((f'{key}.{inner}', leaf) for inner, leaf in leaves(value))
        else:
            yield key, value


def said_twice(changes: Mapping[str, Any]) -> str | None:
    """The first dotted key that is there in two spellings, of which one would be lost: `a.b: 1` beside `a: {b: 2}`."""
    parts = [[*leaves({key: value})] for key, value in changes.items()]
    found = (overlap(one, other) for place, other in enumerate(parts) for one in parts[:place])
    return next((key for key in found if key is not None), None)


def overlap(one: Iterable[tuple[str, Any]], other: Iterable[tuple[str, Any]]) -> str | None:
    """The first dotted key of `other` that says again what `one` says; an empty section says nothing."""
    said = dict(one)
    for key, value in other:
        parents = [key[:end] for end, letter in enumerate(key) if letter == '.']
        if (key in said and (value != {} or said[key] != {})) or any(said.get(parent, {}) != {} for parent in parents):
            return key
        if value != {} and any(each.startswith(f'{key}.') for each in said):
            return key
    return None


def _nested(dotted: str, value: Any) -> dict[str, Any]:
    # A mapping's own keys may be dotted too: `arms: {a: {algorithms: {x.weight: 1}}}`.
    if isinstance(value, Mapping):
        merged: dict[str, Any] = {}
        for key, inner in value.items():
            merged = deep_merge(merged, _nested(key, inner)) if isinstance(key, str) else {**merged, key: inner}
        value = merged
    for part in reversed(dotted.split('.')):
        value = {part: value}
    return value


def _resolve_arms(value: Any, folders: Mapping[str, str], where: str) -> Any:
    if isinstance(value, Mapping):
        return {key: _resolve_arms(inner, folders, where) for key, inner in value.items()}
    if isinstance(value, list):
        return [_resolve_arms(inner, folders, where) for inner in value]
    if isinstance(value, str) and value.startswith('arm:'):
        name = value[len('arm:') :]
        if name not in folders:
            earlier = ', '.join(folders) or 'none'
            raise ConfigError(f'{where}: {value!r} names no arm that comes before this one (those are: {earlier}).')
        return folders[name]
    return value


def _validate(data: Mapping[str, Any], source: str) -> RunConfig:
    try:
        check_plain(data)
        return RunConfig.model_validate(data)
    except ValidationError as error:
        raise ConfigError(f'{source}: {sentence(error, RunConfig, data)}') from error
    except ValueError as error:
        raise ConfigError(f'{source}: {error}.') from error


def _check_names(config: RunConfig, source: str) -> None:
    """Whatever is named in a file, and its arguments by the signature of the class."""
    from composer_cmi.data.tasks import get_task
    from composer_cmi.run.loggers import check_file_names, get_logger
    from composer_cmi.run.parts.by_name import OPTIMIZERS, get_algorithm, get_callback, get_scheduler, has_warmup
    from composer_cmi.run.parts.classifier import lora_config
    from composer_cmi.run.setup import build_parallelism

    try:
        get_task(config.task)
        for name, kwargs in config.algorithms.items():
            _check_arguments(get_algorithm(name), kwargs, f'algorithms.{name}')
        for name, kwargs in config.loggers.items():
            _check_arguments(get_logger(name), kwargs, f'loggers.{name}')
            check_file_names(name, kwargs)
        for name, kwargs in config.callbacks.items():
            _check_arguments(get_callback(name), kwargs, f'callbacks.{name}')
        if config.optimizer.name in OPTIMIZERS:
            of_class, given = OPTIMIZERS[config.optimizer.name], config.optimizer.arguments
            _check_arguments(of_class, given, 'optimizer.arguments', ours=('params', 'lr'))
        of_class, given = get_scheduler(config.scheduler.name), config.scheduler.arguments
        _check_arguments(of_class, given, 'scheduler.arguments', ours=('t_warmup',))
        if not has_warmup(config.scheduler.name) and Time.from_timestring(config.scheduler.warmup).value:
            raise ConfigError(
                f'scheduler.warmup: {config.scheduler.name} has no warm-up: say warmup: 0ba, or choose a scheduler '
                'whose name ends in _with_warmup.'
            )
        if isinstance(config.train.compile, dict):
            _check_arguments(torch.compile, config.train.compile, 'train.compile', ours=('model',))
        build_parallelism(config)
        if config.peft is not None:
            lora_config(config.peft)
    except (ValueError, ImportError) as error:
        raise ConfigError(f'{source}: {error}') from error


def _check_arguments(
    cls: Callable[..., Any], kwargs: Mapping[str, Any], where: str, ours: tuple[str, ...] = ()
) -> None:
    # `ours` are those that the run gives itself.
    parameters = [p for p in inspect.signature(cls).parameters.values() if p.name not in ours]
    names = [p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        for key in kwargs:
            if key not in names:
                known = ', '.join(names)
                raise ConfigError(
                    f'unknown key {f"{where}.{key}"!r}.{registry.nearest(key, names)} Known here: {known}.'
                )
    for p in parameters:
        if p.name in names and p.default is p.empty and p.name not in kwargs:
            raise ConfigError(f'the key {f"{where}.{p.name}"!r} is missing.')
    check_values(argument_types(cls), kwargs, where)
    for p in (p for p in parameters if p.name in kwargs):
        if words := _fault_beyond_type(cls, p, kwargs[p.name]):
            raise ConfigError(f'{where}.{p.name}: {words} (given: {shown(kwargs[p.name])}).')


def _fault_beyond_type(cls: Callable[..., Any], parameter: inspect.Parameter, value: Any) -> str | None:
    default: Any = parameter.default
    if isinstance(value, str) and not value and default != '':
        return 'must not be empty: leave the key out'
    # Composer looks at its own numbers late or never.
    number = value if is_number(argument_types(cls)[parameter.name]) and isinstance(value, int | float) else 0
    if number < 0 and cls.__module__.startswith('composer.'):
        return None if isinstance(default, int | float) and default < 0 else 'must be at least 0'
    if parameter.name in path_arguments(cls):
        paths = value if isinstance(value, list) else [value]
        return next((words for path in paths if isinstance(path, str) and (words := path_fault(path))), None)
    return None


def check_values(types: Mapping[str, Any], section: Mapping[str, Any], where: str) -> None:
    """Refuse the first value of a section that does not have the type of that name.

    Raises:
        ConfigError: in one sentence.
    """
    for key, value in section.items():
        if key in types and (words := fault(types[key], value)):
            raise ConfigError(f'{where}.{key}: {words} (given: {shown(value)}).')
