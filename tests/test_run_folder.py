"""What a whole run of a tiny BERT leaves, through the command line's own function, and what reads it again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
import transformers
from typer.testing import CliRunner

from composer_cmi import metrics
from composer_cmi.cli import app
from composer_cmi.run.command import run_file
from composer_cmi.run.outputs.history import read_history
from composer_cmi.run.outputs.results import load_results
from run_tools import make_all, make_data, make_model, make_yaml, predictions


def finished_after(folder: Path) -> float:
    return (folder / 'results.json').stat().st_mtime - psutil.Process().create_time() + 0.1


@pytest.fixture(scope='module')
def finished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('finished')
    assert run_file(str(make_all(folder)), []) == 0
    return folder


def test_a_run_leaves_every_file_of_the_run_folder(finished):
    folder = finished / 'runs' / 'tiny'
    names = {path.name for path in folder.iterdir()}
    assert names >= {
        'config.yaml',
        'results.json',
        'history.csv',
        'predictions_dev.csv',
        'features_dev.npz',
        'checkpoints',
        'model',
        'cmi.png',
    }
    assert not [name for name in names if name.endswith('.tmp')]
    assert (folder / 'cmi.png').read_bytes().startswith(b'\x89PNG')
    assert '## Citation' in (folder / 'model' / 'README.md').read_text()


def test_results_hold_what_the_predictions_say(finished):
    folder = finished / 'runs' / 'tiny'
    results, rows = load_results(folder), predictions(folder)
    assert results is not None
    assert len(rows) == results.num_examples['dev'] == 7
    assert [int(row['example_id']) for row in rows] == list(range(7))
    accuracy = sum(row['label'] == row['prediction'] for row in rows) / 7
    assert results.primary_score == pytest.approx(accuracy)
    assert results.timing.steps == 9
    # Beside one another they are the time of the whole, to the pictures: no part of it is told twice.
    before, after = results.timing.before_seconds, results.timing.after_seconds
    assert before is not None and after is not None
    assert before > 0 and after > 0
    assert before + results.timing.train_seconds + after <= finished_after(folder)
    assert results.majority['dev'] == pytest.approx(4 / 7)
    assert results.config['optimizer']['lr'] == 1e-3
    # CMI once more, by the torchmetrics class, from the logits in the file.
    logits = torch.tensor([[float(row['logit_0']), float(row['logit_1'])] for row in rows])
    metric = metrics.ConditionalMutualInformation(num_classes=2)
    metric.update(logits, torch.tensor([int(row['label']) for row in rows]))
    assert results.cmi['after']['logits'].cmi == pytest.approx(metric.compute().item(), rel=1e-5)
    # And in feature space, from the file for pictures, which is in half precision.
    stored = np.load(folder / 'features_dev.npz')
    assert stored['example_ids'].tolist() == list(range(7))
    names = json.loads((folder / 'model' / 'config.json').read_text())['id2label']
    assert stored['label_names'].tolist() == list(names.values())
    metric = metrics.ConditionalMutualInformation(num_classes=2, dim=16)
    metric.update(torch.from_numpy(stored['features']), torch.from_numpy(stored['labels']))
    assert results.cmi['after']['features'].cmi == pytest.approx(metric.compute().item(), rel=0.3)
    assert results.cmi['before']['logits'].cmi != results.cmi['after']['logits'].cmi


def test_the_history_has_loss_cmi_and_score_by_step(finished):
    history = read_history(finished / 'runs' / 'tiny' / 'history.csv')
    assert [row['step'] for row in history if 'loss/train/total' in row] == list(range(9))
    assert [row['step'] for row in history if 'cmi/cmi' in row] == list(range(9))
    scored = [row for row in history if 'metrics/dev/Accuracy' in row]
    assert [row['step'] for row in scored] == [3, 6, 9]
    results = load_results(finished / 'runs' / 'tiny')
    assert results is not None
    assert scored[-1]['metrics/dev/Accuracy'] == pytest.approx(results.primary_score)


def test_the_exported_model_answers_as_the_run_did(finished):
    folder = finished / 'runs' / 'tiny'
    classify = transformers.pipeline('text-classification', model=str(folder / 'model'))
    lines = (finished / 'data' / 'dev.tsv').read_text().splitlines()[1:]
    answers = [answer['label'] for answer in classify([line.split('\t')[0] for line in lines])]
    names = ['food', 'weather']
    assert answers == [names[int(row['prediction'])] for row in predictions(folder)]


def test_a_finished_run_is_not_run_again_and_another_one_is_refused(finished, capsys):
    results = finished / 'runs' / 'tiny' / 'results.json'
    before = results.stat().st_mtime_ns
    assert run_file(str(finished / 'run.yaml'), []) == 0
    assert 'finished before' in capsys.readouterr().out
    assert results.stat().st_mtime_ns == before
    assert run_file(str(finished / 'run.yaml'), ['optimizer.lr=2e-3']) == 2
    assert 'finished run with optimizer.lr = 0.001, not 0.002' in capsys.readouterr().err


def test_a_run_folder_is_a_model_for_the_next_run(finished, capsys):
    overrides = [
        'run_name=next',
        f'model.name_or_path={finished}/runs/tiny',
        'train.max_duration=1ba',
        'optimizer.lr=1e-9',
    ]
    assert run_file(str(finished / 'run.yaml'), overrides) == 0
    first, second = (load_results(finished / 'runs' / name) for name in ('tiny', 'next'))
    assert first is not None and second is not None
    assert second.cmi['before']['features'].cmi == pytest.approx(first.cmi['after']['features'].cmi, rel=1e-4)


def test_lora_trains_resumes_nothing_and_exports_a_merged_model(tmp_path):
    pytest.importorskip('peft')
    path = make_all(tmp_path, peft={'r': 4, 'lora_alpha': 8, 'target_modules': ['query', 'value']})
    assert run_file(str(path), []) == 0
    folder = tmp_path / 'runs' / 'tiny'
    assert not (folder / 'model' / 'adapter_config.json').exists()
    classify = transformers.pipeline('text-classification', model=str(folder / 'model'))
    texts = [line.split('\t')[0] for line in (tmp_path / 'data' / 'dev.tsv').read_text().splitlines()[1:]]
    names = ['food', 'weather']
    expected = [names[int(row['prediction'])] for row in predictions(folder)]
    assert [answer['label'] for answer in classify(texts)] == expected


def test_the_command_line_lists_and_runs(finished):
    runner = CliRunner()
    listed = runner.invoke(app, ['list', 'algorithms'])
    assert listed.exit_code == 0
    assert 'cmi_regularization' in listed.output and 'gradient_clipping' in listed.output
    assert runner.invoke(app, ['list', 'tsks']).exit_code == 2
    assert runner.invoke(app, ['run', str(finished / 'run.yaml')]).exit_code == 0
    assert runner.invoke(app, ['run', str(finished / 'none.yaml')]).exit_code == 2


def test_helpers_make_disjoint_splits(tmp_path):
    folder = make_data(tmp_path / 'data')
    train, dev = (
        {line.split('\t')[0] for line in (folder / f'{n}.tsv').read_text().splitlines()} for n in ('train', 'dev')
    )
    assert train & dev == {'text'}
    make_model(tmp_path / 'model')
    assert make_yaml(tmp_path).is_file()
