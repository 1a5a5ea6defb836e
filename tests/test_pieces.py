"""A file read in pieces is the file read at once: rows, lines, faults, whatever stands in it."""

from __future__ import annotations

import csv
import gzip
import io
import json
import tracemalloc

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from composer_cmi.data.readers import DataError, read_lines, read_table
from composer_cmi.data.rows.pieces import read_pieces

CELLS = st.text(
    st.sampled_from('ab "\',;\t|\n\x85\u2028é$=') | st.characters(codec='utf-8', exclude_characters='\r\x00'),
    max_size=8,
)
ROWS = st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=12)


def together(path, rows):
    pieces = list(read_pieces(path, rows))
    names = dict.fromkeys(name for piece in pieces for name in piece.columns)
    columns = {name: [v for p in pieces for v in p.columns.get(name, [None] * len(p))] for name in names}
    lines = [line for piece in pieces for line in piece.lines]
    faults = sorted({fault for piece in pieces for fault in piece.faults})
    if not lines:
        raise pieces[0].error(faults)
    return columns, lines, faults


def outcome(read, path, *size):
    """What was read, or the file and line of the refusal."""
    try:
        return read(path, *size)
    except DataError as error:
        return str(error).split(': ')[0]


def at_once(path):
    table = read_table(path, keep_faults=True)
    return table.columns, list(table.lines), sorted(set(table.faults))


@settings(max_examples=60, deadline=None)
@given(ROWS, st.integers(1, 5), st.booleans(), st.sampled_from(['\n', '\r\n']))
def test_a_csv_with_anything_in_its_cells(tmp_path_factory, rows, size, packed, ends):
    text = io.StringIO()
    writer = csv.writer(text, lineterminator=ends)
    writer.writerows([('text', 'label'), *rows])
    path = tmp_path_factory.mktemp('pieces') / ('x.csv.gz' if packed else 'x.csv')
    data = b'\xef\xbb\xbf' + text.getvalue().encode()
    path.write_bytes(gzip.compress(data) if packed else data)
    assert together(path, size) == at_once(path)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(st.sampled_from('ab,"\t\n é'), max_size=10), min_size=1, max_size=14), st.integers(1, 5))
def test_files_with_faults_have_the_same_ones_in_the_same_lines(tmp_path_factory, lines, size):
    for suffix, header in (('csv', 'text,label\n'), ('tsv', 'text\tlabel\n'), ('jsonl', '')):
        path = tmp_path_factory.mktemp('pieces') / f'x.{suffix}'
        path.write_text(header + '\n'.join(lines))
        assert outcome(together, path, size) == outcome(at_once, path)


@pytest.mark.parametrize('size', [1, 2, 3, 100])
def test_unpaired_quotes_blank_lines_and_bytes_that_are_no_text(tmp_path, size):
    path = tmp_path / 'x.csv'
    path.write_bytes(b'text,label\r\n\r\na 5" disk,x\r\n"two\nlines",y\r\n\xff,z\r\n\r\n"a ""b""",x\r\nshort\r\nlast,y')
    found = together(path, size)
    assert found == at_once(path)
    assert found[0]['text'] == ['a 5" disk', 'two\nlines', 'a "b"', 'last'] and found[1] == [3, 4, 8, 10]
    assert [fault.line for fault in found[2]] == [6, 9]


def test_a_header_in_the_middle_is_told_in_the_piece_that_has_it(tmp_path):
    path = tmp_path / 'x.csv'
    path.write_text('text,label\na,x\nb,y\ntext,label\nc,x\n')
    assert together(path, 1) == at_once(path) and [fault.line for fault in together(path, 1)[2]] == [4]


def test_json_parquet_and_lines(tmp_path):
    rows = [{'text': f'text {i}', 'n': i} for i in range(10)]
    lines, parquet, plain = tmp_path / 'x.jsonl', tmp_path / 'x.parquet', tmp_path / 'x.txt'
    lines.write_text('\n'.join(map(json.dumps, rows)))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), parquet, row_group_size=4)
    plain.write_text('one\n\ntwo\nthree')
    assert together(lines, 3) == at_once(lines) and together(parquet, 3) == at_once(parquet)
    assert together(plain, 2)[:2] == (read_lines(plain).columns, [1, 3, 4])
    assert [len(piece) for piece in read_pieces(lines, 4)] == [4, 4, 2]


@pytest.mark.parametrize(
    ('name', 'content', 'message'),
    [
        ('x.csv', b'', 'the file is empty'),
        ('x.csv', b'text,label\n', 'the file has a header but no rows'),
        ('x.csv', b'PK\x03\x04\n\n', 'an Excel workbook'),
        ('x.tsv', 'text\tlabel\na\tb\n'.encode('utf-16'), 'UTF-16'),
        ('x.csv.gz', gzip.compress(b'text,label\n' + b'a,b\n' * 50_000)[:-40], 'truncated or damaged'),
        ('x.parquet', b'PAR1 no', 'not a readable Parquet file'),
        ('x.xlsx', b'x', r'cannot read a \.xlsx file'),
    ],
)
def test_what_is_no_such_file_is_told(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        together(tmp_path / name, 100)


def test_memory_is_that_of_a_piece(tmp_path):
    path = tmp_path / 'x.csv'
    path.write_text('text,label\n' + 'a text of some words,x\n' * 60_000)
    tracemalloc.start()
    assert sum(len(piece) for piece in read_pieces(path, 500)) == 60_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000 < path.stat().st_size
