"""The columns that place a row of a foreign table in a study, and numbers in its cells."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from composer_cmi.class_names import class_name
from composer_cmi.data.delimited import Fault
from composer_cmi.data.readers import DataError, Table

__all__ = ['Place', 'cells', 'need', 'number', 'places', 'remarks_on_seeds', 'word']

T = TypeVar('T')


class Place(NamedTuple):
    """Which run of a study a row is of."""

    setting: str
    arm: str
    seed: int

    def __str__(self) -> str:
        return f'arm {self.arm!r}, seed {self.seed} on {self.setting!r}'


def need(table: Table, names: Sequence[str], wanted: str) -> None:
    """All columns are there.

    Raises:
        DataError: names those that are missing; `wanted` says what such a file has.
    """
    if missing := [name for name in names if name not in table.columns]:
        there = ', '.join(repr(name[:40]) for name in list(table.columns)[:12])
        absent = ', '.join(map(repr, missing))
        some = f'are no columns {absent}' if len(missing) > 1 else f'is no column {absent}'
        raise DataError(f'{table.source}: there {some}; {wanted}, and this one has {there}.')


def cells(table: Table, name: str, read: Callable[[Any], T], faults: list[Fault]) -> list[T | None]:
    """A column's values as `read` makes them; where it raises ValueError, None, and a fault."""
    values: list[T | None] = []
    for row, cell in enumerate(table.columns[name]):
        try:
            values.append(read(cell))
        except ValueError as error:
            faults.append(table.fault(row, f'{name} {error}.'))
            values.append(None)
    return values


def word(cell: Any) -> str:
    """A name: of a setting, an arm, a class or a row."""
    try:
        name = class_name(cell)
    except ValueError as error:
        raise ValueError(f'is {error}') from None
    if not name:
        raise ValueError('is empty')
    return name


def _seed(cell: Any) -> int:
    text = word(cell)
    if not re.fullmatch(r'\d{1,18}', text, re.ASCII):
        raise ValueError(f'{text[:40]!r} is not a whole number from 0')
    return int(text)


def number(cell: Any) -> float:
    """A finite number."""
    if cell is None or (isinstance(cell, str) and not cell.strip()):
        raise ValueError('is empty')
    try:
        value = math.nan if isinstance(cell, bool) else float(cell)
    except (TypeError, ValueError):
        raise ValueError(f'{str(cell)[:40]!r} is not a number') from None
    if isinstance(cell, bool) or not math.isfinite(value):
        raise ValueError(f'{str(cell)[:40]!r} is not a finite number')
    return value


def places(table: Table, faults: list[Fault], below: Path | None = None) -> list[Place | None]:
    """The run of each row; a column that is not there is read off the path below a folder, `SETTING/ARM/seed0.csv`.

    Raises:
        DataError: neither the columns nor the path say.
    """
    told = {} if below is None else _of_path(Path(table.source).relative_to(below))
    keys = ('setting', 'arm', 'seed')
    need_columns = [key for key in keys if key not in told]
    need(table, need_columns, 'a file has the columns setting, arm and seed, or SETTING/ARM/seed0.csv as its path')
    readers: dict[str, Callable[[Any], Any]] = {'setting': word, 'arm': word, 'seed': _seed}
    columns = [
        cells(table, key, readers[key], faults) if key in table.columns else [told[key]] * len(table) for key in keys
    ]
    found = zip(*columns, strict=True)
    return [None if None in (setting, arm, seed) else Place(setting, arm, seed) for setting, arm, seed in found]


def _of_path(path: Path) -> dict[str, Any]:
    """Of `SETTING/ARM/seed0.csv` or `SETTING/ARM/seed0/predictions.csv` what the path says."""
    parts = [*path.parts[:-1], path.name.split('.')[0]]
    for place in (len(parts) - 1, len(parts) - 2):
        if place >= 1 and (found := re.fullmatch(r'(?:seed|run)?[-_]?(\d{1,18})', parts[place], re.IGNORECASE)):
            setting = parts[place - 2] if place >= 2 else 'all'
            return {'setting': setting, 'arm': parts[place - 1], 'seed': int(found[1])}
    return {}


def remarks_on_seeds(found: Iterable[Place], pairs: Sequence[tuple[str, str]]) -> list[str]:
    """What is left out because its pair is missing, a sentence each.

    Raises:
        DataError: no pair of arms has a seed in common on any setting.
    """
    seeds: dict[tuple[str, str], set[int]] = {}
    for place in found:
        seeds.setdefault((place.setting, place.arm), set()).add(place.seed)
    remarks, paired = [], 0
    for setting in dict.fromkeys(setting for setting, _ in seeds):
        for arm, baseline in pairs:
            one, other = seeds.get((setting, arm), set()), seeds.get((setting, baseline), set())
            paired += len(one & other)
            if one and other and one != other:
                left = ', '.join(map(str, sorted(one ^ other)[:10]))
                remarks.append(
                    f'{setting}: {arm} and {baseline} are compared on {len(one & other)} seeds; not paired: {left}.'
                )
            elif bool(one) != bool(other):
                remarks.append(f'{setting}: {arm if not one else baseline} has no scores; nothing is compared there.')
    if not paired:
        raise DataError('No seed of an arm is one of its baseline on the same setting: there is nothing to pair.')
    return list(dict.fromkeys(remarks))
