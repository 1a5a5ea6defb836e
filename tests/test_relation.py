"""Relations to class means: literal numbers, what they are free of, exactness, resume, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from composer.algorithms import SAM, LabelSmoothing, MixUp

import toys
from composer_cmi.algorithms import KnowledgeDistillation
from composer_cmi.terms.relation import ClassRelation, class_cosines, relation_term
from distillation_tools import SAME, Losses, cached, start, teacher_bert, train
from exact_cases import distillation
from hf_tools import Rows, bert, trainer, update

ALL = torch.ones(2, dtype=torch.bool)


def test_literal_numbers():
    """Class means (1, 0) and (-1, 0): seen from 0, the row (3, 4) lies at cosines .6 and -.6."""
    means = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    cosines = class_cosines(torch.tensor([[3.0, 4.0], [-2.0, 0.0]]), means, ALL)
    torch.testing.assert_close(cosines, torch.tensor([[0.6, -0.6], [-1.0, 1.0]]))
    teacher = torch.tensor([[0.2, -0.6], [1.0, 0.0]])
    # (.4^2 / 2 + 0) / 2; and (2 - 1/2, 1/2) / 2.
    torch.testing.assert_close(relation_term(cosines, teacher, ALL), torch.tensor([0.04, 1.0]))


def test_scale_shift_turn_and_width_of_either_network_do_not_matter():
    generator = torch.Generator().manual_seed(0)
    features, means = torch.randn(5, 4, generator=generator), torch.randn(3, 4, generator=generator)
    known = torch.tensor([True, True, True])
    turn = torch.linalg.qr(torch.randn(6, 4, generator=generator))[0].T
    cosines = class_cosines(features, means, known)
    torch.testing.assert_close(class_cosines(7 * features @ turn + 3, 7 * means @ turn + 3, known), cosines)
    seen = class_cosines(features, means, torch.tensor([True, False, True]))
    assert bool((seen[:, 1] == 0).all()) and not torch.allclose(seen[:, 0], cosines[:, 0])


def test_a_row_is_a_mean_over_the_classes_that_are_known():
    term = relation_term(torch.zeros(3, 4), torch.ones(3, 4), torch.tensor([True, False, True, False]))
    torch.testing.assert_close(term, torch.full((3,), 0.5))  # Huber's distance of 0 and 1


@pytest.mark.parametrize('known', [[False, False], [True, False], [True, True]])
def test_every_gradient_is_finite(known):
    features = torch.cat([torch.randn(3, 4), torch.zeros(1, 4)]).requires_grad_()
    known = torch.tensor(known)
    relation_term(class_cosines(features, torch.zeros(2, 4), known), torch.zeros(4, 2), known).sum().backward()
    assert features.grad is not None and bool(features.grad.isfinite().all())


def test_class_means_are_frozen_in_a_batch_and_a_repeated_pass_counts_once():
    generator = torch.Generator().manual_seed(0)
    s, t = torch.randn(2, 8, 3, generator=generator), torch.randn(2, 8, 5, generator=generator)
    labels = torch.tensor([0, 1, 0, 1, 1, 0, -100, 7])
    relation = ClassRelation()
    assert not bool(relation.rows(s[0], t[0], labels, 2).any()), 'there is no class mean yet'
    relation.finish()
    relation.begin()
    relation.rows(9 * s[0], t[0], labels, 2)  # SAM's second pass
    relation.finish()
    relation.commit()
    table = relation.state_dict()['relation_table']
    assert table[:, -1].tolist() == [3.0, 3.0]
    torch.testing.assert_close(table[0, :3], s[0][[0, 2, 5]].double().sum(0))
    whole = relation.rows(s[1], t[1], labels, 2)
    relation.begin()
    parts = [relation.rows(s[1][part], t[1][part], labels[part], 2) for part in (slice(0, 3), slice(3, 8))]
    torch.testing.assert_close(torch.cat(parts), whole)
    relation.finish()
    relation.commit()
    torch.testing.assert_close(relation.state_dict()['relation_table'][1, -1], torch.tensor(0.9 * 3 + 3).double())


def test_a_student_comes_to_lie_as_its_teacher_does():
    data = toys.points()
    teacher = toys.mlp(seed=5)
    run = toys.trainer(teacher, data, [])
    run.fit()
    run.close()

    def distance(weight: float) -> float:
        model = toys.mlp()
        algorithm = KnowledgeDistillation(teacher, alpha=0.0, relation=weight, **SAME)
        run = toys.trainer(model, data, [algorithm], max_duration='6ep')
        run.fit()
        run.close()
        x, y = data.tensors
        relation = ClassRelation()
        given = model.module[:2](x), teacher.module[:2](x), y, toys.CLASSES
        with torch.no_grad():
            relation.rows(*given)
            relation.finish()
            relation.commit()
            return float(relation.rows(*given).mean())

    assert distance(20.0) < 0.5 * distance(0.0)


PARTNERS = {'alone': lambda: [], 'sam': lambda: [SAM(rho=0.05)], 'smoothing': lambda: [LabelSmoothing(0.2)]}


@pytest.mark.parametrize('partner', PARTNERS)
def test_any_cut_and_order_give_the_same_student(partner):
    found = []
    for size, flip in ((16, False), (3, True)):
        algorithms = [distillation(relation=5.0), *PARTNERS[partner]()][:: -1 if flip else 1]
        model = toys.mlp()
        run = toys.trainer(model, toys.points(), algorithms, device_train_microbatch_size=size)
        run.fit()
        run.close()
        found.append(toys.weights(model))
    torch.testing.assert_close(found[1], found[0], atol=5e-6, rtol=1e-5)


def test_rows_without_labels_are_compared_too_and_a_teacher_of_another_width_will_do():
    data = toys.Sentences(48, unlabelled=24)
    weights = [
        train([KnowledgeDistillation(teacher_bert(), alpha=0.6, relation=relation, **SAME)], data, **cut)[0]
        for relation, cut in ((5.0, {}), (0.0, {}))
    ]
    assert not torch.allclose(weights[0], weights[1], atol=1e-3)


def test_resumed_bit_for_bit(tmp_path):
    data = toys.Sentences(64, unlabelled=20)

    def fit(folder: str, **options) -> tuple[torch.Tensor, list[float]]:
        model, losses = toys.tiny_bert(dropout=0.1), Losses()
        algorithms = [losses, KnowledgeDistillation(teacher_bert(), relation=5.0, **SAME)]
        saving = {'save_folder': str(tmp_path / folder), 'save_interval': '1ba', 'save_num_checkpoints_to_keep': -1}
        run = toys.trainer(model, data, algorithms, max_duration='6ba', **{**saving, **options})
        run.fit()
        run.close()
        return toys.weights(model), losses.values

    weights, losses = fit('whole')
    again, later = fit('again', load_path=str(next(Path(tmp_path / 'whole').glob('ep0-ba3-*.pt'))))
    assert torch.equal(again, weights) and later == losses[3:]


def test_the_hf_trainer_resumes_it_bit_for_bit(tmp_path):
    section = {'teacher': bert(seed=9), 'alpha': 0.5, 'relation': 5.0, 'assume_same_labels': True}

    def run(folder: str, checkpoint: str | None = None):
        settings = {'save_strategy': 'steps', 'save_steps': 1}
        made = trainer(
            tmp_path / folder, model=bert(), rows=Rows(32), settings=settings, knowledge_distillation=section
        )
        made.train(resume_from_checkpoint=checkpoint)
        return made

    whole = run('whole')
    assert any('distillation/relation' in row for row in whole.state.log_history)
    checkpoint = next((tmp_path / 'whole').rglob('checkpoint-2'))
    assert torch.equal(update(run('again', str(checkpoint)).model, bert()), update(whole.model, bert()))


def test_what_it_cannot_do_is_refused_in_a_sentence():
    table = cached(toys.Sentences(16), teacher_bert())
    for cache in (table, 'folder'):
        with pytest.raises(ValueError, match='relation compares features, and a cache holds .* logits alone'):
            KnowledgeDistillation(teacher_bert(), cache=cache, relation=1.0, **SAME)
    with pytest.raises(ValueError, match='relation is to the features of one teacher, 2 are given'):
        KnowledgeDistillation([teacher_bert(), teacher_bert(3)], relation=1.0, **SAME)
    with pytest.raises(ValueError, match='relation'):
        KnowledgeDistillation(teacher_bert(), relation=-1.0)
    with pytest.raises(ValueError, match='relation is to classes, and a mixture of two examples has none'):
        start(distillation(relation=1.0), MixUp(), model=toys.mlp(), data=toys.points(16))
    state = KnowledgeDistillation(teacher_bert(), relation=1.0, **SAME).state_dict()
    with pytest.raises(ValueError, match='relation=1.0, this run asks for 2.0'):
        KnowledgeDistillation(teacher_bert(), relation=2.0, **SAME).load_state_dict(state)


def test_a_state_of_before_is_taken_without_a_word(recwarn):
    state = KnowledgeDistillation(teacher_bert()).state_dict()
    del state['relation'], state['raise_cmi']
    KnowledgeDistillation(teacher_bert()).load_state_dict(state)
    assert not [each for each in recwarn if 'older composer-cmi' in str(each.message)]
    with pytest.raises(ValueError, match='relation=0.0, this run asks for 1.0'):
        KnowledgeDistillation(teacher_bert(), relation=1.0).load_state_dict(state)
