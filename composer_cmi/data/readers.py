"""Files of labelled text: TSV, CSV, JSON lines, Parquet and `datasets` folders, each plain or gzipped where text.

A file either loads right or raises a `DataError` with one sentence a fault: file, line (or row) and reason; nothing
is guessed and no row is dropped in silence.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from composer_cmi.class_names import clean, look_alike
from composer_cmi.data.delimited import (
    Cells,
    DataError,
    Fault,
    decoded_lines,
    full_lines,
    looks_like_a_row,
    parse_csv,
    parse_tsv,
)

__all__ = [
    'SUFFIXES',
    'DataError',
    'Table',
    'in_one_go',
    'kind_of',
    'parquet_columns',
    'parse_text',
    'read_datasets_folder',
    'read_lines',
    'read_table',
    'readable_parquet',
    'table_from_dataset',
]

SUFFIXES = ('.tsv', '.csv', '.jsonl', '.parquet')
_SHOWN = 20  # faults of one file
T = TypeVar('T')


@dataclass(frozen=True)
class Table:
    """Columns as they stand in a file, before anything is understood.

    Attributes:
        source: What to name in messages: a file, or a Hub data set.
        columns: Values by column name, N each; strings from text files, any type from JSON and Parquet.
        lines: The line (text files) or row (others) of each row, counted from 1, the header's line included.
        unit: 'line' or 'row'.
        skipped: Lines left out because the caller allowed for broken rows.
        class_names: Names of the classes by column where the format knows them (`datasets.ClassLabel`).
        faults: What is wrong with rows that are left out; whoever uses the table says so together with its own.
    """

    source: str
    columns: dict[str, list[Any]]
    lines: Sequence[int]
    unit: str = 'line'
    skipped: list[int] = field(default_factory=list)
    class_names: dict[str, list[str]] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.lines)

    def fault(self, row: int, reason: str) -> Fault:
        """A fault of one row (counted from 0)."""
        return Fault(self.lines[row], reason)

    def error(self, faults: Iterable[Fault]) -> DataError:
        """An error that lists faults, the first twenty in the order of the lines."""
        found = sorted(set(faults))
        told = [f'{self.source}, {self.unit} {fault.line}: {fault.reason}' for fault in found[:_SHOWN]]
        more = [f'... and {len(found) - _SHOWN} more in {self.source}.'] if len(found) > _SHOWN else []
        return DataError('\n'.join(told + more))

    def column(self, name: str, key: str) -> list[Any]:
        """A column's values.

        Raises:
            DataError: There is no such column; the message names the config's `key` that asks for it.
        """
        if name in self.columns:
            return self.columns[name]
        known = ', '.join(repr(column[:40]) for column in list(self.columns)[:12])
        alike = [column for column in self.columns if look_alike(column) == look_alike(name)]
        if alike:
            remedy = f'set {key} to {alike[0]!r}, or rename the column.'
        elif self.unit == 'line' and (row := looks_like_a_row(list(self.columns), self.columns.values())):
            remedy = f'line 1: {row}'
        elif key == 'data.label_column':
            remedy = (
                'set data.label_column, or add the header line if it is missing; a file without labels can only be '
                'data.unlabelled.'
            )
        else:
            remedy = f'set {key}, or add the header line if it is missing.'
        raise DataError(f'{self.source}: there is no column {name!r}, the columns are {known}; {remedy}')


def in_one_go(jobs: Mapping[str, Callable[[], T]]) -> dict[str, T]:
    """Do all jobs and return what they do by name; what any of them finds wrong is raised together at the end.

    Raises:
        DataError: The sentences of all.
    """
    done, wrong = {}, []
    for name, job in jobs.items():
        try:
            done[name] = job()
        except DataError as error:
            wrong.append(str(error))
    if wrong:
        raise DataError('\n'.join(dict.fromkeys(wrong)))
    return done


def read_table(
    path: str | Path, *, headerless: Sequence[str] = (), short_rows: int = 0, keep_faults: bool = False
) -> Table:
    """Read one file, by its suffix: .tsv or .txt, .csv, .jsonl (each also .gz), .parquet.

    Args:
        path: The file.
        headerless: Column names of a TSV file without a header line; a first line that names any of them is one.
        short_rows: Up to so many TSV rows with too few columns are skipped and listed in `skipped`.
        keep_faults: Return what could be read, with the faults of the other rows in the table.

    Raises:
        FileNotFoundError: There is no such file.
        DataError: The file cannot be read right.
    """
    path = Path(path)
    kind = kind_of(path)
    table = _read_parquet(path) if kind == '.parquet' else parse_text(path, kind, None, headerless, short_rows)
    if table.faults and not (keep_faults and len(table)):
        raise table.error(table.faults)
    if not len(table):
        raise DataError(f'{path}: the file has a header but no rows.')
    return table


def kind_of(path: Path) -> str:
    """A file's suffix in small letters, without .gz.

    Raises:
        FileNotFoundError: There is no such file.
        DataError: It is of no kind that can be read.
    """
    if not path.is_file():
        raise FileNotFoundError(f'There is no data file {str(path)!r}.')
    suffixes = [suffix.lower() for suffix in path.suffixes]
    kind = suffixes[-2] if suffixes[-1:] == ['.gz'] and len(suffixes) > 1 else (suffixes or [''])[-1]
    if kind not in (*SUFFIXES, '.txt'):
        raise DataError(f'{path}: cannot read a {kind or "suffixless"} file; use {", ".join(SUFFIXES)}.')
    return kind


def parse_text(
    path: Path, kind: str, data: bytes | None = None, headerless: Sequence[str] = (), short_rows: int = 0
) -> Table:
    """The rows of a text file, or of `data`, which is a part of one below its header; with all faults in the table."""
    if kind == '.jsonl':
        return _read_jsonl(path, data)
    return _read_csv(path, data) if kind == '.csv' else _read_tsv(path, data, headerless, short_rows)


def _table(path: Path, cells: Cells, faults: list[Fault]) -> Table:
    columns: list[list[Any]] = [list(column) for column in zip(*cells.rows, strict=True)]
    named = dict(zip(cells.header, columns or [[] for _ in cells.header], strict=True))
    return Table(str(path), named, cells.lines, skipped=cells.skipped, faults=cells.faults + faults)


def _read_tsv(path: Path, data: bytes | None, headerless: Sequence[str], short_rows: int) -> Table:
    lines, faults = full_lines(path, data)
    damaged_header = bool(faults) and (not lines or faults[0].line < lines[0][0])
    return _table(path, Cells([]) if damaged_header else parse_tsv(lines, headerless, short_rows), faults)


def _read_csv(path: Path, data: bytes | None) -> Table:
    lines, faults = decoded_lines(path, data)
    damaged = frozenset(fault.line for fault in faults)
    return _table(path, parse_csv([f'{line}\n' for line in lines[:-1]] + lines[-1:], damaged), faults)


def read_lines(path: str | Path, data: bytes | None = None) -> Table:
    """Read a text file of one text a line (or `data`, a part of it) into the column 'text'.

    Raises:
        FileNotFoundError: There is no such file.
        DataError: The file cannot be read right.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'There is no data file {str(path)!r}.')
    lines, faults = full_lines(path, data)
    return Table(str(path), {'text': [text for _, text in lines]}, [i for i, _ in lines], faults=faults)


def _read_jsonl(path: Path, data: bytes | None) -> Table:
    lines, faults = full_lines(path, data)
    rows, numbers = [], []
    for number, text in lines:
        reason, row = '', None
        try:
            row = json.loads(text)
        except json.JSONDecodeError as error:
            reason = f'not JSON ({error.msg} at column {error.colno}).'
        except RecursionError:
            reason = 'not JSON (nested too deeply).'
        except ValueError:  # Python's own limit, against numbers that take minutes to read
            reason = 'a number of more than 4,300 digits cannot be read.'
        if isinstance(row, dict):
            rows.append(row)
            numbers.append(number)
            continue
        reason = reason or f'a JSON object is wanted, here is a {type(row).__name__}.'
        if not rows and (whole := _one_value(lines)):
            return Table(str(path), {}, [], faults=[Fault(number, f'{reason[:-1]}; {whole}.')])
        faults.append(Fault(number, reason))
    # A key that a row lacks reads as null: an error only where that column is wanted.
    keys = dict.fromkeys(key for row in rows for key in row)
    return Table(str(path), {key: [row.get(key) for row in rows] for key in keys}, numbers, faults=faults)


def _one_value(lines: list[tuple[int, str]]) -> str:
    """What a file of JSON is that has no object in its first line."""
    text = '\n'.join(line for _, line in lines)
    try:
        value, _ = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return ''
    if isinstance(value, list) and (not value or isinstance(value[0], dict)):
        return 'the file is one JSON array, write one object a line (jq -c ".[]" does so)'
    return 'objects go over several lines, write one a line (jq -c . does so)' if isinstance(value, dict) else ''


def _read_parquet(path: Path) -> Table:
    import pyarrow.parquet

    with readable_parquet(path):
        table = pyarrow.parquet.read_table(path)
        columns = parquet_columns(table)
    return Table(str(path), columns, range(1, table.num_rows + 1), 'row')


@contextmanager
def readable_parquet(path: Path) -> Iterator[None]:
    """Around reading: what a damaged Parquet file raises becomes a `DataError`."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = str(error).split('\n', 1)[0]
        raise DataError(f'{path}: not a readable Parquet file ({reason}).') from None


def parquet_columns(table: Any) -> dict[str, list[Any]]:
    """Values by column of a table or batch of pyarrow; a text that is no UTF-8 raises only here."""
    return {clean(name) or name: table.column(i).to_pylist() for i, name in enumerate(table.schema.names)}


def read_datasets_folder(path: str | Path) -> dict[str, Table]:
    """Read a folder written by `datasets`' ``save_to_disk``, a `DatasetDict` or a single `Dataset` ('train').

    Raises:
        DataError: The folder cannot be read.
    """
    import datasets

    try:
        loaded = datasets.load_from_disk(str(path))
    except Exception as error:  # whatever a damaged Arrow file raises
        reason = f'{type(error).__name__}: {error}'.split('\n', 1)[0][:200]
        raise DataError(f'{path}: not a readable `datasets` folder ({reason}).') from None
    splits = dict(loaded) if isinstance(loaded, dict) else {'train': loaded}
    return {str(name): table_from_dataset(split, f'{path} ({name})') for name, split in splits.items()}


def table_from_dataset(dataset: Any, source: str) -> Table:
    """A `datasets.Dataset` as a table; class labels become their names, -1 (no label) becomes None."""
    columns, class_names, faults = {}, {}, []
    for name, feature in dataset.features.items():
        values = list(dataset[name])
        names = getattr(feature, 'names', None)
        if names is not None:
            wrong = {row: v for row, v in enumerate(values) if v is not None and v >= len(names)}
            faults += [Fault(r + 1, f'column {name!r} has {v}, it has {len(names)} classes.') for r, v in wrong.items()]
            values = [None if v is None or not 0 <= v < len(names) else names[v] for v in values]
            class_names[name] = list(names)
        columns[name] = values
    return Table(source, columns, range(1, len(dataset) + 1), 'row', class_names=class_names, faults=faults)
