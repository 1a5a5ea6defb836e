"""Distillation trains to the same weights for any microbatch size, any order of the algorithms and two ranks."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from composer.algorithms import SAM, SWA, GradientClipping, LabelSmoothing
from composer.utils import dist
from torch.utils.data import default_collate

import toys
from composer_cmi.algorithms import CMIRegularization, KnowledgeDistillation
from composer_cmi.functional import distillation_divergence
from composer_cmi.teachers.teacher import load_teacher
from distillation_tools import SAME, teacher_bert, train


class Unlabelled(toys.Sentences):
    """A batch of 16 in which rows 4-7 and every odd row have no label: a microbatch of 4 has none at all."""

    def __init__(self, n: int = 48):
        super().__init__(n)
        row = torch.arange(n)
        self.labels[(row % 16 // 4 == 1) | (row % 2 == 1)] = -100


PARTNERS = {
    'alone': lambda: [],
    'cmi': lambda: [CMIRegularization(3.0, form='plain', start='0ba')],
    'clipping': lambda: [GradientClipping('norm', 0.1)],
    'sam': lambda: [SAM(rho=0.05)],
}


@pytest.mark.parametrize('partner', PARTNERS)
def test_same_weights_for_any_microbatch_and_order(partner):
    weights = []
    for size in (16, 8, 4, 3):
        for flip in (False, True):
            algorithms = [KnowledgeDistillation(teacher_bert(), alpha=0.6, **SAME), *PARTNERS[partner]()]
            algorithms = algorithms[::-1] if flip else algorithms
            model = toys.tiny_bert()
            final, losses = train(algorithms, Unlabelled(), model=model, device_train_microbatch_size=size)
            assert all(math.isfinite(value) for value in losses)
            weights.append(final)
    assert not torch.allclose(weights[0], train([], Unlabelled(), model=toys.tiny_bert())[0], atol=1e-3)
    for other in weights[1:]:
        torch.testing.assert_close(other, weights[0], atol=5e-6, rtol=1e-5)


def test_one_sum_of_gradients_over_mixed_rows():
    """One step from a batch of labelled and unlabelled rows is that of the formula, row by row."""
    data, student, teacher = Unlabelled(16), toys.tiny_bert(), teacher_bert()
    batch = default_collate([data[i] for i in range(16)])
    reference = copy.deepcopy(student)
    s, t = reference.model(batch['input_ids'], batch['attention_mask']).logits, load_teacher(teacher).logits(batch)
    ce = F.cross_entropy(s, batch['labels'], reduction='none')  # 0 for ignored rows
    (0.4 * ce + 0.6 * distillation_divergence(s, t, 2.0)).mean().backward()
    expected = torch.cat([(p - 0.05 * p.grad).detach().flatten() for p in reference.parameters()])
    algorithm = KnowledgeDistillation(teacher, alpha=0.6, **SAME)
    run = {'max_duration': '1ba', 'optimizers': torch.optim.SGD(student.parameters(), lr=0.05)}
    weights = train([algorithm], data, model=student, device_train_microbatch_size=4, **run)[0]
    torch.testing.assert_close(weights, expected, atol=1e-6, rtol=1e-5)


def composer_run(*algorithms, **kwargs) -> torch.Tensor:
    model = toys.mlp()
    trainer = toys.trainer(model, toys.points(), list(algorithms), **kwargs)
    trainer.fit()
    trainer.close()
    return toys.weights(model)


@pytest.mark.parametrize('cmi', [False, True])
def test_label_smoothing_in_either_order(cmi):
    """Smoothing turns labels dense before the loss and back after it; the smoothed CE is what gets weighted."""

    def run(flip: bool, size: int = 16) -> torch.Tensor:
        algorithms = [KnowledgeDistillation(toys.mlp(seed=5), **SAME), LabelSmoothing(0.2)]
        algorithms += [CMIRegularization(3.0, form='plain', start='0ba')] if cmi else []
        return composer_run(*(algorithms[::-1] if flip else algorithms), device_train_microbatch_size=size)

    torch.testing.assert_close(run(True), run(False), atol=5e-6, rtol=1e-5)
    torch.testing.assert_close(run(True, 3), run(False), atol=5e-6, rtol=1e-5)
    plain = [KnowledgeDistillation(toys.mlp(seed=5), **SAME), *PARTNERS['cmi']()][: 2 if cmi else 1]
    assert (run(False) - composer_run(*plain)).abs().max() > 1e-3


def test_swa_copies_the_student_only():
    teacher = toys.mlp(seed=5)
    swa = SWA(swa_start='1ep', swa_end='2ep', update_interval='1ba')
    model = toys.mlp()
    algorithms = [KnowledgeDistillation(teacher, **SAME), swa]
    trainer = toys.trainer(model, toys.points(), algorithms, max_duration='3ep')
    trainer.fit()
    trainer.close()
    assert sum(p.numel() for p in swa.swa_model.parameters()) == sum(p.numel() for p in model.parameters())


@pytest.mark.world_size(2)
@pytest.mark.parametrize('kind', ['online', 'folder', 'cmi'])
def test_two_ranks(shared_tmp_path, kind):
    """The weights of one process, and online and cached alike."""
    data = Unlabelled()
    reference = _reference_by_hand(data, epochs=1) if kind != 'cmi' else None
    cache = shared_tmp_path / 'cache' if kind == 'folder' else None
    algorithms = [KnowledgeDistillation(teacher_bert(), alpha=0.6, cache=cache, **SAME)]
    if kind == 'cmi':
        algorithms += PARTNERS['cmi']()
    weights = {}
    for size in (8, 3):
        model, run = toys.tiny_bert(), {'device_train_microbatch_size': size, 'max_duration': '1ep'}
        weights[size] = train(copy.deepcopy(algorithms), data, model=model, **run)[0]
        for other in dist.all_gather(weights[size]):
            assert torch.equal(other, weights[size])
        torch.testing.assert_close(weights[size], weights[8], atol=5e-6, rtol=1e-5)
    if reference is not None:
        torch.testing.assert_close(weights[8], reference, atol=5e-6, rtol=1e-5)
    if cache is not None:
        dist.barrier()
        assert len(list(cache.glob('*.safetensors'))) == 1


def _reference_by_hand(data, epochs: int = 3) -> torch.Tensor:
    """Three steps an epoch of SGD with momentum over whole batches of 16 in one process, without Composer."""
    student, teacher = toys.tiny_bert(), load_teacher(teacher_bert())
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9)
    for _ in range(epochs):
        for start_row in range(0, 48, 16):
            batch = default_collate([data[i] for i in range(start_row, start_row + 16)])
            logits = student.model(batch['input_ids'], batch['attention_mask']).logits
            ce = F.cross_entropy(logits, batch['labels'], reduction='none')
            loss = (0.4 * ce + 0.6 * distillation_divergence(logits, teacher.logits(batch), 2.0)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return toys.weights(student)


def test_composer_trains_what_the_formula_says():
    """On one rank: the reference that the ranks are held against."""
    algorithm = KnowledgeDistillation(teacher_bert(), alpha=0.6, **SAME)
    weights = train([algorithm], Unlabelled(), model=toys.tiny_bert())[0]
    torch.testing.assert_close(weights, _reference_by_hand(Unlabelled()), atol=5e-6, rtol=1e-5)
