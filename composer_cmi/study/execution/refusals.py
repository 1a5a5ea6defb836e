"""What is refused before the first run: what cannot be run, what would compare nothing, rows that are not there.

A study that tests nothing looks like one that finds nothing: two arms, tries or settings that are the same run, a term
that the training ends before, a teacher that waits for its own student.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from typing import Any

from composer_cmi.data.task_data import TaskData, load_task_data
from composer_cmi.errors import ConfigError
from composer_cmi.run.config import RunConfig, load_config
from composer_cmi.run.outputs.folder import finished_results
from composer_cmi.run.parts.rehearsal import model_key, rehearse, rehearse_model
from composer_cmi.study.config import CE_ARM, StudyConfig
from composer_cmi.study.execution.plain import essence, is_plain_ce
from composer_cmi.study.execution.plan import Cell, expanded_comparisons, shared_config
from composer_cmi.study.findings.analysis import FEWEST_SEEDS
from composer_cmi.study.findings.study import undecided

__all__ = ['check_cells', 'check_slices', 'rehearse_runs']


# A slice that is made of reported rows by half is no accident of texts that recur.
_MOST_REPEATS = 0.5


def check_cells(study: StudyConfig, cells: Iterable[Cell], may_differ: Collection[str] = ()) -> None:
    """Check the configuration of every run, and that finished ones have it, before the first one starts.

    Args:
        study: the study.
        cells: its runs.
        may_differ: arms whose tuned values are not known yet: their finished runs are not compared.

    Raises:
        ConfigError: a run's configuration is wrong; a finished run in its folder has another one; two cells share a
            folder; two settings, two arms or two tries are the same run; an arm is needed that has no run, or by
            itself; `ce` is not plain cross-entropy; only CMI arms are tuned; a comparison names no arm.
    """
    cells = list(cells)
    if len({cell.folder for cell in cells}) < len(cells):
        raise ConfigError(f'Two runs of the study {study.name} share one folder: two values of a grid have one name.')
    configs = {cell.folder: load_config(study.base, cell.overrides) for cell in cells}
    if any(config.arms is not None for config in configs.values()):
        raise ConfigError(f'{study.base} has arms of its own: a study has its arms in its own file.')
    _check_finished(study, cells, configs, may_differ)
    _check_needs(cells)
    _check_baselines(study, cells, configs)
    _check_differences(study, cells, configs)
    expanded_comparisons(study, cells)


def _check_finished(
    study: StudyConfig, cells: Sequence[Cell], configs: Mapping[str, RunConfig], may_differ: Collection[str]
) -> None:
    others: dict[str, str] = {}
    for cell in cells:
        if cell.arm not in may_differ or cell.candidate is not None:
            try:
                finished_results(configs[cell.folder])
            except ConfigError as error:
                others.setdefault(f'{cell.setting}/{cell.arm}', str(error))
    if others:
        raise ConfigError(
            f'Finished runs of {", ".join(others)} in {study.folder} are of other settings than the study now has, '
            f'and are not taken for them: give the study another name, or delete their folders. The first: '
            f'{next(iter(others.values()))}'
        )


def _check_needs(cells: Sequence[Cell]) -> None:
    by_folder = {cell.folder: cell for cell in cells}
    for cell in cells:
        if cell.candidate is not None and cell.needs:
            raise ConfigError(
                f'The arm {cell.arm} cannot be tuned: it needs the run of another arm, which comes after tuning. Give '
                'it fixed values, or tuned_as.'
            )
        for needed in cell.needs:
            if needed not in by_folder:
                raise ConfigError(f'The arm {cell.arm} needs the run {needed}, which is not part of the study.')
        if len({*cell.needs}) < len(cell.needs):
            raise ConfigError(f'The arm {cell.arm} names a run twice among its teachers: name each once.')
    try:
        TopologicalSorter({cell.folder: cell.needs for cell in cells}).prepare()
    except CycleError as error:
        arms = list(dict.fromkeys(by_folder[folder].arm for folder in error.args[1]))
        who = f'the arms {" and ".join(arms)} need' if len(arms) > 1 else f'the arm {arms[0]} needs'
        raise ConfigError(f'No run could be the first: {who} runs that wait for their own.') from None


def _check_baselines(study: StudyConfig, cells: Sequence[Cell], configs: Mapping[str, RunConfig]) -> None:
    plain: dict[str, bool] = {}
    shared: dict[Any, RunConfig] = {}
    for cell in cells:
        of_setting = shared_config(study, cell, shared)
        plain[cell.arm] = plain.get(cell.arm, True) and is_plain_ce(configs[cell.folder], of_setting)
    for name, is_plain in plain.items():
        if name.split(',')[0] == CE_ARM and not is_plain:
            raise ConfigError(
                f"The arm 'ce' must be plain cross-entropy: {study.base} or a setting adds a term or a teacher, or "
                "'ce' alone sets what shapes the loss, the labels or the rows; put it into an arm of its own."
            )
    tuned = {name: is_plain for name, is_plain in plain.items() if name in study.arms and study.arms[name].tune}
    if tuned and not any(tuned.values()):
        raise ConfigError(
            f'Only {", ".join(tuned)} would be tuned: tune a plain cross-entropy arm with the same number of tries.'
        )


def _check_differences(study: StudyConfig, cells: Sequence[Cell], configs: Mapping[str, RunConfig]) -> None:
    first: dict[Hashable, Cell] = {}
    of_setting: dict[str, set[Hashable]] = {}
    doubles: list[tuple[Cell, Cell]] = []
    for cell in cells:
        computes = _essence(study, cell, configs[cell.folder])
        of_setting.setdefault(cell.setting, set()).add(computes)
        if first.setdefault((cell.setting, computes), cell) is not cell:
            doubles.append((first[cell.setting, computes], cell))
    for one, other in doubles:
        _refuse_same(one, other)
    known: dict[Hashable, str] = {}
    for setting, runs in of_setting.items():
        if (before := known.setdefault(frozenset(runs), setting)) != setting:
            raise ConfigError(
                f'The settings {before} and {setting} are the same runs: one set of data would count twice. Look for '
                'what every arm sets itself.'
            )


def _essence(study: StudyConfig, cell: Cell, config: RunConfig) -> Hashable:
    # What a tuned arm ends with is not known before: it is the same as another arm only by the same tuning.
    arm = study.arms[cell.arm.split(',')[0]]
    tuned_by = cell.arm if arm.tune else arm.tuned_as
    of_any_setting = essence(config).replace(f'/runs/{cell.setting}/', '/runs/')  # teachers of the setting's own
    return cell.candidate is None, tuned_by, of_any_setting


def _refuse_same(first: Cell, cell: Cell) -> None:
    if cell.candidate is None:
        raise ConfigError(
            f'The arms {first.arm} and {cell.arm} are the same run on {cell.setting}: nothing would be compared. '
            'Look for a setting or a base value that overrides what the arm sets, for a weight of 0, or for a key that '
            'changes nothing that is learnt.'
        )
    raise ConfigError(
        f'Two tries of the arm {cell.arm} are the same run on {cell.setting}: nothing would be tuned. Look for a value '
        'that is listed twice, or for tuning.set over a tuned key.'
    )


def rehearse_runs(study: StudyConfig, cells: Sequence[Cell]) -> list[str]:
    """Read what every run would read, and make what it would make: each selection of rows and each model once.

    Args:
        study: the study.
        cells: the runs that are still to be done.

    Returns:
        list[str]: a sentence for what the study, once it is done, cannot decide.

    Raises:
        ConfigError: a setting or an arm asks for rows that there are not, or that cannot be read; its model or one of
            its algorithms cannot be made; a term would start when the training is over.
    """
    read: dict[Hashable, TaskData] = {}
    built: set[Hashable] = {None}
    found: list[tuple[Cell, TaskData]] = []
    for cell in {(cell.setting, cell.arm, cell.candidate): cell for cell in cells}.values():
        config = load_config(study.base, cell.overrides)
        key = config.task, config.data.model_dump_json(), config.calibrate
        try:
            if key not in read:
                read[key] = load_task_data(config.task, config.data, calibrate=config.calibrate)
            rehearse(config, read[key])
            model = model_key(config, read[key])
            if len(built) > 1 and model not in built:  # the first one is refused, if at all, before anything trains
                rehearse_model(config, read[key])
            built.add(model)
        except (ValueError, FileNotFoundError) as error:
            raise ConfigError(f'The arm {cell.arm} on {cell.setting}: {error}') from error
        found.append((cell, read[key]))
    return list(dict.fromkeys(_weak_points(study, found)))


def _weak_points(study: StudyConfig, found: Sequence[tuple[Cell, TaskData]]) -> Iterator[str]:
    if found and len(study.seeds) < FEWEST_SEEDS:
        yield f'{len(study.seeds)} seeds prove nothing: {FEWEST_SEEDS} are the fewest that a verdict rests on.'
    tried = {(cell.setting, cell.arm): len(data.train) for cell, data in found if cell.candidate is not None}
    for cell, data in found:
        if cell.candidate is not None:
            continue
        if why := undecided(data.task.name, len(next(iter(data.eval_splits.values())))):
            yield f'{cell.setting} decides nothing: {why}.'
        if (more := tried.get((cell.setting, cell.arm), 0)) > len(data.train):
            yield (
                f'{cell.setting}: tries train on {more} rows, reported runs on {len(data.train)}: what is chosen suits '
                'the former.'
            )


def check_slices(study: StudyConfig, tuning: Sequence[Cell], reported: Sequence[Cell]) -> dict[str, set[int]]:
    """Read each tuned setting's data as tuning and as reported, and compare the texts.

    Args:
        study: the study.
        tuning: its tuning runs; one of each setting is looked at, as arms and seeds do not change the rows.
        reported: its reported runs.

    Returns:
        dict[str, set[int]]: by setting, the example ids of held-out rows whose text is a reported row's too, as in
        sets that repeat texts (CoLA): what is tuned must not be scored on them.

    Raises:
        ConfigError: most rows that are scored in tuning are reported ones, or tuning trains on reported rows.
    """
    repeats: dict[str, set[int]] = {}
    for setting in dict.fromkeys(cell.setting for cell in tuning):
        found = []
        for cells in (tuning, reported):
            cell = next((cell for cell in cells if cell.setting == setting), None)
            if cell is None:
                return repeats
            config = load_config(study.base, cell.overrides)
            try:
                found.append(load_task_data(config.task, config.data))
            except (ValueError, FileNotFoundError) as error:
                raise ConfigError(f'settings.{setting}: {error}') from error
        in_tuning, in_report = found
        scored = {row for split in in_report.eval_splits.values() for row in split.joined()}
        held_out = next(iter(in_tuning.eval_splits.values()))
        shared = {int(i) for i, row in zip(held_out.example_ids, held_out.joined(), strict=True) if row in scored}
        if len(shared) > _MOST_REPEATS * len(held_out):
            raise ConfigError(
                f'settings.{setting}: {len(shared)} of the {len(held_out)} rows that tuning is scored on are '
                'reported rows: what is chosen there would flatter the report. Give the data a dev file of their own.'
            )
        if shared:
            repeats[setting] = shared
        # Texts that the task itself repeats between train and dev are the data's own fault, and in every arm.
        if count := len((set(in_tuning.train.joined()) & scored) - set(in_report.train.joined())):
            raise ConfigError(f'settings.{setting}: tuning trains on {count} of the reported rows.')
    return repeats
