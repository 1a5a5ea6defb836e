"""The run folder before training: is it new, to be resumed, in another process's hands, or of another run?"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO, TypeVar

from composer.utils import dist

from composer_cmi.errors import ConfigError, naming
from composer_cmi.run.config.schema import RunConfig
from composer_cmi.run.config.yaml_loader import read_yaml
from composer_cmi.run.outputs.checkpoints import CHECKPOINTS, latest_checkpoint
from composer_cmi.run.outputs.files import (
    enter_digests,
    read_checked,
    read_digests,
    sweep_up,
    write_json,
    write_yaml,
)
from composer_cmi.run.outputs.history import HISTORY_FILE
from composer_cmi.run.outputs.identity import refuse_other, settings
from composer_cmi.run.outputs.results import RunResults, load_results

__all__ = [
    'BEFORE_FILE',
    'CONFIG_FILE',
    'IDENTITY_FILE',
    'enter_folder',
    'finished_results',
    'from_rank_zero',
    'identity_of',
    'locked',
    'open_folder',
    'refuse_interrupted',
]

BEFORE_FILE = 'before.json'
CONFIG_FILE = 'config.yaml'
IDENTITY_FILE = 'identity.json'
LOCK_FILE = '.lock'
T = TypeVar('T')


def from_rank_zero(function: Callable[[], T]) -> T:
    """What the function returns, or raises, on global rank 0; all ranks call this."""
    outcome: list[Any] = [None, None]
    if dist.get_global_rank() == 0:
        try:
            outcome[0] = function()
        except (ConfigError, OSError) as error:
            outcome[1] = error
    dist.broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def identity_of(config: RunConfig, inputs: Mapping[str, str]) -> dict[str, Any]:
    """What is compared at every resumption: the settings, and the fingerprints of what is read."""
    return {'settings': settings(config.resolved()), 'inputs': dict(inputs)}


def finished_results(config: RunConfig, inputs: Mapping[str, str] | None = None) -> RunResults | None:
    """The results of this very run where it has finished before, else None.

    Args:
        config: The run.
        inputs: Fingerprints of what it reads; None compares the settings only.

    Raises:
        ConfigError: if the folder holds a finished run with other settings or inputs, or damaged results.
    """
    results = load_results(config.folder)
    if results is not None:
        there = {'settings': settings(results.config), 'inputs': results.fingerprints}
        refuse_other(config, identity_of(config, inputs or {}), there, 'a finished')
        if inputs and not results.fingerprints:
            _of_an_earlier_version(config.folder)
    return results


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the run folder for this job; all ranks call it. A folder that stays empty is removed again.

    The lock is advisory (``flock``) and ends with the process, however that ends.

    Raises:
        ConfigError: if another process holds it; says which.
    """
    held: list[TextIO] = []

    def take() -> None:
        held.append(_take(folder / LOCK_FILE))

    from_rank_zero(take)
    try:
        yield
    finally:
        for file in held:
            if [path.name for path in folder.iterdir()] == [LOCK_FILE]:
                (folder / LOCK_FILE).unlink()
                folder.rmdir()
            file.close()


def _take(path: Path) -> TextIO:
    with naming(path):
        while True:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open('a+', encoding='utf-8')
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                holder = file.read().strip() or 'another process'
                file.close()
                raise ConfigError(
                    f'The run folder {str(path.parent)!r} is in use by {holder}: wait for it, or choose another '
                    'run_name.'
                ) from None
            except OSError as error:
                warnings.warn(f'{path} cannot be locked ({error}): a second process in this folder is not noticed.')
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                break
            file.close()  # its holder has just removed an empty folder
        file.truncate(0)
        since = time.strftime('%Y-%m-%d %H:%M:%S')
        file.write(f'process {os.getpid()} on {socket.gethostname()} since {since}\n')
        file.flush()
    return file


def refuse_interrupted(config: RunConfig, identity: Mapping[str, Any]) -> None:
    """Compare with what an earlier start left beside its checkpoints.

    Raises:
        ConfigError: if the folder holds an interrupted run with other settings or inputs.
    """
    folder = config.folder
    if not config.checkpoint.autoresume or not any((folder / CHECKPOINTS).glob('ep*')):
        return
    path = folder / IDENTITY_FILE
    if path.is_file():
        there = json.loads(read_checked(path, 'delete it: each checkpoint holds the same'))
        refuse_other(config, identity, there, 'an interrupted')
    elif (folder / CONFIG_FILE).is_file():
        there = {'settings': settings(read_yaml(folder / CONFIG_FILE))}
        refuse_other(config, identity, there, 'an interrupted')


def open_folder(config: RunConfig, identity: Mapping[str, Any]) -> tuple[Path | None, bool]:
    """Make the folder, or enter that of an interrupted run; to be called by one process, under the lock.

    Leftovers of killed processes are deleted, and with ``autoresume: false`` also the earlier start's checkpoints.

    Returns:
        The checkpoint to go on from, and whether files beside it say which run it is of.

    Raises:
        ConfigError: if the folder holds an interrupted run with other settings or inputs, or only damaged checkpoints.
    """
    folder = config.folder
    sweep_up(folder)
    if not config.checkpoint.autoresume:
        _begin_anew(folder)
        return None, True
    refuse_interrupted(config, identity)
    described = any((folder / name).is_file() for name in (IDENTITY_FILE, CONFIG_FILE))
    return latest_checkpoint(folder), described


def enter_folder(config: RunConfig, identity: Mapping[str, Any], *, of_unknown: Path | None = None) -> None:
    """Write which run this is, once a checkpoint, if there is one, has been taken up; to be called by one process.

    Args:
        config: The run.
        identity: Of the run.
        of_unknown: A checkpoint that does not hold the identity of its run, as those of earlier versions do not.
    """
    if of_unknown is not None:
        _of_an_earlier_version(of_unknown)
    write_json(config.folder / IDENTITY_FILE, identity, checked=True)
    write_yaml(config.folder / CONFIG_FILE, config.resolved())


def _begin_anew(folder: Path) -> None:
    if any((folder / CHECKPOINTS).glob('ep*')):
        print(f'checkpoint.autoresume is off: the checkpoints of an earlier start in {folder} are deleted.')
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    for name in (HISTORY_FILE, BEFORE_FILE):
        (folder / name).unlink(missing_ok=True)
    if digests := read_digests(folder):
        enter_digests(folder, {}, drop=[key for key in digests if key.startswith(f'{CHECKPOINTS}/')])


def _of_an_earlier_version(folder: Path) -> None:
    warnings.warn(f'{folder} is of an earlier version: only its settings could be compared, not what it had read.')
