"""What happens to `composer-cmi sweep` and `composer-cmi report`; see tests/faults.py."""

from __future__ import annotations

import functools
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from composer_cmi.cli import app
from composer_cmi.study.execution import sweep
from fault_tools import CODES, Lost, spoken, start_fork, strike
from sweep_tools import CHEAP, TWO_ARMS, events, quiet_sweep, write_study


def command(*arguments: object, before: Callable[[], object] = lambda: None) -> int:
    """`composer-cmi ...` in this process; runs of a sweep are cheap ones."""
    sweep.sweep = functools.partial(sweep.sweep, runner=CHEAP)  # pyright: ignore[reportAttributeAccessIssue]
    before()
    try:
        app([str(argument) for argument in arguments])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def struck_sweep(signum: str, share: float) -> Callable[[Path], None]:
    def case(folder: Path) -> None:
        folder.mkdir(parents=True)
        path = write_study(folder, {**TWO_ARMS, 'seeds': 1}, seconds=0.3)
        process, wait = start_fork(lambda: command('sweep', path, '--jobs', 2))
        time.sleep(share)
        os.kill(process, getattr(signal, signum))
        code, said = wait()
        spoken(code, said, (0, *CODES[signum]), 'the same command' if code > 0 else '')
        code, said = start_fork(lambda: command('sweep', path, '--jobs', 2))[1]()
        spoken(code, said, (0,))
        if len({run for event, run in events(folder) if event == 'end'}) != 4 or '0 failed' not in said:
            raise Lost(f'the next sweep: {said[-300:]}')

    return case


def struck_report(number: int, signum: str) -> Callable[[Path], None]:
    def case(folder: Path) -> None:
        folder.mkdir(parents=True)
        quiet_sweep(write_study(folder, {**TWO_ARMS, 'seeds': 2}), jobs=2)
        study = folder / 'out' / 'small'
        hit = functools.partial(strike, 'replace', number, signum, 'before')
        code, said = start_fork(lambda: command('report', study, before=hit))[1]()
        spoken(code, said, CODES[signum], 'the same command' if code > 0 else '')
        code, said = start_fork(lambda: command('report', study))[1]()
        spoken(code, said, (0,), 'report.html')
        if not all(file.stat().st_size for file in (study / 'report').rglob('*') if file.is_file()):
            raise Lost('an empty file of the report')

    return case
