"""What is raised when a user's configuration cannot be run, and when a disk cannot be written."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ['ConfigError', 'MissingExtra', 'naming', 'needs']


class ConfigError(ValueError):
    """A configuration that cannot be run; one sentence: what, where, and what would be right."""


class MissingExtra(ConfigError, ImportError):
    """A package that one of composer-cmi's extras installs is not there; the sentence names both."""


@contextmanager
def needs(extra: str, what: str) -> Iterator[None]:
    """Around imports: says in one sentence which extra has the package that ``what`` misses.

    Raises:
        MissingExtra: for a package that is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or '').partition('.')[0]
        if package == __package__:
            raise  # a fault of ours, which no extra mends
        raise MissingExtra(
            f"{what} needs the package {package!r}, which is not installed: pip install 'composer-cmi[{extra}]'."
        ) from error


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Put the path into an error of the system that has none: a write to a full disk does not say where.

    Raises:
        OSError: also for what `safetensors` and `tokenizers` raise, which is none.
    """
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise
    except Exception as error:
        if found := re.search(r'os error (\d+)', str(error)):
            raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from error
        raise
