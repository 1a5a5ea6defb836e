"""Proof, before anything runs, that what is tuned on and what is reported share no text."""

from __future__ import annotations

from collections.abc import Sequence

from composer_cmi.data.task_data import load_task_data
from composer_cmi.errors import ConfigError
from composer_cmi.run.config import load_config
from composer_cmi.study.config import StudyConfig
from composer_cmi.study.execution.plan import Cell

__all__ = ['check_slices']


def check_slices(study: StudyConfig, tuning: Sequence[Cell], reported: Sequence[Cell]) -> None:
    """Read each tuned setting's data as tuning and as reported, and compare the texts.

    Args:
        study: the study.
        tuning: its tuning runs; one of each setting is looked at, as arms and seeds do not change the rows.
        reported: its reported runs.

    Raises:
        ConfigError: a row that is scored in tuning, or trained on in tuning, is among the reported rows.
    """
    for setting in dict.fromkeys(cell.setting for cell in tuning):
        texts = {}
        for phase, cells in (('tuning', tuning), ('reported', reported)):
            cell = next((cell for cell in cells if cell.setting == setting), None)
            if cell is None:
                return
            config = load_config(study.base, cell.overrides)
            try:
                data = load_task_data(config.task, config.data)
            except (ValueError, FileNotFoundError) as error:
                raise ConfigError(f'settings.{setting}: {error}') from error
            texts[phase] = set(data.train.joined()), {row for s in data.eval_splits.values() for row in s.joined()}
        (tuning_train, tuning_scored), (train, scored) = texts['tuning'], texts['reported']
        if shared := tuning_scored & scored:
            raise ConfigError(
                f'settings.{setting}: {len(shared)} of the {len(tuning_scored)} rows that tuning is scored on are '
                'reported rows: what is chosen there would flatter the report. Give the data a dev file of their own.'
            )
        # Texts that the task itself repeats between train and dev are the data's own fault, and in every arm.
        if (tuning_train & scored) - train:
            count = len((tuning_train & scored) - train)
            raise ConfigError(f'settings.{setting}: tuning trains on {count} of the reported rows.')
