"""Hostile input to the CMI algorithms is left out or refused in one sentence; collapsing clusters are warned of."""

from __future__ import annotations

import re
import warnings

import pytest
import torch
from composer.algorithms import CutMix, LabelSmoothing, MixUp
from torch.utils.data import TensorDataset

import toys
from cmi_tools import drive, fit
from composer_cmi.algorithms import CMIMaximization, CMIRegularization

# --- hostile input ----------------------------------------------------------------------------------------------------


def test_ignored_rows_and_rows_that_are_not_finite():
    x, labels = (tensor[:16].clone() for tensor in toys.points().tensors)
    labels[3] = -100
    x[5] = float('nan')
    algorithm = CMIRegularization(1.0, form='plain', start='0ba')
    trainer, _ = drive(algorithm, x, labels, batches=3)
    assert algorithm.class_centroids.skipped == 2  # the same row in two committed batches
    assert torch.isfinite(algorithm.class_centroids.reference.log_centroids).all()
    assert algorithm.class_centroids.tables['totals'][:, 1].sum() == 2 * 14
    assert trainer.state.loss.requires_grad


def test_a_batch_of_ignored_rows_is_harmless():
    x, labels = (tensor[:16].clone() for tensor in toys.points().tensors)
    algorithm = CMIRegularization(1.0, form='plain', start='0ba')
    drive(algorithm, x, torch.full_like(labels, -100), batches=3)
    assert algorithm.class_centroids.running.cmi == 0 and not algorithm.class_centroids.reference.known.any()


@pytest.mark.parametrize('batch_size', [1, 2])
def test_tiny_batches(batch_size):
    model = toys.mlp()
    _, logged = fit([CMIRegularization()], model, toys.points(12), batch_size=batch_size, max_duration='3ep')
    assert torch.isfinite(toys.weights(model)).all()
    assert all(value == value for value in logged['cmi/loss'])


def test_one_class_only():
    x, labels = toys.points().tensors
    model = toys.mlp()
    fit([CMIRegularization()], model, TensorDataset(x, torch.zeros_like(labels)))
    assert torch.isfinite(toys.weights(model)).all()


def test_regression_labels_are_refused():
    x, labels = toys.points().tensors
    with pytest.raises(ValueError, match=r'one integer class per example in batch\[1\], got torch.float32'):
        fit([CMIRegularization()], dataset=TensorDataset(x, labels.float()))


@pytest.mark.parametrize('partner', [MixUp(), CutMix()])
def test_mixtures_are_refused(partner):
    with pytest.raises(ValueError, match=f'cannot be combined with {type(partner).__name__}'):
        fit([CMIRegularization(), partner])


def test_label_smoothing_leaves_the_hard_labels_to_the_term():
    for algorithms in ([CMIRegularization(), LabelSmoothing()], [LabelSmoothing(), CMIRegularization()]):
        _, logged = fit(algorithms)
        assert logged['cmi/train_accuracy'][-1] > 0.5


def test_two_cmi_algorithms_are_refused():
    with pytest.raises(ValueError, match='Only one CMI algorithm'):
        fit([CMIRegularization(), CMIMaximization()])


@pytest.mark.parametrize(
    ('kwargs', 'words'),
    [
        ({'weight': -1}, 'weight must be at least 0'),
        ({'space': 'logit'}, "space must be one of features, logits, centered, got 'logit'"),
        ({'form': 'raw'}, "form must be one of scaled, plain, relative, normalized, contrastive, got 'raw'"),
        ({'temperature': 0}, 'temperature must be positive'),
        ({'start': '0.3dur', 'ramp': '10ba'}, 'start and ramp must be in the same unit'),
        ({'centroids': 'mean'}, 'centroids must be one of'),
        ({'decay': 1.5}, 'decay must lie'),
    ],
)
def test_bad_arguments(kwargs, words):
    with pytest.raises(ValueError, match=words):
        CMIRegularization(**kwargs)


@pytest.mark.parametrize(
    ('kwargs', 'words'),
    [
        ({'centroids': 'epoch'}, 'centroids must be one of ema, fixed'),
        ({'max_cmi': 0}, 'max_cmi must be positive'),
        ({'max_growth': 1}, 'max_growth must be above 1'),
    ],
)
def test_bad_arguments_of_the_maximization(kwargs, words):
    with pytest.raises(ValueError, match=words):
        CMIMaximization(**kwargs)


# --- guard ------------------------------------------------------------------------------------------------------------


def guarded(x, labels, flip: bool) -> list[str]:
    algorithm = CMIRegularization(1.0, form='plain', start='0ba')
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        trainer, _ = drive(algorithm, x, labels, batches=3)
        running = algorithm.class_centroids.tables['running']
        if flip:
            running[:, -3] = 0  # no prediction is right
        else:
            running[:, -3] = running[:, -1] / toys.CLASSES
            algorithm.guard.peak_information = 100 * algorithm.class_centroids.running.mutual_information
        for _ in range(4):
            algorithm._check_guard()
        state = algorithm.state_dict()
        fresh = CMIRegularization(1.0, form='plain', start='0ba')
        fresh.load_state_dict(state)
        fresh._check_guard()  # warned before the resume: not again
    trainer.close()
    return [str(w.message) for w in caught if 'clusters have' in str(w.message)]


@pytest.mark.parametrize(
    ('flip', 'words'), [(True, 'settled on the wrong labels'), (False, 'collapsed: I\\(X;Z\\) fell')]
)
def test_guard_names_the_trouble_once(flip, words):
    messages = guarded(*(tensor[:48] for tensor in toys.points().tensors), flip)
    assert len(messages) == 1
    assert re.search(words, messages[0]) and "start='0ba'" in messages[0]


def test_guard_sees_a_real_collapse():
    """Labels without signal and a huge weight: the features are dragged to a constant."""
    points, labels = toys.points().tensors
    data = TensorDataset(points, labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))])
    model = toys.mlp()
    adam = torch.optim.Adam(model.parameters(), lr=0.02)
    with pytest.warns(UserWarning, match=r'collapsed: I\(X;Z\) fell from'):
        fit([CMIRegularization(1e3, form='plain', start='0ba')], model, data, max_duration='30ep', optimizers=adam)


def test_guard_is_silent_on_a_good_run():
    with warnings.catch_warnings():
        warnings.filterwarnings('error', message='.*clusters have')
        fit([CMIRegularization()], max_duration='12ep')
