"""Proof, before anything runs, that all rows are there, and that tuned and reported ones share no text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from composer_cmi.data.task_data import load_task_data
from composer_cmi.errors import ConfigError
from composer_cmi.run.config import load_config
from composer_cmi.study.config import StudyConfig
from composer_cmi.study.execution.plan import Cell

__all__ = ['check_data', 'check_slices']


# A slice that is made of reported rows by half is no accident of texts that recur.
_MOST_REPEATS = 0.5


def check_data(study: StudyConfig, cells: Sequence[Cell]) -> None:
    """Read what every run would read, each selection of rows once.

    Args:
        study: the study.
        cells: the runs that are still to be done.

    Raises:
        ConfigError: a setting or an arm asks for rows that there are not, or that cannot be read.
    """
    read: set[tuple[Any, ...]] = set()
    for cell in {(cell.setting, cell.arm, cell.candidate): cell for cell in cells}.values():
        config = load_config(study.base, cell.overrides)
        key = config.task, config.data.model_dump_json(), config.calibrate
        if key not in read:
            read.add(key)
            try:
                load_task_data(config.task, config.data, calibrate=config.calibrate)
            except (ValueError, FileNotFoundError) as error:
                raise ConfigError(f'The arm {cell.arm} on {cell.setting}: {error}') from error


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
