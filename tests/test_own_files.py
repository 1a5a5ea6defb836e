"""Every odd file of one's own data either loads right or raises one sentence with file, line and reason."""

from __future__ import annotations

import gzip
import io
import json
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from composer_cmi.data.readers import DataError, read_table
from composer_cmi.data.source import read_source, read_unlabelled
from composer_cmi.registry import get_task
from data_tools import config

GOOD = b'text\tlabel\nfine film\tpos\nbad film\tneg\nso so\tneg\n'
TEXTS = ['fine film', 'bad film', 'so so']
LONG = 'word ' * 210_000  # a line of 1 MB


def parquet(**columns) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue()


def own(path, **options):
    return read_source(get_task('custom'), config(path, **options), ())


def jsonl(*rows) -> bytes:
    return '\n'.join(json.dumps(row) for row in rows).encode()


LOADS = {
    'plain.tsv': (GOOD, TEXTS, [1, 0, 0]),
    'no_last_newline.tsv': (GOOD.rstrip(b'\n'), TEXTS, [1, 0, 0]),
    'bom.tsv': (b'\xef\xbb\xbf' + GOOD, TEXTS, [1, 0, 0]),
    'crlf.tsv': (GOOD.replace(b'\n', b'\r\n'), TEXTS, [1, 0, 0]),
    'blank_lines.tsv': (GOOD.replace(b'bad', b'\n\nbad') + b'\n \n', TEXTS, [1, 0, 0]),
    'zipped.tsv.gz': (gzip.compress(GOOD), TEXTS, [1, 0, 0]),
    'zipped_without_suffix.tsv': (gzip.compress(GOOD), TEXTS, [1, 0, 0]),
    'columns_swapped.tsv': (b'label\ttext\n1\tb\n0\ta\n', ['b', 'a'], [1, 0]),
    'extra_columns.tsv': (b'id\ttext\tlabel\n7\tb\t1\n8\ta\t0\n', ['b', 'a'], [1, 0]),
    'spaces_in_header.tsv': (b' text \tlabel \nb\t1\na\t0\n', ['b', 'a'], [1, 0]),
    'unpaired_quote.tsv': (b'text\tlabel\n"so\t1\n5" disk\t0\n""a""\t0\n', ['"so', '5" disk', '""a""'], [1, 0, 0]),
    'unicode_line_separators.tsv': ('text\tlabel\na\u2028b\x85c\t1\nd\t0\n'.encode(), ['a\u2028b\x85c', 'd'], [1, 0]),
    'megabyte_line.tsv': (f'text\tlabel\n{LONG}\t1\na\t0\n'.encode(), [LONG.strip(), 'a'], [1, 0]),
    'numbers_in_order_of_size.tsv': (b'text\tlabel\na\t10\nb\t9\nc\t9\n', ['a', 'b', 'c'], [1, 0, 0]),
    'plain.csv': (b'text,label\nb,1\na,0\n', ['b', 'a'], [1, 0]),
    'quoted.csv': (b'text,label\n"b, ""c""",1\n"a\nd",0\n', ['b, "c"', 'a\nd'], [1, 0]),
    'quoted_crlf.csv': (b'text,label\r\n"b\r\nc",1\r\na,0\r\n', ['b\r\nc', 'a'], [1, 0]),
    'tab_in_text.csv': (b'text,label\nb\tc,1\na,0\n', ['b\tc', 'a'], [1, 0]),
    'megabyte_field.csv': (f'text,label\n"{LONG}",1\na,0\n'.encode(), [LONG.strip(), 'a'], [1, 0]),
    'zipped.csv.gz': (gzip.compress(b'text,label\nb,1\na,0\n'), ['b', 'a'], [1, 0]),
    'plain.jsonl': (jsonl({'text': 'b\tc', 'label': 1}, {'label': 0, 'text': 'a'}), ['b\tc', 'a'], [1, 0]),
    'booleans.jsonl': (jsonl({'text': 'b', 'label': True}, {'text': 'a', 'label': False}), ['b', 'a'], [1, 0]),
    'optional_key.jsonl': (jsonl({'text': 'b', 'label': 1, 'x': 2}, {'text': 'a', 'label': 0}), ['b', 'a'], [1, 0]),
    'integers.parquet': (parquet(text=['b', 'a'], label=[1, 0]), ['b', 'a'], [1, 0]),
    'whole_floats.parquet': (parquet(text=['b', 'a'], label=[1.0, 0.0]), ['b', 'a'], [1, 0]),
}


@pytest.mark.parametrize('name', LOADS)
def test_odd_files_that_load_right(tmp_path, name):
    content, texts, labels = LOADS[name]
    (tmp_path / name).write_bytes(content)
    split = own(tmp_path / name).splits['train']
    assert split.texts == (texts,)
    assert split.labels.tolist() == labels
    assert split.example_ids.tolist() == list(range(len(texts)))


REFUSED = {
    'empty.tsv': (b'', 'the file is empty'),
    'empty.csv': (b'', 'the file is empty'),
    'empty.jsonl': (b'\n\n', 'the file is empty'),
    'empty.tsv.gz': (gzip.compress(b''), 'the file is empty'),
    'header_only.tsv': (b'text\tlabel\n', 'has a header but no rows'),
    'header_only.csv': (b'text,label\n', 'has a header but no rows'),
    'no_rows.parquet': (parquet(text=pa.array([], pa.string()), label=pa.array([], pa.int64())), 'no rows'),
    'truncated_row.tsv': (GOOD + b'cut of', 'line 5: 1 columns where the header has 2 .the row is cut short'),
    'tab_in_text.tsv': (GOOD + b'a\tb\tpos\n', 'line 5: 3 columns where the header has 2 .a tab inside a text'),
    'repeated_header.tsv': (GOOD + GOOD, 'line 5: the header is repeated'),
    'repeated_header.csv': (b'text,label\nb,1\ntext,label\na,0\n', 'line 3: the header is repeated'),
    'doubled_column.tsv': (b'text\tlabel\tlabel\na\t1\t0\n', "line 1: the header names column 'label' twice"),
    'no_header.tsv': (b'fine film\tpos\nbad film\tneg\n', "no column 'label', the columns are 'fine film', 'pos'"),
    'latin1.tsv': (GOOD + 'caf\xe9\tpos\n'.encode('latin-1'), 'line 5: byte 0xe9 at column 4 is not UTF-8'),
    'latin1.csv': (b'text,label\n"a\nb",1\ncaf\xe9,0\n', 'line 4: byte 0xe9 at column 4 is not UTF-8'),
    'utf16.tsv': (GOOD.decode().encode('utf-16'), 'line 1: the file is UTF-16, not UTF-8'),
    'nul_byte.tsv': (GOOD + b'a\x00b\tpos\n', 'line 5: a NUL byte'),
    'old_mac.tsv': (GOOD.replace(b'\n', b'\r'), 'line 1: lines end in bare carriage returns'),
    'empty_text.tsv': (GOOD + b'  \tpos\n', "line 5: the text in column 'text' is empty"),
    'empty_label.tsv': (GOOD + b'a\t\n', "line 5: column 'label' has no label.*data.unlabelled"),
    'one_class.tsv': (b'text\tlabel\na\t1\nb\t1\n', "fewer than two classes .found '1'"),
    'regression.tsv': (b'text\tlabel\na\t0.5\nb\t3\n', 'numbers such as 0.5, a regression'),
    'regression.parquet': (parquet(text=['a', 'b'], label=[0.25, 3.0]), 'numbers such as 0.25, a regression'),
    'ids_as_labels.tsv': (
        b'text\tlabel\n' + b''.join(b'a\tid%d\n' % i for i in range(30)),
        '30 different labels in 30 rows, which are no classes',
    ),
    'truncated_zip.tsv.gz': (gzip.compress(GOOD * 500)[:-20], 'gzip file is truncated or damaged'),
    'open_quote.csv': (b'text,label\nb,1\n"a,0\nc,1\n', 'line 3: unexpected end of data .an unpaired quote'),
    'quote_in_field.csv': (b'text,label\nb,1\n"a" c,0\n', 'line 3: .*expected after.*unpaired quote'),
    'comma_in_text.csv': (b'text,label\nb,1\na, c,0\n', 'line 3: 3 columns where the header has 2 .a comma'),
    'truncated_row.csv': (b'text,label\n"b\nc",1\na\n', 'line 4: 1 columns where the header has 2 .the row is cut'),
    'broken.jsonl': (jsonl({'text': 'b', 'label': 1}) + b'\n{"text": "a", ', 'line 2: not JSON .* at column 15'),
    'array.jsonl': (b'["b", 1]\n', 'line 1: a JSON object is wanted, here is a list'),
    'pretty.jsonl': (b'{\n  "text": "b", "label": 1\n}\n', 'line 1: not JSON'),
    'number_as_text.jsonl': (
        jsonl({'text': 'b', 'label': 1}, {'text': 3, 'label': 0}),
        "line 2: column 'text' should hold text, here it is a int",
    ),
    'missing_key.jsonl': (
        jsonl({'text': 'b', 'label': 1}, {'label': 0}),
        "line 2: column 'text' should hold text, here it is missing",
    ),
    'null_label.jsonl': (
        jsonl({'text': 'b', 'label': 1}, {'text': 'c', 'label': 0}, {'text': 'a', 'label': None}),
        "line 3: column 'label' has no label",
    ),
    'half_surrogate.jsonl': (
        b'{"text": "b", "label": 1}\n{"text": "\\ud83d", "label": 0}\n',
        'line 2: .*half of a surrogate pair',
    ),
    'half_surrogate_label.jsonl': (
        b'{"text": "b", "label": "x"}\n{"text": "c", "label": "\\ud83d"}\n',
        'line 2: .*half of a surrogate pair',
    ),
    'digits.jsonl': (b'{"text": "b", "label": 1}\n{"text": ' + b'9' * 5000 + b', "label": 0}\n', 'line 2: a number of'),
    'not_parquet.parquet': (GOOD, 'not a readable Parquet file'),
    'truncated.parquet': (parquet(text=['a'] * 100, label=[1] * 100)[:-9], 'not a readable Parquet file'),
    'null_text.parquet': (parquet(text=['a', None], label=[1, 0]), "row 2: column 'text' should hold text"),
    'sheet.xlsx': (b'PK', 'cannot read a .xlsx file; use .tsv, .csv, .jsonl, .parquet'),
    'suffixless': (GOOD, 'cannot read a suffixless file'),
}


@pytest.mark.parametrize('name', REFUSED)
def test_malformed_files_give_file_line_and_reason(tmp_path, name):
    content, reason = REFUSED[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=reason) as caught:
        own(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)
    assert '\n' not in str(caught.value)


def test_unknown_labels_name_the_line_and_the_nearest_class(tmp_path):
    (tmp_path / 'train.tsv').write_bytes(GOOD)
    (tmp_path / 'dev.tsv').write_bytes(b'text\tlabel\na\tpos\nb\tnge\n')
    with pytest.raises(DataError, match=r"dev.tsv, line 3: unknown label 'nge'.* are neg, pos\. Did you mean 'neg'"):
        own(tmp_path)


def test_given_labels_set_the_order_and_take_indices_too(tmp_path):
    (tmp_path / 'train.tsv').write_bytes(b'text\tlabel\na\tpos\nb\tneg\nc\t1\nd\t0\n')
    assert own(tmp_path, labels=['pos', 'neg']).splits['train'].labels.tolist() == [0, 1, 1, 0]


def test_named_columns_and_metrics(tmp_path):
    (tmp_path / 'data.csv').write_bytes(b'q,a,y\nb,c,1\na,d,0\n')
    source = own(tmp_path / 'data.csv', text_columns=['q', 'a'], label_column='y', metrics=['f1'])
    assert source.splits['train'].texts == (['b', 'a'], ['c', 'd'])
    assert (source.task.label_names, source.task.metrics) == (('0', '1'), ('f1',))


def test_folders_of_own_data(tmp_path):
    with pytest.raises(FileNotFoundError, match='no file or folder'):
        own(tmp_path / 'absent')
    with pytest.raises(FileNotFoundError, match=r'has no train file .*it holds nothing'):
        own(tmp_path)
    (tmp_path / 'train.tsv').write_bytes(GOOD)
    (tmp_path / 'validation.csv').write_bytes(b'text,label\nd,pos\n')
    (tmp_path / 'test.jsonl').write_bytes(jsonl({'text': 'e', 'label': 'neg'}))
    source = own(tmp_path)
    assert source.task.eval_splits == ('dev', 'test')
    assert {name: len(split) for name, split in source.splits.items()} == {'train': 3, 'dev': 1, 'test': 1}
    (tmp_path / 'train.csv').write_bytes(b'text,label\nd,pos\n')
    with pytest.raises(DataError, match=r'both train.tsv and train.csv are there'):
        own(tmp_path)
    (tmp_path / 'train.csv').unlink()
    (tmp_path / 'dev.tsv').write_bytes(GOOD)
    with pytest.raises(DataError, match='both dev and validation are there'):
        own(tmp_path)


def test_a_datasets_folder_brings_its_class_names(tmp_path):
    import datasets

    features = datasets.Features({'text': datasets.Value('string'), 'label': datasets.ClassLabel(names=['z', 'a'])})
    split = datasets.Dataset.from_dict({'text': ['b', 'c', 'd'], 'label': [1, 0, 1]}, features=features)
    datasets.DatasetDict({'train': split, 'validation': split}).save_to_disk(str(tmp_path / 'set'))
    source = own(tmp_path / 'set')
    assert source.task.label_names == ('z', 'a')
    assert source.splits['dev'].labels.tolist() == [1, 0, 1]
    (tmp_path / 'set' / 'train' / 'state.json').write_text('{')
    with pytest.raises(DataError, match='not a readable `datasets` folder'):
        own(tmp_path / 'set')


@pytest.mark.parametrize(
    ('name', 'content'),
    [
        ('more.tsv', b'text\nb\na\n'),
        ('more.txt', b'b\n\na\n'),
        ('more.txt.gz', gzip.compress(b'b\na\n')),
        ('labelled.csv', b'text,label\nb,unheard of\na,\n'),
    ],
)
def test_unlabelled_files_need_no_labels_and_continue_the_ids(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    task = own_task(tmp_path)
    split = read_unlabelled(task, tmp_path / name, first_id=40)
    assert split.texts == (['b', 'a'],)
    assert split.labels.tolist() == [-100, -100]
    assert split.example_ids.tolist() == [40, 41]


def own_task(folder):
    (folder / 'own.tsv').write_bytes(GOOD)
    return own(folder / 'own.tsv').task


def test_a_missing_unlabelled_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'more\.txt'):
        read_unlabelled(own_task(tmp_path), tmp_path / 'more.txt', first_id=3)


def test_the_csv_limit_of_the_process_is_left_as_it_was(tmp_path):
    import csv

    before = csv.field_size_limit()
    (tmp_path / 'a.csv').write_bytes(LOADS['megabyte_field.csv'][0])
    assert np.size(read_table(tmp_path / 'a.csv').lines) == 2
    assert csv.field_size_limit() == before


def test_options_of_own_data_are_refused_elsewhere(tmp_path):
    with pytest.raises(DataError, match=r'data.labels is for task: custom; task rte brings its own'):
        read_source(get_task('rte'), config(tmp_path, labels=['a', 'b']), ())
    with pytest.raises(DataError, match='not read by the embedded task bbc_headlines'):
        read_source(get_task('bbc_headlines'), config(tmp_path), ('train',))
    with pytest.raises(DataError, match=r'Task custom needs data.path'):
        read_source(get_task('custom'), SimpleNamespace(path=None), ())
