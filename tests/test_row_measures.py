"""Training rows are measured on their way: right, whatever the split into passes, and without a trace in the training."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from composer_cmi.data.tasks import METRICS, Task
from composer_cmi.run.command import run_file
from composer_cmi.run.evaluate import Evaluation, information
from composer_cmi.run.measures.row_measures import RowMeasures
from composer_cmi.run.measures.tables import read_table, table_of_rows
from composer_cmi.run.outputs.history import read_history
from composer_cmi.run.outputs.results import load_results
from composer_cmi.run.scoring import score
from run_tools import make_all


@pytest.fixture
def rows() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 2, (60,), generator=generator)
    labels[::7] = -100
    return torch.randn(60, 5, generator=generator), torch.randn(60, 2, generator=generator), labels


@pytest.mark.parametrize('metric', METRICS)
def test_a_table_says_what_the_scores_of_a_run_say(rows, metric):
    features, logits, labels = rows
    found = read_table(table_of_rows(*rows), metric)
    task = Task('t', 'of a test', ('text',), ('a', 'b'), metrics=(metric,))
    scores = score(task, logits, labels)
    assert found[metric] == pytest.approx(scores[metric], abs=1e-6)
    assert found['nll'] == pytest.approx(scores['nll'], abs=1e-6)
    expected = information(Evaluation(torch.arange(60), labels, logits, features), 2)['features']
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-4)


def test_tables_of_parts_add_up_and_leave_out_what_is_not_finite(rows):
    features, logits, labels = rows
    whole = table_of_rows(*rows)
    parts = [table_of_rows(features[part], logits[part], labels[part]) for part in torch.arange(60).split(7)]
    assert torch.allclose(sum(parts[1:], parts[0]), whole, rtol=1e-12)
    broken = (features.clone(), logits.clone(), labels)
    broken[0][1], broken[1][2, 0] = torch.nan, torch.inf
    left = [i for i in range(60) if i not in (1, 2)]
    assert torch.allclose(table_of_rows(*broken), table_of_rows(*(each[left] for each in rows)), rtol=1e-12)
    assert read_table(table_of_rows(features, logits, torch.full_like(labels, -100)), 'accuracy') == {}


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / 'model' / 'model.safetensors').read_bytes()).hexdigest()


def test_every_run_logs_its_training_rows_and_trains_the_same(tmp_path, monkeypatch):
    # Dropout, and two passes a step: a draw of the generator more, or a hook that changes a value, would show.
    path = make_all(
        tmp_path,
        algorithms={},
        train={'max_duration': '3ep', 'batch_size': 8, 'microbatch_size': 4, 'progress_bar': False, 'device': 'cpu'},
    )
    with_dropout(tmp_path / 'model')
    assert run_file(str(path), ['run_name=measured']) == 0
    runs = tmp_path / 'runs'
    history = read_history(runs / 'measured' / 'history.csv')
    for name in ('nll', 'accuracy', 'cmi', 'mutual_information', 'relative_cmi'):
        assert [row['step'] for row in history if f'metrics/train/{name}' in row] == [3, 6, 9]
    results = load_results(runs / 'measured')
    assert results is not None
    # The last evaluation saw the model that is scored in the end.
    assert history[-1]['metrics/dev/cmi'] == pytest.approx(results.cmi['after']['features'].cmi, rel=1e-4)
    assert history[-1]['metrics/dev/relative_cmi'] == pytest.approx(
        results.cmi['after']['features'].relative_cmi, rel=1e-4
    )
    for event in (
        'before_forward',
        'after_forward',
        '_attach',
        'eval_before_forward',
        'eval_after_forward',
        'eval_before_all',
    ):
        monkeypatch.setattr(RowMeasures, event, lambda *_: None)
    assert run_file(str(path), ['run_name=bare']) == 0
    assert not any('metrics/train/nll' in row for row in read_history(runs / 'bare' / 'history.csv'))
    assert digest(runs / 'bare') == digest(runs / 'measured')
    weights = [load_file(runs / name / 'model' / 'model.safetensors') for name in ('bare', 'measured')]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def with_dropout(folder: Path) -> None:
    import json

    config = json.loads((folder / 'config.json').read_text())
    (folder / 'config.json').write_text(json.dumps({**config, 'hidden_dropout_prob': 0.1}))


def test_training_rows_of_a_model_that_stands_still_are_all_its_rows(tmp_path):
    # 24 rows, 3 steps an epoch: what an epoch logs is a score of the whole training set, which `dev` is here as well.
    path = make_all(tmp_path, algorithms={}, optimizer={'lr': 1e-12})
    (tmp_path / 'data' / 'dev.tsv').write_bytes((tmp_path / 'data' / 'train.tsv').read_bytes())
    assert run_file(str(path), ['train.max_duration=2ep']) == 0
    row = read_history(tmp_path / 'runs' / 'tiny' / 'history.csv')[-1]
    pairs = {
        'nll': 'NegativeLogLikelihood',
        'accuracy': 'Accuracy',
        'cmi': 'cmi',
        'mutual_information': 'mutual_information',
    }
    for name, logged in pairs.items():
        assert row[f'metrics/train/{name}'] == pytest.approx(row[f'metrics/dev/{logged}'], rel=1e-3), name
    # Without evaluations they are logged all the same.
    assert run_file(str(path), ['run_name=blind', 'train.max_duration=2ep', 'train.eval_interval=0ep']) == 0
    blind = read_history(tmp_path / 'runs' / 'blind' / 'history.csv')
    assert [row['step'] for row in blind if 'metrics/train/cmi' in row] == [3, 6]
    assert blind[-1]['metrics/train/nll'] == pytest.approx(row['metrics/train/nll'], rel=1e-5)
