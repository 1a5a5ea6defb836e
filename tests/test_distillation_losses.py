"""What is between teacher and student: literal numbers, invariances, and their effect in a real Trainer."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from scipy import stats

import toys
from composer_cmi.algorithms import KnowledgeDistillation
from composer_cmi.functional import distillation_divergence
from composer_cmi.teachers.losses import LOSSES, relation_distance, standardized_divergence
from exact_cases import distillation

GENERATOR = torch.Generator().manual_seed(1)
STUDENT, TEACHER = torch.randn(6, 4, generator=GENERATOR), torch.randn(6, 4, generator=GENERATOR)


def test_standardized_literal_numbers():
    """Rows (0, 2) and (0, -6) have deviations 1 and 3: (-1, 1) against (1, -1)."""
    rows = standardized_divergence(torch.tensor([[0.0, 2.0]]), torch.tensor([[0.0, -6.0]]), 1.0)
    p = 1 / (1 + np.exp(-2.0))
    assert float(rows) == pytest.approx(p * np.log(p / (1 - p)) + (1 - p) * np.log((1 - p) / p), rel=1e-6)


def test_a_standardized_student_is_free_in_its_scale_and_shift():
    rows = standardized_divergence(STUDENT, TEACHER, 2.0)
    torch.testing.assert_close(standardized_divergence(7 * STUDENT + 3, TEACHER, 2.0), rows)
    torch.testing.assert_close(standardized_divergence(STUDENT, 0.1 * TEACHER - 2, 2.0), rows)
    assert not torch.allclose(
        distillation_divergence(7 * STUDENT, TEACHER, 2.0), distillation_divergence(STUDENT, TEACHER, 2.0)
    )


def test_dist_is_pearsons_correlation_over_rows_and_over_classes():
    student, teacher = (torch.softmax(each / 2.0, -1).double().numpy() for each in (STUDENT, TEACHER))
    rows = np.array([1 - stats.pearsonr(a, b)[0] for a, b in zip(student, teacher, strict=True)])
    classes = np.mean([1 - stats.pearsonr(a, b)[0] for a, b in zip(student.T, teacher.T, strict=True)])
    np.testing.assert_allclose(relation_distance(STUDENT, TEACHER, 2.0), 4 * (rows + classes), rtol=1e-4)


@pytest.mark.parametrize('loss', list(LOSSES))
@pytest.mark.parametrize('rows', [TEACHER, torch.zeros(6, 4), torch.full((6, 4), 1e4), TEACHER[:1]])
def test_equal_logits_are_at_no_distance_and_every_gradient_is_finite(loss, rows):
    student = rows.clone().requires_grad_()
    distance = LOSSES[loss](student, rows, 2.0)
    distance.sum().backward()
    assert distance.shape == (len(rows),)
    assert student.grad is not None and bool(student.grad.isfinite().all())
    if loss != 'dist':  # without any difference between rows there is no correlation to speak of
        torch.testing.assert_close(distance.detach(), torch.zeros(len(rows)), atol=1e-5, rtol=0)


@pytest.mark.parametrize('loss', list(LOSSES))
def test_no_gradient_flows_into_the_teacher(loss):
    student, teacher = STUDENT.clone().requires_grad_(), TEACHER.clone().requires_grad_()
    LOSSES[loss](student, teacher, 2.0).sum().backward()
    assert teacher.grad is None


def fitted(loss: str, microbatch_size: int = 16) -> tuple[torch.Tensor, list[str]]:
    model = toys.mlp()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        trainer = toys.trainer(
            model, toys.points(), [distillation(loss=loss)], device_train_microbatch_size=microbatch_size
        )
        trainer.fit()
        trainer.close()
    return toys.weights(model), [str(each.message) for each in caught]


def test_each_loss_trains_another_student_and_dist_says_when_it_depends_on_the_cut():
    found = {loss: fitted(loss) for loss in LOSSES}
    assert not torch.allclose(found['kl'][0], found['standardized'][0])
    assert not torch.allclose(found['kl'][0], found['dist'][0])
    sentence = 'the result depends on the microbatch size'
    assert not any(sentence in each for _, told in found.values() for each in told)
    assert sum(sentence in each for each in fitted('dist', 4)[1]) == 1
    assert not any(sentence in each for each in fitted('standardized', 4)[1])


def test_an_unknown_loss_and_no_teacher_at_all_are_refused():
    with pytest.raises(ValueError, match="loss must be one of kl, standardized, dist, got 'mse'"):
        distillation(loss='mse')
    with pytest.raises(ValueError, match='teacher is an empty list'):
        KnowledgeDistillation([])
