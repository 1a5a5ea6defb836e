"""Predictions of a file: those of transformers' pipeline, in the file's order, whole or not at all."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoConfig, pipeline
from typer.testing import CliRunner

from composer_cmi.cli import app
from composer_cmi.data.readers import DataError
from composer_cmi.errors import ConfigError
from composer_cmi.exchange import predict as module
from composer_cmi.exchange.predict import predict
from run_tools import SENTENCES, make_model

CLASSES = ['label', 'food, and -1']  # a class may be called as a column


@pytest.fixture(scope='module')
def model(tmp_path_factory) -> Path:
    folder = make_model(tmp_path_factory.mktemp('predict') / 'model', positions=16)
    config = AutoConfig.from_pretrained(folder)
    config.id2label = dict(enumerate(CLASSES))
    config.save_pretrained(folder)
    return folder


@pytest.fixture
def texts() -> list[str]:
    words = [text for each in SENTENCES.values() for text in each]
    return [' '.join(words[i : i + 1 + i % 4]).replace('over', 'over,\n"the"') for i in range(len(words))]


def answers(model: Path, rows: list) -> list[list[float]]:
    classify = pipeline('text-classification', model=str(model), device='cpu')
    found = classify(rows, top_k=None, truncation=True)
    return [[{one['label']: one['score'] for one in row}[name] for name in CLASSES] for row in found]


def write_csv(path: Path, columns: list[str], rows) -> Path:
    with path.open('w', newline='') as file:
        csv.writer(file).writerows([columns, *rows])
    return path


def read(path: Path) -> tuple[list[dict[str, str]], list[list[float]]]:
    with path.open(newline='') as file:
        rows = list(csv.DictReader(file))
    return rows, [[float(row[f'p_{name}']) for name in CLASSES] for row in rows]


def close(found, wanted) -> bool:
    return all(a == pytest.approx(b, abs=1e-6) for a, b in zip(found, wanted, strict=True))


def test_single_texts_have_the_pipelines_probabilities_in_the_files_order(model, texts, tmp_path, monkeypatch):
    monkeypatch.setattr(module, 'ROWS', 5)  # several pieces, the last one short
    file = write_csv(tmp_path / 'new.csv', ['id', 'text', 'label'], [(i, t, 'x') for i, t in enumerate(texts)])
    done = predict(model, file, keep=['id', 'text', 'label'], batch_size=3)
    assert done.path == tmp_path / 'new_predictions.csv'
    rows, found = read(done.path)
    assert [row['id'] for row in rows] == [str(i) for i in range(len(texts))]
    assert [row['text'] for row in rows] == texts and {row['label'] for row in rows} == {'x'}
    assert close(found, answers(model, texts))
    best = [CLASSES[row.index(max(row))] for row in found]
    assert [row['prediction'] for row in rows] == best
    assert done.counts == {name: best.count(name) for name in CLASSES}
    assert done.max_length == 16 and done.full == sum(len(text.split()) >= 14 for text in texts)


def test_pairs_have_the_pipelines_probabilities_in_other_formats_too(model, texts, tmp_path):
    pairs = list(zip(texts, texts[::-1], strict=True))
    file = tmp_path / 'new.jsonl'
    file.write_text('\n'.join(json.dumps({'sentence1': a, 'sentence2': b}) for a, b in pairs))
    done = predict(model, file, tmp_path / 'out' / 'p.jsonl', batch_size=4)
    rows = [json.loads(line) for line in done.path.read_text().splitlines()]
    found = [[row[f'p_{name}'] for name in CLASSES] for row in rows]
    wanted = answers(model, [{'text': a.strip(), 'text_pair': b.strip()} for a, b in pairs])
    assert close(found, wanted)
    # Each word by itself is no proof that the second text was read.
    assert not close(found, answers(model, [a for a, _ in pairs]))
    single = predict(model, file, tmp_path / 'single.csv', text_columns=['sentence2'])
    assert close(read(single.path)[1], answers(model, [b for _, b in pairs]))


def test_all_faults_are_told_before_anything_is_predicted(model, tmp_path):
    rows = [('', 'x') if i % 3 == 0 else ('rain', 'x') for i in range(90)]
    file = write_csv(tmp_path / 'new.csv', ['text', 'label'], rows)
    with pytest.raises(DataError) as error:
        predict(model, file)
    told = str(error.value).split('\n')
    assert len(told) == 21 and told[0].startswith(f'{file}, line 2: the text in column') and '10 more' in told[-1]
    assert [path.name for path in tmp_path.iterdir()] == ['new.csv']


def test_what_fails_in_the_middle_leaves_the_old_file(model, texts, tmp_path, monkeypatch):
    file = write_csv(tmp_path / 'new.csv', ['text'], [(text,) for text in texts])
    (tmp_path / 'new_predictions.csv').write_text('old')

    def stop(done, total):
        assert total == len(texts)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict(model, file, progress=stop)
    assert (tmp_path / 'new_predictions.csv').read_text() == 'old'
    assert sorted(path.name for path in tmp_path.iterdir()) == ['new.csv', 'new_predictions.csv']


def test_a_run_folder_names_its_own_columns(model, tmp_path):
    run = tmp_path / 'run'
    run.mkdir()
    (run / 'model').symlink_to(model)
    (run / 'config.yaml').write_text('data: {text_columns: [body]}\n')
    file = write_csv(tmp_path / 'new.csv', ['text', 'body'], [('rain', 'the soup')])
    with pytest.raises(ConfigError, match='the run in it is not finished'):
        predict(run, file)
    (run / 'results.json').write_text('{}')
    assert close(read(predict(run, file).path)[1], answers(model, ['the soup']))
    (run / 'config.yaml').write_text('data: {text_columns: [a, b]}\n')
    with pytest.raises(ConfigError, match=r'was trained on 2 columns of text \(a, b\), here are text: name them by'):
        predict(run, file)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'run': 'nothing'}, "There is no folder 'nothing'"),
        ({'run': '.'}, 'holds no exported model: it has neither'),
        ({'out': 'p.parquet'}, 'written as .csv or .jsonl'),
        ({'out': 'new.csv'}, 'is the file that is read'),
        ({'keep': ['nothing']}, "there is no column 'nothing', .* set --keep"),
        ({'keep': ['prediction']}, '--keep prediction: a column of this name is written already'),
        ({'text_columns': ['body']}, "there is no column 'body', .* set --text-column"),
        ({'file': 'none.csv'}, 'There is no data file'),
    ],
)
def test_what_cannot_be_predicted_is_one_sentence(model, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    write_csv(Path('new.csv'), ['text', 'prediction'], [('rain', 'x')])
    with pytest.raises((ConfigError, DataError, FileNotFoundError), match=message):
        predict(**{'run': model, 'file': 'new.csv', **arguments})


def test_arms_are_named(tmp_path):
    for arm in ('ce', 'mincmi'):
        (tmp_path / arm).mkdir()
        (tmp_path / arm / 'results.json').touch()
    with pytest.raises(ConfigError, match='its arms are runs, name one of them: ce, mincmi'):
        predict(tmp_path, 'new.csv')


def test_a_regression_is_refused(tmp_path):
    folder = make_model(tmp_path / 'model')
    config = AutoConfig.from_pretrained(folder)
    config.problem_type = 'multi_label_classification'
    config.save_pretrained(folder)
    with pytest.raises(ConfigError, match='no single-label classifier .* so it gives no probabilities'):
        predict(folder, write_csv(tmp_path / 'new.csv', ['text'], [('rain',)]))


def test_the_command_needs_no_composer_and_says_what_it_did(model, texts, tmp_path):
    file = tmp_path / 'new.txt'
    file.write_text('\n'.join(text.replace('\n', ' ') for text in texts))
    code = (
        'import sys\n'
        'sys.modules["composer"] = None\n'  # what Python itself does for a package that must not be found
        'from composer_cmi.cli import app\n'
        f'app(["predict", {str(model)!r}, {str(file)!r}, "--out", {str(tmp_path / "p.csv")!r}])'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = done.stdout.splitlines()
    assert told[0].startswith(f'{len(texts)} rows: ') and 'rows fill all 16 tokens' in told[1]
    assert told[2] == str(tmp_path / 'p.csv') and len(read(tmp_path / 'p.csv')[0]) == len(texts)
    refused = CliRunner().invoke(app, ['predict', str(tmp_path), str(file)])
    assert refused.exit_code == 2 and refused.stderr.startswith('composer-cmi: ') and refused.stderr.count('\n') == 1
