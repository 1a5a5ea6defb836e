"""What is raised when a user's configuration cannot be run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ['ConfigError', 'MissingExtra', 'needs']


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
