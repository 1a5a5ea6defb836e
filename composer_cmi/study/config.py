"""What a study's YAML file may say, checked before the first run starts."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from composer_cmi.errors import ConfigError
from composer_cmi.run.config.loading import leaves, overlap, said_twice
from composer_cmi.run.config.schema import PathString, Seed
from composer_cmi.run.config.sentences import check_plain, sentence, shown
from composer_cmi.run.config.yaml_loader import parse_value, read_yaml

__all__ = ['Arm', 'Setting', 'StudyConfig', 'Tuning', 'combinations', 'encode', 'load_study', 'short_names']

CE_ARM = 'ce'
_NAME = re.compile(r'[A-Za-z0-9][A-Za-z0-9_.+-]{0,99}')
_MOST_SEEDS = 10_000
_MOST_CELLS = 10_000
# What makes runs pairs, and what the sweep itself decides.
_FIXED = ('seed', 'data.seed', 'run_name', 'output_dir', 'arms', 'train.progress_bar')
# What an arm's scores are of: a setting may choose it, for all of its arms.
_SCORED = ('task', 'data.eval_rows', 'data.validation_fraction', 'data.label_column', 'data.labels', 'data.metrics')

Values = dict[str, Annotated[list[Any], Field(min_length=1)]]


def _shorthand(value: Any) -> Any:
    """`mincmi: {algorithms.cmi_regularization: {}}` is short for `mincmi: {set: {...}}`; `ce:` changes nothing."""
    if value is None:
        return {}
    if isinstance(value, Mapping) and not set(value) & set(Arm.model_fields):
        return {'set': dict(value)}
    return value


class _Section(BaseModel):
    model_config = ConfigDict(
        extra='forbid', frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class Setting(_Section):
    """Where the arms are compared: a task, a model, an amount of data. `grid` makes one setting a combination."""

    set: dict[str, Any] = {}
    """Overrides of the base file."""
    grid: Values = {}
    """Values by key; each combination is a setting of its own."""


class Arm(_Section):
    """What is compared."""

    set: dict[str, Any] = {}
    """Overrides of the base file."""
    grid: Values = {}
    """Values by key; each combination is an arm of its own, and all of them are reported."""
    tune: Values = {}
    """Values by key; one combination is chosen per setting on a held-out slice of train, and reported."""
    tuned_as: Annotated[str, Field(min_length=1)] | None = None
    """Name of a tuned arm whose chosen values this arm takes as well."""

    @model_validator(mode='after')
    def _one_kind(self) -> Arm:
        if sum(map(bool, (self.grid, self.tune, self.tuned_as))) > 1:
            raise ValueError('an arm has one of grid, tune and tuned_as: what is tuned is reported once')
        return self


class Tuning(_Section):
    """How `tune` values are chosen: `validation_fraction` of train is held out, the reported split is never read."""

    seeds: list[Seed] = Field([1000, 1001], min_length=1)
    """Seeds of the tries, none of them among the reported ones."""
    validation_fraction: float = Field(0.2, gt=0, lt=1)
    """So much of train is held out to choose on."""
    set: dict[str, Any] = {}
    """Overrides of the tries only."""


def _count_or_list(value: Any) -> Any:
    if type(value) is int and not 1 <= value <= _MOST_SEEDS:
        raise ValueError(f'{shown(value)} seeds: it must be a number from 1 to {_MOST_SEEDS:,}, or a list')
    return list(range(value)) if type(value) is int else value


class StudyConfig(_Section):
    """A grid of settings, arms and seeds over one base file."""

    name: str
    """The study's folder below `output_dir`."""
    base: PathString
    """A run's YAML file, relative to the study's own file. It must be plain cross-entropy."""
    output_dir: PathString = 'runs/studies'
    """Where studies' folders go."""
    seeds: Annotated[list[Seed], BeforeValidator(_count_or_list)] = Field(min_length=1, max_length=_MOST_SEEDS)
    """A number of seeds (0, 1, ...) or a list; the same for every arm and setting."""
    settings: Annotated[dict[str, Annotated[Setting, BeforeValidator(_shorthand)]], Field(min_length=1)] = {
        'base': Setting()
    }
    """By name."""
    arms: dict[str, Annotated[Arm, BeforeValidator(_shorthand)]]
    """By name; the arm `ce` is added where it is missing."""
    tuning: Tuning = Tuning()  # pyright: ignore[reportCallIssue]
    """For arms with `tune`."""
    comparisons: list[Annotated[tuple[str, str], Field(strict=False)]] | None = None
    """Pairs `[arm, baseline]`; by default every arm against `ce` and against every tuned CE arm."""
    gain: float = Field(1.0, gt=0, le=100)
    """In points; the report says how many seeds would see it."""
    threads: int = Field(1, ge=1, le=1024)
    """CPU threads of a run. It is fixed, so that the results do not depend on `--jobs`."""
    keep_models: bool | list[str] = False
    """Keep checkpoints and exported models of finished runs (gigabytes), or the exported models of these arms."""

    @property
    def folder(self) -> Path:
        """Where everything of the study is written."""
        return Path(self.output_dir) / self.name

    @field_validator('arms', mode='after')
    @classmethod
    def _with_ce(cls, arms: dict[str, Arm]) -> dict[str, Arm]:
        return arms if CE_ARM in arms else {CE_ARM: Arm(), **arms}

    @field_validator('seeds', mode='after')
    @classmethod
    def _distinct(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) != len(seeds):
            raise ValueError(f'a seed stands twice in {seeds}')
        return seeds

    @model_validator(mode='after')
    def _consistent(self) -> StudyConfig:
        for name in (self.name, *self.settings, *self.arms):
            if not _NAME.fullmatch(name):
                raise ValueError(
                    f'the name {shown(name)} becomes a folder: use letters, digits and ._+- only, at most 100'
                )
        for where, grid in _grids(self):
            if (cells := math.prod(map(len, grid.values()))) > _MOST_CELLS:
                raise ValueError(f'{where} has {cells:,} combinations: at most {_MOST_CELLS:,} can be run')
        _check_keys(self)
        _check_tuning(self)
        for name in self.keep_models if isinstance(self.keep_models, list) else ():
            if name not in self.arms:
                raise ValueError(f'keep_models: there is no arm {name!r} (arms: {", ".join(self.arms)})')
        for pair in self.comparisons or ():
            for name in pair:
                if name.split(',')[0] not in self.arms:
                    raise ValueError(f'comparisons: there is no arm {name!r} (arms: {", ".join(self.arms)})')
        return self


def _grids(study: StudyConfig) -> list[tuple[str, Values]]:
    found = [(f'settings.{name}.grid', part.grid) for name, part in study.settings.items()]
    found += [(f'arms.{name}.grid', part.grid) for name, part in study.arms.items()]
    return [*found, *((f'arms.{name}.tune', part.tune) for name, part in study.arms.items())]


def _check_keys(study: StudyConfig) -> None:
    """Refuse keys that the study fixes, and those of which one value would be lost to another."""
    parts: list[tuple[str, Mapping[str, Any], Values]] = [
        *((f'settings.{name}', part.set, part.grid) for name, part in study.settings.items()),
        *((f'arms.{name}', arm.set, {**arm.grid, **arm.tune}) for name, arm in study.arms.items()),
        ('tuning', study.tuning.set, {}),
    ]
    for where, fixed, values in parts:
        given, listed = [*leaves(fixed)], _listed(values)
        for key, _ in (*given, *listed):
            if _is_among(key, _FIXED):
                raise ValueError(f'{where} sets {key!r}, which the study fixes so that the arms stay paired')
            if where.startswith('arms.') and _is_among(key, _SCORED):
                raise ValueError(f'{where} sets {key!r}: arms are scored alike, so it belongs to a setting')
        if (key := said_twice(fixed) or said_twice({key: each[0] for key, each in values.items()})) is not None:
            raise ValueError(f'{where}: {key!r} stands there twice, dotted and in its section')
        if (key := overlap(given, listed)) is not None:
            raise ValueError(f'{where}: {key!r} stands in set, and in the values that are put in its place')
    for name, arm in study.arms.items():
        chosen = study.arms[arm.tuned_as].tune if arm.tuned_as in study.arms else {}
        if (key := overlap(leaves(arm.set), _listed(chosen))) is not None:
            raise ValueError(
                f'arms.{name} sets {key!r}, and tuned_as: {arm.tuned_as} puts what is chosen there in its place'
            )
    if _is_among('data.validation_fraction', [key for key, _ in leaves(study.tuning.set)]):
        raise ValueError("tuning.set: 'data.validation_fraction' is the key tuning.validation_fraction")


def _listed(values: Values) -> list[tuple[str, Any]]:
    return [leaf for key, each in values.items() for value in each for leaf in leaves({key: value})]


def _is_among(key: str, names: Iterable[str]) -> bool:
    return any(key == name or key.startswith(f'{name}.') for name in names)


def _check_tuning(study: StudyConfig) -> None:
    tries = {name: len(combinations(arm.tune)) for name, arm in study.arms.items() if arm.tune}
    if len(set(tries.values())) > 1:
        raise ValueError(f'every tuned arm gets the same number of tries, here they have {tries}')
    for name, arm in study.arms.items():
        if arm.tuned_as and arm.tuned_as not in tries:
            raise ValueError(f'arms.{name}: tuned_as names {arm.tuned_as!r}, which is no arm with tune')
    shared = sorted(set(study.tuning.seeds) & set(study.seeds))
    if tries and shared:
        raise ValueError(f'tuning.seeds {shared} are among the reported seeds: choose others')


def load_study(path: str | Path, overrides: Iterable[str] = ()) -> StudyConfig:
    """Read and check a study's YAML file; `base` is resolved against the file's own folder.

    Args:
        path: the file.
        overrides: `key.sub=value` of the study's own keys, e.g. `seeds=30`.

    Raises:
        ConfigError: in one sentence, for whatever is wrong.
    """
    path = Path(path).expanduser()
    data = read_yaml(path)
    for override in overrides:
        key, equals, value = override.partition('=')
        if not equals or not key:
            raise ConfigError(f'{override!r} is not an override: write key.sub=value, e.g. seeds=30.')
        inner = data
        *parents, last = key.split('.')
        for parent in parents:
            inner = inner.setdefault(parent, {})
            if not isinstance(inner, dict):
                raise ConfigError(f'{override!r}: {parent!r} has no keys below it in {path}.')
        inner[last] = parse_value(value)
    try:
        check_plain(data)
        study = StudyConfig.model_validate(data)
    except ValidationError as error:
        raise ConfigError(f'{path}: {sentence(error, StudyConfig, data)}') from error
    except ValueError as error:
        raise ConfigError(f'{path}: {error}.') from error
    return study.model_copy(update={'base': str(path.parent / study.base)})


def combinations(values: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    """All combinations of the listed values, the last key fastest; one empty one for an empty grid."""
    return [dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values())]


def short_names(keys: Iterable[str]) -> dict[str, str]:
    """Shortest ends of dotted keys that tell them apart: `optimizer.lr` is `lr` unless another key ends so."""
    keys = list(keys)
    names = {}
    for key in keys:
        parts = key.split('.')
        for length in range(1, len(parts) + 1):
            end = '.'.join(parts[-length:])
            if sum(other == end or other.endswith(f'.{end}') for other in keys) == 1:
                break
        names[key] = end
    return names


def encode(overrides: Mapping[str, Any]) -> list[str]:
    """Overrides as `key=value` arguments of `composer-cmi run`; JSON is YAML."""
    return [f'{key}={json.dumps(value)}' for key, value in overrides.items()]
