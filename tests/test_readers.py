"""Every odd file either loads right or raises one sentence with file, line and reason."""

from __future__ import annotations

import gzip
import io
import json
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from composer_cmi.registry import get_task
from composer_cmi.run.readers import DataError, read_table
from composer_cmi.run.sources import read_source, read_unlabelled

GOOD = b'text\tlabel\nfine film\tpos\nbad film\tneg\nso so\tneg\n'
TEXTS = ['fine film', 'bad film', 'so so']
LONG = 'word ' * 210_000  # a line of 1 MB


def parquet(**columns) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue()


def config(path, **options):
    return SimpleNamespace(path=str(path), **options)


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


# GLUE's own files --------------------------------------------------------------------------------------------------


def glue(name, path, *splits):
    return read_source(get_task(name), config(path), splits or ('train', *get_task(name).eval_splits))


def write(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for stem, content in files.items():
        data = content.encode() if isinstance(content, str) else content
        (folder / f'{stem}.tsv').write_bytes(data)


def test_cola_has_no_header_but_its_test_file_has(tmp_path):
    rows = 'gj04\t1\t\tThe "sailors" rode.\nks08\t0\t*\tIt\x85 "rode the.\n'
    write(tmp_path / 'CoLA', train=rows, dev=rows, test='index\tsentence\n0\tOut.\n1\tIn.\n')
    source = glue('cola', tmp_path)
    assert source.splits['dev'].texts == (['The "sailors" rode.', 'It\x85 "rode the.'],)
    assert source.splits['dev'].labels.tolist() == [1, 0]
    test = glue('cola', tmp_path / 'CoLA', 'test').splits['test']
    assert test.texts == (['Out.', 'In.'],)
    assert test.labels.tolist() == [-100, -100]
    write(tmp_path / 'CoLA', dev=rows + 'gj04\t1\n')
    with pytest.raises(DataError, match=r'dev.tsv, line 3: 2 columns where this format has 4'):
        glue('cola', tmp_path)


MRPC_HEADER = '\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n'


def test_mrpc_with_byte_order_mark_and_as_microsoft_gave_it(tmp_path):
    rows = MRPC_HEADER + '1\t10\t11\tHe said "no.\tHe "said" no.\r\n0\t12\t13\tA.\tB.\r\n1\t14\t15\tC.\tD.\r\n'
    write(tmp_path / 'a', train=rows, dev=rows)
    source = glue('mrpc', tmp_path / 'a')
    assert source.splits['train'].texts[0] == ['He said "no.', 'A.', 'C.']
    assert source.splits['train'].labels.tolist() == [1, 0, 1]
    (tmp_path / 'b').mkdir()
    (tmp_path / 'b' / 'msr_paraphrase_train.txt').write_bytes(rows.encode())
    (tmp_path / 'b' / 'msr_paraphrase_test.txt').write_bytes(rows.encode())
    with pytest.raises(FileNotFoundError, match=r'dev_ids.tsv'):
        glue('mrpc', tmp_path / 'b')
    (tmp_path / 'b' / 'dev_ids.tsv').write_text('12\t13\n')
    source = glue('mrpc', tmp_path / 'b')
    assert source.splits['train'].texts[0] == ['He said "no.', 'C.']
    assert source.splits['dev'].texts[1] == ['B.']
    assert source.splits['dev'].labels.tolist() == [0]
    assert glue('mrpc', tmp_path / 'b', 'test').splits['test'].labels.tolist() == [-100] * 3


def test_qqp_keeps_row_numbers_over_its_known_short_rows(tmp_path):
    header = 'id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n'
    rows = '0\t1\t2\ta\tb\t0\n3\t4\tcut short\n5\t6\t7\tc\t\t1\n'
    write(tmp_path / 'QQP', train=header + rows, dev=header + '0\t1\t2\ta\tb\t0\n')
    source = glue('qqp', tmp_path)
    assert source.splits['train'].texts == (['a', 'c'], ['b', ''])
    assert source.splits['train'].example_ids.tolist() == [0, 2]
    assert any('1 broken rows left out (lines 3)' in note for note in source.notes)
    write(tmp_path / 'QQP', train=header + rows + '8\t9\tcut\n' * 10)
    with pytest.raises(DataError, match='line 14: 3 columns where the header has 6'):
        glue('qqp', tmp_path)


def mnli(*labels, extra=4):
    names = ['index', 'promptID', 'pairID', 'genre', 's1_parse', 's2_parse', 'sentence1', 'sentence2']
    names += [f'label{i + 1}' for i in range(extra)] + ['gold_label']
    rows = [[str(i), *'abcde', f'P{i}', f'H{i}', *[gold] * extra, gold] for i, gold in enumerate(labels)]
    return '\n'.join('\t'.join(row) for row in [names, *rows]) + '\n'


def test_mnli_has_two_dev_files_and_names_for_labels(tmp_path):
    files = {'train': mnli('neutral', 'entailment', 'contradiction', extra=1), 'dev_matched': mnli('neutral')}
    write(tmp_path / 'MNLI', **files, dev_mismatched=mnli('contradiction', 'neutral'))
    source = glue('mnli', tmp_path)
    assert source.splits['train'].labels.tolist() == [1, 0, 2]
    assert source.splits['dev_mismatched'].texts == (['P0', 'P1'], ['H0', 'H1'])
    assert source.splits['dev_mismatched'].labels.tolist() == [2, 1]
    (tmp_path / 'MNLI' / 'dev_mismatched.tsv').unlink()
    with pytest.raises(FileNotFoundError, match=r'no dev_mismatched.tsv; .*dev_matched.tsv, train.tsv'):
        glue('mnli', tmp_path)


SENTENCES = 'index\tsentence1\tsentence2\tlabel\n'


@pytest.mark.parametrize(
    ('task', 'header', 'rows', 'labels'),
    [
        ('rte', SENTENCES, '0\ta\tb\tentailment\n1\tc\td\tnot_entailment\n', [0, 1]),
        ('wnli', SENTENCES, '0\ta\tb\t1\n1\tc\td\t0\n', [1, 0]),
        ('qnli', 'index\tquestion\tsentence\tlabel\n', '0\ta\tb\tentailment\n1\tc\td\tnot_entailment\n', [0, 1]),
        ('sst2', 'sentence\tlabel\n', 'a gorgeous film \t1\nno " film \t0\n', [1, 0]),
    ],
)
def test_the_other_tasks_files(tmp_path, task, header, rows, labels):
    write(tmp_path, train=header + rows, dev=header + rows)
    source = glue(task, tmp_path)
    assert source.splits['train'].labels.tolist() == labels
    assert source.notes[0].startswith(f'{tmp_path / "train.tsv"}: 2 rows, published are')
    write(tmp_path, dev=header + rows.replace('\t1\n', '\tmaybe\n').replace('not_entailment', 'maybe'))
    with pytest.raises(DataError, match=r"dev.tsv, line \d: unknown label 'maybe'"):
        glue(task, tmp_path)


def test_glue_folders_that_are_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match='no folder'):
        glue('rte', tmp_path / 'absent')
    with pytest.raises(FileNotFoundError, match=r'has a train.tsv; it holds nothing'):
        glue('rte', tmp_path)
    write(tmp_path, train=SENTENCES + '0\ta\tb\tentailment\n')
    with pytest.raises(FileNotFoundError, match=r'no dev.tsv; the folder holds train.tsv'):
        glue('rte', tmp_path)
    with pytest.raises(DataError, match='is a file; task rte wants its folder'):
        glue('rte', tmp_path / 'train.tsv')


def test_the_wrong_tasks_folder_is_noticed(tmp_path):
    write(tmp_path, train='sentence\tlabel\na\t1\nb\t0\n', dev='sentence\tlabel\na\t1\n')
    with pytest.raises(DataError, match=r"no column 'sentence1', the columns are 'sentence', 'label'"):
        glue('rte', tmp_path)


def test_glue_from_a_datasets_folder(tmp_path):
    import datasets

    def build(names, labels):
        features = datasets.Features(
            {
                'sentence1': datasets.Value('string'),
                'sentence2': datasets.Value('string'),
                'label': datasets.ClassLabel(names=names),
            }
        )
        rows = {'sentence1': ['a', 'b'], 'sentence2': ['c', 'd'], 'label': labels}
        return datasets.Dataset.from_dict(rows, features=features)

    names = ['entailment', 'not_entailment']
    splits = {'train': build(names, [1, 0]), 'validation': build(names, [0, 1]), 'test': build(names, [-1, -1])}
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path / 'rte'))
    assert glue('rte', tmp_path).splits['dev'].labels.tolist() == [0, 1]
    assert glue('rte', tmp_path / 'rte', 'test').splits['test'].labels.tolist() == [-100, -100]
    # Another order of the names is another meaning of the numbers: rows are read by name.
    splits = {name: build(names[::-1], [1, 0]) for name in ('train', 'validation')}
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path / 'swapped'))
    assert glue('rte', tmp_path / 'swapped').splits['train'].labels.tolist() == [0, 1]
    splits = {name: build(['yes', 'no'], [1, 0]) for name in ('train', 'validation')}
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path / 'other'))
    with pytest.raises(DataError, match='its classes are yes, no, those of task rte are entailment, not_entailment'):
        glue('rte', tmp_path / 'other')


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
