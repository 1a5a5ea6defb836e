"""Checkpoints of a student: without the teacher's weights, resumed bit for bit, refused for another objective."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import toys
from composer_cmi.algorithms import KnowledgeDistillation
from composer_cmi.teachers.teacher import load_teacher
from distillation_tools import SAME, Losses, start, teacher_bert


def saved(folder: Path, name: str) -> Path:
    (file,) = folder.glob(f'{name}*.pt')
    return file


@pytest.mark.parametrize('kind', ['online', 'cached'])
def test_resumed_in_mid_epoch_is_bit_identical(tmp_path, kind):
    data = toys.Sentences(64, unlabelled=20)

    def fit(folder: str, **kwargs) -> tuple[torch.Tensor, list[float]]:
        model, losses = toys.tiny_bert(dropout=0.1), Losses()
        cache = tmp_path / 'cache' if kind == 'cached' else None
        algorithms = [losses, KnowledgeDistillation(teacher_bert(), cache=cache, **SAME)]
        options = {'save_folder': str(tmp_path / folder), 'save_interval': '1ba', 'save_num_checkpoints_to_keep': -1}
        loader = toys.loader(data, shuffle=True)
        trainer = toys.trainer(model, data, algorithms, train_dataloader=loader, **{**options, **kwargs})
        trainer.fit()
        trainer.close()
        return toys.weights(model), losses.values

    weights, losses = fit('whole')
    for batch in (2, 5):
        checkpoint = str(saved(tmp_path / 'whole', f'ep{batch // 4}-ba{batch}-'))
        again, later = fit(f'again{batch}', load_path=checkpoint)
        assert torch.equal(again, weights) and later == losses[batch:]


def checkpoint_of(folder: Path, algorithms) -> Path:
    student = toys.tiny_bert()
    options = {'max_duration': '1ba', 'save_folder': str(folder)}
    trainer = toys.trainer(student, toys.Sentences(16), algorithms, **options)
    trainer.fit()
    trainer.close()
    return saved(folder, 'ep0-ba1-')


def test_a_checkpoint_is_the_students_and_loads_without_the_teacher(tmp_path):
    alone = checkpoint_of(tmp_path / 'alone', [])
    algorithm = KnowledgeDistillation(teacher_bert(), **SAME)
    taught = checkpoint_of(tmp_path / 'taught', [algorithm])
    assert abs(taught.stat().st_size / alone.stat().st_size - 1) < 0.01
    student = toys.tiny_bert()
    trainer = toys.trainer(student, toys.Sentences(16), [], load_path=str(taught), max_duration='2ba')
    trainer.fit()
    trainer.close()
    state = torch.load(taught, map_location='cpu', weights_only=False)['state']
    assert not [name for name in state['model'] if 'teacher' in name]
    assert set(state['model']) == set(torch.load(alone, weights_only=False)['state']['model'])
    assert dict(state['algorithms'])['KnowledgeDistillation'] == {
        'repr': 'KnowledgeDistillation(alpha=0.5, temperature=2.0)',
        'schema_version': 1,
        'fingerprint': load_teacher(teacher_bert()).fingerprint,
        'alpha': 0.5,
        'loss': 'kl',
        'raise_cmi': None,
        'relation': 0.0,
        'temperature': 2.0,
    }


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'alpha': 0.25}, 'alpha=0.5, this run asks for 0.25'),
        ({'temperature': 1.0}, 'temperature=2.0, this run asks for 1.0'),
        ({'teacher': teacher_bert(4)}, 'distilled from another teacher'),
    ],
)
def test_resumed_with_another_objective(tmp_path, change, message):
    checkpoint = checkpoint_of(tmp_path, [KnowledgeDistillation(teacher_bert(), **SAME)])
    other = KnowledgeDistillation(**{'teacher': teacher_bert(), **SAME, **change})
    with pytest.raises(ValueError, match=message):
        toys.trainer(toys.tiny_bert(), toys.Sentences(16), [other], load_path=str(checkpoint))
    run = KnowledgeDistillation(**{'teacher': teacher_bert(), **SAME, **change})
    options = {'load_path': str(checkpoint), 'load_weights_only': True, 'max_duration': '1ba'}
    trainer = toys.trainer(toys.tiny_bert(), toys.Sentences(16), [run], **options)
    trainer.fit()
    trainer.close()


def test_newer_schema_and_state_before_the_teacher():
    state = {**KnowledgeDistillation(nn.Linear(6, 3)).state_dict(), 'fingerprint': 'other'}
    with pytest.raises(ValueError, match='schema version 2, this composer-cmi reads up to 1'):
        KnowledgeDistillation(nn.Linear(6, 3)).load_state_dict({**state, 'schema_version': 2})
    algorithm = KnowledgeDistillation(toys.mlp(seed=5), **SAME)
    algorithm.load_state_dict(state)  # the teacher is not read yet: compared when it is
    with pytest.raises(ValueError, match='another teacher'):
        start(algorithm, model=toys.mlp(), data=toys.points(16))


def test_state_is_plain(tmp_path):
    """Newer Composer reads with weights_only=True."""
    state = KnowledgeDistillation(teacher_bert()).state_dict()
    torch.save(state, tmp_path / 'x.pt')
    assert torch.load(tmp_path / 'x.pt', weights_only=True) == state
    assert '0x' not in repr(KnowledgeDistillation(teacher_bert()))
