from __future__ import annotations

import io
import re
import warnings

import pytest
import torch
from composer.algorithms import CutMix, LabelSmoothing, MixUp
from composer.core import Event
from composer.loggers import InMemoryLogger
from composer.models import ComposerClassifier
from torch import nn
from torch.utils.data import TensorDataset

import toys
from composer_cmi import functional as F
from composer_cmi.algorithms import CMIMaximization, CMIRegularization
from composer_cmi.centroids import ClassCentroids
from composer_cmi.metrics import ConditionalMutualInformation


def fit(algorithms, model=None, dataset=None, **kwargs):
    logger = InMemoryLogger()
    trainer = toys.trainer(model or toys.mlp(), dataset or toys.points(), algorithms, loggers=[logger], **kwargs)
    trainer.fit()
    trainer.close()
    return trainer, {name: [float(value) for _, value in series] for name, series in logger.data.items()}


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
    torch.testing.assert_close(algorithm.centroids.log_centroids.exp(), expected, atol=1e-6, rtol=1e-5)


# --- the term itself --------------------------------------------------------------------------------------------------


def test_term_by_hand():
    """D((1/2, 1/2) || (1/4, 3/4)) for class 1; ignored and out-of-range labels give 0."""
    log_f = torch.tensor([[0.5, 0.5]]).log().repeat(4, 1)
    table = torch.tensor([[0.5, 0.5], [0.25, 0.75]]).log()
    rows = F.cmi_term(log_f, torch.tensor([0, 1, -100, 2]), table)
    assert rows.tolist() == pytest.approx([0, 0.14384103622589045, 0, 0], abs=1e-7)


def drive(algorithm, x: torch.Tensor, labels: torch.Tensor, batches: int = 1):
    """Runs the real engine's events by hand on a batch; returns the state before the last commit."""
    trainer = toys.trainer(toys.mlp(), TensorDataset(x, labels), [algorithm], batch_size=len(x))
    state, engine = trainer.state, trainer.engine
    engine.run_event(Event.FIT_START)
    for i in range(batches):
        state.batch = (x, labels)
        for event in (Event.BATCH_START, Event.BEFORE_TRAIN_BATCH, Event.BEFORE_FORWARD):
            engine.run_event(event)
        state.outputs = state.model(state.batch)
        state.loss = state.model.loss(state.outputs, state.batch)
        plain = state.loss
        engine.run_event(Event.AFTER_LOSS)
        if i < batches - 1:
            state.timestamp = state.timestamp.to_next_batch(len(x))
            engine.run_event(Event.AFTER_TRAIN_BATCH)
            engine.run_event(Event.BATCH_END)
    return trainer, plain


def test_relative_gradient_is_that_of_the_ratio():
    """With fresh statistics the split form's gradient equals autograd's of CMI / I(X;Z) over the whole batch."""
    x, labels = (tensor[:48] for tensor in toys.points().tensors)
    algorithm = CMIRegularization(1.0, form='relative', start='0ba')
    trainer, plain = drive(algorithm, x, labels, batches=2)
    model = trainer.state.model
    (trainer.state.loss - plain).backward()
    ours = model.module[0].weight.grad.clone()
    model.zero_grad()
    f = torch.softmax(model.module[:-1](x), -1)
    one_hot = nn.functional.one_hot(labels, toys.CLASSES).float()
    g = one_hot.T @ f / one_hot.sum(0)[:, None]
    cmi = (f * (f.log() - g[labels].log())).sum(-1).mean()
    information = (f * (f.log() - f.mean(0).log())).sum(-1).mean()
    (cmi / information).backward()
    torch.testing.assert_close(ours, model.module[0].weight.grad, atol=1e-6, rtol=1e-3)


def test_scaled_gradient_is_the_plain_one_over_the_initial_cmi():
    x, labels = (tensor[:48] for tensor in toys.points().tensors)
    gradients = {}
    for form in ('plain', 'scaled'):
        algorithm = CMIRegularization(0.5, form=form, start='0ba')
        trainer, plain = drive(algorithm, x, labels, batches=2)
        (trainer.state.loss - plain).backward()
        gradients[form] = trainer.state.model.module[0].weight.grad
    torch.testing.assert_close(gradients['scaled'] * algorithm.initial_cmi.float(), gradients['plain'])


def ascend(mode: str, steps: int) -> list[tuple[float, float, float]]:
    """Features = an offset per class + noise of a learnt size, centroids starting far away.

    Returns:
        per step: true CMI, the objective's value, and the cosine of its gradient with that of true CMI.
    """
    generator = torch.Generator().manual_seed(0)
    labels, every = torch.arange(60) % 3, torch.ones(60, dtype=torch.bool)
    noise = torch.randn(60, 8, generator=generator) * 0.3
    offset, log_size = torch.zeros(3, 8, requires_grad=True), torch.zeros((), requires_grad=True)
    table = ClassCentroids(mode, CMIMaximization().centroids.decay)
    table.allocate(3, 8, torch.device('cpu'))
    table.begin()
    table.add(F.log_distribution(torch.randn(3, 8, generator=generator)[labels]), labels, every, every)
    if mode == 'fixed':
        table.fix()
    trace = []
    for _ in range(steps):
        table.finish()
        table.commit()
        log_f = F.log_distribution(offset[labels] + log_size.exp() * noise)
        objective = F.cmi_term(log_f, labels, table.log_centroids.float()).mean()
        one_hot = nn.functional.one_hot(labels, 3).float()
        log_g = (one_hot.T @ log_f.exp() / one_hot.sum(0)[:, None]).log()
        cmi = F.divergence(log_f, log_g[labels]).mean()
        ours = torch.autograd.grad(objective, [offset, log_size], retain_graph=True)
        true = torch.autograd.grad(cmi, [offset, log_size])
        cosine = torch.cosine_similarity(*(torch.cat([g.flatten() for g in gs]) for gs in (ours, true)), dim=0)
        trace.append((cmi.item(), objective.item(), cosine.item()))
        with torch.no_grad():
            offset += 0.5 * ours[0]
            log_size += 0.5 * ours[1]
        table.begin()
        table.add(log_f.detach(), labels, every, every)
    return trace


def test_ascent_is_that_of_true_cmi_from_far_away():
    """Stale centroids are climbed by drift; those of `CMIMaximization` point along true CMI after a few batches."""
    stale, fresh = ascend('fixed', 12), ascend('ema', 12)
    assert fresh[0][2] < 0.6, 'the start is far from the class means'
    assert all(cosine > 0.99 for _, _, cosine in fresh[4:])
    assert all(objective - cmi < 0.02 * cmi for cmi, objective, _ in fresh[6:]), 'no drift is left'
    assert all(cosine < 0.8 for _, _, cosine in stale)
    assert all(objective > 4 * cmi for cmi, objective, _ in stale), 'most of the stale objective is drift'


@pytest.mark.parametrize(('cap', 'limit'), [({'max_cmi': 0.05}, 0.05), ({'max_growth': 1.5}, None)])
def test_the_cap_holds(cap, limit):
    free = fit([CMIMaximization(20.0, space='features', start='2ba')], max_duration='15ep')[1]
    algorithm = CMIMaximization(20.0, space='features', start='2ba', **{'max_growth': None, **cap})
    capped = fit([algorithm], max_duration='15ep')[1]
    limit = limit or 1.5 * algorithm.initial_cmi.item()
    assert free['cmi/cmi'][-1] > 3 * limit
    assert max(capped['cmi/cmi']) < 2 * limit  # a step under way carries it over a little


# --- hostile input ----------------------------------------------------------------------------------------------------


def test_ignored_rows_and_rows_that_are_not_finite():
    x, labels = (tensor[:16].clone() for tensor in toys.points().tensors)
    labels[3] = -100
    x[5] = float('nan')
    algorithm = CMIRegularization(1.0, form='plain', start='0ba')
    trainer, _ = drive(algorithm, x, labels, batches=3)
    assert algorithm.centroids.skipped == 2  # the same row in two committed batches
    assert torch.isfinite(algorithm.centroids.log_centroids).all()
    assert algorithm.centroids.tables['totals'][:, 1].sum() == 2 * 14
    assert trainer.state.loss.requires_grad


def test_a_batch_of_ignored_rows_is_harmless():
    x, labels = (tensor[:16].clone() for tensor in toys.points().tensors)
    algorithm = CMIRegularization(1.0, form='plain', start='0ba')
    drive(algorithm, x, torch.full_like(labels, -100), batches=3)
    assert algorithm.centroids.cmi == 0 and not algorithm.centroids.known.any()


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
        ({'space': 'logit'}, "space must be one of features, logits, got 'logit'"),
        ({'form': 'raw'}, "form must be one of scaled, plain, relative, got 'raw'"),
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
        ({'centroids': 'epoch'}, "centroids='ema' or 'fixed'"),
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
        running = algorithm.centroids.tables['running']
        if flip:
            running[:, -3] = 0  # no prediction is right
        else:
            running[:, -3] = running[:, -1] / toys.CLASSES
            algorithm.peak_information = 100 * algorithm.centroids.mutual_information
        for _ in range(4):
            algorithm._guard()
        state = algorithm.state_dict()
        fresh = CMIRegularization(1.0, form='plain', start='0ba')
        fresh.load_state_dict(state)
        fresh._weight_now = 1.0
        fresh._guard()  # warned before the resume: not again
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
    assert torch.equal(other.centroids.log_centroids, algorithm.centroids.log_centroids)
    assert other.initial_cmi == algorithm.initial_cmi > 0


@pytest.mark.parametrize(
    ('change', 'words'), [({'schema_version': 9}, 'schema version 9'), ({'space': 'logits'}, "space='logits'")]
)
def test_a_foreign_state_is_refused(change, words):
    with pytest.raises(ValueError, match=words):
        CMIRegularization().load_state_dict({**CMIRegularization().state_dict(), **change})


def test_no_step_waits_for_the_device(monkeypatch):
    """Between the guard's readings nothing of ours turns a tensor into a Python value."""
    calls = []
    x, labels = (tensor[:16] for tensor in toys.points().tensors)
    algorithm = CMIRegularization(1.0, start='0ba')
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


def test_the_logged_loss_is_what_was_added():
    """Also in the first batch, when no class has a centroid yet."""
    _, with_term = fit([CMIRegularization(3.0, form='plain', start='0ba')], max_duration='3ba')
    _, without = fit([CMIRegularization(0.0)], max_duration='1ba')
    assert with_term['cmi/loss'][0] == 0
    assert with_term['loss/train/total'][0] == pytest.approx(without['loss/train/total'][0])
    assert with_term['cmi/loss'][1] > 0
