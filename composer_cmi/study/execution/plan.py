"""Which runs a study consists of. A cell is one run; its folder tells its setting, arm and seed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from composer_cmi.errors import ConfigError
from composer_cmi.run.config import RunConfig, load_config
from composer_cmi.study.config import StudyConfig, combinations, encode, short_names
from composer_cmi.study.execution.plain import is_plain_ce

__all__ = [
    'Cell',
    'expanded_comparisons',
    'names_of_tuned_ce',
    'plan_reported',
    'plan_tuning',
    'shared_config',
    'variants',
]

Chosen = Mapping[tuple[str, str], Mapping[str, Any]]


@dataclass(frozen=True)
class Cell:
    """One run of a study.

    Attributes:
        setting: its data, task and model.
        arm: what is compared.
        seed: shared by all arms.
        folder: where its `results.json` will be.
        overrides: `key=value` arguments over the base file.
        needs: folders of runs that must be finished before (a teacher's).
        candidate: number of the tried combination in a tuning run, None in a reported one.
    """

    setting: str
    arm: str
    seed: int
    folder: str
    overrides: tuple[str, ...]
    needs: tuple[str, ...] = ()
    candidate: int | None = None


def variants(name: str, grid: Mapping[str, list[Any]]) -> dict[str, dict[str, Any]]:
    """The combinations of a grid by the name of their folder: `mincmi,weight=0.2`."""
    names = short_names(grid)
    return {
        ','.join([name, *(f'{names[key]}={_folder_name(value)}' for key, value in values.items())]): values
        for values in combinations(grid)
    }


def _folder_name(value: Any) -> str:
    return re.sub(r'[^A-Za-z0-9_.+-]+', '_', str(value)).strip('_') or 'none'


def plan_tuning(study: StudyConfig) -> list[Cell]:
    """The runs that choose `tune` values: every candidate, setting and tuning seed, scored on a slice of train."""
    cells = []
    for setting, of_setting in _settings(study).items():
        for name, arm in study.arms.items():
            for number, candidate in enumerate(combinations(arm.tune) if arm.tune else ()):
                changes = {**of_setting, **arm.set, **candidate, **_held_out(study)}
                place = f'tuning/{setting}/{name}/candidate{number}'
                cells += [_cell(study, setting, name, seed, place, changes, number) for seed in study.tuning.seeds]
    return cells


def _held_out(study: StudyConfig) -> dict[str, Any]:
    return {**study.tuning.set, 'data.validation_fraction': study.tuning.validation_fraction}


def plan_reported(study: StudyConfig, chosen: Chosen) -> list[Cell]:
    """The runs that are reported.

    Args:
        study: the study.
        chosen: tuned values by setting and arm. An arm that is missing here could not be tuned and has no runs.
    """
    cells = []
    for setting, of_setting in _settings(study).items():
        for seed in study.seeds:  # seeds outside, arms inside: a study that is stopped half-way has whole pairs
            for name, arm in study.arms.items():
                tuned_as = name if arm.tune else arm.tuned_as
                if tuned_as and (setting, tuned_as) not in chosen:
                    continue
                tuned = chosen[setting, tuned_as] if tuned_as else {}
                for variant, values in variants(name, arm.grid).items():
                    changes = {**of_setting, **arm.set, **values, **tuned}
                    cells.append(_cell(study, setting, variant, seed, f'runs/{setting}/{variant}', changes))
    return cells


def _settings(study: StudyConfig) -> dict[str, dict[str, Any]]:
    return {
        variant: {**setting.set, **values}
        for name, setting in study.settings.items()
        for variant, values in variants(name, setting.grid).items()
    }


def _cell(
    study: StudyConfig,
    setting: str,
    arm: str,
    seed: int,
    place: str,
    changes: Mapping[str, Any],
    candidate: int | None = None,
) -> Cell:
    needs: list[str] = []
    resolved = {key: _resolve(value, study, setting, seed, needs) for key, value in changes.items()}
    run_name = f'{place}/seed{seed}'
    fixed = {'seed': seed, 'output_dir': str(study.folder), 'run_name': run_name, 'train.progress_bar': False}
    overrides = tuple(encode({**resolved, **fixed}))
    return Cell(setting, arm, seed, f'{study.folder}/{run_name}', overrides, tuple(needs), candidate)


def _resolve(value: Any, study: StudyConfig, setting: str, seed: int, needs: list[str]) -> Any:
    """`arm:NAME` stands for the folder of that arm's run of the same setting and seed, `arm:NAME@4` for four of them.

    The four are those of the next four seeds, the first following the last: a student is never compared with a run
    that its teacher holds, and of eight seeds two students share no more than three members.
    """
    if isinstance(value, Mapping):
        return {key: _resolve(inner, study, setting, seed, needs) for key, inner in value.items()}
    if isinstance(value, list):
        resolved = [_resolve(inner, study, setting, seed, needs) for inner in value]
        return [each for one in resolved for each in (one if isinstance(one, list) else [one])]
    if isinstance(value, str) and value.startswith('arm:'):
        name, at, count = value.removeprefix('arm:').partition('@')
        if name.split(',')[0] not in study.arms:
            raise ConfigError(f'{value!r} names no arm of the study (arms: {", ".join(study.arms)}).')
        seeds = _next_seeds(study.seeds, seed, value, count) if at else [seed]
        found = [f'{study.folder}/runs/{setting}/{name}/seed{each}' for each in seeds]
        needs += found
        return found if at else found[0]
    return value


def _next_seeds(seeds: Sequence[int], seed: int, value: str, count: str) -> list[int]:
    if not (count.isascii() and count.isdigit() and 1 <= int(count[:9]) < len(seeds)):
        raise ConfigError(
            f'{value!r}: behind @ stands how many other seeds are averaged, from 1 to {len(seeds) - 1} of the '
            f'{len(seeds)} that the study has.'
        )
    place = seeds.index(seed) if seed in seeds else 0
    return [seeds[(place + each) % len(seeds)] for each in range(1, int(count) + 1)]


def shared_config(study: StudyConfig, cell: Cell, known: dict[Any, RunConfig]) -> RunConfig:
    """What all arms of a cell's setting have in common; `known` keeps what was read before."""
    key = cell.setting, cell.candidate is None
    if key not in known:
        changes = {**_settings(study)[cell.setting], **({} if cell.candidate is None else _held_out(study))}
        needs: list[str] = []
        known[key] = load_config(study.base, encode(_resolve(changes, study, cell.setting, cell.seed, needs)))
    return known[key]


def expanded_comparisons(study: StudyConfig, cells: Iterable[Cell]) -> list[tuple[str, str]] | None:
    """The pairs of `comparisons` with every variant of a grid in the place of its arm; None where none are given.

    Raises:
        ConfigError: a name is no arm and no variant, an arm is compared with itself, or a pair is there either way.
    """
    if study.comparisons is None:
        return None
    variants_of: dict[str, dict[str, None]] = {}
    for cell in cells:
        if cell.candidate is None:
            for name in (cell.arm, cell.arm.split(',')[0]):
                variants_of.setdefault(name, {})[cell.arm] = None
    pairs: dict[tuple[str, str], None] = {}
    for pair in study.comparisons:
        for name in pair:
            # A tuned arm without a finished try has no runs, and nothing to compare.
            if name not in variants_of and ',' in name:
                known = ', '.join(variants_of.get(name.split(',')[0], ()))
                raise ConfigError(f'comparisons: there is no arm {name!r} (of its grid there are: {known}).')
        arm, baseline = pair
        if arm == baseline:
            raise ConfigError(f'comparisons: the arm {arm!r} is compared with itself.')
        for one in variants_of.get(arm, ()):
            for other in variants_of.get(baseline, ()):
                if (other, one) in pairs and one != other:
                    raise ConfigError(f'comparisons: {other!r} and {one!r} stand there twice, once either way.')
                pairs[one, other] = None
    return [(one, other) for one, other in pairs if one != other]


def names_of_tuned_ce(study: StudyConfig) -> list[str]:
    """Tuned arms that add nothing to cross-entropy: the controls that a gain is measured against."""
    first = {cell.arm: cell for cell in reversed(plan_tuning(study))}
    shared: dict[Any, RunConfig] = {}
    return [
        name
        for name, cell in first.items()
        if is_plain_ce(load_config(study.base, cell.overrides), shared_config(study, cell, shared))
    ]
