"""Files as they really come: each cause is named with a remedy that works, and all faults are told in one go."""

from __future__ import annotations

import datetime
import decimal
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from composer_cmi.data.readers import DataError, read_table
from composer_cmi.data.source import read_source, read_unlabelled
from composer_cmi.registry import get_task
from data_tools import config


def own(path, **options):
    return read_source(get_task('custom'), config(path, **options), ())


def refused(path, **options) -> str:
    with pytest.raises(DataError) as caught:
        own(path, **options)
    return str(caught.value)


def csv(*rows, header='text,label') -> bytes:
    return '\n'.join([header, *rows, '']).encode()


# --- labels -----------------------------------------------------------------------------------------------------------

NO_LABELS = {
    'lists': ([['x', 'y'], ['x']], 'several labels a row .multi-label'),
    'one_hot': ([[0, 1], [1, 0]], 'a one-hot row'),
    'objects': ([{'x': 1}, {'x': 2}], 'an object with keys'),
    'bytes': ([b'x', b'y'], 'bytes: store the class as text'),
    'dates': ([datetime.date(2020, 1, 1), datetime.date(2021, 1, 1)], 'a date, which is no class'),
    'times': ([datetime.datetime(2020, 1, 1), datetime.datetime(2021, 1, 1)], 'which is no class'),
    'decimals': ([decimal.Decimal('0.5'), decimal.Decimal('1.5')], 'a regression'),
    'floats': ([0.5, 1.5], 'a regression'),
}


@pytest.mark.parametrize('kind', NO_LABELS)
def test_promise_13_labels_that_are_none_are_refused_by_name(tmp_path, kind):
    labels, reason = NO_LABELS[kind]
    texts = ['a', 'b']
    pq.write_table(pa.table({'text': texts, 'label': labels}), tmp_path / 'a.parquet')
    paths = [tmp_path / 'a.parquet']
    if kind in ('lists', 'one_hot', 'objects', 'floats'):
        rows = [{'text': text, 'label': label} for text, label in zip(texts, labels, strict=True)]
        (tmp_path / 'a.jsonl').write_text('\n'.join(map(json.dumps, rows)))
        paths.append(tmp_path / 'a.jsonl')
        if kind != 'floats':
            quoted = [f'{text},"{label}"' for text, label in zip(texts, labels, strict=True)]
            (tmp_path / 'a.csv').write_bytes(csv(*quoted))
            paths.append(tmp_path / 'a.csv')
    for path in paths:
        with pytest.raises(DataError, match=reason) as caught:
            own(path)
        assert '\n' not in str(caught.value)


def test_promise_13_a_sequence_of_class_labels_is_multi_label(tmp_path):
    import datasets

    names = datasets.ClassLabel(names=['x', 'y'])
    features = datasets.Features({'text': datasets.Value('string'), 'label': datasets.Sequence(names)})
    rows = datasets.Dataset.from_dict({'text': ['a', 'b'], 'label': [[0, 1], [1]]}, features=features)
    rows.save_to_disk(str(tmp_path / 'set'))
    assert 'several labels a row (multi-label)' in refused(tmp_path / 'set')


def test_promise_13_names_beside_their_own_lists_are_multi_label(tmp_path):
    (tmp_path / 'a.csv').write_bytes(csv('a,joy|love', 'b,joy', 'c,love'))
    assert "'joy|love' beside its parts" in refused(tmp_path / 'a.csv')
    assert own(tmp_path / 'a.csv', labels=['joy', 'love', 'joy|love']).splits['train'].labels.tolist() == [2, 0, 1]


def test_promise_13_a_word_among_numbers_does_not_hide_a_regression(tmp_path):
    (tmp_path / 'a.csv').write_bytes(csv('a,0.5', 'b,3.1', 'c,n/a', 'd,2.2'))
    assert 'a regression' in refused(tmp_path / 'a.csv')


ALIKE = [('pos', 'Pos'), ('caf\u00e9', 'cafe\u0301'), ('pos', 'pos\u200b'), ('pos', '\ufeffpos'), ('pos', 'p\u043es')]
ALIKE += [('1', '01'), ('not so', 'not\xa0so'), ('pos', "'pos'")]


@pytest.mark.parametrize(('a', 'b'), ALIKE)
def test_promise_14_names_of_a_column_that_look_the_same_are_shown_apart(tmp_path, a, b):
    (tmp_path / 'a.csv').write_bytes(csv(f'a,{a}', f'b,{a}', f'c,{b}', 'd,z'))
    told = refused(tmp_path / 'a.csv')
    assert f"line 4: column 'label' has labels that look the same: {a!a} (2 rows, first in line 2) and {b!a}" in told
    # In two files they are one class, and it is said.
    (tmp_path / 'two').mkdir()
    (tmp_path / 'two' / 'train.csv').write_bytes(csv(f'a,{a}', 'd,z'))
    (tmp_path / 'two' / 'dev.csv').write_bytes(csv('e,z', f'f,{b}'))
    source = own(tmp_path / 'two')
    assert source.splits['dev'].labels.tolist() == source.splits['train'].labels.tolist()[::-1]
    assert refused(tmp_path / 'two', labels=[a, b + ' ']).startswith('data.labels: ')


def test_promise_14_a_number_has_one_name(tmp_path):
    (tmp_path / 'a.csv').write_bytes(csv('a,0', 'b,0.0', 'c,1', 'd,1.0'))
    source = own(tmp_path / 'a.csv')
    assert source.task.label_names == ('0', '1')
    assert source.splits['train'].labels.tolist() == [0, 0, 1, 1]


def test_promise_14_quotes_behind_a_space(tmp_path):
    (tmp_path / 'a.csv').write_bytes(csv('"a", "pos"', '"b", "neg"'))
    assert 'stands in quotes of its own (a space between comma and quote' in refused(tmp_path / 'a.csv')
    (tmp_path / 'b.csv').write_bytes(csv('"a", "pos"', '"b", "neg"', header='"text", "label"'))
    assert 'line 1: a quote behind a space opens nothing' in refused(tmp_path / 'b.csv')


@pytest.mark.parametrize(
    'again', ['text,label', '\ufefftext,label', '\ufeff"text","label"', 'Label,Text', 'text, label ']
)
def test_promise_14_a_second_header_is_no_class(tmp_path, again):
    (tmp_path / 'a.csv').write_bytes(csv('a,pos', 'b,neg', again, 'c,neg'))
    assert 'line 4: the header is repeated' in refused(tmp_path / 'a.csv')


def test_promise_14_numbers_are_not_guessed_to_be_places(tmp_path):
    (tmp_path / 'train.csv').write_bytes(csv('a,pos', 'b,neg'))
    (tmp_path / 'dev.csv').write_bytes(csv('c,0', 'd,1'))
    assert 'A number is not taken for the place of a name' in refused(tmp_path)
    assert own(tmp_path, labels=['pos', 'neg']).splits['dev'].labels.tolist() == [0, 1]
    (tmp_path / 'mixed.csv').write_bytes(csv('a,pos', 'b,neg', 'c,0', 'd,1'))
    assert 'as many numbers (0, 1) as names (neg, pos)' in refused(tmp_path / 'mixed.csv')


# --- files ------------------------------------------------------------------------------------------------------------

CAUSES = {
    'semicolons.csv': (
        b'text;label\nGood, really;pos\nb;neg\n',
        'line 1: the columns text, label are set apart by semi',
    ),
    'commas.tsv': (csv('a,pos', 'b,neg'), 'are set apart by commas; name it .csv'),
    'tabs.csv': (b'text\tlabel\na\tpos\n', 'are set apart by tabs; name it .tsv'),
    'sep.csv': (
        b'sep=;\ntext;label\na;pos\n',
        "'sep=' is a line for Excel, not a header; remove it, and save it with comm",
    ),
    'sep_comma.csv': (b'sep=,\ntext,label\na,pos\n', 'not a header; remove it.$'),
    'no_names.csv': (b',,\n0,a,pos\n', 'line 1: the header names no column'),
    'label_without_name.csv': (b'text,\na,pos\nb,neg\n', "columns are 'text', .\\(no name, column 2"),
    'no_header.csv': (b'good,pos\nbad,neg\nx,pos\n', 'this looks like a row, not a header: .pos. stands in column 2'),
    'row_like_header.tsv': (b'good\tpos\nbad\tneg\ngood\tpos\ny\tpos\n', 'add a line with the names of the columns'),
    'quoted_all.tsv': (b'"text"\t"label"\n"a"\t"pos"\n', 'the names stand in quotes; .* save the file as .csv'),
    'quoted.tsv': (b'text\tlabel\n"say ""hi"""\tpos\nb\tneg\n', 'line 2: the text .* is quoted as in a CSV'),
    'quoted_lines.tsv': (b'text\tlabel\n"say\thi"\tpos\nb\tneg\n', 'line 2: 3 columns'),
    'excel.csv': (b'PK\x03\x04rest', 'an Excel workbook; in Excel, save it as "CSV UTF-8"'),
    'old_excel.csv': (b'\xd0\xcf\x11\xe0rest', 'an Excel workbook'),
    'page.csv': (b'<!DOCTYPE html>', 'a web page'),
    'lfs.csv': (b'version https://git-lfs.github.com/spec/v1\n', 'git lfs pull'),
    'parquet.csv': (b'PAR1', 'name it .parquet'),
    'array.jsonl': (b'[{"text": "a"},\n{"text": "b"}]', 'the file is one JSON array, write one object a line'),
    'pretty.jsonl': (b'{\n"text": "a"\n}\n{\n"text": "b"\n}', 'objects go over several lines, write one a line'),
    'mixed_ends.tsv': (b'text\tlabel\na\tpos\rb\tneg\n', 'line 2: .*a bare carriage return'),
    'mixed_ends.csv': (b'text,label\na,pos\rb,neg\n', 'line 2: a bare carriage return inside the line'),
    'utf16_without_mark.csv': ('text,label\n'.encode('utf-16-le'), 'the file is UTF-16'),
    'comma_at_end.csv': (csv('a,pos,', 'b,neg'), 'a comma too many at the end of the line'),
    'bytes_in_header.csv': (b'te\xe9xt,label\na,pos\n', 'line 1: byte 0xe9'),
    'minus_ones.csv': (csv('a,-1', 'b,-1'), 'is -1 in every row, which marks rows without a label'),
    'no_labels.csv': (csv('a,', 'b,'), 'has no label in any row; move rows without labels to a file'),
    'only_text.csv': (b'index,text\n0,a\n', "no column 'label'.* a file without labels can only be data.unlabelled"),
    'capitals.csv': (csv('a,pos', header='Text,Label'), "set data.label_column to 'Label', or rename the column"),
}


@pytest.mark.parametrize('name', CAUSES)
def test_promise_15_the_cause_is_named(tmp_path, name):
    content, reason = CAUSES[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=reason) as caught:
        own(tmp_path / name)
    assert 'remove this line' not in str(caught.value)


def test_promise_15_an_index_column_without_a_name_does_no_harm(tmp_path):
    (tmp_path / 'a.csv').write_bytes(csv('0,a,pos,', '1,b,neg,', header=',text,label,'))
    assert own(tmp_path / 'a.csv').splits['train'].texts == (['a', 'b'],)


def test_promise_15_all_faults_of_all_files_in_one_go(tmp_path):
    (tmp_path / 'train.csv').write_bytes(csv('a,pos', 'b,neg', 'cut', ',pos', 'c,neg', 'd,') + b'caf\xe9,pos\n')
    (tmp_path / 'dev.csv').write_bytes(csv('a,pso', 'b,', '"x" y,pos') + b'only\n' * 25)
    (tmp_path / 'test.csv').write_bytes(b'text\nx\n')
    lines = refused(tmp_path).split('\n')
    places = [line.removeprefix(f'{tmp_path}/').split(': ')[0] for line in lines]
    train, dev = ['train.csv, line 4', 'train.csv, line 5', 'train.csv, line 7', 'train.csv, line 8'], 'dev.csv, line '
    assert places == [*train, *(f'{dev}{i}' for i in range(2, 22)), places[24], 'test.csv']
    assert lines[24] == f'... and 8 more in {tmp_path / "dev.csv"}.'


def test_promise_15_rows_behind_an_unpaired_quote_are_not_missed_as_classes(tmp_path):
    (tmp_path / 'train.csv').write_bytes(csv('a,pos', 'b,neg', '"c,neutral', 'd,neg'))
    (tmp_path / 'dev.csv').write_bytes(csv('a,neutral', ',pos'))
    lines = refused(tmp_path).split('\n')
    assert [line.split(': ')[0].split(', ')[1] for line in lines] == ['line 4', 'line 3']


def test_promise_15_faults_of_a_table_read_alone(tmp_path):
    (tmp_path / 'a.tsv').write_bytes(b'text\tlabel\na\nb\n')
    with pytest.raises(DataError, match=r'line 2: 1 columns[^\n]*\n[^\n]*line 3: 1 columns'):
        read_table(tmp_path / 'a.tsv')
    (tmp_path / 'u.csv').write_bytes(b'title\na\n')
    task = get_task('rte')
    with pytest.raises(
        DataError, match="text without labels stands under the names of train's, sentence1 and sentence2"
    ):
        read_unlabelled(task, tmp_path / 'u.csv', 0)


# --- GLUE's folders ---------------------------------------------------------------------------------------------------

PAIRS = 'index\tsentence1\tsentence2\tlabel\n'
OTHERS = {
    'rte': ('sentence\tlabel\na\t1\n', 'this looks like a file of sst2, give the folder of rte'),
    'mrpc': ('index\tquestion\tsentence\tlabel\n0\ta\tb\tentailment\n', 'this looks like a file of qnli'),
    'sst2': ('gj04\t1\t\tOur friends\ngj05\t0\t*\tx\n', 'this looks like a file of cola, give the folder of sst2'),
    'qnli': ('index\tquestion\tsentence\n0\ta\tb\n', 'a test file without labels cannot be trained or scored on'),
    'wnli': (PAIRS + '0\ta\tb\tentailment\n' * 2490, '2,490 rows, as rte has them; give the folder of wnli'),
}


@pytest.mark.parametrize('task', OTHERS)
def test_promise_15_the_folder_of_another_task_is_named(tmp_path, task):
    content, reason = OTHERS[task]
    (tmp_path / 'train.tsv').write_text(content)
    with pytest.raises(DataError, match=reason):
        read_source(get_task(task), config(tmp_path), ('train',))
    (tmp_path / 'STS-B').mkdir()
    with pytest.raises(DataError, match=f'is the folder of stsb, not of {task}'):
        read_source(get_task(task), config(tmp_path / 'STS-B'), ('train',))
