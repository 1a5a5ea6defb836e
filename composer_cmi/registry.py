"""Names for algorithms, tasks and models: YAML files, plugins and the command line share them.

Three `catalogue <https://github.com/explosion/catalogue>`_ registries. Another package adds to them
through the entry point groups ``composer_cmi_algorithms``, ``composer_cmi_tasks`` and
``composer_cmi_models``; a user's own file does it with the decorators below and is imported by
``code_paths: [my_file.py]`` in a run's YAML.

This module imports nothing but ``catalogue``: what it names, Composer's own included, is imported when it is asked for.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib
import importlib.metadata
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import catalogue

from composer_cmi.errors import needs

if TYPE_CHECKING:
    from composer.core import Algorithm

__all__ = [
    'algorithms',
    'composer_algorithms',
    'describe',
    'get_algorithm',
    'get_model',
    'get_task',
    'import_user_code',
    'known_algorithms',
    'known_models',
    'known_tasks',
    'models',
    'nearest',
    'register_algorithm',
    'register_model',
    'register_task',
    'tasks',
]

T = TypeVar('T')

algorithms = catalogue.create('composer_cmi', 'algorithms', entry_points=True)
tasks = catalogue.create('composer_cmi', 'tasks', entry_points=True)
models = catalogue.create('composer_cmi', 'models', entry_points=True)


def _register(registry: catalogue.Registry, kind: str, name: str) -> Callable[[T], T]:
    def decorator(entry: T) -> T:
        taken = catalogue.REGISTRY.get((*registry.namespace, name))
        if taken is not None and not _same(taken, entry):
            by = _where(taken) if hasattr(taken, '__qualname__') else f'another {type(taken).__name__}'
            raise ValueError(f'The {kind} name {name!r} is taken by {by}: choose another name.')
        registry.register(name, func=entry)
        return entry

    return decorator


def _same(a: Any, b: Any) -> bool:
    # A module imported twice (a reload, or a user's file given by two paths) registers equal things anew.
    return a is b or _where(a) == _where(b)


def _where(entry: Any) -> str:
    if hasattr(entry, '__qualname__'):
        return f'{entry.__module__}.{entry.__qualname__}'
    if isinstance(entry, functools.partial):
        return f'{_where(entry.func)}({[*map(_where, entry.args)]}, {entry.keywords})'
    if dataclasses.is_dataclass(entry):  # a task, whose functions are new ones when its file is read again
        return str({field.name: _where(getattr(entry, field.name)) for field in dataclasses.fields(entry)})
    return repr(entry)


def register_algorithm(name: str) -> Callable[[T], T]:
    """Decorate a Composer ``Algorithm`` class; its constructor's arguments are its YAML keys.

    From then on the constructor refuses what its annotations do not allow, from a file and from Python.
    """

    def decorator(entry: T) -> T:
        _register(algorithms, 'algorithm', name)(entry)
        if inspect.isclass(entry) and '__init__' in vars(entry):
            _check_calls(entry)
        return entry

    return decorator


def _check_calls(cls: type) -> None:
    init: Callable[..., None] = cls.__init__
    signature = inspect.signature(init)

    @functools.wraps(init)
    def checked(self: Any, *args: Any, **kwargs: Any) -> None:
        from composer_cmi.arguments import check_call  # with pydantic, for which an import of ours does not wait

        try:
            given = signature.bind(self, *args, **kwargs).arguments
        except TypeError:
            given = {}  # the call itself says what is missing
        check_call(cls, given)
        init(self, *args, **kwargs)

    cls.__init__ = checked  # pyright: ignore[reportAttributeAccessIssue]


def register_task(name: str) -> Callable[[T], T]:
    """Register a ``composer_cmi.data.tasks.Task``, or a function without arguments that returns one."""
    return _register(tasks, 'task', name)


def register_model(name: str) -> Callable[[T], T]:
    """Decorate a function ``(label_names) -> (model, tokenizer)`` of Hugging Face objects.

    Its name is then a value of ``model.name_or_path``.
    """
    return _register(models, 'model', name)


def composer_algorithms() -> dict[str, type[Algorithm]]:
    """Composer's built-in algorithms under the names of their subpackages, e.g. ``swa``.

    Raises:
        MissingExtra: Composer is not installed.
    """
    with needs('composer', 'A Composer algorithm'):
        import composer.algorithms
        from composer.core import Algorithm
    found = {}
    for name in composer.algorithms.__all__:
        entry = getattr(composer.algorithms, name)
        if inspect.isclass(entry) and issubclass(entry, Algorithm):
            found[entry.__module__.split('.')[2]] = entry
    return found


def known_algorithms() -> list[str]:
    """Names that :func:`get_algorithm` accepts, ours and plugins' first, then Composer's."""
    _import('composer_cmi.algorithms')
    own = _names(algorithms)
    return own + sorted(set(composer_algorithms()) - set(own))


def known_tasks() -> list[str]:
    """Names that :func:`get_task` accepts."""
    _import('composer_cmi.data.tasks')
    return _names(tasks)


def known_models() -> list[str]:
    """Names that :func:`get_model` accepts; any hub name or folder is a model too, without registration."""
    _import('composer_cmi.run.models')
    return _names(models)


def get_algorithm(name: str) -> type[Algorithm]:
    """The algorithm class registered under ``name``, or Composer's built-in one.

    Raises:
        ValueError: for an unknown name, with the nearest known one and the list of all.
    """
    known = known_algorithms()
    if name in algorithms:
        return algorithms.get(name)
    builtin = composer_algorithms()
    if name in builtin:
        return builtin[name]
    raise _unknown('algorithm', name, known)


def get_task(name: str) -> Any:
    """The ``Task`` registered under ``name``.

    Raises:
        ValueError: for an unknown name, with the nearest known one and the list of all.
    """
    known = known_tasks()
    if name not in tasks:
        raise _unknown('task', name, known)
    entry = tasks.get(name)
    return entry() if inspect.isfunction(entry) else entry


def get_model(name: str) -> Callable[..., Any]:
    """The model builder registered under ``name``.

    Raises:
        ValueError: for an unknown name, with the nearest known one and the list of all.
    """
    known = known_models()
    if name not in models:
        raise _unknown('model', name, known)
    return models.get(name)


def nearest(name: str, known: Iterable[str]) -> str:
    """`` Did you mean 'x'?`` for the known name closest to ``name``, or nothing when none is close."""
    close = difflib.get_close_matches(name.lower(), list(known), n=1, cutoff=0.6)
    return f' Did you mean {close[0]!r}?' if close else ''


def describe(entry: Any) -> str:
    """One line about a registered entry, or about a text: the first sentence of its ``summary`` or docstring."""
    text = entry if isinstance(entry, str) else getattr(entry, 'summary', None)
    if not isinstance(text, str):
        text = inspect.getdoc(entry) or ''
    # Composer's docstrings are reStructuredText: links, roles, and lines broken anywhere.
    text = ' '.join(text.split('\n\n')[0].replace('\\\n', '').split())
    text = re.sub(r'\s*<https?://[^>]*>`?_{0,2}|(:[a-z]+:|class:)`[~.]*|`', '', text)
    return re.split(r'(?<=\.) (?=[A-Z])', text)[0]


def import_user_code(paths: Iterable[str | Path]) -> None:
    """Import users' Python files or packages, so that their decorators register what they define.

    Raises:
        FileNotFoundError: if a path does not exist.
        ValueError: if the file cannot be imported.
    """
    for path in map(Path, paths):
        file = path / '__init__.py' if path.is_dir() else path
        if not file.is_file():
            raise FileNotFoundError(f'code_paths: there is no Python file {str(file)!r}.')
        name = f'composer_cmi_user_{path.resolve().stem}'
        if getattr(sys.modules.get(name), '__file__', None) == str(file.resolve()):
            continue
        spec = importlib.util.spec_from_file_location(name, file.resolve())
        if spec is None or spec.loader is None:
            raise ValueError(f'code_paths: {str(file)!r} is not a Python file.')
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # before execution: dataclasses and pickling look the module up by name
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            del sys.modules[name]
            reason = f'{type(error).__name__}: {error}'
            raise ValueError(f'code_paths: {str(file)!r} failed to import: {reason}') from error


def _names(registry: catalogue.Registry) -> list[str]:
    # Names only: loading every plugin to list it would let one broken plugin stop all runs.
    registered = {key[-1] for key in catalogue.REGISTRY if key[:-1] == tuple(registry.namespace)}
    plugins = importlib.metadata.entry_points(group=registry.entry_point_namespace)
    return sorted(registered | {plugin.name for plugin in plugins})


def _import(module: str) -> None:
    # Imported on first use, not at the top: what registers itself imports this module.
    importlib.import_module(module)


def _unknown(kind: str, name: str, known: list[str]) -> ValueError:
    return ValueError(f'Unknown {kind} {name!r}.{nearest(name, known)} Known: {", ".join(known)}.')
