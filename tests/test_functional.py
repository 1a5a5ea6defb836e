from __future__ import annotations

import math

import pytest
import scipy.special
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from composer_cmi import functional as F

LOG2 = math.log(2)


def make(n: int, d: int, c: int, seed: int, spread: float = 1.0):
    generator = torch.Generator().manual_seed(seed)
    x = spread * torch.randn(n, d, generator=generator)
    return x, torch.randint(c, (n,), generator=generator)


def scipy_cmi(x: torch.Tensor, labels: torch.Tensor) -> float:
    f = scipy.special.softmax(x.double().numpy(), axis=1)
    y = labels.numpy()
    means = {c: f[y == c].mean(0) for c in set(y.tolist())}
    return sum(scipy.stats.entropy(f[i], means[y[i]]) for i in range(len(y))) / len(y)


def stats_of(x: torch.Tensor, labels: torch.Tensor, c: int) -> F.ClassStatistics:
    return F.class_statistics(F.log_distribution(x), labels, c)


# p = (1/2, 1/2) and q = (1/4, 3/4): D(p||q) = 1/2 ln 2 + 1/2 ln(2/3) = 0.14384103622589045
P, Q = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()


def test_divergence_by_hand():
    assert F.divergence(P, Q).item() == pytest.approx(0.14384103622589045, rel=1e-6)
    assert F.divergence(Q, P).item() == pytest.approx(0.13081203594113697, rel=1e-6)
    assert F.divergence(P, P).item() == 0.0


def test_log_distribution_is_float32_and_tempered():
    x = torch.tensor([[0.0, math.log(3)]])
    assert F.log_distribution(x.half()).dtype == torch.float32
    assert F.log_distribution(x).exp().tolist()[0] == pytest.approx([0.25, 0.75], rel=1e-6)
    tempered = F.log_distribution(2 * x, temperature=2.0).exp()
    assert tempered.tolist()[0] == pytest.approx([0.25, 0.75], rel=1e-6)


def test_two_opposite_examples_by_hand():
    """One class holds two (almost) certain opposite distributions: CMI = ln 2; two classes of one each: CMI = 0."""
    x = torch.tensor([[50.0, 0.0], [0.0, 50.0]])
    one_class = stats_of(x, torch.tensor([0, 0]), 2)
    assert F.conditional_mutual_information(one_class).item() == pytest.approx(LOG2, abs=1e-9)
    assert F.mutual_information(one_class).item() == pytest.approx(LOG2, abs=1e-9)
    assert F.relative_cmi(one_class).item() == pytest.approx(1.0)
    own_class = stats_of(x, torch.tensor([0, 1]), 2)
    assert F.conditional_mutual_information(own_class).item() == pytest.approx(0.0, abs=1e-9)
    assert F.mutual_information(own_class).item() == pytest.approx(LOG2, abs=1e-9)
    assert F.relative_cmi(own_class).item() == pytest.approx(0.0, abs=1e-9)


def test_separation_and_ncmi_by_hand():
    """Two examples of different classes, f = (1/4, 3/4) and its mirror: Gamma = 2 * 1/4 * H(f_1, f_2)."""
    log_f = torch.cat([Q, Q.flip(1)])
    labels = torch.tensor([0, 1])
    stats = F.class_statistics(log_f, labels, 2)
    log_sums = F.sum_by_class(log_f, labels, 2)
    cross = -(0.25 * math.log(0.75) + 0.75 * math.log(0.25))
    assert F.separation(stats, log_sums).item() == pytest.approx(0.5 * cross, rel=1e-6)
    assert F.normalized_cmi(stats, log_sums).item() == pytest.approx(0.0, abs=1e-7)
    one = F.class_statistics(log_f, torch.zeros(2, dtype=torch.long), 2)
    assert F.normalized_cmi(one, F.sum_by_class(log_f, torch.zeros(2, dtype=torch.long), 2)).item() == 0.0


@pytest.mark.parametrize('spread', [0.05, 1.0, 5.0])
def test_cmi_agrees_with_scipy(spread: float):
    x, labels = make(200, 7, 4, seed=3, spread=spread)
    stats = stats_of(x, labels, 4)
    assert F.conditional_mutual_information(stats).item() == pytest.approx(scipy_cmi(x, labels), rel=1e-4)
    whole = scipy_cmi(x, torch.zeros_like(labels))
    assert F.mutual_information(stats).item() == pytest.approx(whole, rel=1e-4)


def test_published_scale():
    """Within-class sd s of h gives about s^2 / 2 nats (method note 5)."""
    for sd, expected in ((0.05, 0.00125), (0.1, 0.005), (0.3, 0.045)):
        x, labels = make(4000, 64, 3, seed=0, spread=sd)
        assert F.conditional_mutual_information(stats_of(x, labels, 3)).item() == pytest.approx(expected, rel=0.05)


batches = st.tuples(st.integers(2, 40), st.integers(2, 9), st.integers(1, 5), st.integers(0, 10**6))


@settings(max_examples=60, deadline=None)
@given(batches, st.sampled_from([0.1, 1.0, 4.0]))
def test_divergence_to_any_table_is_cmi_plus_drift(shape, spread):
    """Identity 1: E D(f || Q_Y) = CMI + sum_y P(y) D(g_y || Q_y)."""
    n, d, c, seed = shape
    x, labels = make(n, d, c, seed, spread)
    table = F.log_distribution(make(c, d, 1, seed + 1, spread)[0])
    log_f = F.log_distribution(x)
    left = F.divergence(log_f, table[labels]).mean().item()
    stats = F.class_statistics(log_f, labels, c)
    g = F.centroids(stats)
    drift = torch.where(stats.counts > 0, torch.special.xlogy(g, g).sum(1) - (g * table.double()).sum(1), 0.0)
    right = F.conditional_mutual_information(stats) + (stats.counts / n * drift).sum()
    assert left == pytest.approx(right.item(), abs=1e-5)


@settings(max_examples=40, deadline=None)
@given(batches)
def test_detaching_the_exact_centroid_is_free(shape):
    """Identity 3: the gradient with the batch's own mean detached equals the gradient through it."""
    n, d, c, seed = shape
    x, labels = make(n, d, c, seed)

    def gradient(detach: bool) -> torch.Tensor:
        leaf = x.double().clone().requires_grad_()
        log_f = torch.log_softmax(leaf, -1)
        one_hot = torch.nn.functional.one_hot(labels, c).double()
        g = one_hot.T @ log_f.exp() / one_hot.sum(0).clamp(min=1)[:, None]
        log_g = (g.detach() if detach else g)[labels].log()
        F.divergence(log_f, log_g).mean().backward()
        assert leaf.grad is not None
        return leaf.grad

    torch.testing.assert_close(gradient(True), gradient(False), atol=1e-12, rtol=1e-9)


def test_batch_centroid_underestimates_by_one_over_n():
    """Identity 4: with n examples of a class, E[batch CMI] is about (1 - 1/n) CMI; n = 1 gives exactly 0."""
    x, _ = make(64_000, 16, 1, seed=5, spread=0.3)
    log_f = F.log_distribution(x)
    true = F.conditional_mutual_information(F.class_statistics(log_f, torch.zeros(64_000, dtype=torch.long), 1))
    for n, expected in ((1, 0.0), (2, 0.5), (4, 0.75), (8, 0.875), (16, 0.9375), (32, 0.96875)):
        groups = torch.arange(64_000) // n  # each group of n is a class of its own
        batch = F.conditional_mutual_information(F.class_statistics(log_f, groups, 64_000 // n))
        assert (batch / true).item() == pytest.approx(expected, abs=0.012)


@settings(max_examples=60, deadline=None)
@given(batches, st.sampled_from([1e-3, 1.0, 30.0]))
def test_ranges(shape, spread):
    n, d, c, seed = shape
    x, labels = make(n, d, c, seed, spread)
    stats = stats_of(x, labels, c)
    cmi, mi, rho = F.conditional_mutual_information(stats), F.mutual_information(stats), F.relative_cmi(stats)
    assert -1e-6 <= cmi <= mi + 1e-6
    assert mi <= math.log(d) + 1e-6
    assert 0 <= rho <= 1
    permuted = stats_of(x, torch.randperm(c)[labels], c)
    torch.testing.assert_close(F.conditional_mutual_information(permuted), cmi)  # clusters carry no names


def test_statistics_add_up_and_skip_ignored_labels():
    x, labels = make(30, 5, 3, seed=2)
    whole = stats_of(x, labels, 3)
    parts = [stats_of(x[a:b], labels[a:b], 3) for a, b in ((0, 7), (7, 8), (8, 30))]
    for name in whole._fields:
        torch.testing.assert_close(sum(getattr(part, name) for part in parts), getattr(whole, name))
    with_ignored = stats_of(torch.cat([x, x[:4] + 9]), torch.cat([labels, torch.tensor([-100, -1, 3, 99])]), 3)
    for name in whole._fields:
        torch.testing.assert_close(getattr(with_ignored, name), getattr(whole, name))


def test_nothing_seen_is_zero():
    stats = stats_of(torch.randn(2, 4), torch.tensor([-100, -100]), 3)
    assert F.conditional_mutual_information(stats) == F.mutual_information(stats) == F.relative_cmi(stats) == 0


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize('temperature', [1.0, 0.5])
def test_gradients_are_finite_when_probabilities_underflow(dtype, temperature):
    """`F.kl_div(log_q, softmax(z))` is NaN here in the backward pass."""
    z = torch.tensor([[0.0, 20.0, 120.0], [120.0, 20.0, 0.0]], dtype=dtype, requires_grad=True)
    rows = F.divergence(F.log_distribution(z, temperature), torch.log_softmax(torch.randn(2, 3), -1))
    rows.sum().backward()
    assert torch.isfinite(rows).all() and z.grad is not None and torch.isfinite(z.grad).all()
    student = torch.tensor([[0.0, 20.0, 120.0], [120.0, 20.0, 0.0]], dtype=dtype, requires_grad=True)
    kd = F.distillation_divergence(student, student.detach().flip(1), temperature)
    kd.sum().backward()
    assert torch.isfinite(kd).all() and student.grad is not None and torch.isfinite(student.grad).all()


def test_distillation_divergence_by_hand_and_scipy():
    teacher, student = torch.tensor([[0.0, math.log(3)]]), torch.zeros(1, 2)
    expected = 0.13081203594113697  # D((1/4, 3/4) || (1/2, 1/2))
    assert F.distillation_divergence(student, teacher, 1.0).item() == pytest.approx(expected, rel=1e-6)
    assert F.distillation_divergence(2 * student, 2 * teacher, 2.0).item() == pytest.approx(4 * expected, rel=1e-6)
    s, t = make(5, 4, 2, seed=1)[0], make(5, 4, 2, seed=2)[0]
    ours = F.distillation_divergence(s, t, 3.0)
    p, q = scipy.special.softmax(t.numpy() / 3, axis=1), scipy.special.softmax(s.numpy() / 3, axis=1)
    assert ours.tolist() == pytest.approx((9 * scipy.stats.entropy(p, q, axis=1)).tolist(), rel=1e-4)
