"""Class probabilities of others become a teacher: checked, known by their texts, and a real student learns from them."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from typer.testing import CliRunner

from composer_cmi.cli import app
from composer_cmi.data.readers import DataError
from composer_cmi.data.task_data import concatenate, load_task_data
from composer_cmi.exchange.answers import FLOOR, import_answers
from composer_cmi.run.arms import run_all
from composer_cmi.run.config import load_config
from composer_cmi.teachers.by_text import text_ids
from composer_cmi.teachers.logit_cache import LogitCache
from run_tools import make_all

CLASSES = ('food', 'weather')


@pytest.fixture(scope='module')
def run(tmp_path_factory) -> Path:
    """A run's file: model, rows with labels, and text without."""
    folder = tmp_path_factory.mktemp('answers')
    file = make_all(folder, algorithms={}, train={'max_duration': '2ba', 'batch_size': 8, 'device': 'cpu'})
    settings = yaml.safe_load(file.read_text())
    (folder / 'more.txt').write_text('light rain over the lake\nfry the fresh bread\n')
    settings['data']['unlabelled'] = str(folder / 'more.txt')
    settings['train']['progress_bar'] = False
    file.write_text(yaml.safe_dump(settings))
    return file


def data_of(run: Path):
    config = load_config(run, [])
    return load_task_data(config.task, config.data)


def sklearn_file(run: Path, path: Path, header=('text', *CLASSES), order=1, texts=True) -> tuple[list[str], np.ndarray]:
    """What scikit-learn answers to the training rows and to one text more, written as its users would."""
    data = data_of(run)
    rows = concatenate(data.train, data.unlabelled)
    words = CountVectorizer()
    model = LogisticRegression().fit(words.fit_transform(data.train.texts[0]), data.train.labels)
    asked = [*rows.texts[0], 'a text of nobody']
    probabilities = model.predict_proba(words.transform(asked))
    ids = [*rows.example_ids.tolist(), 10**6]
    first = asked if texts else ids
    with path.open('w', newline='') as file:
        csv.writer(file).writerows(
            [header, *([a, *p] for a, p in list(zip(first, probabilities, strict=True))[::order])]
        )
    return asked, probabilities


def write(path: Path, *lines: str) -> Path:
    path.write_text('\n'.join(lines) + '\n')
    return path


@pytest.mark.parametrize('order', [1, -1])
@pytest.mark.parametrize('texts', [True, False])
def test_scikit_learns_probabilities_are_found_by_text_in_any_order(run, tmp_path, order, texts):
    data, file = data_of(run), tmp_path / 'sk.csv'
    asked, probabilities = sklearn_file(run, file, ('text' if texts else 'id', *CLASSES), order, texts)
    done = import_answers(file, tmp_path / 'out', data=data)
    assert done.path == tmp_path / 'out' / 'sk.safetensors' and done.classes == CLASSES
    assert 'All 26 training rows have an answer.' in done.notes
    assert any('of the 24 labelled training rows are answered right' in note for note in done.notes)
    cache = LogitCache.open(done.path)
    found = cache.lookup(text_ids(asked[:-1])).softmax(-1)
    torch.testing.assert_close(found, torch.from_numpy(probabilities[:-1]).float())
    assert len(cache) == (27 if texts else 26)


def test_a_student_learns_from_the_file_and_from_no_other_texts(run, tmp_path, capsys):
    file = tmp_path / 'sk.csv'
    sklearn_file(run, file, ('text', 'p_weather', 'p_food'))  # names swapped: a teacher that is always wrong
    done = CliRunner().invoke(app, ['cache', str(file), '--out', str(tmp_path), '--data', str(run)])
    assert done.exit_code == 0, done.output
    section = yaml.safe_load(done.stdout.splitlines()[-1].removeprefix('In a run: '))
    cache = section['algorithms']['knowledge_distillation']['cache']

    def start(*overrides: str):
        base = (f'algorithms.knowledge_distillation.cache={cache}', f'output_dir={tmp_path / "runs"}')
        return run_all(load_config(run, [*base, *overrides]))

    with pytest.raises(ValueError, match='The teacher sk.csv .* no better than always naming the commonest class'):
        start('run_name=weak')
    results = start('run_name=kd', 'algorithms.knowledge_distillation.allow_weak_teacher=true')['kd']
    assert results.teacher is not None and results.teacher['accuracy'] < 0.5 and results.teacher['split'] == 'train'
    assert 'Teacher sk.csv' in capsys.readouterr().out
    rows = write(tmp_path / 'other.txt', 'a text that nobody was asked about')
    with pytest.raises(ValueError, match=r"1 of 25 texts have no answer in the logit cache, the first is 'a text that"):
        start('run_name=other', f'data.unlabelled={rows}')


def test_a_language_models_file_is_cleaned_and_told(tmp_path):
    file = write(
        tmp_path / 'llm.csv',
        'text,p_good,p_bad,model',
        '"fine, works",1,0,x',
        'broken,0.33,0.66,x',
        'broken,0.33,0.66,x',
        'so so,0.5,0.5,x',
    )
    done = import_answers(file, tmp_path / 'named.safetensors')
    assert done.path == tmp_path / 'named.safetensors' and done.rows == 3 and done.classes == ('good', 'bad')
    assert done.notes == [
        'Columns that were not read: model.',
        '2 rows add up to 0.99 to 1: each is divided by its sum.',
        '1 of 8 probabilities (1 of them 0) are raised to 1e-06.',
        '1 rows repeat an answer to the same text.',
    ]
    found = LogitCache.open(done.path).lookup(text_ids(['fine, works', 'broken'])).exp()
    torch.testing.assert_close(found, torch.tensor([[1 - FLOOR, FLOOR], [1 / 3, 2 / 3]]))


def test_what_predict_writes_is_read(tmp_path):
    file = write(tmp_path / 'p.csv', 'text,label,prediction,p_label,p_-1', 'a,-1,label,0.9,0.1', 'b,-1,-1,0.2,0.8')
    assert import_answers(file, tmp_path).classes == ('label', '-1')


def test_all_faults_with_their_lines_the_first_twenty(tmp_path):
    rows = ['a,0.9,0.1', 'b,0.9,0.5', 'c,,1', 'd,90,10', 'e,-1.2,2.2', 'f,yes,0.5', 'a,0.8,0.2', ',0.5,0.5', 'g,0.5']
    file = write(tmp_path / 'bad.csv', 'text,good,bad', *rows)
    with pytest.raises(DataError) as error:
        import_answers(file, tmp_path / 'out')
    told = str(error.value)
    for part in (
        'line 3: the probabilities add up to 1.4, 1 is wanted',
        "line 4: column 'good' should hold a probability, here it is empty",
        "line 5: column 'good' holds 90, which is no probability; are these percent?",
        "line 6: column 'good' holds -1.2, which is no probability; are these logits?",
        "line 7: column 'good' should hold a probability, here it is 'yes'",
        "line 9: the text in column 'text' is empty",
        'line 10: 2 columns where the header has 3',
    ):
        assert part in told
    assert not (tmp_path / 'out').exists()
    many = write(tmp_path / 'many.csv', 'text,good,bad', *(f'{i},2,3' for i in range(30)))
    with pytest.raises(DataError, match=r'\.\.\. and 40 more in'):
        import_answers(many, tmp_path / 'out')
    twice = write(tmp_path / 'twice.csv', 'text,good,bad', 'a,0.9,0.1', 'b,0.9,0.1', 'a,0.8,0.2')
    with pytest.raises(DataError, match='line 4: the same text has other probabilities in line 2'):
        import_answers(twice, tmp_path / 'out')


@pytest.mark.parametrize(
    ('lines', 'message'),
    [
        (['text,food', 'a,1'], "no column for the class 'weather'"),
        (
            ['text,food,weather', 'a,0.5,0.5'],
            r"26 of the 26 training rows have no answer \(id 0 'heavy rain is .* \.\.\.\)",
        ),
        (['id,food,weather', 'x1,0.5,0.5'], "line 2: 'x1' in column 'id' is no example id"),
    ],
)
def test_what_does_not_fit_the_data_is_refused(run, tmp_path, lines, message):
    with pytest.raises(DataError, match=message):
        import_answers(write(tmp_path / 'a.csv', *lines), tmp_path / 'out', data=data_of(run))


def test_mixed_up_rows_are_refused_where_ids_and_texts_are_given(run, tmp_path):
    data = data_of(run)
    texts = data.train.texts[0]
    lines = [f'{i},{text},0.5,0.5' for i, text in zip(data.train.example_ids, [*texts[1:], texts[0]], strict=True)]
    file = write(tmp_path / 'a.csv', 'id,text,food,weather', *lines)
    with pytest.raises(DataError, match=r'line 2: the text is not that of row 6 of the data') as error:
        import_answers(file, tmp_path / 'out', data=data, id_column='id')
    assert '... and 4 more' in str(error.value)


def test_without_texts_and_without_data_no_row_is_known(tmp_path):
    file = write(tmp_path / 'a.csv', 'id,food,weather', '0,0.5,0.5')
    refused = CliRunner().invoke(app, ['cache', str(file), '--out', str(tmp_path)])
    assert refused.exit_code == 2 and "the column 'id' alone does not say which texts these are" in refused.stderr
    one = CliRunner().invoke(app, ['cache', str(write(tmp_path / 'b.csv', 'text,good', 'a,1')), '--out', str(tmp_path)])
    assert one.exit_code == 2 and 'one column a class is wanted, here is good' in one.stderr
