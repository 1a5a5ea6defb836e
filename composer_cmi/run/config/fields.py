"""Types of a file's values: names, paths, times and numbers, each with the sentence that refuses a wrong one."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from composer.core import Time, TimeUnit
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from composer_cmi.arguments import time_fault
from composer_cmi.run.config.sentences import shown

__all__ = [
    'INTERVALS',
    'ArmName',
    'BatchSize',
    'Duration',
    'Interval',
    'Name',
    'PathString',
    'Rows',
    'RunName',
    'Section',
    'Sections',
    'Seed',
    'path_fault',
    'sections_given',
    'time_in',
]

Sections = dict[str, dict[str, Any]]


def sections_given(value: Any) -> Any:
    """``name:`` alone means the defaults; ``name: false`` takes out, in an arm, what the base file puts in."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        return value
    return {name: {} if kwargs is None else kwargs for name, kwargs in value.items() if kwargs is not False}


def time_in(*units: TimeUnit, zero: str = '') -> AfterValidator:
    """A Composer time in one of these units; ``zero`` says what would come of none, where that is refused."""

    def check(value: str) -> str:
        if words := time_fault(value, units):
            raise ValueError(f'{value!r} {words}')
        if zero and Time.from_timestring(value).value == 0:
            raise ValueError(f'{value!r} {zero}')
        return value

    return AfterValidator(check)


def _relative_path(value: str) -> str:
    parts = Path(value).parts
    if not parts or Path(value).is_absolute() or '..' in parts or parts[0].startswith('~'):
        raise ValueError(f"{value!r} must be a name below output_dir, such as 'rte_mincmi' or 'glue/rte/seed1'")
    for part in parts:
        if len(part.encode()) > _LONGEST_NAME or not part.isprintable():
            raise ValueError(f'{shown(part)} becomes a folder: use at most {_LONGEST_NAME} printable characters')
    return _filled(value)


def _one_part(value: str) -> str:
    if '/' in value or value.startswith('.'):
        raise ValueError(f'{value!r} becomes one folder: no slash, and no dot in front')
    return value


def _filled(value: str) -> str:
    # Composer fills in braces of its own, and a name that it does not know is an error after training has begun.
    for found in re.findall(r'\{[^{}]*\}|[{}]', re.sub(r'\{(?:task|seed)\}', '', value)):
        raise ValueError(f'{value!r} has {found!r}: in braces stand {{task}} and {{seed}} only')
    return value


def _path(value: str) -> str:
    """A path as it is written in a shell: ``~`` is home; variables are not looked up."""
    found = os.path.expanduser(_filled(value))
    if found.startswith('~'):
        raise ValueError(f'{value!r}: there is no such home folder; write ./{value} for a folder of that name')
    return found


def path_fault(value: str) -> str | None:
    """What is wrong with a path in a section without a schema, or None."""
    try:
        return None if _path(value) else 'a path is not empty'
    except ValueError as error:
        return str(error)


_LONGEST_NAME = 200
INTERVALS = (TimeUnit.EPOCH, TimeUnit.BATCH, TimeUnit.SAMPLE, TimeUnit.DURATION)
Name = Annotated[str, Field(min_length=1)]
PathString = Annotated[Name, AfterValidator(_path)]
RunName = Annotated[str, AfterValidator(_relative_path)]
ArmName = Annotated[RunName, AfterValidator(_one_part)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Rows = Annotated[int, Field(ge=2, le=10**12)]
BatchSize = Annotated[int, Field(ge=1, le=2**20)]
Interval = Annotated[str, time_in(*INTERVALS)]
Duration = Annotated[str, time_in(*INTERVALS[:3], zero='would train nothing')]


class Section(BaseModel):
    """A part of a file: unknown keys and values of another type are refused."""

    # Strict: 'true', '3' and 3.0 are no substitutes for true and 3.
    model_config = ConfigDict(
        extra='forbid',
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        protected_namespaces=(),
        use_attribute_docstrings=True,
    )
