"""Several teachers: by their weights, their logits or their probabilities; the default is what it was."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from composer_cmi.algorithms import KnowledgeDistillation
from composer_cmi.teachers.average import average_logits, shares_of
from composer_cmi.teachers.teacher import Member, Teacher, load_teacher
from distillation_tools import SAME, teacher_bert, train

X = torch.randn(6, 2, generator=torch.Generator().manual_seed(3))


def members(count: int, weights=None) -> list[Member]:
    torch.manual_seed(0)
    weights = weights or [1.0] * count
    return [Member(nn.Linear(2, 3), None, f't{i}', 3, weight) for i, weight in enumerate(weights)]


@pytest.mark.parametrize('count', [1, 2, 3, 5])
def test_without_weights_it_is_the_plain_mean_of_the_logits_to_the_bit(count):
    parts = members(count)
    total = None
    for part in parts:
        logits = part.module(X).detach()
        total = logits if total is None else total + logits
    assert torch.equal(Teacher(parts, **SAME).logits((X, None)), total if count == 1 else total / count)
    equal = [Member(part.module, None, part.source, 3, 7.3) for part in parts]
    assert torch.equal(Teacher(equal, **SAME).logits((X, None)), Teacher(parts, **SAME).logits((X, None)))
    assert Teacher(equal, **SAME).fingerprint == Teacher(parts, **SAME).fingerprint


def test_worked_numbers_of_both_averages():
    one, two = torch.tensor([[0.8, 0.2]]).log(), torch.tensor([[0.5, 0.5]]).log()
    mixture = average_logits([one, two], shares_of([3, 1]), 'probabilities').exp()
    torch.testing.assert_close(mixture, torch.tensor([[0.725, 0.275]]))
    # The geometric mean, normalised: 0.8^(3/4) 0.5^(1/4) against 0.2^(3/4) 0.5^(1/4).
    geometric = average_logits([one, two], shares_of([3, 1]), 'logits').softmax(-1)
    a, b = 0.8**0.75 * 0.5**0.25, 0.2**0.75 * 0.5**0.25
    torch.testing.assert_close(geometric, torch.tensor([[a / (a + b), b / (a + b)]]))


@pytest.mark.parametrize('average', ['logits', 'probabilities'])
def test_a_weight_is_so_many_equal_teachers(average):
    first, second = members(2)
    weighted = Teacher([first, Member(second.module, None, 't', 3, 2.0)], average=average, **SAME)
    repeated = Teacher([first, second, second], average=average, **SAME)
    torch.testing.assert_close(weighted.logits((X, None)), repeated.logits((X, None)))


def test_a_cache_and_a_checkpoint_know_the_average_by_the_fingerprint():
    modules = [part.module for part in members(2)]
    made = [
        load_teacher([modules[0], modules[1]], **SAME),
        load_teacher([modules[0], modules[1]], weights=[2, 1], **SAME),
        load_teacher([modules[0], modules[1]], average='probabilities', **SAME),
        load_teacher([modules[0], modules[1]], weights=[2, 1], average='probabilities', **SAME),
    ]
    assert len({teacher.fingerprint for teacher in made}) == 4
    assert load_teacher([modules[0], modules[1]], weights=[4, 2], **SAME).fingerprint == made[1].fingerprint


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'teacher_weights': [1.0]}, r'teacher_weights must be 2 positive numbers, .* got \[1.0\]'),
        ({'teacher_weights': [1.0, 0.0]}, 'teacher_weights must be 2 positive numbers'),
        ({'teacher_weights': [1.0, -1.0]}, 'teacher_weights must be 2 positive numbers'),
        ({'average': 'median'}, 'average must be'),
        ({'teacher': 'a', 'teacher_weights': [1.0]}, 'for several teachers'),
        ({'teacher': 'a', 'average': 'probabilities'}, 'for several teachers'),
    ],
)
def test_what_does_not_fit_is_refused_at_once(arguments, message):
    with pytest.raises(ValueError, match=message):
        KnowledgeDistillation(**{'teacher': ['a', 'b'], **arguments})
    with pytest.raises(ValueError, match='Weights of teachers must be positive'):
        Teacher(members(2, [1.0, float('inf')]), **SAME)


def test_a_student_learns_from_the_average_that_was_asked_for_with_a_cache_or_without(tmp_path):
    teachers = [teacher_bert(3), teacher_bert(4)]

    def weights(cache=None, **changes) -> torch.Tensor:
        algorithm = KnowledgeDistillation(teachers, cache=cache, **SAME, **changes)
        return train([algorithm], max_duration='2ba')[0]

    plain = weights()
    tilted = weights(teacher_weights=[9.0, 1.0])
    mixed = weights(teacher_weights=[9.0, 1.0], average='probabilities')
    assert not torch.equal(plain, tilted) and not torch.equal(tilted, mixed)
    stored = weights(cache=tmp_path, teacher_weights=[9.0, 1.0], average='probabilities')
    torch.testing.assert_close(stored, mixed, rtol=0, atol=1e-6)
