"""What is logged is what was done: the unit, the weight in force, the value added; and no gradient of it is NaN."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from composer.loggers import InMemoryLogger
from torch import Tensor
from torch.utils.data import TensorDataset

import runs
import toys
from cmi_tools import fit
from composer_cmi import functional as F
from composer_cmi.algorithms import CMIMaximization, CMIRegularization

# --- unit and weight --------------------------------------------------------------------------------------------------


def test_promise_03_the_unit_of_fixed_centroids_is_their_own():
    """Twenty classes, batches of four, from the first step: a batch holds one row of a class, whose CMI is rounding."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(200) % 20
    data = TensorDataset(torch.randn(200, toys.INPUTS, generator=generator), labels)
    toys.reproducibility.seed_all(1)
    layers = [torch.nn.Linear(toys.INPUTS, toys.HIDDEN), torch.nn.Tanh(), torch.nn.Linear(toys.HIDDEN, 20)]
    model = toys.ComposerClassifier(torch.nn.Sequential(*layers), num_classes=20)
    with torch.no_grad():
        f = F.log_distribution(model.module[:-1](data.tensors[0]))
        whole = F.conditional_mutual_information(F.class_statistics(f, labels, 20))
    algorithm = CMIRegularization(0.05, centroids='fixed', start='0ba')
    _, logged = fit([algorithm], model, data, batch_size=4, max_duration='10ba', lr=0.01)
    assert algorithm.term.initial_cmi.item() == pytest.approx(whole.item(), rel=1e-5)
    assert logged['cmi/weight'] == [0.05] * 10
    assert 0 < max(logged['cmi/loss']) < 0.5


@pytest.mark.parametrize('form', ['plain', 'scaled'])
def test_promise_03_no_cap_before_cmi_0_is_known(form):
    """Batches of one row: CMI_0 comes late, and until then a multiple of it caps nothing."""
    algorithm = CMIMaximization(0.2, form=form, start='0ba', max_growth=2.0)
    _, logged = fit([algorithm], batch_size=2, lr=0.001)
    late = next(i for i, weight in enumerate(logged['cmi/weight']) if weight)
    assert late == 1 if form == 'plain' else 3 < late < 64
    assert set(logged['cmi/weight'][late:]) == {0.2}
    assert not any(logged['cmi/loss'][:late])
    assert any(loss < 0 for loss in logged['cmi/loss'])


@pytest.mark.parametrize('cap', [{'max_cmi': 0.05}, {'max_growth': 1.2}])
def test_promise_03_a_capped_weight_is_logged_as_none(cap):
    algorithm = CMIMaximization(20.0, space='features', start='2ba', **cap)
    _, logged = fit([algorithm], max_duration='10ep')
    assert logged['cmi/weight'][:2] == [0, 0] and set(logged['cmi/weight'][2:]) == {0, 20}
    # Off in just those steps that begin above the cap.
    limit = cap.get('max_cmi') or 1.2 * algorithm.term.initial_cmi.item()
    for i in range(2, 40):
        above = logged['cmi/cmi'][i - 1] >= limit
        assert (logged['cmi/weight'][i] == 0) == above == (logged['cmi/loss'][i] == 0)


def alike(width: int = toys.HIDDEN) -> toys.ComposerClassifier:
    """A model whose features are the same for every input: I(X;Z) = 0."""
    model = toys.mlp()
    with torch.no_grad():
        model.module[0].weight.zero_()
        model.module[0].bias.copy_(torch.linspace(-1, 1, width))
    return model


@pytest.mark.parametrize('width', [3, 64, 384, 4096])
def test_promise_03_rows_that_are_alike_stay_below_the_floor(width):
    """And features that differ by 1 % are above it."""
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        x, labels = torch.randn(1, width, generator=generator).repeat(64, 1), torch.arange(64) % 3
        noisy = x + 0.01 * torch.randn(64, width, generator=generator)
        same, different = (
            F.conditional_mutual_information(F.class_statistics(F.log_distribution(rows), labels, 3))
            for rows in (x, noisy)
        )
        assert same < F.rounding_noise(width) < different


# --- gradients --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('form', ['plain', 'scaled', 'relative', 'normalized', 'contrastive'])
@pytest.mark.parametrize(
    ('space', 'centroids'),
    [('features', 'ema'), ('features', 'fixed'), ('logits', 'ema'), ('logits', 'fixed'), ('centered', 'ema')],
)
def test_promise_04_nothing_to_divide_by_is_no_nan(form, space, centroids):
    model = alike()
    with torch.no_grad():
        model.module[-1].weight.zero_()
    algorithm = CMIRegularization(1.0, form=form, space=space, centroids=centroids, start='0ba')
    _, logged = fit([algorithm], model, max_duration='4ba')
    assert torch.isfinite(toys.weights(model)).all()
    assert all(math.isfinite(value) for value in logged['cmi/loss'])


def gradient(value: Tensor, x: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(value, x)
    return found


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize('case', ['alike', 'one class absent', 'underflow', 'one class'])
@pytest.mark.parametrize('measure', ['cmi', 'information', 'relative', 'ncmi', 'separation'])
def test_promise_04_gradients_of_the_measures_are_finite(measure, case, dtype):
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    x = torch.ones(6, 4) if case == 'alike' else x
    x[:, 1:] -= 800.0 if case == 'underflow' else 0
    labels = torch.zeros(6, dtype=torch.long) if case == 'one class' else torch.tensor([0, 0, 0, 2, 2, -100])
    x = x.to(dtype).requires_grad_()
    log_f = F.log_distribution(x)
    stats, log_sums = F.class_statistics(log_f, labels, 4), F.sum_by_class(log_f, labels, 4)
    value = {
        'cmi': lambda: F.conditional_mutual_information(stats),
        'information': lambda: F.mutual_information(stats),
        'relative': lambda: F.relative_cmi(stats),
        'ncmi': lambda: F.normalized_cmi(stats, log_sums),
        'separation': lambda: F.separation(stats, log_sums),
    }[measure]()
    assert torch.isfinite(value) and torch.isfinite(gradient(value, x)).all()


def test_promise_04_rows_that_do_not_count_have_no_gradient():
    log_f = F.log_distribution(torch.randn(4, 3))
    log_f[1] = float('nan')
    log_f.requires_grad_()
    keep = torch.tensor([True, False, True, True])
    rows = F.cmi_term(log_f, torch.tensor([0, 0, -100, 1]), log_f[:2].detach().nan_to_num(-1.0), keep)
    found = gradient(rows.sum(), log_f)
    assert torch.isfinite(rows).all() and torch.isfinite(found).all()
    assert (found[[1, 2]] == 0).all() and (found[3] != 0).any()


@pytest.mark.parametrize('dtype', [torch.uint8, torch.int16, torch.int32])
def test_labels_of_any_integer_type(dtype):
    x, labels = torch.randn(9, 5), torch.arange(9) % 3
    log_f = F.log_distribution(x)
    table = F.centroids(F.class_statistics(log_f, labels, 3)).log().float()
    assert torch.equal(F.cmi_term(log_f, labels.to(dtype), table), F.cmi_term(log_f, labels, table))
    assert torch.equal(F.sum_by_class(x, labels.to(dtype), 3), F.sum_by_class(x, labels, 3))


# --- what was added ---------------------------------------------------------------------------------------------------


def logged_and_added(form: str, ranks: int, size: int, rows: int) -> tuple[float, float]:
    """`cmi/loss` in the third step, and how much more the loss is there than in the same run without the term."""
    x, labels = toys.points(48).tensors
    labels, x = labels.clone(), x.clone()
    labels[32:37] = -100
    labels[1::7] = -100
    data = TensorDataset(x, labels)
    found = []
    for weight in (3.0, 0.0):
        algorithm, logger = CMIRegularization(weight, form=form, start='2ba'), InMemoryLogger()
        options = {'device_train_microbatch_size': size, 'loggers': [logger], 'max_duration': '3ba'}
        loader = toys.loader(data)
        if rows < 16:  # the third batch is a short one, and shorter on one rank than on the other
            share = [list(range(r, 32, ranks)) for r in range(ranks)][toys.dist.get_global_rank()]
            own = share + list(range(32, 32 + rows))[toys.dist.get_global_rank() :: ranks]
            sampler = torch.utils.data.DistributedSampler(own, num_replicas=1, rank=0, shuffle=False)
            subset = torch.utils.data.Subset(data, own)
            loader = torch.utils.data.DataLoader(subset, batch_size=16 // ranks, sampler=sampler)
        model = toys.mlp()  # with a loss that is finite for a microbatch without labels
        model._loss_fn = lambda z, y: torch.nn.functional.cross_entropy(z, y, reduction='none').mean()
        trainer = toys.trainer(model, data, [algorithm], train_dataloader=loader, **options)
        trainer.fit()
        trainer.close()
        found.append({name: [float(value) for _, value in series] for name, series in logger.data.items()})
    with_term, without = found
    assert with_term['loss/train/total'][:2] == without['loss/train/total'][:2]
    return with_term['cmi/loss'][2], with_term['loss/train/total'][2] - without['loss/train/total'][2]


@pytest.mark.parametrize('ranks', [pytest.param(n, marks=pytest.mark.world_size(n)) for n in (1, 2)])
@pytest.mark.parametrize(('size', 'rows'), [(16, 16), (3, 16), (2, 7)])
@pytest.mark.parametrize('form', ['plain', 'scaled', 'relative', 'contrastive'])
def test_promise_05_the_logged_loss_is_what_was_added(form, ranks, size, rows):
    """With rows labelled -100, several microbatches, ranks whose last batches differ in size."""
    logged, added = logged_and_added(form, ranks, min(size, 16 // ranks), rows)
    assert logged == pytest.approx(added, rel=1e-4, abs=1e-6)
    assert form == 'relative' or logged > 1e-3


def test_promise_05_rows_that_are_not_finite_count_as_rows():
    """They add nothing and are part of the mean, in the log as in the loss."""
    table = CMIRegularization(form='plain').class_centroids
    table.allocate(2, 3, torch.device('cpu'))
    yes, log_f = torch.ones(4, dtype=torch.bool), F.log_distribution(torch.randn(4, 3))
    for term, finite in ((1.0, yes), (4.0, torch.tensor([True, False, False, True]))):
        table.add(log_f, torch.tensor([0, 1, -100, 1]), yes, finite, torch.tensor(term))
    table.finish()
    assert table.commit()[1] == 2.5 and table.skipped == 1


# --- indices ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('case', ['regularization, logits', 'regularization, fixed', 'distillation'])
def test_promise_08_no_python_list_is_an_index_in_a_step(case, monkeypatch):
    """On CUDA such an index is copied from the host, and waited for."""
    original, indexed = Tensor.__getitem__, []

    def holds_list(index: Any) -> bool:
        return isinstance(index, list) or (isinstance(index, tuple) and any(isinstance(i, list) for i in index))

    def getitem(self: Tensor, index: Any) -> Tensor:
        if holds_list(index):
            indexed.append(index)
        return original(self, index)

    algorithms = runs.CASES[case]()
    if case == 'distillation':
        algorithms = [reordered()]
    model = toys.tiny_bert() if case == 'distillation' else toys.mlp()
    if case == 'distillation':
        model.model.config.id2label = {0: 'c', 1: 'a', 2: 'b'}
    data = toys.Sentences(64) if case == 'distillation' else toys.points()
    trainer = toys.trainer(model, data, algorithms, device_train_microbatch_size=4)
    monkeypatch.setattr(Tensor, '__getitem__', getitem)
    trainer.fit()
    trainer.close()
    assert not indexed
    torch.arange(3)[[0, 1]]
    assert indexed, 'the watch sees nothing'


def reordered() -> Any:
    """Two teachers that call their classes in two orders, neither of them the student's."""
    from composer_cmi.algorithms import KnowledgeDistillation

    teachers = [toys.tiny_bert(seed=seed).model for seed in (8, 9)]
    for teacher, names in zip(teachers, ('abc', 'bca'), strict=True):
        teacher.config.id2label = dict(enumerate(names))
    return KnowledgeDistillation(teachers)
