"""Starting the processes of one job, and telling which of them has died."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import psutil
from composer.devices import Device
from composer.utils import dist, get_device

from composer_cmi.errors import ConfigError

__all__ = ['check_environment', 'dead_ranks', 'start_device']

_NAMES = ('RANK', 'LOCAL_RANK', 'LOCAL_WORLD_SIZE', 'NODE_RANK', 'MASTER_ADDR', 'MASTER_PORT')
_LAUNCHERS = {'composer', 'composer.cli.launcher', 'torchrun', 'torch.distributed.run', 'torch.distributed.launch'}
_LAUNCHERS |= {'accelerate', 'deepspeed', 'mpirun', 'mpiexec', 'srun', 'slurmstepd'}
_PATIENCE = 30.0  # seconds that ranks of one machine get to come up without a launcher
_peers: list[tuple[str, int]] = []  # host and process of each rank


def start_device(name: str | None) -> Device:
    """The device that a run asks for, with the ranks connected where there are several.

    Raises:
        ConfigError: if this machine has no such device, or the variables of a launcher are there without one.
    """
    check_environment(os.environ)
    try:
        device = get_device(name)
    except (ValueError, RuntimeError, ImportError) as error:
        reason = ' '.join(str(error).split()).rstrip('.')
        raise ConfigError(f'train.device: {name!r} is not there ({reason}): leave the key out, or say cpu.') from error
    if dist.get_world_size() > 1 and not dist.is_initialized():
        try:
            with _patience():
                dist.initialize_dist(device)
        except RuntimeError as error:
            reason = ' '.join(str(error).split())[:300]
            raise ConfigError(f'The ranks cannot connect ({reason}). {_WAY_OUT}') from error
        _peers[:] = dist.all_gather_object((socket.gethostname(), os.getpid()))
    return device


def check_environment(environ: Mapping[str, str]) -> None:
    """Refuse what is left of another launcher's variables, which Composer would wait for, for ever.

    Raises:
        ConfigError: if they do not fit together.
    """
    numbers: dict[str, int] = {}
    for name in ('WORLD_SIZE', *_NAMES[:4]):
        try:
            numbers[name] = int(environ.get(name, 1 if name.endswith('SIZE') else 0))
        except ValueError:
            raise ConfigError(f'{name}={environ[name]!r} in the environment is no number. {_WAY_OUT}') from None
    size = numbers['WORLD_SIZE']
    if missing := [name for name in _NAMES if size > 1 and name not in environ]:
        raise ConfigError(f'The environment has WORLD_SIZE={size} but not {", ".join(missing)}. {_WAY_OUT}')
    wrong = [name for name in ('RANK', 'LOCAL_RANK', 'NODE_RANK') if not 0 <= numbers[name] < size]
    wrong += [name for name in ('WORLD_SIZE', 'LOCAL_WORLD_SIZE') if not 1 <= numbers[name] <= max(size, 1)]
    if wrong:
        given = ', '.join(f'{name}={numbers[name]}' for name in dict.fromkeys(wrong))
        raise ConfigError(f'The environment has {given} with WORLD_SIZE={size}. {_WAY_OUT}')


_WAY_OUT = (
    "These variables are a launcher's and seem to be left over: unset WORLD_SIZE RANK LOCAL_RANK LOCAL_WORLD_SIZE "
    'NODE_RANK MASTER_ADDR MASTER_PORT, or start several processes with composer -n.'
)


@contextmanager
def _patience() -> Iterator[None]:
    """Ends the process when the other ranks of this machine do not come up and no launcher is seen that would."""
    if os.environ['MASTER_ADDR'] not in ('127.0.0.1', 'localhost', '::1') or _has_launcher():
        yield
        return

    def give_up() -> None:
        print(
            f'composer-cmi: WORLD_SIZE={os.environ["WORLD_SIZE"]} in the environment, but the other ranks did not come '
            f'up within {_PATIENCE:.0f} seconds. {_WAY_OUT}',
            file=sys.stderr,
            flush=True,
        )
        os._exit(2)  # the main thread waits in a call that nothing else ends

    timer = threading.Timer(_PATIENCE, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _has_launcher() -> bool:
    for parent in psutil.Process().parents():
        try:
            words = parent.cmdline()[:4]
        except psutil.Error:
            continue
        if any(os.path.basename(word) in _LAUNCHERS for word in words):
            return True
    return False


def dead_ranks(patience: float = 2.0) -> list[int]:
    """Ranks of this machine whose processes have ended; waits a moment for the first."""
    here, deadline = socket.gethostname(), time.monotonic() + patience
    while True:
        dead = [rank for rank, (host, pid) in enumerate(_peers) if host == here and not _alive(pid)]
        if dead or time.monotonic() > deadline:
            return dead
        time.sleep(0.1)


def _alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
