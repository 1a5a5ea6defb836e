"""Norm penalties, supervised contrast and R-Drop: numbers by hand, and their effect in a real Trainer."""

from __future__ import annotations

import math
import warnings

import pytest
import torch

import toys
from composer_cmi import registry
from composer_cmi.algorithms import CMIRegularization, NormPenalty, RDrop, SupervisedContrast
from composer_cmi.algorithms.controls import supervised_contrast, symmetric_divergence


def fitted(algorithms, dropout: float = 0.0, **options) -> tuple[torch.Tensor, list[str]]:
    model = toys.mlp(dropout)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        trainer = toys.trainer(model, toys.points(), algorithms, **options)
        trainer.fit()
        trainer.close()
    return toys.weights(model), [str(each.message) for each in caught]


def test_contrast_literal_numbers():
    """Three unit vectors, two of one class: cosines 0 and -1 from the first; temperature 1."""
    features = torch.tensor([[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0]])
    rows = supervised_contrast(features, torch.tensor([0, 0, 1]), 1.0)
    expected = [
        math.log(1 + math.exp(-1)),
        math.log(2),
        0.0,
    ]  # -log(e^0 / (e^0 + e^-1)), -log(e^0 / (e^0 + e^0)), alone
    assert rows.tolist() == pytest.approx(expected, abs=1e-6)


def test_contrast_is_free_in_scale_and_leaves_out_rows_without_labels():
    features = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 0, -100, 1])
    rows = supervised_contrast(features, labels, 0.3)
    torch.testing.assert_close(supervised_contrast(7 * features, labels, 0.3), rows)
    kept = [0, 1, 2, 4]
    torch.testing.assert_close(rows[kept], supervised_contrast(features[kept], labels[kept], 0.3))
    assert float(rows[3]) == 0


@pytest.mark.parametrize('labels', [[0], [0, 1], [-100, -100], [0, -100], [0, 0, 1]])
def test_every_gradient_of_a_contrast_is_finite(labels):
    features = torch.randn(len(labels), 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    supervised_contrast(features, torch.tensor(labels), 0.01).sum().backward()
    assert features.grad is not None and bool(features.grad.isfinite().all())


def test_symmetric_divergence_literal_numbers():
    """(1/4, 3/4) and (1/2, 1/2): 0.130812 and 0.143841."""
    rows = symmetric_divergence(torch.tensor([[0.0, math.log(3)]]), torch.zeros(1, 2))
    assert float(rows) == pytest.approx((0.130812 + 0.143841) / 2, abs=1e-6)


def test_a_penalty_keeps_what_it_names_small():
    def norms(algorithms):
        model = toys.mlp()
        trainer = toys.trainer(model, toys.points(), algorithms)
        trainer.fit()
        trainer.close()
        x = toys.points().tensors[0]
        features = model.module[:2](x)
        return float(features.square().mean()), float(model.module[3](features).square().mean())

    plain = norms([])
    assert norms([NormPenalty(0.0)]) == plain
    assert norms([NormPenalty(1.0)])[0] < plain[0]
    assert norms([NormPenalty(1.0, space='logits')])[1] < plain[1]


@pytest.mark.parametrize('make', [lambda: NormPenalty(0.5), lambda: SupervisedContrast(), lambda: RDrop()])
def test_each_trains_another_model_and_stands_beside_cmi(make):
    plain, _ = fitted([], dropout=0.3)
    alone, _ = fitted([make()], dropout=0.3)
    beside, _ = fitted([make(), CMIRegularization(3.0, form='plain', start='0ba')], dropout=0.3)
    other_way, _ = fitted([CMIRegularization(3.0, form='plain', start='0ba'), make()], dropout=0.3)
    assert not torch.allclose(plain, alone) and not torch.allclose(alone, beside)
    assert bool(beside.isfinite().all()) and bool(other_way.isfinite().all())


def test_a_contrast_over_a_cut_batch_says_what_it_depends_on():
    assert not any('SupervisedContrast compares' in each for each in fitted([SupervisedContrast()])[1])
    told = fitted([SupervisedContrast()], device_train_microbatch_size=4)[1]
    assert sum('SupervisedContrast compares' in each for each in told) == 1


def test_r_drop_without_dropout_changes_nothing_and_says_so():
    plain, _ = fitted([])
    same, told = fitted([RDrop()])
    torch.testing.assert_close(same, plain)
    assert sum('RDrop has no effect' in each for each in told) == 1


def test_r_drop_trains_a_hugging_face_model():
    model = toys.tiny_bert(dropout=0.3)
    trainer = toys.trainer(model, toys.Sentences(), [RDrop(), NormPenalty(0.1)])
    trainer.fit()
    trainer.close()
    assert bool(toys.weights(model).isfinite().all())


@pytest.mark.parametrize(
    ('make', 'words'),
    [
        (lambda: NormPenalty(-1.0), 'weight must be at least 0'),
        (lambda: NormPenalty(space='pixels'), 'space'),
        (lambda: SupervisedContrast(share=1.5), 'share must lie between 0 and 1'),
        (lambda: SupervisedContrast(temperature=0.0), 'temperature must be positive'),
        (lambda: RDrop(-0.1), 'weight must be at least 0'),
    ],
)
def test_values_out_of_range_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_another_objective_at_a_resume_is_refused():
    saved = NormPenalty(0.5).state_dict()
    NormPenalty(0.5).load_state_dict(saved)
    with pytest.raises(ValueError, match=r'NormPenalty has weight=0.5, this run asks for 0.1'):
        NormPenalty(0.1).load_state_dict(saved)


def test_they_are_registered():
    assert {'norm_penalty', 'supervised_contrast', 'r_drop'} <= set(registry.known_algorithms())
