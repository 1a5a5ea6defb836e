"""Files of labelled text: TSV, CSV, JSON lines, Parquet and `datasets` folders, each plain or gzipped where text.

A file either loads right or raises a `DataError` that gives file, line (or row) and reason; nothing is guessed and
no row is dropped in silence.
"""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ['SUFFIXES', 'DataError', 'Table', 'read_datasets_folder', 'read_lines', 'read_table', 'table_from_dataset']

SUFFIXES = ('.tsv', '.csv', '.jsonl', '.parquet')
_LONGEST_FIELD = 1 << 27  # the csv module's own limit of 128 KiB refuses long documents


class DataError(ValueError):
    """Data that cannot be used; one sentence with file, line and reason."""


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
    """

    source: str
    columns: dict[str, list[Any]]
    lines: Sequence[int]
    unit: str = 'line'
    skipped: list[int] = field(default_factory=list)
    class_names: dict[str, list[str]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.lines)

    def error(self, row: int, reason: str) -> DataError:
        """An error about one row (counted from 0)."""
        return DataError(f'{self.source}, {self.unit} {self.lines[row]}: {reason}')

    def column(self, name: str, key: str) -> list[Any]:
        """A column's values.

        Raises:
            DataError: There is no such column; the message names the config's `key` that asks for it.
        """
        if name not in self.columns:
            known = ', '.join(repr(column[:40]) for column in list(self.columns)[:12])
            raise DataError(
                f'{self.source}: there is no column {name!r}, the columns are {known}; '
                f'set {key}, or add the header line if it is missing.'
            )
        return self.columns[name]


def read_table(path: str | Path, *, headerless: Sequence[str] = (), short_rows: int = 0) -> Table:
    """Read one file, by its suffix: .tsv or .txt, .csv, .jsonl (each also .gz), .parquet.

    Args:
        path: The file.
        headerless: Column names of a TSV file without a header line; a first line that names any of them is one.
        short_rows: Up to so many TSV rows with too few columns are skipped and listed in `skipped`.

    Raises:
        FileNotFoundError: There is no such file.
        DataError: The file cannot be read right.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'There is no data file {str(path)!r}.')
    suffixes = [suffix.lower() for suffix in path.suffixes]
    kind = suffixes[-2] if suffixes[-1:] == ['.gz'] and len(suffixes) > 1 else (suffixes or [''])[-1]
    readers: dict[str, Callable[[], Table]] = {
        '.tsv': lambda: _read_tsv(path, headerless, short_rows),
        '.txt': lambda: _read_tsv(path, headerless, short_rows),
        '.csv': lambda: _read_csv(path),
        '.jsonl': lambda: _read_jsonl(path),
        '.parquet': lambda: _read_parquet(path),
    }
    if kind not in readers:
        raise DataError(f'{path}: cannot read a {kind or "suffixless"} file; use {", ".join(SUFFIXES)}.')
    table = readers[kind]()
    if not len(table):
        raise DataError(f'{path}: the file has a header but no rows.')
    return table


def _bytes(path: Path) -> bytes:
    # By content, not by name: a file unpacked by a browser keeps its .gz, and one renamed loses it.
    data = path.read_bytes()
    if data[:2] == b'\x1f\x8b':
        try:
            data = gzip.decompress(data)
        except (EOFError, OSError, zlib.error) as error:
            raise DataError(f'{path}: the gzip file is truncated or damaged ({error}).') from None
    if data[:2] in (b'\xff\xfe', b'\xfe\xff'):
        raise DataError(f'{path}, line 1: the file is UTF-16, not UTF-8; save it as UTF-8.')
    data = data.removeprefix(b'\xef\xbb\xbf')  # a byte order mark, as in MRPC's original files
    if not data.strip():
        raise DataError(f'{path}: the file is empty.')
    if b'\r' in data and b'\n' not in data:
        raise DataError(f'{path}, line 1: lines end in bare carriage returns; save it with Unix line ends.')
    return data


def _decode(path: Path, line: int, raw: bytes) -> str:
    if b'\x00' in raw:
        raise DataError(f'{path}, line {line}: a NUL byte; this is not a text file in UTF-8.')
    try:
        return raw.decode('utf-8')
    except UnicodeDecodeError as error:
        bad = raw[error.start]
        raise DataError(
            f'{path}, line {line}: byte 0x{bad:02x} at column {error.start + 1} is not UTF-8; save it as UTF-8.'
        ) from None


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    # Split at \n only: str.splitlines would also break a text at \x85 or \u2028, which occur inside GLUE's sentences.
    for number, raw in enumerate(_bytes(path).split(b'\n'), start=1):
        text = _decode(path, number, raw.removesuffix(b'\r'))
        if text.strip():  # a blank line holds no data: most files end in one
            yield number, text


def _read_tsv(path: Path, headerless: Sequence[str], short_rows: int) -> Table:
    # Quotes are plain characters here: GLUE's files have unpaired ones, and a TSV has nothing to escape but tabs.
    lines = ((number, text.split('\t')) for number, text in _lines(path))
    number, first = next(lines)
    # CoLA's train and dev files have no header, its test file has one.
    known = bool(headerless) and not set(first) & set(headerless)
    header = list(headerless) if known else _header(path, first)
    lines = itertools.chain([(number, first)], lines) if known else lines
    rows, numbers, skipped = [], [], []
    for number, cells in lines:
        if len(cells) != len(header):
            if len(cells) < len(header) and len(skipped) < short_rows:
                skipped.append(number)
                continue
            raise _wrong_width(path, number, len(cells), len(header), known)
        _refuse_repeated_header(path, number, cells, header)
        rows.append(cells)
        numbers.append(number)
    return Table(str(path), _transpose(header, rows), numbers, skipped=skipped)


def read_lines(path: str | Path) -> Table:
    """Read a text file of one text a line into the column 'text'.

    Raises:
        FileNotFoundError: There is no such file.
        DataError: The file cannot be read right.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'There is no data file {str(path)!r}.')
    numbers, texts = zip(*_lines(path), strict=True)
    return Table(str(path), {'text': list(texts)}, numbers)


def _wrong_width(path: Path, number: int, found: int, wanted: int, headerless: bool) -> DataError:
    where = 'this format has' if headerless else 'the header has'
    hint = (
        'the row is cut short'
        if found < wanted
        else 'a tab inside a text? TSV cannot quote it, save the file as CSV or JSONL'
    )
    return DataError(f'{path}, line {number}: {found} columns where {where} {wanted} ({hint}).')


def _read_csv(path: Path) -> Table:
    # Each line is decoded first, so that a wrong byte is reported with its line.
    raw_lines = _bytes(path).split(b'\n')
    text = '\n'.join(_decode(path, number, raw) for number, raw in enumerate(raw_lines, start=1))
    limit = csv.field_size_limit(_LONGEST_FIELD)
    reader = csv.reader(io.StringIO(text, newline=''), strict=True)
    header: list[str] = []
    rows, numbers, start = [], [], 1
    try:
        for cells in reader:
            if not header:
                header = _header(path, cells) if cells else []
            elif cells:
                if len(cells) != len(header):
                    hint = 'a comma in an unquoted text?' if len(cells) > len(header) else 'the row is cut short'
                    raise DataError(
                        f'{path}, line {start}: {len(cells)} columns where the header has {len(header)} ({hint}).'
                    )
                _refuse_repeated_header(path, start, cells, header)
                rows.append(cells)
                numbers.append(start)
            start = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f'{path}, line {start}: {error} (an unpaired quote?).') from None
    finally:
        csv.field_size_limit(limit)
    return Table(str(path), _transpose(header, rows), numbers)


def _read_jsonl(path: Path) -> Table:
    rows, numbers = [], []
    for number, text in _lines(path):
        try:
            row = json.loads(text)
        except json.JSONDecodeError as error:
            raise DataError(f'{path}, line {number}: not JSON ({error.msg} at column {error.colno}).') from None
        except RecursionError:
            raise DataError(f'{path}, line {number}: not JSON (nested too deeply).') from None
        if not isinstance(row, dict):
            raise DataError(f'{path}, line {number}: a JSON object is wanted, here is a {type(row).__name__}.')
        rows.append(row)
        numbers.append(number)
    # A key that a row lacks reads as null: an error only where that column is wanted.
    keys = dict.fromkeys(key for row in rows for key in row)
    return Table(str(path), {key: [row.get(key) for row in rows] for key in keys}, numbers)


def _read_parquet(path: Path) -> Table:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).split('\n', 1)[0]
        raise DataError(f'{path}: not a readable Parquet file ({reason}).') from None
    columns = {name: table.column(name).to_pylist() for name in table.column_names}
    return Table(str(path), columns, range(1, table.num_rows + 1), 'row')


def read_datasets_folder(path: str | Path) -> dict[str, Table]:
    """Read a folder written by `datasets`' ``save_to_disk``, a `DatasetDict` or a single `Dataset` ('train').

    Raises:
        DataError: The folder cannot be read.
    """
    import datasets

    try:
        loaded = datasets.load_from_disk(str(path))
    except Exception as error:  # whatever a damaged Arrow file raises
        raise DataError(f'{path}: not a readable `datasets` folder ({_first_line(error)}).') from None
    splits = dict(loaded) if isinstance(loaded, dict) else {'train': loaded}
    return {str(name): table_from_dataset(split, f'{path} ({name})') for name, split in splits.items()}


def table_from_dataset(dataset: Any, source: str) -> Table:
    """A `datasets.Dataset` as a table; class labels become their names, -1 (no label) becomes None."""
    columns, class_names = {}, {}
    for name, feature in dataset.features.items():
        values = list(dataset[name])
        names = getattr(feature, 'names', None)
        if names is not None:
            values = [None if value is None or value < 0 else names[value] for value in values]
            class_names[name] = list(names)
        columns[name] = values
    return Table(source, columns, range(1, len(dataset) + 1), 'row', class_names=class_names)


def _first_line(error: Exception) -> str:
    return f'{type(error).__name__}: {error}'.split('\n', 1)[0][:200]


def _header(path: Path, cells: list[str]) -> list[str]:
    names = [cell.strip() for cell in cells]
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise DataError(f'{path}, line 1: the header names column {doubled[0]!r} twice.')
    return names


def _refuse_repeated_header(path: Path, number: int, cells: Sequence[str], header: Sequence[str]) -> None:
    # Files pasted together carry the header again; its label cell would become a class of its own.
    if [cell.strip() for cell in cells] == list(header):
        raise DataError(f'{path}, line {number}: the header is repeated; remove this line.')


def _transpose(header: Sequence[str], rows: Iterable[Sequence[str]]) -> dict[str, list[Any]]:
    columns: list[list[Any]] = [list(column) for column in zip(*rows, strict=True)]
    return dict(zip(header, columns or [[] for _ in header], strict=True))
