"""The family of the CMI term: separation, NCMI, contrastive, centred features, several temperatures."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import toys
from cmi_tools import drive, fit
from composer_cmi import functional as F
from composer_cmi.algorithms import CMIMaximization, CMIRegularization
from composer_cmi.centroids import ClassCentroids

HALF, QUARTER = (torch.tensor([[a, 1 - a]], dtype=torch.float64).log() for a in (0.5, 0.25))
TABLE = torch.cat([HALF, QUARTER])


def rows(n: int, d: int, c: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    return F.log_distribution(x), torch.randint(c, (n,), generator=generator)


def means(log_f: torch.Tensor, labels: torch.Tensor, c: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Class means of log f and the shares of the classes."""
    counts = torch.bincount(labels, minlength=c).double()
    return F.sum_by_class(log_f, labels, c) / counts.clamp(min=1)[:, None], counts / counts.sum()


# --- by hand ----------------------------------------------------------------------------------------------------------


def test_centred_features_by_hand():
    """(4, 5) around (1, 1) is (3, 4) of length 5; the mean itself has no direction."""
    x = torch.tensor([[4.0, 5.0], [1.0, 1.0]], requires_grad=True)
    found = F.centered(x, torch.tensor([1.0, 1.0]))
    assert found.tolist()[0] == pytest.approx([0.6, 0.8]) and found.tolist()[1] == [0, 0]
    found.sum().backward()
    assert torch.isfinite(x.grad).all()
    assert F.centered(x.detach().half(), torch.ones(2)).dtype == torch.float32


def test_centred_features_have_no_scale_and_rounding_has_no_direction():
    x, mean = torch.randn(5, 8), torch.randn(8)
    torch.testing.assert_close(F.centered(mean + 7 * (x - mean), mean), F.centered(x, mean), atol=1e-5, rtol=1e-4)
    alike = torch.full((3, 8), 0.1) + 1e-8 * torch.randn(3, 8)
    assert F.centered(alike, alike.double().mean(0)).abs().max() < 1e-3


def test_several_temperatures_by_hand():
    """(0, ln 3) at 1 is (1/4, 3/4), at 1/2 (1/10, 9/10): half of each."""
    found = F.log_distribution(torch.tensor([[0.0, math.log(3)]]), [1.0, 0.5]).exp()
    assert found.tolist()[0] == pytest.approx([0.125, 0.375, 0.05, 0.45])


def test_separation_term_by_hand():
    """P = (1/3, 2/3). f = (1/4, 3/4) of class 0 against L_1 = ln(1/2, 1/2): 2/3 ln 2; and the other way round."""
    log_f, log_means = torch.cat([QUARTER, HALF, HALF, HALF]), torch.cat([QUARTER, HALF])
    labels, prior = torch.tensor([0, 1, -100, 2]), torch.tensor([1 / 3, 2 / 3], dtype=torch.float64)
    found = F.separation_term(log_f, labels, log_means, prior)
    assert found.tolist() == pytest.approx([0.46209812, -(math.log(0.25) + math.log(0.75)) / 6, 0, 0])


def test_contrastive_term_by_hand():
    """f = (1/2, 1/2) against itself and (1/4, 3/4): 2 D = ln(4/3), so ln(1 + 3/4) and ln(4/3 + 1) at tau = 1/2.

    That is the posterior after the two symbols (0, 1): 1/4 against 3/16, 4/7 and 3/7.
    """
    labels = torch.tensor([0, 1, -100, 2])
    found = F.contrastive_term(HALF.repeat(4, 1), labels, TABLE, 0.5)
    assert found.tolist() == pytest.approx([0.55961579, 0.84729786, 0, 0])
    assert found[:2].tolist() == pytest.approx([-math.log(4 / 7), -math.log(3 / 7)])


def test_a_class_that_is_not_known_is_as_if_it_were_not_there():
    table = torch.cat([TABLE, torch.full((1, 2), -87.0)])
    log_f = HALF.repeat(3, 1).requires_grad_()
    known = torch.tensor([True, True, False])
    found = F.contrastive_term(log_f, torch.tensor([0, 1, 2]), table, 0.5, known)
    assert found.tolist() == pytest.approx([0.55961579, 0.84729786, 0])
    none = F.contrastive_term(log_f, torch.tensor([0, 1, 2]), table, 0.5, torch.zeros(3, dtype=torch.bool))
    assert none.tolist() == [0, 0, 0]
    (gradient,) = torch.autograd.grad(found.sum() + none.sum(), log_f)
    assert torch.isfinite(gradient).all() and (gradient[2] == 0).all()


# --- identities -------------------------------------------------------------------------------------------------------

shapes = st.tuples(st.integers(3, 30), st.integers(2, 8), st.integers(2, 5), st.integers(0, 10**6))


@settings(max_examples=40, deadline=None)
@given(shapes)
def test_the_contrastive_term_is_a_softmax_of_divergences_and_for_large_tau_cmi_minus_the_mean(shape):
    n, d, c, seed = shape
    log_f, labels = rows(n, d, c, seed)
    table = rows(c, d, 1, seed + 1)[0]
    divergences = torch.stack([F.divergence(log_f, q.expand_as(log_f)) for q in table], 1)
    for tau in (0.05, 1.0):
        expected = nn.functional.cross_entropy(-divergences / tau, labels, reduction='none')
        torch.testing.assert_close(F.contrastive_term(log_f, labels, table, tau), expected)
    tau = 1e5
    own = F.cmi_term(log_f, labels, table)
    limit = (own - divergences.mean(1)) / tau + math.log(c)
    torch.testing.assert_close(F.contrastive_term(log_f, labels, table, tau), limit, atol=1e-8, rtol=0)


@settings(max_examples=40, deadline=None)
@given(shapes)
def test_gamma_is_its_definition_on_the_whole_table(shape):
    n, d, c, seed = shape
    log_f, labels = rows(n, d, c, seed)
    cross = -log_f.exp() @ log_f.T  # of every example with every other
    definition = (cross * (labels[:, None] != labels[None])).mean()
    found = F.separation_term(log_f, labels, *means(log_f, labels, c)).mean()
    torch.testing.assert_close(found, definition)
    whole = F.separation(F.class_statistics(log_f, labels, c), F.sum_by_class(log_f, labels, c))
    torch.testing.assert_close(whole, definition)


@settings(max_examples=20, deadline=None)
@given(shapes)
def test_measures_of_several_temperatures_are_the_means(shape):
    n, d, c, seed = shape
    x, labels = rows(n, d, c, seed)
    for measure in (F.conditional_mutual_information, F.mutual_information):
        apart = [measure(F.class_statistics(F.log_distribution(x, t), labels, c)) for t in (0.5, 3.0)]
        both = measure(F.class_statistics(F.log_distribution(x, [0.5, 3.0]), labels, c))
        torch.testing.assert_close(both, sum(apart) / 2, atol=1e-12, rtol=1e-9)


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that is made."""

    size = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor):
            self.size = max(self.size, made.numel())
        return made


def test_nothing_is_classes_by_classes():
    c, d, n = 3000, 4, 8
    table = ClassCentroids(separation=True)
    log_f, labels = rows(n, d, c, 0)
    yes = torch.ones(n, dtype=torch.bool)
    with Largest() as mode:
        table.allocate(c, d, torch.device('cpu'), d)
        table.add(log_f, labels, yes, yes, x=log_f)
        table.finish()
        table.commit()
        F.contrastive_term(log_f, labels, table.reference.log_centroids, 0.1, table.reference.known)
        F.separation_term(log_f, labels, table.reference.log_means, table.reference.prior)
    assert mode.size <= (c + 1) * (2 * d + 4)


# --- in training ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('arguments', [{'form': 'normalized'}, {'form': 'plain', 'separation': 0.3}], ids=str)
def test_gradients_are_those_of_the_whole_batch(arguments):
    """With fresh statistics; Gamma's through the first of the two examples, as in the published code."""
    x, labels = (tensor[:48] for tensor in toys.points().tensors)
    trainer, plain = drive(CMIRegularization(1.0, start='0ba', **arguments), x, labels, batches=2)
    model = trainer.state.model
    (trainer.state.loss - plain).backward()
    ours = model.module[0].weight.grad.clone()
    model.zero_grad()
    log_f = torch.log_softmax(model.module[:-1](x).double(), -1)
    f, one_hot = log_f.exp(), nn.functional.one_hot(labels, toys.CLASSES).double()
    g = one_hot.T @ f / one_hot.sum(0)[:, None]
    cmi = F.divergence(log_f, g[labels].log()).mean()
    gamma = (-f @ log_f.detach().T * (labels[:, None] != labels[None])).mean()
    (cmi / gamma if arguments['form'] == 'normalized' else cmi - 0.3 * gamma).backward()
    torch.testing.assert_close(ours, model.module[0].weight.grad, atol=1e-6, rtol=1e-3)


def test_cmi_and_separation_share_the_unit():
    """`scaled` divides both by CMI_0."""
    x, labels = (tensor[:48] for tensor in toys.points().tensors)
    gradients = {}
    for form in ('plain', 'scaled'):
        algorithm = CMIRegularization(0.5, form=form, separation=0.2, start='0ba')
        trainer, plain = drive(algorithm, x, labels, batches=2)
        (trainer.state.loss - plain).backward()
        gradients[form] = trainer.state.model.module[0].weight.grad
    torch.testing.assert_close(gradients['scaled'] * algorithm.term.initial_cmi.float(), gradients['plain'])


def test_each_form_does_what_it_is_for():
    """Against cross-entropy: the others lie farther off (Gamma), or the clusters are told apart better (NCMI)."""
    x, labels = toys.points(256).tensors

    def measured(**arguments) -> tuple[float, float]:
        model = toys.mlp()
        fit([CMIRegularization(start='0ba', **arguments)] if arguments else [], model, max_duration='8ep')
        with torch.no_grad():
            log_f = F.log_distribution(model.module[:-1](x))
        stats, log_sums = F.class_statistics(log_f, labels, 3), F.sum_by_class(log_f, labels, 3)
        return F.separation(stats, log_sums).item(), F.normalized_cmi(stats, log_sums).item()

    plain = measured()
    assert measured(weight=0.01, form='plain', separation=1.0)[0] > plain[0]
    assert measured(weight=5.0, form='normalized')[1] < 0.8 * plain[1]
    assert measured(weight=0.3, form='contrastive', tau=0.05)[0] > plain[0]


def test_the_mean_is_that_of_what_was_seen_and_frozen_in_a_batch():
    """Decay 1/2, means (1, 1) of two rows, then (4, 0) of one: (1/2 * 2 + 4, 1/2 * 2) / 2. The first batch is only that.

    Rows that are not finite or have no class are not among them.
    """
    table = ClassCentroids(decay=0.5)
    table.allocate(2, 2, torch.device('cpu'), 2)
    batches = [
        ([[0.0, 2.0], [2.0, 0.0], [9.0, 9.0]], [0, 1, -100], [True] * 3),
        ([[4.0, 0.0], [0.0, 0.0]], [1, 0], [True, False]),
    ]
    expected = [[1, 1], [2.5, 0.5]]
    for (x, labels, finite), mean in zip(batches, expected, strict=True):
        before = table.mean
        keep = torch.tensor(finite)
        table.add(HALF.repeat(len(x), 1), torch.tensor(labels), keep, keep, x=torch.tensor(x))
        assert torch.equal(table.mean, before)
        table.finish()
        table.commit()
        assert table.mean.tolist() == mean
    assert table.reference.known.tolist() == [False, True], 'of the second batch alone'
    assert table.tables['totals'][:, 1].tolist() == [1, 2]


# --- what means nothing -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        ({'tau': 0.1}, "tau=0.1 means nothing with form='scaled'"),
        ({'form': 'contrastive', 'tau': 0}, 'tau must be positive'),
        ({'form': 'contrastive', 'separation': 0.1}, "separation=0.1 cannot be combined with form='contrastive'"),
        ({'form': 'normalized', 'separation': 0.1}, "separation=0.1 cannot be combined with form='normalized'"),
        ({'form': 'relative', 'separation': 0.1}, "separation=0.1 cannot be combined with form='relative'"),
        ({'separation': -1}, 'separation must be at least 0'),
        ({'weight': 0, 'separation': 0.1}, 'separation=0.1 with weight=0 would add nothing'),
        ({'space': 'centered', 'centroids': 'fixed'}, "space='centered' cannot be combined with centroids='fixed'"),
        ({'temperature': []}, r'temperature must be positive, or a list of positive numbers, got \[\]'),
        ({'temperature': [1.0, -1.0]}, 'temperature must be .*positive'),
    ],
)
def test_what_means_nothing_is_refused_in_one_sentence(arguments, words):
    from composer_cmi.terms.arguments import RegularizationArguments

    for cls in (CMIRegularization, RegularizationArguments):
        with pytest.raises(ValueError, match=words) as error:
            cls(**arguments)
        assert str(error.value).count('. ') == 0 and '\n' not in str(error.value)


@pytest.mark.parametrize('form', ['normalized', 'contrastive'])
def test_what_drives_clusters_apart_is_not_maximised(form):
    with pytest.raises(ValueError, match='form must be one of scaled, plain, relative'):
        CMIMaximization(form=form)


def test_defaults_that_depend_on_others():
    assert CMIRegularization().temperature == 1.0 == CMIRegularization(temperature=[1]).temperature
    assert CMIRegularization(space='centered').temperature == 0.05
    assert CMIRegularization(form='contrastive').tau == 0.1 and CMIRegularization().tau is None
