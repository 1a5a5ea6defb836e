"""Which runs a study consists of. A cell is one run; its folder tells its setting, arm and seed."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from composer_cmi.errors import ConfigError
from composer_cmi.run.config import RunConfig, load_config
from composer_cmi.run.outputs.folder import finished_results
from composer_cmi.study.config import CE_ARM, StudyConfig, combinations, encode, short_names

__all__ = [
    'Cell',
    'check_cells',
    'is_plain_ce',
    'names_of_tuned_ce',
    'plan_reported',
    'plan_tuning',
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
    held_out = {**study.tuning.set, 'data.validation_fraction': study.tuning.validation_fraction}
    cells = []
    for setting, of_setting in _settings(study).items():
        for name, arm in study.arms.items():
            for number, candidate in enumerate(combinations(arm.tune) if arm.tune else ()):
                changes = {**of_setting, **arm.set, **candidate, **held_out}
                place = f'tuning/{setting}/{name}/candidate{number}'
                cells += [_cell(study, setting, name, seed, place, changes, number) for seed in study.tuning.seeds]
    return cells


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
    """`arm:NAME` stands for the folder of that arm's run of the same setting and seed."""
    if isinstance(value, Mapping):
        return {key: _resolve(inner, study, setting, seed, needs) for key, inner in value.items()}
    if isinstance(value, list):
        return [_resolve(inner, study, setting, seed, needs) for inner in value]
    if isinstance(value, str) and value.startswith('arm:'):
        name = value.removeprefix('arm:')
        if name.split(',')[0] not in study.arms:
            raise ConfigError(f'{value!r} names no arm of the study (arms: {", ".join(study.arms)}).')
        needs.append(f'{study.folder}/runs/{setting}/{name}/seed{seed}')
        return needs[-1]
    return value


def is_plain_ce(config: RunConfig) -> bool:
    """Whether a run trains with cross-entropy alone; a regulariser of weight 0 only measures."""
    if {'cmi_maximization', 'knowledge_distillation'} & set(config.algorithms):
        return False
    regulariser = config.algorithms.get('cmi_regularization')
    return regulariser is None or regulariser.get('weight') == 0


def check_cells(study: StudyConfig, cells: Iterable[Cell], may_differ: Collection[str] = ()) -> None:
    """Check the configuration of every run, and that finished ones have it, before the first one starts.

    Args:
        study: the study.
        cells: its runs.
        may_differ: arms whose tuned values are not known yet: their finished runs are not compared.

    Raises:
        ConfigError: a run's configuration is wrong; a finished run in its folder has another one; two cells share a
            folder; an arm is needed that has no run; `ce` is not plain cross-entropy; only CMI arms are tuned.
    """
    cells = list(cells)
    by_folder = {cell.folder: cell for cell in cells}
    if len(by_folder) < len(cells):
        raise ConfigError(f'Two runs of the study {study.name} share one folder: two values of a grid have one name.')
    plain: dict[str, bool] = {}
    for cell in cells:
        config = load_config(study.base, cell.overrides)
        if config.arms is not None:
            raise ConfigError(f'{study.base} has arms of its own: a study has its arms in its own file.')
        if cell.arm not in may_differ or cell.candidate is not None:
            finished_results(config)
        for needed in cell.needs:
            if cell.candidate is None and needed not in by_folder:
                raise ConfigError(f'The arm {cell.arm} needs the run {needed}, which is not part of the study.')
        plain[cell.arm] = plain.get(cell.arm, True) and is_plain_ce(config)
    for name, is_plain in plain.items():
        if name.split(',')[0] == CE_ARM and not is_plain:
            raise ConfigError(
                f"The arm 'ce' must be plain cross-entropy: {study.base} or a setting adds a CMI term or a teacher; "
                'put it into an arm.'
            )
    tuned = {name: is_plain for name, is_plain in plain.items() if name in study.arms and study.arms[name].tune}
    if tuned and not any(tuned.values()):
        raise ConfigError(
            f'Only {", ".join(tuned)} would be tuned: tune a plain cross-entropy arm with the same number of tries.'
        )


def names_of_tuned_ce(study: StudyConfig) -> list[str]:
    """Tuned arms that add nothing to cross-entropy: the controls that a gain is measured against."""
    first = {cell.arm: cell for cell in reversed(plan_tuning(study))}
    return [name for name, cell in first.items() if is_plain_ce(load_config(study.base, cell.overrides))]
