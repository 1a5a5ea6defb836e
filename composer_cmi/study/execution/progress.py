"""What a sweep shows while it runs: how far each setting and arm is, and how long the rest will take.

Scores are not shown: who watches them is tempted to stop when they look good.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.live import Live
from rich.table import Table

from composer_cmi.run.outputs.results import load_results
from composer_cmi.study.execution.plan import Cell
from composer_cmi.study.execution.processes import Outcome, is_finished

__all__ = ['Progress', 'clock', 'time_left']


def clock(seconds: float) -> str:
    """`1:02:03` or `02:03`."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f'{hours}:{minute:02}:{second:02}' if hours else f'{minute:02}:{second:02}'


def time_left(to_do: Sequence[Cell], seconds: dict[tuple[str, str], list[float]], jobs: int) -> float | None:
    """Expected seconds until the last of the open runs ends; None while no run has been timed.

    Args:
        to_do: runs that have not ended.
        seconds: of finished runs, by setting and arm; another one of the same kind takes their mean, one of an
            unknown kind the mean of all.
        jobs: runs at a time.
    """
    everything = [value for values in seconds.values() for value in values]
    if not everything:
        return None
    overall = float(np.mean(everything))
    expected = [float(np.mean(seconds.get((cell.setting, cell.arm), [overall]))) for cell in to_do]
    return sum(expected) / min(jobs, max(len(to_do), 1))


class Progress:
    """A live table on a terminal, one line a finished run elsewhere."""

    def __init__(self, phase: str, cells: Sequence[Cell], jobs: int, console: Console) -> None:
        self._phase, self._jobs, self._console = phase, jobs, console
        self._cells = list(cells)
        self._state = {cell.folder: 'finished' if is_finished(cell.folder) else 'to do' for cell in cells}
        self._seconds: dict[tuple[str, str], list[float]] = {}
        self._began = time.monotonic()
        for cell in cells:
            results = load_results(cell.folder) if is_finished(cell.folder) else None
            if results is not None:
                self._seconds.setdefault((cell.setting, cell.arm), []).append(results.timing.total_seconds)
        self._live = Live(get_renderable=self._table, console=console, refresh_per_second=2, transient=False)

    def __enter__(self) -> Progress:
        if self._console.is_terminal and self._cells:
            self._live.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._live.stop()

    def started(self, cell: Cell) -> None:
        """A run begins."""
        self._state[cell.folder] = 'running'

    def waits(self, cell: Cell) -> None:
        """Another process is at this run."""
        self._state[cell.folder] = 'elsewhere'

    def finished(self, cell: Cell, outcome: Outcome) -> None:
        """A run has written its results."""
        self._state[cell.folder] = 'finished'
        if outcome.seconds:
            self._seconds.setdefault((cell.setting, cell.arm), []).append(outcome.seconds)
        self._say(cell, f'finished in {clock(outcome.seconds)}')

    def failed(self, cell: Cell, message: str) -> None:
        """A run has ended without results."""
        self._state[cell.folder] = 'failed'
        self._say(cell, f'FAILED ({message})')

    def _say(self, cell: Cell, what: str) -> None:
        ended = sum(state in ('finished', 'failed') for state in self._state.values())
        if not self._live.is_started:
            line = f'[{ended}/{len(self._cells)}] {cell.folder} {what}; time left {self._left()}'
            self._console.print(line, markup=False, soft_wrap=True)

    def _left(self) -> str:
        to_do = [cell for cell in self._cells if self._state[cell.folder] not in ('finished', 'failed')]
        left = time_left(to_do, self._seconds, self._jobs)
        return 'unknown yet' if left is None else f'about {clock(left)}'

    def _table(self) -> Table:
        passed = clock(time.monotonic() - self._began)
        table = Table(title=f'{self._phase}: {passed} passed, left {self._left()}', title_justify='left')
        states = ('finished', 'running', 'elsewhere', 'failed', 'to do')
        for column in ('setting', 'arm', *states):
            table.add_column(column, justify='left' if column in ('setting', 'arm') else 'right')
        counts: dict[tuple[str, str], Counter[str]] = {}
        for cell in self._cells:
            counts.setdefault((cell.setting, cell.arm), Counter())[self._state[cell.folder]] += 1
        for (setting, arm), count in counts.items():
            table.add_row(setting, arm, *(str(count[state] or '') for state in states))
        return table
