"""Arguments checked by the types in a signature, as strictly as the keys of a configuration.

``no`` is not true, ``'3'`` is not 3, infinity is not a number; a list may stand for a tuple, since YAML has no other.
An algorithm that registers itself is checked in every call, from a file or from Python.
"""

from __future__ import annotations

import builtins
import functools
import inspect
import json
import math
import sys
import types
import typing
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Interval
from composer.core import Time, TimeUnit
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError, core_schema

__all__ = [
    'argument_types',
    'check_call',
    'fault',
    'is_number',
    'path_arguments',
    'time_fault',
    'with_defaults',
]


# What Composer checks only in training.
_BUILT_IN: dict[str, dict[str, Any]] = {
    'GradientClipping': {
        'clipping_type': Literal['adaptive', 'norm', 'value'],
        'clipping_threshold': Annotated[float, Field(gt=0)],
    },
    'LabelSmoothing': {'smoothing': Annotated[float, Interval(ge=0, le=1)]},
}
_LONGEST_TIME = 1e12
_UNITS = tuple(unit.value for unit in TimeUnit)
_CONFIG = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)
_WORDS = {
    'bool_type': 'must be true or false',
    'int_type': 'must be a whole number',
    'float_type': 'must be a number',
    'finite_number': 'must be a finite number',
    'string_type': 'must be text',
    'list_type': 'must be a list',
    'dict_type': 'must be a mapping',
    'none_required': 'must be null',
    'greater_than': 'must be above {gt:g}',
    'greater_than_equal': 'must be at least {ge:g}',
    'less_than': 'must be below {lt:g}',
    'less_than_equal': 'must be at most {le:g}',
}
# Said of the branches of a union that no file can fill.
_UNREACHABLE = ('is_instance_of', 'callable_type', 'none_required', 'is_subclass_of')


@functools.cache
def argument_types(entry: Any) -> dict[str, Any]:
    """The types of the arguments of a class or function by name; what cannot be resolved is ``Any``."""
    function = entry.__init__ if inspect.isclass(entry) else entry
    function = inspect.unwrap(function)
    extra = _BUILT_IN.get(getattr(entry, '__name__', ''), {})
    found = {}
    for parameter in inspect.signature(entry).parameters.values():
        hint = extra.get(parameter.name, parameter.annotation)
        hint = Any if hint is parameter.empty else _resolved(hint, _names_of(entry, function, parameter.name))
        is_time = isinstance(parameter.default, str) and time_fault(parameter.default) is None
        if is_time or (parameter.name.endswith('_interval') and str in _members(hint)):
            hint = hint | Time  # Composer's own classes annotate their times as str
        found[parameter.name] = Any if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL) else hint
    return found


def _names_of(entry: Any, function: Any, name: str) -> _Names:
    # A dataclass inherits fields whose annotations are text of another module.
    owners = [each for each in getattr(entry, '__mro__', ()) if name in vars(each).get('__annotations__', {})]
    module = owners[0].__module__ if owners else getattr(function, '__module__', '')
    return _Names(vars(sys.modules.get(module, types.ModuleType('none'))))


class _ForeignMeta(type):
    def __getattr__(cls, name: str) -> type:
        if name.startswith('__'):
            raise AttributeError(name)
        return cls

    def __getitem__(cls, name: Any) -> type:
        return cls


class _Foreign(metaclass=_ForeignMeta):
    """Stands for a class that a signature names and its module does not import: an object, nothing from a file."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        def check(value: Any) -> Any:
            if value is None or isinstance(value, str | int | float | list | dict):
                raise PydanticCustomError('is_instance_of', 'must be an object')
            return value

        return core_schema.no_info_plain_validator_function(check)


class _Names(dict[str, Any]):
    """What a module's annotations are read with: aliases that are text are read too, other names are foreign."""

    def __getitem__(self, name: str) -> Any:
        known = getattr(builtins, name, None) or getattr(typing, name, _Foreign)
        value = dict.get(self, name, known)
        return _resolved(value, self) if isinstance(value, str) else value


def _resolved(hint: Any, names: _Names) -> Any:
    if not isinstance(hint, str):
        return hint
    try:
        return eval(hint, {}, names)
    except Exception:
        return Any


def _members(hint: Any) -> list[Any]:
    if get_origin(hint) in (Union, types.UnionType):
        return [member for branch in get_args(hint) for member in _members(branch)]
    return [hint]


def is_number(hint: Any) -> bool:
    """Whether a type holds numbers and no text."""
    members = _members(hint)
    return bool({int, float} & {*members}) and str not in members and Any not in members


def path_arguments(entry: Any) -> list[str]:
    """The arguments of a class that may be a path."""
    from pathlib import Path

    return [name for name, hint in argument_types(entry).items() if Path in _members(hint)]


def fault(hint: Any, value: Any) -> str | None:
    """What is wrong with a value of that type, as the words ``must be ...``, or None."""
    members = _members(hint)
    number = isinstance(value, int | float) and not isinstance(value, bool) and {int, float} & {*members}
    if Time in members and number and value < 0:
        return 'must be at least 0'
    if Time not in members or number or (value is None and type(None) in members):
        return _fault(hint, value)
    return time_fault(value)


def _fault(hint: Any, value: Any) -> str | None:
    adapter = _adapter(hint)
    if adapter is None:
        return None
    try:
        adapter.validate_python(value)
    except ValidationError as error:
        if isinstance(value, list | str):  # a tuple, a set, an enumeration: as JSON would say it
            try:
                adapter.validate_json(json.dumps(value))
                return None
            except Exception:
                pass
        words = _words(error)
        span = next((each for each in get_args(hint) if isinstance(each, Interval)), None)
        if span is not None and words.startswith(('must be at least', 'must be at most')):
            return f'must lie between {span.ge} and {span.le}'
        return words
    return None


@functools.lru_cache(maxsize=512)
def _adapter_of(hint: Any) -> TypeAdapter[Any] | None:
    try:
        return TypeAdapter(hint, config=_CONFIG)
    except Exception:  # a type that pydantic does not know is not checked
        return None


def _adapter(hint: Any) -> TypeAdapter[Any] | None:
    try:
        return _adapter_of(hint)
    except TypeError:  # not hashable
        return None


def _words(error: ValidationError) -> str:
    faults = [each for each in error.errors() if each['type'] not in _UNREACHABLE] or error.errors()
    # Where the type fits one branch of a union, the others are beside the point.
    words = dict.fromkeys(map(_one, [each for each in faults if each['type'] not in _WORDS][:1] or faults))
    return ' or '.join([*words][:1] + [word.removeprefix('must be ') for word in [*words][1:]])


def _one(each: Any) -> str:
    place = ''.join(f'[{part!r}]' for part in each['loc'] if isinstance(part, int))
    if each['type'] == 'literal_error':
        return 'must be one of ' + each['ctx']['expected'].replace(' or ', ', ').replace("'", '')
    if each['type'] == 'greater_than' and each['ctx']['gt'] == 0:
        return 'must be positive'
    known = _WORDS.get(each['type'])
    message = known.format(**each.get('ctx', {})) if known else each['msg'].removeprefix('Value error, ')
    message = message.replace('Input should be', 'must be', 1)
    return f'{message} at {place}' if place else message


def time_fault(value: Any, units: tuple[TimeUnit, ...] | None = None) -> str | None:
    """What is wrong with a Composer time, as the words ``must be ...``, or None.

    Args:
        value: a time string or a ``Time``.
        units: those that can be counted here; all by default.
    """
    example = "must be a Composer time such as '3ep', '100ba', '5000sp' or '0.1dur'"
    if not (isinstance(value, Time) or (isinstance(value, str) and value.endswith(_UNITS))):
        return example  # without a unit Composer reads seconds
    try:
        time = Time.from_timestring(value) if isinstance(value, str) else value
        amount = float(time.value)
    except TypeError:
        return "must be a whole number of its unit, such as '2ep'; parts are counted in batches: '150ba'"
    except (ValueError, OverflowError):
        return example
    if not math.isfinite(amount) or amount < 0:
        return example + ', neither negative nor infinite'
    if units is not None and time.unit not in units:
        known = ', '.join(repr(unit.value) for unit in units)
        return f'must be counted in {known}'
    if amount > (1 if time.unit is TimeUnit.DURATION else _LONGEST_TIME):
        return 'must be at most ' + ("'1dur', the whole of training" if amount < _LONGEST_TIME else '1e12 of its unit')
    return None


def check_call(cls: type, given: Mapping[str, Any]) -> None:
    """Check the arguments of a constructor's call.

    Raises:
        ValueError: in one sentence that names the argument.
    """
    for name, hint in argument_types(cls).items():
        if name in given and (words := fault(hint, _plain(given[name]))):
            raise ValueError(f'{name} {words}, got {given[name]!r}.')


def _plain(value: Any) -> Any:
    # NumPy's and torch's single numbers are numbers.
    return value.item() if getattr(value, 'shape', None) == () and hasattr(value, 'item') else value


def with_defaults(entry: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """What a class or function gets by name: its own defaults, and over them what is given."""
    parameters = inspect.signature(entry).parameters.values()
    return {each.name: each.default for each in parameters if each.default is not each.empty} | dict(given)
