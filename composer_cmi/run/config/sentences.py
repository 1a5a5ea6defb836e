"""What pydantic found in a configuration, and what it cannot look for, as one sentence that a user can act on."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from composer_cmi.registry import nearest

__all__ = ['check_plain', 'masked', 'sentence', 'shown']

_DEEPEST = 60
_LARGEST = 1e15


def shown(value: Any) -> str:
    """A value as Python writes it, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 80 else f'{text[:77]}...'


def check_plain(value: Any, key: str = '', depth: int = 0) -> None:
    """Refuse keys that are no text, numbers that are none, and characters that no file can hold.

    Raises:
        ValueError: in one sentence without a full stop.
    """
    if depth > _DEEPEST:
        raise ValueError(f'{shown(key)} has more than {_DEEPEST} levels below one another')
    if isinstance(value, Mapping):
        for name, inner in value.items():
            if not isinstance(name, str) or not name:
                raise ValueError(f'{key or "the file"} has the key {shown(name)}, which is no text: put it into quotes')
            check_plain(name, key, depth + 1)
            check_plain(inner, f'{key}.{name}' if key else name, depth + 1)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f'{key}: input should be a finite number (given: {value})')
    elif isinstance(value, int | float) and abs(value) > _LARGEST:
        raise ValueError(f'{key}: input should be at most {_LARGEST:g} in size (given: {shown(value)})')
    elif isinstance(value, list | tuple):
        for inner in value:
            check_plain(inner, key, depth + 1)
    elif isinstance(value, str):
        bad = next((char for char in value if char == '\x00' or '\ud800' <= char <= '\udfff'), None)
        if bad is not None:
            raise ValueError(f'{key}: {shown(value)} holds the character {bad!r}, which no file can')


def sentence(error: ValidationError, schema: type[BaseModel], data: Any) -> str:
    """The first fault, with its key, what was given and what would be right.

    Args:
        error: what pydantic raised.
        schema: the model that ``data`` was checked against.
        data: what was checked.
    """
    faults = error.errors()
    first, path = faults[0], _path(faults[0], data)
    key = '.'.join(path)
    if first['type'] == 'extra_forbidden':
        known = _known_keys(schema, path[:-1])
        return f'unknown key {shown(key)}.{nearest(path[-1], known)} Known here: {", ".join(known)}.'
    if first['type'] == 'missing':
        return f'the key {key!r} is missing.'
    # The branches of a union, each with its own words.
    words = list(dict.fromkeys(_words(each) for each in faults if _path(each, data) == path))
    words = [words[0], *(word.removeprefix('input should be ') for word in words[1:])]
    given = f' (given: {shown(first["input"])})' if first['type'] != 'value_error' else ''
    return f'{key}: {" or ".join(words)}{given}.' if key else f'{" or ".join(words)}{given}.'


def _words(fault: Any) -> str:
    message = fault['msg'].removeprefix('Value error, ')
    return message[:1].lower() + message[1:]


def _path(fault: Any, data: Any) -> list[str]:
    """The keys on the way to a fault, without what pydantic calls the branches of its own types."""
    path = []
    for place, part in enumerate(fault['loc']):
        last = place == len(fault['loc']) - 1
        places = data if isinstance(data, Mapping) else range(len(data)) if isinstance(data, list | tuple) else ()
        if part in places:
            data = data[part]
        elif not (last and fault['type'] in ('missing', 'extra_forbidden')):
            continue
        path.append(str(part))
    return path


def _known_keys(hint: Any, path: list[str]) -> list[str]:
    for part in path:
        if _is_section(hint):
            hint = hint.model_fields[part].annotation if part in hint.model_fields else None
        else:
            hint = get_args(hint)[-1] if get_origin(hint) is dict else None
        hint = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    return sorted(hint.model_fields) if _is_section(hint) else []


def _is_section(hint: Any) -> bool:
    return inspect.isclass(hint) and issubclass(hint, BaseModel)


_SECRET = re.compile(r'(?i)(?:^|_|-)(?:(?:api|access|auth|private)_?key|token|password|passwd|secret|credentials?)s?$')
_LOGIN = re.compile(r'(?<=://)[^/@\s]+(?=@)')


def masked(value: Any) -> Any:
    """A section of plain values, with keys and passwords of services replaced by three stars."""
    if isinstance(value, dict):
        return {
            key: '***' if _SECRET.search(key) and isinstance(each, str) else masked(each) for key, each in value.items()
        }
    if isinstance(value, list):
        return [masked(each) for each in value]
    return _LOGIN.sub('***', value) if isinstance(value, str) else value
