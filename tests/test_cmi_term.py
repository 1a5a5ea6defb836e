"""The CMI term itself: by hand, its gradient in every form, and its ascent along true CMI up to the cap."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import toys
from cmi_tools import drive, fit
from composer_cmi import functional as F
from composer_cmi.algorithms import CMIMaximization, CMIRegularization
from composer_cmi.centroids import ClassCentroids


def test_term_by_hand():
    """D((1/2, 1/2) || (1/4, 3/4)) for class 1; ignored and out-of-range labels give 0."""
    log_f = torch.tensor([[0.5, 0.5]]).log().repeat(4, 1)
    table = torch.tensor([[0.5, 0.5], [0.25, 0.75]]).log()
    rows = F.cmi_term(log_f, torch.tensor([0, 1, -100, 2]), table)
    assert rows.tolist() == pytest.approx([0, 0.14384103622589045, 0, 0], abs=1e-7)


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
    torch.testing.assert_close(gradients['scaled'] * algorithm.term.initial_cmi.float(), gradients['plain'])


def ascend(mode: str, steps: int) -> list[tuple[float, float, float]]:
    """Features = an offset per class + noise of a learnt size, centroids starting far away.

    Returns:
        per step: true CMI, the objective's value, and the cosine of its gradient with that of true CMI.
    """
    generator = torch.Generator().manual_seed(0)
    labels, every = torch.arange(60) % 3, torch.ones(60, dtype=torch.bool)
    noise = torch.randn(60, 8, generator=generator) * 0.3
    offset, log_size = torch.zeros(3, 8, requires_grad=True), torch.zeros((), requires_grad=True)
    table = ClassCentroids(mode, CMIMaximization().decay)
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
        objective = F.cmi_term(log_f, labels, table.reference.log_centroids.float()).mean()
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
    limit = limit or 1.5 * algorithm.term.initial_cmi.item()
    assert free['cmi/cmi'][-1] > 3 * limit
    assert max(capped['cmi/cmi']) < 2 * limit  # a step under way carries it over a little
