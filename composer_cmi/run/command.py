"""One YAML file as a command: ``composer train.py FILE.yaml``, ``python -m composer_cmi FILE.yaml``.

Whatever ends a command is told in one sentence; a traceback goes into a file.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import re
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer

from composer_cmi.errors import ConfigError, needs

__all__ = ['fail', 'imports', 'machine_trouble', 'main', 'one_sentence', 'run_file', 'tell']

USER_ERROR = 2
UNEXPECTED = 70
_REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), 'Make room, and the same command goes on'),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), 'Choose another folder, or change its permissions'),
    errno.ENAMETOOLONG: 'Choose a shorter run_name',
    **dict.fromkeys((errno.ENOTDIR, errno.EEXIST), 'A part of this path is a file: choose another path'),
    errno.EISDIR: 'A file of this name is needed: move the folder away',
}
_PEER_IS_GONE = re.compile(
    r'Connection (closed|reset) by peer|Broken pipe|Connection refused|NCCL (Error|error|communicator)|'
    r'(Application|Operation) timeout|Timed out waiting|remote process exited'
)


def run_file(yaml_file: str, overrides: list[str]) -> int:
    """Run a YAML file with overrides; returns the exit code, after printing one sentence about what went wrong."""
    folder = None
    try:
        # Here and not above: it takes seconds, and a question for help should not.
        with imports('run', 'A run from a YAML file'):
            from composer_cmi.run.arms import run_all
            from composer_cmi.run.config import load_config
        config = load_config(yaml_file, overrides)
        folder = config.folder
        run_all(config, _process_began())
    except BaseException as error:
        return tell(error, folder, ' before training began')
    return 0


def _process_began() -> float:
    import psutil

    return psutil.Process().create_time()


def main() -> None:
    """Entry of ``train.py`` and ``python -m composer_cmi``: a YAML file, then ``key.sub=value ...``."""
    if len(sys.argv) < 2 or sys.argv[1] in ('-h', '--help'):
        print('usage: composer [-n RANKS] -m composer_cmi FILE.yaml [key.sub=value ...]', file=sys.stderr)
        raise SystemExit(0 if len(sys.argv) > 1 else 2)
    raise SystemExit(run_file(sys.argv[1], sys.argv[2:]))


@contextmanager
def imports(extra: str, what: str) -> Iterator[None]:
    """:func:`composer_cmi.errors.needs`, for the imports with which a process of ours begins.

    They make a million objects that stay to the end. Python's collector would look through them for garbage, over and
    over, here, in training and at the exit, which is a third of what starting and ending costs: it rests meanwhile, and
    passes over them afterwards. In a process that has torch already, somebody else's or a test's, nothing of this.

    Raises:
        MissingExtra: for a package that is not installed.
    """
    with needs(extra, what):
        if 'torch' in sys.modules or not gc.isenabled():
            yield
            return
        gc.disable()
        try:
            yield
            gc.freeze()
        finally:
            gc.enable()


@contextmanager
def one_sentence() -> Iterator[None]:
    """Around a command of the command line: whatever ends it is one sentence, and its exit code."""
    try:
        yield
    except typer.Exit:
        raise
    except BaseException as error:
        raise typer.Exit(tell(error)) from None


def fail(sentence: str, code: int = USER_ERROR) -> int:
    """Print a sentence about what the user can mend; returns the exit code for it."""
    rank = os.environ.get('RANK', '0')
    # The launcher shows the other ranks' words only when they fail, and an error may be theirs alone.
    with contextlib.suppress(OSError):  # where the words go may be what is full
        print(f'composer-cmi{f", rank {rank}" if rank != "0" else ""}: {sentence}', file=sys.stderr, flush=True)
    return code


def tell(error: BaseException, folder: Path | None = None, far: str = '') -> int:
    """Say in one sentence what ended a command; returns the exit code.

    2 is what the user or the machine did, 130 and 143 an interruption, 1 another rank's end, and 70 what nobody
    expected, whose traceback is in a file.

    Args:
        error: What was raised.
        folder: The run folder, where the traceback goes if it exists by then.
        far: How far a run has got that has not begun to train; empty for a command that trains nothing.

    Raises:
        SystemExit: the error itself, where it is one that is no interruption.
    """
    if isinstance(error, ConfigError):
        return fail(str(error))
    if isinstance(error, KeyboardInterrupt):
        return _interrupted(error, signal.SIGINT, far)
    if isinstance(error, SystemExit):
        # Composer's own handlers of these signals raise it.
        if error.code in (128 + signal.SIGINT, 128 + signal.SIGTERM):
            return _interrupted(error, signal.Signals(int(error.code) - 128), far)
        raise error
    if (sentence := machine_trouble(error)) is not None:
        return fail(sentence)
    if int(os.environ.get('WORLD_SIZE', '1')) > 1 and _PEER_IS_GONE.search(str(error)):
        return _peer_is_gone(error)
    return _unexpected(error, folder)


def machine_trouble(error: BaseException) -> str | None:
    """The sentence about a disk, a path, memory or a worker process that failed; None for any other error."""
    for each in _chain(error):
        if isinstance(each, OSError) and each.errno is not None and each.strerror:
            return _about(each.errno, each.strerror, each.filename)
        if found := re.search(r'os error (\d+)', str(each)):  # what is written in Rust says it so
            number = int(found[1])
            return _about(number, os.strerror(number), None)
        if isinstance(each, MemoryError) or 'out of memory' in str(each).lower():
            return f'Out of memory ({_first_line(each)}): choose a smaller train.microbatch_size.'
        if re.search(r'DataLoader worker .*(killed|exited)', str(each)):
            return f'A process that reads data was killed ({_first_line(each)}): choose fewer train.num_workers.'
    return None


def _about(number: int, reason: str, path: object) -> str:
    where = f': {path}' if path is not None else ''
    remedy = _REMEDIES.get(number)
    return f'{reason}{where}.' + (f' {remedy}.' if remedy else '')


def _interrupted(error: BaseException, signum: signal.Signals, far: str) -> int:
    code = 128 + signum
    signal.signal(signum, signal.SIG_IGN)  # a second one must not cut the line
    far = f', {notes[0]}' if (notes := _notes(error)) else far
    word = 'Interrupted' if signum == signal.SIGINT else f'Ended by {signum.name}'
    if os.environ.get('RANK', '0') == '0':
        fail(f'{word}{far}: the same command goes on{" from the last checkpoint" if far else ""}.')
    if int(os.environ.get('WORLD_SIZE', '1')) > 1:
        # As the launcher expects it of a rank that it ends: it then shows no log of it.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)
    return code


def _peer_is_gone(error: BaseException) -> int:
    from composer_cmi.run.ranks import dead_ranks

    dead = ' and '.join(f'rank {rank}' for rank in dead_ranks()) or 'another rank'
    far = f' ({notes[0]})' if (notes := _notes(error)) else ''
    return fail(f'{dead} has ended, so this one stops{far}: its own words say why.', 1)


def _unexpected(error: BaseException, folder: Path | None) -> int:
    rank = os.environ.get('RANK', '0')
    name = 'error.txt' if rank == '0' else f'error-rank{rank}.txt'
    text = ''.join(traceback.format_exception(error))
    for place in (folder if folder is not None and folder.is_dir() else None, Path.cwd(), Path(tempfile.gettempdir())):
        if place is None:
            continue
        try:
            (place / name).write_text(text, encoding='utf-8')
        except OSError:
            continue
        sentence = f'Unexpected {type(error).__name__}: {_first_line(error)} The traceback is in {place / name}.'
        return fail(sentence, UNEXPECTED)
    return fail(f'Unexpected, and its traceback cannot be written anywhere:\n{text}', UNEXPECTED)


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    while id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__ or error


def _notes(error: BaseException) -> list[str]:
    return getattr(error, '__notes__', [])


def _first_line(error: BaseException) -> str:
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]
    return line if line.endswith('.') else f'{line}.'
