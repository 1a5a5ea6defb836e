"""The distillation loss: by hand, then in a real Trainer, from an online teacher and from a cached one."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from composer.loggers import InMemoryLogger
from torch.utils.data import default_collate

import toys
from composer_cmi.algorithms import KnowledgeDistillation
from composer_cmi.algorithms.distillation import distillation_loss
from composer_cmi.functional import distillation_divergence
from composer_cmi.teachers.logit_cache import LogitCache
from composer_cmi.teachers.teacher import load_teacher
from distillation_tools import SAME, cached, teacher_bert, train

# --- the formula ------------------------------------------------------------------------------------------------------


def test_literal_numbers():
    """t / tau = (0, ln 3) gives (1/4, 3/4), s = 0 gives (1/2, 1/2); tau = 2, so that t = (0, 2 ln 3)."""
    teacher, student = torch.tensor([[0.0, 2 * math.log(3)]]), torch.zeros(1, 2)
    kl = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)  # 0.13081
    divergence = distillation_divergence(student, teacher, 2.0)
    assert divergence.tolist() == pytest.approx([4 * kl])
    own = torch.tensor(math.log(2))
    loss = distillation_loss(own, divergence, torch.tensor(1.0), 0.25)
    assert float(loss) == pytest.approx(0.75 * 0.693147 + 0.25 * 0.523248, abs=1e-6)


def test_rows_without_labels():
    """Four rows, one labelled: its CE is a quarter of the mean over the rows."""
    divergence = torch.tensor([1.0, 2.0, 3.0, 6.0])
    loss = distillation_loss(torch.tensor(8.0), divergence, torch.tensor(0.25), 0.5)
    assert float(loss) == 0.5 * 8 / 4 + 0.5 * 3
    nothing = distillation_loss(torch.tensor(math.nan), divergence, torch.tensor(0.0), 0.5)
    assert float(nothing) == 1.5


def test_the_edges_are_exact():
    own, divergence, share = torch.tensor(0.1), torch.tensor([0.3, 0.7]), torch.tensor(1.0)
    assert torch.equal(distillation_loss(own, divergence, share, 0.0), own)
    assert torch.equal(distillation_loss(own, divergence, share, 1.0), divergence.mean())
    assert float(distillation_loss(own, torch.tensor([math.inf]), share, 0.0)) == pytest.approx(0.1)
    assert float(distillation_loss(torch.tensor(math.nan), divergence, share, 1.0)) == 0.5


def test_a_microbatch_without_a_label_has_no_nan_gradient():
    logits = torch.randn(3, 4, requires_grad=True)
    own = F.cross_entropy(logits, torch.full((3,), -100))
    teacher = torch.randn(3, 4)
    assert bool(own.isnan())
    loss = distillation_loss(own, distillation_divergence(logits, teacher, 1.0), torch.tensor(0.0), 0.5)
    loss.backward()
    # d KL / d s = softmax(s) - softmax(t)
    expected = 0.5 * (logits.softmax(-1) - teacher.softmax(-1)) / 3
    torch.testing.assert_close(logits.grad, expected)


@pytest.mark.parametrize('tau', [1.0, 4.0])
def test_gradient_at_every_temperature(tau):
    """tau^2 KL has the gradient tau (softmax(s / tau) - softmax(t / tau)): dropping tau^2 at tau = 4 gives 1/16."""
    student, teacher = torch.randn(2, 3, requires_grad=True), torch.randn(2, 3)
    distillation_divergence(student, teacher, tau).mean().backward()
    expected = tau * ((student / tau).softmax(-1) - (teacher / tau).softmax(-1)) / 2
    torch.testing.assert_close(student.grad, expected)


# --- training ---------------------------------------------------------------------------------------------------------


def test_alpha_0_is_the_student_alone_bit_by_bit():
    """Dropout masks included: a teacher draws no random numbers."""
    alone = train([])
    for run in ({}, {'device_train_microbatch_size': 4}):
        alone = train([], **run)
        taught = train([KnowledgeDistillation(teacher_bert(), alpha=0.0, **SAME)], **run)
        assert torch.equal(taught[0], alone[0]) and taught[1] == alone[1]


def test_alpha_1_is_the_divergence_alone():
    """No label is looked at."""
    data = toys.Sentences(48)
    run = {'alpha': 1.0, **SAME}
    weights, losses = train([KnowledgeDistillation(teacher_bert(), **run)], data)
    data.labels = (data.labels + 1) % 3
    others = train([KnowledgeDistillation(teacher_bert(), **run)], data)
    assert torch.equal(weights, others[0]) and losses == others[1]
    data.labels = torch.full((48,), -100)
    assert torch.equal(weights, train([KnowledgeDistillation(teacher_bert(), **run)], data)[0])


def test_first_loss_by_hand():
    data, student, teacher = toys.Sentences(16), toys.tiny_bert(), teacher_bert()
    batch = default_collate([data[i] for i in range(16)])
    s, t = student(batch)['logits'].detach(), load_teacher(teacher).logits(batch)
    tau = 3.0
    kl = (F.softmax(t / tau, -1) * (F.log_softmax(t / tau, -1) - F.log_softmax(s / tau, -1))).sum(-1).mean()
    expected = 0.3 * F.cross_entropy(s, batch['labels']) + 0.7 * tau**2 * kl
    run = KnowledgeDistillation(teacher, alpha=0.7, temperature=tau, **SAME)
    assert train([run], data, model=student)[1][0] == pytest.approx(float(expected), rel=1e-5)


def test_the_student_follows_the_teacher():
    """Trained on the divergence alone it comes to agree; the teacher stays as it was."""
    teacher = teacher_bert()
    before = copy.deepcopy(teacher.state_dict())
    logger = InMemoryLogger()
    run = KnowledgeDistillation(teacher, alpha=1.0, **SAME)
    train([run], model=toys.tiny_bert(), max_duration='30ep', loggers=logger)
    loss = [float(value) for _, value in logger.data['distillation/loss']]
    agreement = [float(value) for _, value in logger.data['distillation/agreement']]
    assert len(loss) == 90 and loss[-1] < 0.3 * loss[0]
    assert all(0 <= value <= 1 for value in agreement)
    assert sum(agreement[-3:]) / 3 > max(0.75, sum(agreement[:3]) / 3)
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_logged_values_do_not_depend_on_the_microbatch():
    curves = []
    for size in (16, 4, 3):
        logger = InMemoryLogger()
        run = KnowledgeDistillation(teacher_bert(), **SAME)
        train([run], model=toys.tiny_bert(), loggers=logger, device_train_microbatch_size=size)
        curves.append([float(value) for _, value in logger.data['distillation/loss']])
    assert curves[1] == pytest.approx(curves[0], rel=1e-4) and curves[2] == pytest.approx(curves[0], rel=1e-4)


def test_a_teacher_in_train_mode():
    """The caller's module is in train mode and has dropout; still the same weights as with an evaluated copy."""
    left = teacher_bert().train()
    weights = train([KnowledgeDistillation(left, **SAME)])[0]
    assert torch.equal(weights, train([KnowledgeDistillation(teacher_bert().eval(), **SAME)])[0])


@pytest.mark.parametrize('run', [{}, {'device_train_microbatch_size': 4}, {'device_train_microbatch_size': 3}])
@pytest.mark.parametrize('unlabelled', [0, 30])
def test_cached_is_online(tmp_path, run, unlabelled):
    """Over three epochs of shuffled batches, with dropout in the student, with rows without labels."""
    data = toys.Sentences(48, unlabelled=unlabelled)
    losses = []
    for cache in (None, tmp_path, cached(data, teacher_bert())):
        teacher = teacher_bert() if not isinstance(cache, LogitCache) else None
        algorithm = KnowledgeDistillation(teacher, cache=cache, **SAME)
        sampler = toys.loader(data, shuffle=True)
        losses.append(train([algorithm], data, train_dataloader=sampler, **run)[1])
    assert len(losses[0]) == 9 * -(-16 // run.get('device_train_microbatch_size', 16))
    assert all(math.isfinite(value) for value in losses[0])
    for other in losses[1:]:
        assert other == pytest.approx(losses[0], abs=1e-6, rel=1e-6)
    assert len(list(Path(tmp_path).glob('*.safetensors'))) == 1


def test_the_folder_is_used_again(tmp_path):
    data, logits = toys.Sentences(48), []
    for _ in range(2):
        algorithm = KnowledgeDistillation(teacher_bert(), cache=tmp_path, **SAME)
        train([algorithm], data)
        (file,) = tmp_path.glob('*.safetensors')
        logits.append((file.stat().st_mtime_ns, LogitCache.open(file).logits))
    assert logits[0][0] == logits[1][0]
    train([KnowledgeDistillation(teacher_bert(4), cache=tmp_path, **SAME)], data)  # another teacher, another file
    assert len(list(tmp_path.glob('*.safetensors'))) == 2


def test_no_wait_for_the_device_in_a_step(monkeypatch):
    """Nothing in the loss reads a tensor's value."""
    algorithm = KnowledgeDistillation(toys.mlp(seed=5), **SAME)  # a Hugging Face model looks at its mask itself
    trainer = toys.trainer(toys.mlp(), toys.points(16), [algorithm], max_duration='1ba')
    calls = []
    for event in ('_ask_teacher', '_weigh', '_log', '_begin_pass'):
        inner = getattr(algorithm, event)

        def watched(state, logger, inner=inner):
            with monkeypatch.context() as patch:
                for name in ('item', 'tolist', 'cpu', '__bool__', '__float__', '__int__'):
                    patch.setattr(torch.Tensor, name, lambda *_, name=name: calls.append(name) or 0)
                inner(state, logger)

        monkeypatch.setattr(algorithm, event, watched)
    logger = trainer.logger
    monkeypatch.setattr(logger, 'log_metrics', lambda *_, **__: None)
    trainer.fit()
    trainer.close()
    assert calls == []
