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
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import torch

from composer_cmi.errors import ConfigError
from composer_cmi.study.execution.plan import Cell
from composer_cmi.study.execution.warm import WarmProcess

__all__ = ['RUNNER', 'Backend', 'Job', 'LocalBackend', 'Outcome', 'RayBackend', 'is_finished', 'job_of', 'log_file']

RUNNER = (sys.executable, '-m', 'composer_cmi')
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


@dataclass
class _Running:
    job: Job
    process: subprocess.Popen[bytes] | WarmProcess
    started: float


def is_finished(folder: str | Path) -> bool:
    """Whether a run has written its results, which it does last."""
    return (Path(folder) / 'results.json').is_file()


def log_file(folder: str | Path) -> Path:
    """What the run printed, of all its attempts."""
    return Path(f'{folder}.log')


def _start(job: Job) -> _Running | Outcome:
    """Start a run, unless it is finished or another process is at it."""
    lock_path = Path(f'{job.folder}.lock')
    lock_path.parent.mkdir(parents=True, exist_ok=True)
    with lock_path.open('w') as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return Outcome(job.folder, 'busy')
        # Looked at under the lock: another sweep may have finished it since this one planned.
        if is_finished(job.folder):
            return Outcome(job.folder, 'finished')
        threads = str(job.threads)
        environment = {**os.environ, 'OMP_NUM_THREADS': threads, 'MKL_NUM_THREADS': threads, 'COLUMNS': '200'}
        environment['TOKENIZERS_PARALLELISM'] = 'false'
        with log_file(job.folder).open('ab') as log:
            process = _spawn(job, environment, log.fileno(), lock.fileno())
        return _Running(job, process, time.monotonic())


def _spawn(job: Job, environment: Mapping[str, str], log: int, lock: int) -> subprocess.Popen[bytes] | WarmProcess:
    # A CUDA driver that an import has touched does not survive a fork: with a GPU each run imports for itself.
    runner = job.runner or (RUNNER if torch.cuda.is_available() else None)
    if runner is None:
        return WarmProcess(job.arguments, environment=environment, directory=job.directory, log=log, lock=lock)
    return subprocess.Popen(
        (*runner, *job.arguments),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        env=environment,
        cwd=job.directory,
        pass_fds=(lock,),
        start_new_session=True,
    )


def _outcome(running: _Running) -> Outcome:
    folder, code = running.job.folder, running.process.returncode or 0
    seconds = time.monotonic() - running.started
    if code == 0 and is_finished(folder):
        return Outcome(folder, 'finished', seconds)
    lines = [line.strip() for line in log_file(folder).read_text(errors='replace').splitlines() if line.strip()]
    reason = f'killed by {signal.Signals(-code).name}' if code < 0 else f'exit code {code}'
    if code == 0:
        reason = 'it ended without results.json'
    return Outcome(folder, 'failed', seconds, f'{reason}: {lines[-1][:300] if lines else "no output"}')


def _stop(running: Sequence[_Running]) -> None:
    """Ask the runs' process groups to end, then end them."""
    for signum, patience in ((signal.SIGTERM, _KILL_AFTER), (signal.SIGKILL, _KILL_AFTER)):
        for each in running:
            if each.process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(each.process.pid, signum)
        deadline = time.monotonic() + patience
        for each in running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                each.process.wait(max(0.0, deadline - time.monotonic()))


class Backend(Protocol):
    """Runs jobs; `submit` while `free()` is positive, then `poll` for what has ended."""

    def free(self) -> int: ...

    def submit(self, job: Job) -> None: ...

    def poll(self) -> list[Outcome]: ...

    def stop(self) -> None: ...


class LocalBackend:
    """Up to `jobs` processes on this machine."""

    def __init__(self, jobs: int) -> None:
        self._jobs = jobs
        self._running: list[_Running] = []
        self._refused: list[Outcome] = []

    def free(self) -> int:
        """How many more jobs may be submitted now."""
        return self._jobs - len(self._running)

    def submit(self, job: Job) -> None:
        """Start a job."""
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


def _run_and_wait(job: Job) -> Outcome:
    """A whole job, where it is executed: on a worker of a cluster."""
    started = _start(job)
    if isinstance(started, Outcome):
        return started
    try:
        started.process.wait()
    finally:
        _stop([started])
    return _outcome(started)


class RayBackend:
    """The same jobs, scheduled by Ray over its cluster; the machines share the study's folder and environment.

    Args:
        jobs: how many jobs may wait or run at once.
        threads: CPUs that a job asks Ray for.
        address: of a running cluster; None takes `RAY_ADDRESS`, or starts one on this machine.

    Raises:
        ConfigError: Ray is not installed.
    """

    def __init__(self, jobs: int, threads: int, address: str | None = None) -> None:
        try:
            import ray  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ConfigError("The Ray backend needs the package ray: pip install 'composer-cmi[ray]'.") from error
        self._ray: Any = ray
        self._jobs = jobs
        if not ray.is_initialized():
            ray.init(address=address, log_to_driver=False, configure_logging=False, ignore_reinit_error=True)
        gpus = 1 if ray.cluster_resources().get('GPU') else 0
        # A job that died with its machine is done again elsewhere by the sweep, which looks for results first.
        self._task = ray.remote(num_cpus=threads, num_gpus=gpus, max_retries=0)(_run_and_wait)
        self._pending: dict[Any, Job] = {}

    def free(self) -> int:
        """How many more jobs may be submitted now."""
        return self._jobs - len(self._pending)

    def submit(self, job: Job) -> None:
        """Hand a job to Ray, whose workers start runs by command."""
        self._pending[self._task.remote(job._replace(runner=job.runner or RUNNER))] = job

    def poll(self) -> list[Outcome]:
        """What has ended since the last call."""
        if not self._pending:
            return []
        ended, _ = self._ray.wait(list(self._pending), num_returns=len(self._pending), timeout=0.05)
        outcomes = []
        for reference in ended:
            job = self._pending.pop(reference)
            try:
                outcomes.append(self._ray.get(reference))
            except self._ray.exceptions.RayError as error:
                lines = str(error).strip().splitlines()
                outcomes.append(Outcome(job.folder, 'failed', 0.0, lines[0][:300] if lines else 'Ray lost the job'))
        return outcomes

    def stop(self) -> None:
        """Cancel what runs."""
        for reference in self._pending:
            self._ray.cancel(reference, force=False)
        self._pending = {}


def job_of(cell: Cell, base: str, threads: int, runner: Sequence[str] | None = None) -> Job:
    """The process of a cell."""
    arguments = (base, *cell.overrides)
    return Job(str(Path(cell.folder).absolute()), tuple(runner) if runner else None, arguments, threads, os.getcwd())
