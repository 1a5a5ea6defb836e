"""``history.csv``: every logged metric, one row a step, through kills and resumes."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import time
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from composer.core import State
from composer.loggers import Logger, LoggerDestination
from composer.utils import dist

from composer_cmi.errors import ConfigError, naming
from composer_cmi.run.outputs.files import enter_digests, file_digest, read_checked, write_text

__all__ = ['HISTORY_FILE', 'HistoryLogger', 'read_history']

HISTORY_FILE = 'history.csv'
_HISTORY_SECONDS = 10.0


class HistoryLogger(LoggerDestination):
    """Keep every logged metric in ``history.csv``, one row a step; a killed and resumed run leaves one history.

    Rows are appended every few seconds, at the end of each epoch and at every checkpoint; the newest step's is held
    back, as more may be logged for it. A metric that is logged for the first time is a new column, for which alone the
    file is written anew. A checkpoint holds the row held back, the number of rows before it and their digest: a
    resumed run keeps exactly those rows of the file.

    Args:
        path: The file.

    Attributes:
        first_step: When this process began its first step (``time.time()``); None before it.
        last_step: When it ended its last one.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._columns: list[str] = []
        self._pending: dict[int, dict[str, Any]] = {}
        self._written = 0  # rows in the file, and the digest of their contents, whatever the columns
        self._digest = hashlib.sha256()
        self._resumed = False
        self._flushed = time.monotonic()
        self.first_step: float | None = None
        self.last_step: float | None = None

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        if step is None:
            return
        row = self._pending.setdefault(step, {})
        for name, value in metrics.items():
            # A tensor is read when the file is written: reading it now would wait for the device at every step.
            row[name] = value.detach().clone() if isinstance(value, torch.Tensor) else value

    def batch_start(self, state: State, logger: Logger) -> None:
        self.first_step = self.first_step or time.time()

    def batch_end(self, state: State, logger: Logger) -> None:
        self.last_step = time.time()
        if time.monotonic() - self._flushed > _HISTORY_SECONDS:
            self.flush()

    def epoch_end(self, state: State, logger: Logger) -> None:
        self.flush()

    def close(self, state: State, logger: Logger) -> None:
        try:
            self.finish()
        except OSError as error:  # at the end of a run that has its own error to tell
            warnings.warn(f'The last rows of {self.path} are not written: {error}.')

    def logs(self, step: int, prefix: str) -> bool:
        """Whether a metric of that prefix waits among the rows that are not in the file yet."""
        return any(name.startswith(prefix) for name in self._pending.get(step, ()))

    def state_dict(self) -> dict[str, Any]:
        self.flush()
        # Plain strings and numbers: they load with weights_only=True and need no schema of their own.
        return {'rows': self._written, 'sha256': self._digest.hexdigest(), 'csv': _as_csv(self._pending)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._resumed = True
        self._pending = {int(row.pop('step')): {**row} for row in _parse_cells(state['csv'].encode())}
        if dist.get_global_rank() != 0 or 'rows' not in state:  # an earlier version held all rows in the checkpoint
            return
        self._rewrite(self._stored(state['rows'], state['sha256']))

    def flush(self, *, everything: bool = False) -> None:
        """Append what is complete: all rows but the newest step's, or ``everything``."""
        self._flushed = time.monotonic()
        if dist.get_global_rank() != 0:
            self._pending = {} if everything or not self._pending else {max(self._pending): {}}
            return
        held = None if everything else max(self._pending, default=None)
        ready = {step: _cells(step, self._pending[step]) for step in sorted(self._pending) if step != held}
        if not ready:
            return
        if not self._written and not self._resumed:
            self.path.unlink(missing_ok=True)  # of another start, which left no checkpoint
        new = {name for row in ready.values() for name in row if name not in self._columns}
        if new or not self.path.is_file():
            self._rewrite([*self._stored(self._written, self._digest.hexdigest()), *ready.values()])
        else:
            self._append(list(ready.values()))
        self._pending = {} if held is None else {held: self._pending[held]}

    def finish(self) -> None:
        """Write all rows; nothing is logged any more."""
        self.flush(everything=True)

    def seal(self) -> None:
        """Write all rows, and the digest by which the file is checked when it is read again."""
        self.finish()
        if dist.get_global_rank() == 0 and self.path.is_file():
            enter_digests(self.path.parent, {self.path.name: file_digest(self.path)})

    def _stored(self, rows: int, sha256: str) -> list[dict[str, str]]:
        try:
            found = _parse_cells(self.path.read_bytes())[:rows]
        except (OSError, ValueError):
            found = []
        if hashlib.sha256(b''.join(map(_as_bytes, found))).hexdigest() != sha256:
            warnings.warn(
                f'{self.path} has lost or changed rows: the metrics before this step are what is left in it; the '
                'training itself is not touched.'
            )
        return found

    def _append(self, rows: list[dict[str, str]]) -> None:
        text = io.StringIO()
        csv.DictWriter(text, self._columns, lineterminator='\n').writerows(rows)
        with naming(self.path), self.path.open('a', encoding='utf-8', newline='') as file:
            size = os.fstat(file.fileno()).st_size
            try:
                file.write(text.getvalue())
                file.flush()
            except OSError:
                os.ftruncate(file.fileno(), size)  # a full disk: no half row
                raise
        self._count(rows)

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        names = {name for row in rows for name in row} - {'step'}
        self._columns = ['step', *sorted(names, key=_column_order)]
        self._written, self._digest = 0, hashlib.sha256()
        text = io.StringIO()
        writer = csv.DictWriter(text, self._columns, lineterminator='\n')
        writer.writeheader()
        writer.writerows(rows)
        write_text(self.path, text.getvalue())
        self._count(rows)

    def _count(self, rows: Iterable[Mapping[str, str]]) -> None:
        for row in rows:
            self._digest.update(_as_bytes(row))
            self._written += 1


def _cells(step: int, row: Mapping[str, Any]) -> dict[str, str]:
    values = {name: value.item() if isinstance(value, torch.Tensor) else value for name, value in row.items()}
    return {'step': str(step), **{name: str(value) for name, value in values.items() if str(value)}}


def _as_bytes(row: Mapping[str, str]) -> bytes:
    return repr(sorted(row.items())).encode()


def _as_csv(rows: Mapping[int, Mapping[str, Any]]) -> str:
    cells = [_cells(step, rows[step]) for step in sorted(rows)]
    text = io.StringIO()
    writer = csv.DictWriter(text, ['step', *{name: None for row in cells for name in row if name != 'step'}])
    writer.writeheader()
    writer.writerows(cells)
    return text.getvalue()


def _column_order(name: str) -> tuple[int, str]:
    groups = ('loss/', 'cmi/', 'metrics/')
    return next((i for i, prefix in enumerate(groups) if name.startswith(prefix)), len(groups)), name


def read_history(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a ``history.csv``, without the cells that are empty.

    Raises:
        ConfigError: if the file of a finished run is damaged.
    """
    remedy = f'delete {Path(path).with_name("results.json")} and run again, which keeps what can be read'
    try:
        rows = _parse_cells(read_checked(path, remedy))
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f'{path} is no history of a run ({error}); {remedy}.') from error
    found = [{name: _number(cell) for name, cell in row.items()} for row in rows]
    if not all(isinstance(row.get('step'), float) for row in found):
        raise ConfigError(f'{path} is no history of a run (a row has no number in the column step); {remedy}.')
    return found


def _parse_cells(content: bytes) -> list[dict[str, str]]:
    # A last line without its end is what a kill left of a row.
    whole = content[: content.rfind(b'\n') + 1].decode('utf-8')
    try:
        rows = list(csv.DictReader(io.StringIO(whole, newline='')))
    except csv.Error as error:  # no ValueError
        raise ValueError(str(error)) from error
    return [{name: cell for name, cell in row.items() if name and cell} for row in rows]


def _number(cell: str) -> Any:
    try:
        return float(cell)
    except ValueError:
        return cell
