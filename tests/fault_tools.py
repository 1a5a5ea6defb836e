"""An algorithm that does to a run what a user, a machine or a colleague may do to it, and runs that stop half-way."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from composer_cmi.run.command import run_file
from run_tools import make_all

SIGNALS = ('SIGKILL', 'SIGTERM', 'SIGINT')
CODES = {'SIGKILL': (-9,), 'SIGTERM': (143, -15), 'SIGINT': (130, -15)}

# `what` happens once, at the end of a batch: the file `flag` is there until then.
CODE = """
import os, signal
from pathlib import Path
from composer.core import Algorithm, Event
from composer_cmi.registry import register_algorithm

@register_algorithm('fault')
class Fault(Algorithm):
    def __init__(self, flag: str, what: str = 'crash', batch: int = 8):
        self.flag, self.what, self.batch = Path(flag), what, batch
    def match(self, event, state):
        when = Event.AFTER_LOSS if self.what == 'nan' else Event.BATCH_END
        return event == when and state.timestamp.batch == self.batch and self.flag.exists()
    def apply(self, event, state, logger):
        self.flag.unlink()
        if self.what == 'nan':
            state.loss = state.loss * float('nan')
        elif self.what == 'crash':
            raise RuntimeError('killed')
        else:
            os.kill(os.getpid(), getattr(signal, self.what))
"""


def make_faulty(folder: Path, **changes: Any) -> tuple[str, Path]:
    """A run of nine steps with the algorithm `fault`, and the file whose presence arms it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'fault.py').write_text(CODE)
    flag = folder / 'flag'
    fault = {'flag': str(flag), **changes.pop('fault', {})}
    algorithms = {'cmi_regularization': {'start': '0.5dur'}, 'fault': fault}
    path = make_all(folder, algorithms=algorithms, code_paths=[str(folder / 'fault.py')], **changes)
    return str(path), flag


def interrupted(folder: Path, *overrides: str, **changes: Any) -> tuple[str, Path]:
    """A run that has crashed after eight of nine steps, its last checkpoint after six; its file and its folder."""
    path, flag = make_faulty(folder, **changes)
    flag.touch()
    assert run_file(path, [*overrides]) == 70
    return path, folder / 'runs' / 'tiny'


def flip(path: Path, share: float = 0.5) -> None:
    """Turn one bit of a file over."""
    content = bytearray(path.read_bytes())
    content[int(share * (len(content) - 1))] ^= 4
    path.write_bytes(bytes(content))


def cut(path: Path, share: float = 0.5) -> None:
    """Cut a file off."""
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])


def start_fork(work: Callable[[], int]) -> tuple[int, Callable[[], tuple[int, str]]]:
    """Do work in a process of its own that has the imports behind it.

    Returns:
        Its id, and a function that waits for it and returns the exit code, minus a signal's number, and its words.
    """
    reader, writer = os.pipe()
    process = os.fork()
    if not process:
        code = 99
        try:
            os.setsid()
            os.dup2(writer, 1)
            os.dup2(writer, 2)
            sys.stdout, sys.stderr = os.fdopen(1, 'w', closefd=False), os.fdopen(2, 'w', closefd=False)
            code = work()
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    os.close(writer)
    said = bytearray()

    def read() -> None:
        with open(reader, 'rb') as words:
            said.extend(words.read())

    thread = threading.Thread(target=read)
    thread.start()

    def wait() -> tuple[int, str]:
        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        thread.join(30)
        return code, said.decode(errors='replace')

    return process, wait


def in_a_fork(path: str, *overrides: str, before: Callable[[], object] = lambda: None) -> tuple[int, str]:
    """The exit code and the words of a run in a process of its own, after `before` there."""

    def work() -> int:
        before()
        return run_file(path, [*overrides])

    return start_fork(work)[1]()


class Lost(Exception):
    """What did not survive, in a sentence."""


def spoken(code: int, said: str, codes: tuple[int, ...], word: str = '') -> None:
    """A process that could still speak said one sentence."""
    if 'Traceback' in said or code not in codes or word not in said:
        raise Lost(f'it ended with {code} and said: {said[-300:]}')


def strike(name: str, number: int, signum: str, when: str) -> None:
    module = torch if name == 'save' else os
    real, calls = getattr(module, name), 0

    def struck(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls != number:
            return real(*args, **kwargs)
        if when == 'half':
            args[1].write(b'PK half of it')  # a checkpoint's file, as Composer has opened it
            args[1].flush()
        done = real(*args, **kwargs) if when == 'after' else None
        os.kill(os.getpid(), getattr(signal, signum))
        return done if when == 'after' else real(*args, **kwargs)

    setattr(module, name, struck)


@contextmanager
def file_size(folder: Path, size: int) -> Iterator[Callable[[], object]]:
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[Callable[[], object]]:
    """A small file system on the folder while the run lasts; what is on it then stays as a copy."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(['mount', '-t', 'tmpfs', '-o', options, 'none', str(folder)], check=True)
    try:
        yield lambda: None
        aside = folder.with_name(folder.name + '_copy')
        shutil.copytree(folder, aside, symlinks=True)
    finally:
        subprocess.run(['umount', '-l', str(folder)], check=True)
    shutil.copytree(aside, folder, symlinks=True, dirs_exist_ok=True)


def may_mount() -> bool:
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(['mount', '-t', 'tmpfs', 'none', folder], capture_output=True, check=False)
        if done.returncode == 0:
            subprocess.run(['umount', folder], check=True)
        return done.returncode == 0
