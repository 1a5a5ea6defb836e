from __future__ import annotations

import csv
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from typer.testing import CliRunner

from run_tools import make_all

sys.path.insert(0, str(Path(__file__).parents[1] / 'benchmarks'))
from composer_cmi.cli import app
from composer_cmi.data.readers import DataError
from composer_cmi.registry import get_task
from composer_cmi.run.command import run_file
from composer_cmi.run.outputs.submission import write_submission
from glue_rows import make_glue
from glue_smoke import make_model


def test_files_are_named_and_ordered_as_the_leaderboard_wants(tmp_path):
    ids = np.arange(146)[::-1]
    path = write_submission(get_task('wnli'), 'test', ids, ids % 2, tmp_path / 'out')
    lines = path.read_text().splitlines()
    assert path.name == 'WNLI.tsv'
    assert lines[:4] == ['index\tprediction', '0\t0', '1\t1', '2\t0']
    assert len(lines) == 147
    path = write_submission(get_task('mnli'), 'test_mismatched', range(9847), [i % 3 for i in range(9847)], tmp_path)
    assert path.name == 'MNLI-mm.tsv'
    assert path.read_text().splitlines()[1:4] == ['0\tentailment', '1\tneutral', '2\tcontradiction']


def test_incomplete_files_are_refused(tmp_path):
    wnli = get_task('wnli')
    with pytest.raises(DataError, match=r'every one of the 146 test rows is wanted once; here are 145 predictions'):
        write_submission(wnli, 'test', range(145), [0] * 145, tmp_path)
    with pytest.raises(DataError, match='147 predictions, 146 different'):
        write_submission(wnli, 'test', [*range(146), 0], [0] * 147, tmp_path)
    with pytest.raises(DataError, match='2 is no class index of task wnli'):
        write_submission(wnli, 'test', range(146), [2] * 146, tmp_path)
    with pytest.raises(DataError, match="no leaderboard file for split 'dev'; it has them for test"):
        write_submission(wnli, 'dev', range(146), [0] * 146, tmp_path)
    assert not list(tmp_path.iterdir())


def pairs_of(file):
    return [line.split('\t')[1:] for line in file.read_text().splitlines()[1:]]


def halve(folder, file):
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    first, second = zip(*pairs_of(file), strict=True)
    batch = tokenizer(first, second, truncation=True, max_length=32, padding=True, return_tensors='pt')
    with torch.no_grad():
        logits = model(**batch).logits
        model.classifier.bias[1] -= (logits[:, 1] - logits[:, 0]).median()
    model.save_pretrained(folder)


@pytest.fixture(scope='module')
def glue_run(tmp_path_factory):
    """A folder with GLUE's files of WNLI, all 146 test rows among them, and a finished run on them."""
    folder = tmp_path_factory.mktemp('glue')
    make_glue(folder, [get_task('wnli')], {'train': 40, 'dev': 9, 'test': 146})
    data = {'path': str(folder / 'files'), 'max_length': 32, 'cache_dir': str(folder / 'cache')}
    path = make_all(folder, task='wnli', run_name='wnli', data=data)
    # Hardly trained, and set so that half of the rows get either answer.
    model = make_model(folder / 'bert')
    halve(model, folder / 'files' / 'WNLI' / 'test.tsv')
    changes = ['train.max_duration=2ba', 'optimizer.lr=1e-8', f'model.name_or_path={model}']
    assert run_file(str(path), changes) == 0
    return folder


def submit(*arguments):
    result = CliRunner().invoke(app, ['submit', *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result


def test_a_run_folder_becomes_a_leaderboard_file(glue_run, tmp_path):
    result = submit(glue_run / 'runs' / 'wnli', '--out', tmp_path / 'out')
    assert result.exit_code == 0, result.stderr
    assert result.stdout.splitlines()[0] == str(tmp_path / 'out' / 'WNLI.tsv')
    with (tmp_path / 'out' / 'WNLI.tsv').open() as file:
        rows = list(csv.DictReader(file, delimiter='\t'))
    assert [row['index'] for row in rows] == [str(i) for i in range(146)]
    # The same answers from the exported model, by other code.
    classify = transformers.pipeline('text-classification', model=str(glue_run / 'runs' / 'wnli' / 'model'))
    file = glue_run / 'files' / 'WNLI' / 'test.tsv'
    pairs = [{'text': first, 'text_pair': second} for first, second in pairs_of(file)]
    answers = classify(pairs, truncation=True, max_length=32)
    names = ['not_entailment', 'entailment']
    assert [int(row['prediction']) for row in rows] == [names.index(answer['label']) for answer in answers]
    assert {row['prediction'] for row in rows} == {'0', '1'}


def test_what_cannot_be_submitted_is_one_sentence(glue_run, tmp_path):
    run, test = glue_run / 'runs' / 'wnli', glue_run / 'files' / 'WNLI' / 'test.tsv'
    whole = test.read_text()
    try:
        test.write_text('\n'.join(whole.splitlines()[:-1]) + '\n')
        short = submit(run, '--out', tmp_path / 'out')
        test.unlink()
        absent = submit(run, '--out', tmp_path / 'out')
    finally:
        test.write_text(whole)
    copy = shutil.copytree(run, tmp_path / 'arms' / 'copy')
    cases = {
        'WNLI.tsv: every one of the 146 test rows is wanted once; here are 145 predictions': short,
        'there is no test.tsv; the folder holds dev.tsv, train.tsv': absent,
        'are both runs of wnli: name one a task': submit(run, copy, '--out', tmp_path / 'out'),
        'is not the folder of a finished run: its arms are runs: copy': submit(tmp_path / 'arms'),
        'is not the folder of a finished run: it has no results.json': submit(tmp_path),
    }
    for sentence, result in cases.items():
        assert result.exit_code == 2 and sentence in result.stderr, result.stderr
        assert result.stderr.startswith('composer-cmi: ') and len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / 'out').exists()


def test_a_task_without_a_leaderboard_is_refused(tmp_path):
    assert run_file(str(make_all(tmp_path)), ['train.max_duration=1ba']) == 0
    assert 'task custom is not on the GLUE leaderboard' in submit(tmp_path / 'runs' / 'tiny').stderr
