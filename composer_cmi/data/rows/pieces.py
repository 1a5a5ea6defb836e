"""A file in pieces of whole rows, each a table by the readers' own rules: files of any size in little memory."""

from __future__ import annotations

import csv
import dataclasses
import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path

from composer_cmi.data.delimited import LONGEST_FIELD, Fault
from composer_cmi.data.readers import (
    DataError,
    Table,
    kind_of,
    parquet_columns,
    parse_text,
    read_lines,
    readable_parquet,
)

__all__ = ['MOST_FAULTS', 'ROWS', 'read_pieces']

ROWS = 8192
MOST_FAULTS = 1000  # a file in which all is wrong is not read to its end
_NO_ROWS = 'the file has a header but no rows.'
_BOM = b'\xef\xbb\xbf'


def read_pieces(path: str | Path, rows: int = ROWS) -> Iterator[Table]:
    """Read .csv, .tsv, .jsonl, .txt (a text a line; each also .gz) or .parquet, so many rows at a time.

    Lines are counted as in the whole file, and every table lists the faults of its rows.

    Raises:
        FileNotFoundError: There is no such file.
        DataError: It is of no such kind, or cannot be read at all.
    """
    path = Path(path)
    kind = kind_of(path)
    if kind == '.parquet':
        yield from _parquet(path, rows)
        return
    empty = True
    for header, body, first in _cut(path, kind, rows):
        empty = False
        data = b''.join(header + body)
        data = data if data.endswith(b'\n') else data + b'\n'
        table = read_lines(path, data) if kind == '.txt' else parse_text(path, kind, data)
        yield _moved(table, len(header), first - len(header) - 1)
    if empty:
        # The whole file says best what is wrong with it: no rows, or nothing at all.
        table = read_lines(path) if kind == '.txt' else parse_text(path, kind)
        raise table.error(table.faults) if table.faults else DataError(f'{path}: {_NO_ROWS}')


def _moved(table: Table, header: int, offset: int) -> Table:
    """The table with the lines of the file: those of the header stay, the others are so many further down."""
    if not offset:
        return table
    faults = [fault if fault.line <= header else Fault(fault.line + offset, fault.reason) for fault in table.faults]
    return dataclasses.replace(table, lines=[line + offset for line in table.lines], faults=faults)


def _cut(path: Path, kind: str, rows: int) -> Iterator[tuple[list[bytes], list[bytes], int]]:
    """The header's lines, the lines of some rows, and the number of the first of these."""
    ends = _csv_ends if kind == '.csv' else _line_ends
    header: list[bytes] = []
    body: list[bytes] = []
    headed, first, count = kind not in ('.csv', '.tsv'), 1, 0
    for lines, full in ends(_lines(path)):
        if not headed:
            header += lines
            headed, first = full, len(header) + 1
            continue
        body += lines
        count += full
        if count == rows:
            yield header, body, first
            first, body, count = first + len(body), [], 0
    if count:
        yield header, body, first


def _line_ends(lines: Iterator[bytes]) -> Iterator[tuple[list[bytes], bool]]:
    """Each line, and whether it is a row."""
    return (([line], bool(line.strip())) for line in lines)


def _csv_ends(lines: Iterator[bytes]) -> Iterator[tuple[list[bytes], bool]]:
    """The lines of each row, and whether it is one: a quoted text goes over several."""
    taken: list[bytes] = []

    def decoded() -> Iterator[str]:
        for line in lines:
            taken.append(line)
            yield line.decode('utf-8', 'replace')

    reader = csv.reader(decoded(), strict=True)
    while True:
        limit = csv.field_size_limit(LONGEST_FIELD)
        try:
            row = next(reader, None)
        except csv.Error:  # whoever reads the piece says what is wrong
            row = ['']
        finally:
            csv.field_size_limit(limit)
        if row is None:
            break
        yield taken.copy(), bool(row)
        taken.clear()
    if taken:
        yield taken, True


def _lines(path: Path) -> Iterator[bytes]:
    with path.open('rb') as plain:
        packed = plain.read(2) == b'\x1f\x8b'
        plain.seek(0)
        try:
            with gzip.GzipFile(fileobj=plain) if packed else plain as file:
                for number, line in enumerate(file):
                    yield line.removeprefix(_BOM) if number == 0 else line
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise DataError(f'{path}: the gzip file is truncated or damaged ({error}).') from None


def _parquet(path: Path, rows: int) -> Iterator[Table]:
    import pyarrow.parquet

    with readable_parquet(path), pyarrow.parquet.ParquetFile(path) as file:
        start = 1
        for batch in file.iter_batches(batch_size=rows):
            if batch.num_rows:
                yield Table(str(path), parquet_columns(batch), range(start, start + batch.num_rows), 'row')
                start += batch.num_rows
    if start == 1:
        raise DataError(f'{path}: {_NO_ROWS}')
