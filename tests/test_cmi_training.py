"""What training with a CMI algorithm does on any classifier, what it logs, and the state that it saves."""

from __future__ import annotations

import io

import pytest
import torch
from composer.core import Event
from composer.models import ComposerClassifier

import toys
from cmi_tools import drive, fit
from composer_cmi import functional as F
from composer_cmi.algorithms import CMIMaximization, CMIRegularization
from composer_cmi.metrics import ConditionalMutualInformation


def held_out_cmi(model: ComposerClassifier, space: str) -> float:
    x, labels = toys.points(256, seed=0).tensors
    model.eval()
    with torch.no_grad():
        values = model.module[:-1](x) if space == 'features' else model.module(x)
    metric = ConditionalMutualInformation(toys.CLASSES, values.shape[1])
    metric.update(values, labels)
    return metric.compute().item()


# --- what a user gets -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('make', [toys.mlp, toys.tiny_bert])
def test_no_argument_works_on_any_classifier_and_logs(make):
    dataset = toys.points() if make is toys.mlp else toys.Sentences(64)
    _, logged = fit([CMIRegularization()], make(), dataset, max_duration='10ba', lr=0.01)
    names = ('cmi', 'mutual_information', 'relative_cmi', 'weight', 'loss', 'train_accuracy', 'skipped_rows')
    for name in names:
        assert len(logged[f'cmi/{name}']) == 10, name
    assert logged['cmi/weight'] == [0.0] * 3 + [0.05] * 7  # start='0.3dur'
    assert all(0 < cmi <= mi for cmi, mi in zip(logged['cmi/cmi'], logged['cmi/mutual_information'], strict=True))
    assert logged['cmi/loss'][3] == pytest.approx(0.05, rel=0.7)  # in units of CMI_0 it starts near its weight


def test_weight_zero_measures_and_changes_nothing():
    weights = []
    for algorithms in ([], [CMIRegularization(0.0)], [CMIMaximization(0.0)]):
        model = toys.mlp(dropout=0.3)
        _, logged = fit(algorithms, model)
        weights.append(toys.weights(model))
    assert torch.equal(weights[0], weights[1]) and torch.equal(weights[0], weights[2])
    assert logged['cmi/cmi'][-1] > 0


def test_before_the_start_the_run_is_the_plain_one():
    plain, late = toys.mlp(), toys.mlp()
    fit([], plain, max_duration='6ba')
    fit([CMIRegularization(5.0, start='6ba')], late, max_duration='6ba')
    assert torch.equal(toys.weights(plain), toys.weights(late))


@pytest.mark.parametrize('space', ['features', 'logits'])
@pytest.mark.parametrize('seed', [1, 2, 3])
def test_the_sign_on_data(space, seed):
    """Held-out CMI, measured afresh: minimised below CE alone, maximised above it."""
    values = []
    weight = {'features': 10.0, 'logits': 1.0}[space]
    options = {'space': space, 'form': 'plain', 'start': '0.2dur'}
    for algorithms in (
        [CMIRegularization(weight, **options)],
        [],
        [CMIMaximization(weight, **options)],
    ):
        model = toys.mlp(seed=seed)
        fit(algorithms, model, max_duration='12ep')
        values.append(held_out_cmi(model, space))
    assert values[0] < 0.97 * values[1] < 0.97 * values[2], values


def test_ramp_rises_linearly():
    _, logged = fit([CMIRegularization(1.0, start='2ba', ramp='4ba')], max_duration='8ba')
    assert logged['cmi/weight'] == pytest.approx([0, 0, 0, 0.25, 0.5, 0.75, 1, 1])


def test_fixed_centroids_come_from_one_pass_in_eval_mode():
    """They are the class means of the model as it stood at the start, dropout off, and stay."""
    model, data = toys.mlp(dropout=0.5), toys.points()
    algorithm = CMIRegularization(0.1, form='plain', centroids='fixed', start='0ba')
    x, labels = data.tensors
    model.eval()
    with torch.no_grad():
        expected = F.centroids(F.class_statistics(F.log_distribution(model.module[:-1](x)), labels, toys.CLASSES))
    fit([algorithm], model, data)
    torch.testing.assert_close(algorithm.class_centroids.reference.log_centroids.exp(), expected, atol=1e-6, rtol=1e-5)


def test_the_logged_loss_is_what_was_added():
    """Also in the first batch, when no class has a centroid yet."""
    _, with_term = fit([CMIRegularization(3.0, form='plain', start='0ba')], max_duration='3ba')
    _, without = fit([CMIRegularization(0.0)], max_duration='1ba')
    assert with_term['cmi/loss'][0] == 0
    assert with_term['loss/train/total'][0] == pytest.approx(without['loss/train/total'][0])
    assert with_term['cmi/loss'][1] > 0


@pytest.mark.parametrize(
    'arguments',
    [
        {},
        {'form': 'normalized', 'temperature': [1.0, 2.0]},
        {'form': 'plain', 'separation': 0.1},
        {'form': 'contrastive', 'space': 'centered'},
    ],
    ids=str,
)
def test_no_step_waits_for_the_device(monkeypatch, arguments):
    """Between the guard's readings nothing of ours turns a tensor into a Python value."""
    calls = []
    x, labels = (tensor[:16] for tensor in toys.points().tensors)
    algorithm = CMIRegularization(1.0, start='0ba', **arguments)
    trainer, _ = drive(algorithm, x, labels, batches=3)
    state = trainer.state
    for name in ('item', 'tolist', '__bool__', '__float__', '__int__', 'cpu', 'numpy', 'nonzero'):
        original = getattr(torch.Tensor, name)
        monkeypatch.setattr(
            torch.Tensor, name, lambda self, *a, _n=name, _o=original, **k: (calls.append(_n), _o(self, *a, **k))[1]
        )
    for event in (Event.AFTER_TRAIN_BATCH, Event.BATCH_END, Event.BATCH_START, Event.BEFORE_TRAIN_BATCH):
        algorithm.apply(event, state, trainer.logger)
    algorithm.apply(Event.BEFORE_FORWARD, state, trainer.logger)
    state.outputs = state.model(state.batch)
    state.loss = state.model.loss(state.outputs, state.batch)
    calls.clear()
    algorithm.apply(Event.AFTER_LOSS, state, trainer.logger)
    algorithm.apply(Event.AFTER_TRAIN_BATCH, state, trainer.logger)
    algorithm.apply(Event.BATCH_END, state, trainer.logger)
    assert calls == []


# --- state ------------------------------------------------------------------------------------------------------------


def test_state_is_plain_and_repr_is_stable():
    algorithm = CMIRegularization()
    before = repr(algorithm)
    fit([algorithm])
    assert repr(algorithm) == before and '0x' not in before
    buffer = io.BytesIO()
    torch.save(algorithm.state_dict(), buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=True)
    other = CMIRegularization()
    other.load_state_dict(loaded)
    assert torch.equal(other.class_centroids.reference.log_centroids, algorithm.class_centroids.reference.log_centroids)
    assert other.term.initial_cmi == algorithm.term.initial_cmi > 0


@pytest.mark.parametrize(
    ('change', 'words'), [({'schema_version': 9}, 'schema version 9'), ({'space': 'logits'}, "space='logits'")]
)
def test_a_foreign_state_is_refused(change, words):
    with pytest.raises(ValueError, match=words):
        CMIRegularization().load_state_dict({**CMIRegularization().state_dict(), **change})
