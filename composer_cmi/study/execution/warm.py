"""Runs forked from a process that has the imports behind it.

Importing Composer and transformers takes some ten seconds, as long as forty training steps of a small model. Python's
fork server imports them once; each run is still a process of its own, with its own session, log and lock.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import sys
from collections.abc import Mapping
from multiprocessing import forkserver, resource_tracker
from multiprocessing.reduction import DupFd
from typing import Any

__all__ = ['WarmProcess', 'warm_up']

_CONTEXT = multiprocessing.get_context('forkserver')
_CONTEXT.set_forkserver_preload(['composer_cmi.study.execution.preload'])


@functools.cache
def warm_up() -> None:
    """Wait for the server's imports, so that a run starts within milliseconds afterwards.

    A Ctrl-C meanwhile leaves no run behind, for none is asked for yet. The server itself inherits the blocked signal:
    it ends with the sweep, not in the middle of its imports.
    """
    resource_tracker.ensure_running()  # which unblocks the signal when it starts
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    nothing = _CONTEXT.Process(target=_nothing)
    nothing.start()
    nothing.join()


def _nothing() -> None:
    pass


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
        self._process = _CONTEXT.Process(target=_Target((arguments, dict(environment), directory), (log, lock)))
        self._process.start()
        self.pid = self._process.pid or 0

    def poll(self) -> int | None:
        """The exit code, or minus the signal that ended it; None while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> None:
        """Wait for the end, for `timeout` seconds at most."""
        self._process.join(timeout)


class _Target:
    """What the forked process does. Descriptors are handed over when this is pickled, which starting a process does."""

    def __init__(self, plain: tuple[Any, ...], descriptors: tuple[int, ...]) -> None:
        self._plain, self._descriptors = plain, descriptors

    def __getstate__(self) -> tuple[Any, ...]:
        return self._plain, [DupFd(descriptor) for descriptor in self._descriptors]

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self._plain, self._descriptors = state[0], tuple(descriptor.detach() for descriptor in state[1])

    def __call__(self) -> None:
        (arguments, environment, directory), (log, _) = self._plain, self._descriptors
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
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
