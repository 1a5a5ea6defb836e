"""``history.csv``: every logged metric, one row a step, through kills and resumes."""

from __future__ import annotations

import csv
import io
import time
from pathlib import Path
from typing import Any

import torch
from composer.core import State
from composer.loggers import Logger, LoggerDestination
from composer.utils import dist

from composer_cmi.run.outputs.files import write_text

__all__ = ['HISTORY_FILE', 'HistoryLogger', 'read_history']

HISTORY_FILE = 'history.csv'
_HISTORY_SECONDS = 10.0


class HistoryLogger(LoggerDestination):
    """Keep every logged metric in ``history.csv``, one row a step; a killed and resumed run leaves one history.

    The rows travel in Composer's checkpoint, so that a resumed run goes on from those of the step that it resumes at.
    The file is rewritten in whole every few seconds and at the end of each epoch.

    Args:
        path: The file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.rows: dict[int, dict[str, Any]] = {}
        self._written = time.monotonic()

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        if step is None:
            return
        row = self.rows.setdefault(step, {})
        for name, value in metrics.items():
            # A tensor is read when the file is written: reading it now would wait for the device at every step.
            row[name] = value.detach().clone() if isinstance(value, torch.Tensor) else value

    def batch_end(self, state: State, logger: Logger) -> None:
        if time.monotonic() - self._written > _HISTORY_SECONDS:
            self.write()

    def epoch_end(self, state: State, logger: Logger) -> None:
        self.write()

    def fit_end(self, state: State, logger: Logger) -> None:
        self.write()

    def state_dict(self) -> dict[str, Any]:
        # A plain string: it loads with weights_only=True and needs no schema of its own.
        return {'csv': self._as_csv()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rows = {int(row.pop('step')): row for row in _parse_history(state['csv'])}

    def write(self) -> None:
        """Write what has been logged so far."""
        self._written = time.monotonic()
        if dist.get_global_rank() == 0 and self.rows:
            write_text(self.path, self._as_csv())

    def _as_csv(self) -> str:
        for row in self.rows.values():
            for name, value in row.items():
                if isinstance(value, torch.Tensor):
                    row[name] = value.item()
        names = sorted({name for row in self.rows.values() for name in row}, key=_column_order)
        text = io.StringIO()
        writer = csv.DictWriter(text, ['step', *names], lineterminator='\n')
        writer.writeheader()
        writer.writerows({'step': step, **self.rows[step]} for step in sorted(self.rows))
        return text.getvalue()


def _column_order(name: str) -> tuple[int, str]:
    groups = ('loss/', 'cmi/', 'metrics/')
    return next((i for i, prefix in enumerate(groups) if name.startswith(prefix)), len(groups)), name


def read_history(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a ``history.csv``, without the cells that are empty."""
    return _parse_history(Path(path).read_text(encoding='utf-8'))


def _parse_history(text: str) -> list[dict[str, Any]]:
    return [{name: _number(cell) for name, cell in row.items() if cell} for row in csv.DictReader(io.StringIO(text))]


def _number(cell: str) -> Any:
    try:
        return float(cell)
    except ValueError:
        return cell
