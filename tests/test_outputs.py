from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch
from composer.loggers import Logger
from pydantic import ValidationError

from composer_cmi.run.config import ConfigError
from composer_cmi.run.config.schema import OptimizerConfig
from composer_cmi.run.evaluate import Evaluation, _first_of_each, information
from composer_cmi.run.outputs.files import write_json, write_predictions, write_text
from composer_cmi.run.outputs.history import HistoryLogger, read_history
from composer_cmi.run.outputs.model_card import model_card
from composer_cmi.run.outputs.plots import plot_run, project
from composer_cmi.run.outputs.results import RunResults, git_state, load_results, versions
from composer_cmi.run.progress import ProgressBar
from composer_cmi.run.setup import build_optimizer, build_scheduler, to_steps


def evaluation() -> Evaluation:
    return Evaluation(
        example_ids=torch.tensor([3, 5, 8]),
        labels=torch.tensor([1, -100, 0]),
        logits=torch.tensor([[0.25, 1.5], [2.0, -1.0], [0.1, 0.2]]),
        features=torch.tensor([[0.0, 1.0, 2.0], [1.0, 0.0, 0.0], [2.0, 2.0, 0.0]]),
    )


def results(**changes) -> RunResults:
    information = {'cmi': 0.1, 'mutual_information': 0.4, 'relative_cmi': 0.25}
    fields = {
        'run_name': 'x/seed1',
        'task': 'rte',
        'seed': 1,
        'metric': 'accuracy',
        'scores': {'dev': {'accuracy': 0.75, 'nll': 0.5}},
        'cmi': {'after': {'features': information, 'logits': information}},
        'timing': {'train_seconds': 2.0, 'steps': 4, 'seconds_per_step': 0.5, 'total_seconds': 3.0},
        'num_examples': {'train': 10, 'unlabelled': 0, 'dev': 4},
        'majority': {'dev': 0.5},
        'data_fingerprint': 'abc',
        'versions': {'torch': '2'},
        'git': {},
        'config': {
            'model': {'name_or_path': 'm'},
            'algorithms': {'cmi_regularization': {'weight': 0.2}},
            'train': {'max_duration': '1ep', 'batch_size': 8},
            'optimizer': {'lr': 1e-5},
            'scheduler': {'warmup': '0.1dur'},
            'data': {'max_length': 16},
        },
    }
    return RunResults.model_validate({**fields, **changes})


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / 'a.txt'
    write_text(path, 'old')

    def broken(self, *args, **kwargs):
        raise OSError('disk full')

    monkeypatch.setattr(Path, 'write_bytes', broken)
    with pytest.raises(OSError, match='disk full'):
        write_text(path, 'new')
    monkeypatch.undo()
    assert path.read_text() == 'old'
    assert list(tmp_path.iterdir()) == [path]


def test_predictions_are_written_in_full_and_without_a_label_where_there_is_none(tmp_path):
    write_predictions(tmp_path / 'p.csv', evaluation())
    assert (tmp_path / 'p.csv').read_text() == (
        'example_id,label,prediction,logit_0,logit_1\n3,1,1,0.25,1.5\n5,,0,2,-1\n8,0,1,0.100000001,0.200000003\n'
    )
    with (tmp_path / 'p.csv').open() as file:
        logits = [[float(row['logit_0']), float(row['logit_1'])] for row in csv.DictReader(file)]
    assert torch.equal(torch.tensor(logits), evaluation().logits)  # nine digits give every float32 back


def test_history_merges_the_metrics_of_a_step_and_survives_a_round_trip(tmp_path):
    history = HistoryLogger(tmp_path / 'history.csv')
    history.log_metrics({'loss/train/total': torch.tensor(0.5)}, step=0)
    history.log_metrics({'cmi/cmi': 0.25}, step=0)
    history.log_metrics({'loss/train/total': 0.25, 'metrics/dev/Accuracy': torch.tensor(1.0)}, step=1)
    history.log_metrics({'ignored': 1.0})
    saved = history.state_dict()
    history.finish()
    expected = [
        {'step': 0, 'loss/train/total': 0.5, 'cmi/cmi': 0.25},
        {'step': 1, 'loss/train/total': 0.25, 'metrics/dev/Accuracy': 1.0},
    ]
    assert read_history(tmp_path / 'history.csv') == expected
    (tmp_path / 'other.csv').write_text((tmp_path / 'history.csv').read_text())
    resumed = HistoryLogger(tmp_path / 'other.csv')
    resumed.load_state_dict(saved)
    resumed.log_metrics({'loss/train/total': 0.125}, step=1)
    resumed.log_metrics({'loss/train/total': 0.0625}, step=2)
    resumed.finish()
    assert [row['loss/train/total'] for row in read_history(tmp_path / 'other.csv')] == [0.5, 0.125, 0.0625]
    assert read_history(tmp_path / 'other.csv')[0] == expected[0]


def test_a_logged_tensor_is_kept_as_it_was(tmp_path):
    history, value = HistoryLogger(tmp_path / 'history.csv'), torch.tensor(1.0)
    history.log_metrics({'x': value}, step=0)
    value += 1
    history.finish()
    assert read_history(tmp_path / 'history.csv') == [{'step': 0, 'x': 1.0}]


def test_results_are_checked_when_written_and_when_read(tmp_path):
    assert load_results(tmp_path) is None
    write_json(tmp_path / 'results.json', results().model_dump(mode='json'))
    read = load_results(tmp_path)
    assert read == results()
    assert read is not None and read.primary_score == 0.75
    with pytest.raises(ValidationError):
        results(seed='many')
    with pytest.raises(ValidationError):
        results(extra=1)
    write_json(tmp_path / 'results.json', {**results().model_dump(mode='json'), 'schema_version': 2})
    with pytest.raises(ConfigError, match='is not a results file of this version'):
        load_results(tmp_path)
    (tmp_path / 'results.json').write_text('{"run_')
    with pytest.raises(ConfigError, match='is not a results file of this version'):
        load_results(tmp_path)


def test_versions_and_git_state_say_where_a_number_comes_from(tmp_path):
    assert versions()['torch'] == torch.__version__.split('+')[0] or versions()['torch'] == torch.__version__
    assert git_state(tmp_path) == {}


def test_the_model_card_has_front_matter_scores_recipe_and_citation():
    card = model_card(results(), ['no', 'yes'])
    assert card.startswith('---\nlibrary_name: transformers\npipeline_tag: text-classification\n')
    assert '| dev | 4 | 0.7500 | 0.5000 | 0.5000 |' in card
    assert '| after training | features | 0.1 | 0.4 | 0.25 |' in card
    assert 'cmi_regularization weight=0.2' in card
    assert 'data fingerprint: `abc`' in card
    assert 'eprint = {2502.11258}' in card


def test_first_of_each_keeps_one_row_an_id_in_ascending_order():
    ids = torch.tensor([7, 2, 9, 2, 7, 0])
    assert ids[_first_of_each(ids)].tolist() == [0, 2, 7, 9]
    assert _first_of_each(ids).tolist() == [5, 1, 0, 2]


def test_information_of_worked_numbers():
    # Class 0: f = (1/2, 1/2) and (1/4, 3/4); class 1: (1/2, 1/2) alone, so its share of CMI is 0.
    f = torch.tensor([[0.5, 0.5], [0.25, 0.75], [0.5, 0.5], [0.9, 0.1]])
    both = Evaluation(torch.arange(4), torch.tensor([0, 0, 1, -100]), f.log(), f.log() + 3)
    g = torch.tensor([0.375, 0.625])
    class_0 = (f[:2] * (f[:2] / g).log()).sum()
    found = information(both, 2)
    assert found['logits']['cmi'] == pytest.approx(class_0.item() / 3, rel=1e-5)
    assert found['features'] == pytest.approx(found['logits'], rel=1e-5)
    q = f[:3].mean(0)
    mutual = (f[:3] * (f[:3] / q).log()).sum() / 3
    assert found['logits']['mutual_information'] == pytest.approx(mutual.item(), rel=1e-5)


@pytest.mark.parametrize('num_classes', [2, 3, 5])
def test_projection_keeps_separated_clusters_apart(num_classes):
    generator = torch.Generator().manual_seed(0)
    centers = 4 * torch.randn(num_classes, 12, generator=generator)
    labels = torch.arange(num_classes).repeat_interleave(30)
    features = centers[labels] + 0.1 * torch.randn(len(labels), 12, generator=generator)
    points, centroids = project(features, labels, num_classes)
    assert points.shape == (30 * num_classes, 2) and centroids.shape == (num_classes, 2)
    nearest = torch.cdist(points, centroids).argmin(1)
    assert torch.equal(nearest, labels)
    for label in range(num_classes):
        assert torch.allclose(points[labels == label].mean(0), centroids[label])


def test_projection_leaves_an_absent_class_out():
    _, centroids = project(torch.randn(10, 4), torch.tensor([0, 2] * 5), 3)
    assert centroids.isnan().all(1).tolist() == [False, True, False]


@pytest.mark.parametrize('history', [[], [{'step': 0, 'cmi/cmi': 0.1}, {'step': 1, 'metrics/dev/Accuracy': 0.5}]])
def test_the_picture_is_drawn_and_closed(tmp_path, history):
    generator = torch.Generator().manual_seed(0)
    after = Evaluation(
        torch.arange(20),
        torch.arange(20) % 12,
        torch.randn(20, 12, generator=generator),
        torch.randn(20, 8, generator=generator),
    )
    plot_run(
        tmp_path / 'cmi.png',
        title='a title',
        history=history,
        after=after,
        label_names=[f'class {c}' for c in range(12)],
        score_key='metrics/dev/Accuracy',
        score_name='accuracy',
        information={'after': information(after, 12)},
    )
    picture = plt.imread(tmp_path / 'cmi.png')
    assert picture.shape[:2] == (1045, 1650)
    assert (picture[..., :3] != 1).mean() > 0.01  # something is on it
    assert not plt.get_fignums()
    assert [path.name for path in tmp_path.iterdir()] == ['cmi.png']


def test_the_progress_bar_shows_loss_and_cmi():
    from types import SimpleNamespace

    stream = io.StringIO()
    bar = ProgressBar('demo', {'loss/train/total': 'loss', 'cmi/cmi': 'cmi'}, stream)
    state: object = SimpleNamespace(max_duration=SimpleNamespace(value=2), timestamp=SimpleNamespace(batch=0))
    logger: Logger = None  # type: ignore
    bar.fit_start(state, logger)  # type: ignore
    bar.log_metrics({'loss/train/total': torch.tensor(0.5), 'cmi/cmi': 0.00125, 'other': 1.0}, step=0)
    bar.batch_end(state, logger)  # type: ignore
    bar.batch_end(state, logger)  # type: ignore
    bar.fit_end(state, logger)  # type: ignore
    assert 'demo' in stream.getvalue()
    assert '2/2' in stream.getvalue()
    assert 'loss=0.500, cmi=1.25e-03' in stream.getvalue()
    assert 'other' not in stream.getvalue()


@pytest.mark.parametrize(
    ('time', 'steps'),
    [('3ep', 30), ('7ba', 7), ('100sp', 13), ('0.1dur', 5), ('0.25dur', 12), ('0.58dur', 29), ('0dur', 0)],
)
def test_times_are_counted_in_steps(time, steps):
    assert to_steps(time, steps_per_epoch=10, batch_size=8, total=50) == steps


def test_the_schedule_warms_up_and_ends_at_zero():
    from composer.core import Time, Timestamp

    scheduler = build_scheduler(warmup_steps=2, total_steps=10)

    class State:
        max_duration = Time.from_timestring('10ba')
        timestamp = Timestamp()

    factors = []
    for step in range(11):
        State.timestamp = Timestamp(batch=step)
        factors.append(scheduler(State))  # type: ignore
    assert factors == pytest.approx([0, 0.5, 1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125, 0])
    with pytest.raises(ConfigError, match='leave nothing'):
        build_scheduler(10, 10)


def test_biases_and_norms_are_not_decayed():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4), torch.nn.Linear(4, 2))
    model[2].weight.requires_grad_(False)
    decayed, plain = build_optimizer(model, OptimizerConfig(weight_decay=0.1)).param_groups
    assert [p.shape for p in decayed['params']] == [(4, 3)]
    assert len(plain['params']) == 4
    assert (decayed['weight_decay'], plain['weight_decay']) == (0.1, 0.0)


def test_json_ends_with_a_newline_and_keeps_umlauts(tmp_path):
    write_json(tmp_path / 'a.json', {'name': 'Müller'})
    assert (tmp_path / 'a.json').read_text(encoding='utf-8') == '{\n  "name": "Müller"\n}\n'
    assert json.loads((tmp_path / 'a.json').read_text(encoding='utf-8')) == {'name': 'Müller'}
