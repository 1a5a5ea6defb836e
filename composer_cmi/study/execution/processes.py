"""One run as a process of its own, under a lock that the process itself holds.

The lock is an advisory `flock` on a file beside the run folder. Its descriptor is handed to the run, so the lock
lives exactly as long as the run does: when a sweep is killed, runs that it had started finish under their lock, and
a sweep started meanwhile, here or on another machine that shares the folder, waits for them instead of doing them
again.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from composer_cmi.study.execution.plan import Cell
from composer_cmi.study.execution.warm import WarmProcess, warm_up

__all__ = ['Job', 'LocalBackend', 'Outcome', 'command_of', 'is_finished', 'job_of', 'log_file', 'run_and_wait']

_RUNNER = (sys.executable, '-m', 'composer_cmi')
_KILL_AFTER = 10.0


class Outcome(NamedTuple):
    """What became of a cell: `busy` means that another process is at it."""

    folder: str
    state: Literal['finished', 'failed', 'busy']
    seconds: float = 0.0
    message: str = ''


class Job(NamedTuple):
    """What a backend needs to know of a run; plain types, so that it travels to another machine.

    `folder` is absolute and the run works in `directory`, as a worker of a cluster has a directory of its own.
    `runner` is the command that `arguments` are appended to; None is ours, by the quickest way there is.
    """

    folder: str
    runner: tuple[str, ...] | None
    arguments: tuple[str, ...]
    threads: int
    directory: str

    @property
    def environment(self) -> dict[str, str]:
        """What the run's environment has that the sweep's has not."""
        threads = str(self.threads)
        return {'OMP_NUM_THREADS': threads, 'MKL_NUM_THREADS': threads, 'TOKENIZERS_PARALLELISM': 'false'}


class _Running(NamedTuple):
    job: Job
    process: subprocess.Popen[bytes] | WarmProcess
    started: float
    log_begins: int


def job_of(cell: Cell, base: str, threads: int, runner: Sequence[str] | None = None) -> Job:
    """The process of a cell."""
    arguments = (base, *cell.overrides)
    return Job(str(Path(cell.folder).absolute()), tuple(runner) if runner else None, arguments, threads, os.getcwd())


def command_of(job: Job) -> str:
    """The run as one line for a shell."""
    variables = [f'{name}={value}' for name, value in job.environment.items()]
    command = shlex.join(['env', *variables, *(job.runner or _RUNNER), *job.arguments])
    return f'cd {shlex.quote(job.directory)} && {command}'


def is_finished(folder: str | Path) -> bool:
    """Whether a run has written its results, which it does last."""
    return (Path(folder) / 'results.json').is_file()


def log_file(folder: str | Path) -> Path:
    """What the run printed, of all its attempts."""
    return Path(f'{folder}.log')


def _is_warm(job: Job) -> bool:
    # A CUDA driver that an import has touched does not survive a fork: with a GPU each run imports for itself.
    return job.runner is None and not torch.cuda.is_available()


def _start(job: Job) -> _Running | Outcome:
    """Start a run, unless it is finished, another process is at it, or its folder cannot be written."""
    environment = {**os.environ, **job.environment, 'COLUMNS': '200'}
    try:
        Path(job.folder).parent.mkdir(parents=True, exist_ok=True)
        with Path(f'{job.folder}.lock').open('w') as lock, log_file(job.folder).open('ab') as log:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Looked at under the lock: another sweep may have finished it since this one planned.
            if is_finished(job.folder):
                return Outcome(job.folder, 'finished')
            log_begins = log.tell()  # the run shares its offset
            if _is_warm(job):
                handed = {'log': log.fileno(), 'lock': lock.fileno()}
                process = WarmProcess(job.arguments, environment=environment, directory=job.directory, **handed)
            else:
                process = subprocess.Popen(
                    (*(job.runner or _RUNNER), *job.arguments),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    cwd=job.directory,
                    pass_fds=(lock.fileno(),),
                    start_new_session=True,
                )
            return _Running(job, process, time.monotonic(), log_begins)
    except BlockingIOError:
        return Outcome(job.folder, 'busy')
    except OSError as error:
        return Outcome(job.folder, 'failed', 0.0, f'it could not be started: {error}')


def _outcome(running: _Running) -> Outcome:
    folder, code = running.job.folder, running.process.poll() or 0
    seconds = time.monotonic() - running.started
    if code == 0 and is_finished(folder):
        return Outcome(folder, 'finished', seconds)
    log = log_file(folder).read_bytes() if log_file(folder).is_file() else b''
    lines = [line.strip() for line in log[running.log_begins :].decode(errors='replace').splitlines() if line.strip()]
    # A run's own sentence says more than what a library prints after it.
    last = next((line for line in reversed(lines) if line.startswith('composer-cmi')), lines[-1] if lines else '')
    reason = f'killed by {signal.Signals(-code).name}' if code < 0 else f'exit code {code}'
    reason = reason if code else 'it ended without results.json'
    return Outcome(folder, 'failed', seconds, f'{reason}: {last[:300] or "no output"}')


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """A Ctrl-C or SIGTERM meanwhile waits for the end of the block: a run that is being started is known before."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = {
        number: signal.signal(number, lambda number, _: came.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        signal.raise_signal(came[0])


def _stop(running: Sequence[_Running]) -> None:
    """Ask the runs' process groups to end, then end what is left of them."""
    with _uninterrupted():
        for number in (signal.SIGTERM, signal.SIGKILL):
            for each in running:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(each.process.pid, number)
            deadline = time.monotonic() + _KILL_AFTER
            for each in running:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    each.process.wait(max(0.0, deadline - time.monotonic()))


class LocalBackend:
    """Processes on this machine: `submit` a few, `poll` for what has ended, `stop` to end what runs."""

    def __init__(self) -> None:
        self._running: list[_Running] = []
        self._refused: list[Outcome] = []

    def submit(self, job: Job) -> None:
        """Start a job."""
        if _is_warm(job):
            warm_up()
        with _uninterrupted():
            started = _start(job)
            if isinstance(started, Outcome):
                self._refused.append(started)
            else:
                self._running.append(started)

    def poll(self) -> list[Outcome]:
        """What has ended since the last call."""
        ended = [each for each in self._running if each.process.poll() is not None]
        self._running = [each for each in self._running if each not in ended]
        refused, self._refused = self._refused, []
        return refused + [_outcome(each) for each in ended]

    def stop(self) -> None:
        """End what runs."""
        _stop(self._running)
        self._running = []


def run_and_wait(job: Job) -> Outcome:
    """A whole job, where it is executed: on a worker of a cluster, by command."""
    started = _start(job._replace(runner=job.runner or _RUNNER))
    if isinstance(started, Outcome):
        return started
    try:
        started.process.wait()
    finally:
        _stop([started])
    return _outcome(started)
