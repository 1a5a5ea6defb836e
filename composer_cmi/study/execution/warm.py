"""Runs forked from a process that has the imports behind it.

Importing Composer and transformers takes some ten seconds, as long as forty training steps of a small model. Python's
fork server imports them once; each run is still a process of its own, with its own session, log and lock.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Mapping
from multiprocessing.reduction import DupFd
from typing import Any

__all__ = ['WarmProcess']

_CONTEXT = multiprocessing.get_context('forkserver')
_CONTEXT.set_forkserver_preload(['composer_cmi.run.command'])


class WarmProcess:
    """`composer-cmi run FILE key=value ...` as a process, with what `subprocess.Popen` offers that a sweep uses.

    Args:
        arguments: the file and its overrides.
        environment: variables of the run.
        directory: where it runs.
        log: descriptor that it prints to.
        lock: descriptor that it holds open as long as it lives.
    """

    def __init__(
        self, arguments: tuple[str, ...], *, environment: Mapping[str, str], directory: str, log: int, lock: int
    ) -> None:
        self._process = _CONTEXT.Process(
            target=_Target(arguments, dict(environment), directory, log, lock), name=' '.join(arguments[:1])
        )
        self._process.start()

    @property
    def pid(self) -> int:
        """Of the process, which leads a session of its own."""
        return self._process.pid or 0

    @property
    def returncode(self) -> int:
        """Exit code, or minus the signal that ended it; only of a process that has ended."""
        return self._process.exitcode or 0

    def poll(self) -> int | None:
        """The exit code, or None while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> None:
        """Wait for the end, for `timeout` seconds at most."""
        self._process.join(timeout)


class _Target:
    """What the forked process does. Descriptors are handed over when this is pickled, which starting a process does."""

    def __init__(
        self, arguments: tuple[str, ...], environment: dict[str, str], directory: str, log: int, lock: int
    ) -> None:
        self._plain = (arguments, environment, directory)
        self._descriptors = (log, lock)

    def __getstate__(self) -> tuple[Any, ...]:
        return (*self._plain, *(DupFd(descriptor) for descriptor in self._descriptors))

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        *plain, log, lock = state
        self._plain = tuple(plain)
        self._descriptors = (log.detach(), lock.detach())

    def __call__(self) -> None:
        arguments, environment, directory = self._plain
        log, _ = self._descriptors
        os.setsid()
        nothing = os.open(os.devnull, os.O_RDONLY)
        for descriptor, target in ((nothing, 0), (log, 1), (log, 2)):
            os.dup2(descriptor, target)
        os.chdir(directory)
        os.environ.clear()
        os.environ.update(environment)

        import torch

        # The fork server has read OMP_NUM_THREADS before this run's was known.
        torch.set_num_threads(int(environment['OMP_NUM_THREADS']))
        from composer_cmi.run.command import run_file

        sys.exit(run_file(arguments[0], list(arguments[1:])))
