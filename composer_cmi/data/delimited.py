"""Text files: bytes to lines, and lines to cells (TSV without quotes as GLUE has it, CSV); faults with their cause."""

from __future__ import annotations

import csv
import gzip
import re
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from composer_cmi.class_names import clean, look_alike

__all__ = [
    'LONGEST_FIELD',
    'Cells',
    'DataError',
    'Fault',
    'decoded_lines',
    'full_lines',
    'looks_like_a_row',
    'parse_csv',
    'parse_tsv',
]

LONGEST_FIELD = 1 << 27  # the csv module's own limit of 128 KiB refuses long documents
_SEPARATORS = {',': 'commas', '\t': 'tabs', ';': 'semicolons', '|': 'vertical bars'}
_WITH_COMMAS = 'save it with commas (pandas: read_csv(FILE, sep="{}").to_csv(NEW, index=False))'
_SAVE_AS = {',': 'name it .csv', '\t': 'name it .tsv', ';': _WITH_COMMAS.format(';'), '|': _WITH_COMMAS.format('|')}
_QUOTED_TSV = (
    'in a TSV quotes are plain characters here: save the file as .csv (pandas: read_csv(FILE, sep="\\t").to_csv('
    'NEW, index=False))'
)

# First bytes of files that are often renamed to .csv, and what is to be done.
_EXCEL = 'an Excel workbook; in Excel, save it as "CSV UTF-8"'
_FOREIGN = {
    b'pk\x03\x04': f'{_EXCEL} (or unpack it, if it is another zip archive)',
    b'\xd0\xcf\x11\xe0': _EXCEL,
    b'par1': 'a Parquet file; name it .parquet',
    b'bzh': 'compressed by bzip2; unpack it',
    b'\xfd7zxz': 'compressed by xz; unpack it',
    b'\x28\xb5\x2f\xfd': 'compressed by zstandard; unpack it',
    b'%pdf': 'a PDF; text with one row a line is wanted',
    b'sqlite format 3': 'a SQLite database; export the table as CSV',
    b'version https://git-lfs': 'a Git LFS pointer and not the data; run git lfs pull',
    b'<!doctype': 'a web page; download the file itself',
    b'<html': 'a web page; download the file itself',
}


class DataError(ValueError):
    """Data that cannot be used; one sentence a fault, one a line, with file, line and reason."""


@dataclass(frozen=True, order=True)
class Fault:
    """What is wrong in one line (or row) of a file, counted from 1."""

    line: int
    reason: str


def _bytes(path: Path, data: bytes | None) -> bytes:
    # By content, not by name: a file unpacked by a browser keeps its .gz, and one renamed loses it.
    data = path.read_bytes() if data is None else data
    if data[:2] == b'\x1f\x8b':
        try:
            data = gzip.decompress(data)
        except (EOFError, OSError, zlib.error) as error:
            raise DataError(f'{path}: the gzip file is truncated or damaged ({error}).') from None
    for start, what in _FOREIGN.items():
        if data[:32].lower().startswith(start):
            raise DataError(f'{path}: this is {what}.')
    # Without a byte order mark, every second byte of plain letters is zero.
    if data[:2] in (b'\xff\xfe', b'\xfe\xff') or b'\x00\x00' in (data[0:4:2], data[1:5:2]):
        raise DataError(f'{path}, line 1: the file is UTF-16, not UTF-8; save it as UTF-8.')
    data = data.removeprefix(b'\xef\xbb\xbf')  # a byte order mark, as in MRPC's original files
    if not data.strip():
        raise DataError(f'{path}: the file is empty.')
    if b'\r' in data and b'\n' not in data:
        raise DataError(f'{path}, line 1: lines end in bare carriage returns; save it with Unix line ends.')
    return data


def decoded_lines(path: Path, data: bytes | None = None) -> tuple[list[str], list[Fault]]:
    """All lines of a file (or of `data`) without their line feeds; and those that are no text in UTF-8."""
    # Split at \n only: str.splitlines would also break a text at \x85 or \u2028, which occur inside GLUE's sentences.
    lines, faults = [], []
    for number, raw in enumerate(_bytes(path, data).split(b'\n'), start=1):
        text, reason = '', 'a NUL byte; this is not a text file in UTF-8.' if b'\x00' in raw else ''
        try:
            text = raw.decode('utf-8', 'replace' if reason else 'strict')
        except UnicodeDecodeError as error:
            text = raw.decode('utf-8', 'replace')
            bad = raw[error.start]
            reason = f'byte 0x{bad:02x} at column {error.start + 1} is not UTF-8; save the file as UTF-8.'
        if reason:
            faults.append(Fault(number, reason))
        lines.append(text)
    return lines, faults


def full_lines(path: Path, data: bytes | None = None) -> tuple[list[tuple[int, str]], list[Fault]]:
    """The lines that hold anything, with their numbers; and those that are no text in UTF-8."""
    lines, faults = decoded_lines(path, data)
    damaged = {fault.line for fault in faults}
    # A blank line holds no data: most files end in one.
    whole = [(i, text.removesuffix('\r')) for i, text in enumerate(lines, 1) if text.strip() and i not in damaged]
    return whole, faults


@dataclass
class Cells:
    """A file's header, its rows of as many cells, the line of each, and what is wrong with the others."""

    header: list[str]
    rows: list[list[str]] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    skipped: list[int] = field(default_factory=list)
    repeats: list[int] = field(default_factory=list)

    def add(self, line: int, cells: list[str], reason: str) -> None:
        """Take a row, or say why it is none: `reason` is the hint for one of the wrong width."""
        if len(cells) != len(self.header):
            text = f'{len(cells)} columns where the header has {len(self.header)} ({reason}).'
            self.faults.append(Fault(line, text))
        elif _is_header(cells, self.header):
            self.repeats.append(line)
        else:
            self.rows.append(cells)
            self.lines.append(line)

    def finish(self) -> Cells:
        """Say of lines that equal the first whether files were pasted together or the header is missing."""
        if self.repeats and (found := looks_like_a_row(self.header, zip(*self.rows, strict=True))):
            self.faults = [Fault(1, found)]
        elif self.repeats:
            reason = 'the header is repeated; remove this line, or add a header above line 1 if that is a row.'
            self.faults += [Fault(line, reason) for line in self.repeats]
        return self


def parse_tsv(lines: Iterable[tuple[int, str]], headerless: Sequence[str] = (), short_rows: int = 0) -> Cells:
    """Cells between tabs; quotes are plain characters: GLUE's files have unpaired ones.

    Args:
        lines: Line numbers and lines that are not blank, at least one.
        headerless: Column names of a file without a header; a first line that names any of them is one.
        short_rows: So many rows with too few columns are skipped.
    """
    number, text = next(lines := iter(lines))
    first = text.split('\t')
    # CoLA's train and dev files have no header, its test file has one.
    known = bool(headerless) and not set(first) & set(headerless)
    cells = Cells(list(headerless)) if known else _header(first, '\t')
    if cells.faults:
        return cells
    wanted = len(cells.header)
    if known:
        _add_tsv(cells, number, first, True)
    for number, text in lines:
        row = text.split('\t')
        if len(row) < wanted and len(cells.skipped) < short_rows:
            cells.skipped.append(number)
        else:
            _add_tsv(cells, number, row, known)
    return cells.finish()


def _add_tsv(cells: Cells, number: int, row: list[str], headerless: bool) -> None:
    wanted, found = len(cells.header), len(row)
    if found == wanted:
        return cells.add(number, row, '')
    if any('\r' in cell for cell in row):
        hint = 'a bare carriage return inside the line, mixed line ends? Save it with Unix line ends'
    elif found < wanted and any(_opens_quote(cell) for cell in row):
        hint = f'the row is cut short, or a quoted text goes on in the next line; {_QUOTED_TSV}'
    elif found < wanted:
        hint = 'the row is cut short'
    elif not row[-1].strip() and found == wanted + 1:
        hint = 'a tab too many at the end of the line'
    else:
        hint = 'a tab inside a text? TSV cannot quote it, save the file as CSV or JSONL'
    if headerless:
        cells.faults.append(Fault(number, f'{found} columns where this format has {wanted} ({hint}).'))
    else:
        cells.add(number, row, hint)


def _opens_quote(cell: str) -> bool:
    return cell.startswith('"') and cell.count('"') % 2 == 1


def parse_csv(lines: Sequence[str], damaged: frozenset[int] = frozenset()) -> Cells:
    """Cells between commas, quoted as RFC 4180 has it, with texts over several lines.

    Args:
        lines: All lines with their ends.
        damaged: Lines that could not be decoded; rows which touch one are left out, and all where it is the header.
    """
    limit = csv.field_size_limit(LONGEST_FIELD)
    reader = csv.reader(iter(lines), strict=True)
    cells: Cells | None = None
    problems: list[Fault] = []
    start = 1
    try:
        while True:
            try:
                row = next(reader, None)
            except csv.Error as error:
                problems.append(Fault(start, _csv_cause(str(error))))
                row = []
            if row is None:
                break
            if damaged and not damaged.isdisjoint(range(start, reader.line_num + 1)):
                if cells is None:
                    return Cells([])
                row = []
            if row and cells is None:
                cells = _header(row, ',')
                if cells.faults:
                    return cells
            elif row and cells is not None:
                cells.add(start, row, '' if len(row) == len(cells.header) else _csv_hint(row, len(cells.header)))
            start = reader.line_num + 1
    finally:
        csv.field_size_limit(limit)
    cells = Cells([]) if cells is None else cells.finish()
    cells.faults += problems
    return cells


def _csv_cause(message: str) -> str:
    if 'new-line' in message:
        return 'a bare carriage return inside the line (mixed line ends?); save it with Unix line ends.'
    return f'{message} (an unpaired quote?).'


def _csv_hint(row: list[str], wanted: int) -> str:
    if any(_spaced_quote(cell) for cell in row):
        return 'a quote behind a space opens nothing in a CSV: remove the spaces after the commas'
    if len(row) == wanted + 1 and not row[-1].strip():
        return 'a comma too many at the end of the line'
    if len(row) > wanted:
        return 'a comma in an unquoted text?'
    return 'the row is cut short'


def _spaced_quote(cell: str) -> bool:
    return cell[:1] in (' ', '\t') and cell.lstrip().startswith('"')


def _header(row: list[str], separator: str) -> Cells:
    """The names of the columns; those without a name are called so. A fault in line 1 where they are no names."""
    names = [clean(cell) or f'(no name, column {i})' for i, cell in enumerate(row, start=1)]
    reason = _header_fault(row, names, separator)
    return Cells(names, faults=[Fault(1, reason)] if reason else [])


def _header_fault(row: list[str], names: list[str], separator: str) -> str:
    if declared := re.fullmatch(r'"?sep=(.?)"?', separator.join(row).strip(' \r'), re.IGNORECASE):
        other = declared[1] or separator
        rest = '' if other == separator else f', and {_SAVE_AS.get(other, "save the file with commas")}'
        return f"'sep=' is a line for Excel, not a header; remove it{rest}."
    if len(row) == 1:
        for other, word in _SEPARATORS.items():
            parts = [part.strip() for part in row[0].split(other)]
            if other != separator and len(parts) > 1 and all(parts):
                return f'the columns {", ".join(parts)[:60]} are set apart by {word}; {_SAVE_AS[other]}.'
    if separator == '\t' and all(len(name) > 1 and name[0] == name[-1] == '"' for name in names):
        return f'the names stand in quotes; {_QUOTED_TSV}.'
    if separator == ',' and any(_spaced_quote(cell) for cell in row):
        return 'a quote behind a space opens nothing in a CSV; remove the spaces after the commas.'
    if not any(cell.strip() for cell in row):
        return 'the header names no column.'
    doubled = sorted({name for name in names if names.count(name) > 1})
    return f'the header names column {doubled[0]!r} twice.' if doubled else ''


def _is_header(cells: Sequence[str], header: Sequence[str]) -> bool:
    # Files pasted together carry the header again, maybe behind a byte order mark or in another order; its label cell
    # would become a class of its own.
    if sum(map(len, cells)) > sum(map(len, header)) + 4 * len(header):
        return False
    return sorted(map(look_alike, cells)) == sorted(map(look_alike, header))


def looks_like_a_row(header: Sequence[str], columns: Iterable[Sequence[object]]) -> str:
    """Why line 1 is a row and no header, in a sentence: one of its cells is a value of its column; '' if it is not."""
    for place, (name, values) in enumerate(zip(header, columns, strict=False), start=1):
        count = sum(isinstance(value, str) and clean(value) == name for value in values)
        if count:
            return (
                f'this looks like a row, not a header: {name[:40]!r} stands in column {place} below too '
                f'({count} times); add a line with the names of the columns above it, such as text and label.'
            )
    return ''
