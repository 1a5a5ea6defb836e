"""GLUE's own files and `datasets` folders: each task's odd format is read right, what is wrong or missing is named."""

from __future__ import annotations

import pytest

from composer_cmi.data.readers import DataError
from composer_cmi.data.source import read_source
from composer_cmi.registry import get_task
from data_tools import config


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
