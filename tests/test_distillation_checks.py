"""What KnowledgeDistillation checks of its arguments, teacher, cache and data before it trains on them."""

from __future__ import annotations

import copy

import pytest
import torch
from composer.algorithms import CutMix, MixUp
from composer.models import ComposerClassifier
from torch import nn

import toys
from composer_cmi.algorithms import KnowledgeDistillation
from composer_cmi.teachers.logit_cache import CacheError, CacheKey, LogitCache
from distillation_tools import SAME, cached, start, teacher_bert, train

NAMES = ['sport', 'tech', 'business']


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ({'alpha': 1.5}, 'between 0 and 1, got 1.5'),
        ({'alpha': -0.1}, 'between 0 and 1'),
        ({'temperature': 0.0}, 'temperature must be positive'),
        ({'teacher': None}, 'needs a teacher'),
        ({'teacher': None, 'cache': 'folder'}, 'needs a teacher'),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        KnowledgeDistillation(**{'teacher': nn.Linear(2, 2), **arguments})
    with pytest.raises(FileNotFoundError):
        KnowledgeDistillation(cache='nothing.safetensors')


def test_checked_before_training():
    """In the Trainer's constructor."""
    with pytest.raises(ValueError, match='only default ones'):
        start(KnowledgeDistillation(teacher_bert()))
    with pytest.raises(ValueError, match='The teacher has 4 classes, the student 3'):
        start(KnowledgeDistillation(ComposerClassifier(nn.Linear(6, 4), num_classes=4), **SAME))
    with pytest.raises(ValueError, match='Only one KnowledgeDistillation'):
        start(KnowledgeDistillation(teacher_bert(), **SAME), KnowledgeDistillation(teacher_bert(), **SAME))
    student = toys.tiny_bert()
    with pytest.raises(ValueError, match='shares weights with the student'):
        start(KnowledgeDistillation(student, **SAME), model=student)
    assert all(p.requires_grad for p in student.parameters())
    for mixing in (MixUp(interpolate_loss=True), CutMix(interpolate_loss=True)):
        with pytest.raises(ValueError, match='use interpolate_loss=False'):
            start(KnowledgeDistillation(toys.mlp(seed=5), **SAME), mixing, model=toys.mlp())
    table = LogitCache(torch.arange(4), torch.zeros(4, 3), key=CacheKey('t', 'd'))
    with pytest.raises(ValueError, match='with a cache cannot be combined with MixUp'):
        start(KnowledgeDistillation(cache=table, **SAME), MixUp(), model=toys.mlp())


def test_swapped_label_maps_in_training():
    """A teacher that calls its classes in another order teaches the same student."""
    student = toys.tiny_bert()
    student.model.config.id2label = dict(enumerate(NAMES))
    straight = teacher_bert()
    straight.config.id2label = dict(enumerate(NAMES))
    swapped = copy.deepcopy(straight)
    order = [2, 0, 1]
    swapped.config.id2label = {i: NAMES[j] for i, j in enumerate(order)}
    with torch.no_grad():
        swapped.classifier.weight.copy_(straight.classifier.weight[order])
        swapped.classifier.bias.copy_(straight.classifier.bias[order])
    data = toys.Sentences(48)
    names = [NAMES[j] for j in order]
    runs = [
        KnowledgeDistillation(straight),
        KnowledgeDistillation(swapped),
        KnowledgeDistillation(cache=cached(data, swapped, label_names=names)),
    ]
    weights = [train([run], model=copy.deepcopy(student))[0] for run in runs]
    torch.testing.assert_close(weights[1], weights[0])
    torch.testing.assert_close(weights[2], weights[0])


def test_cache_of_another_teacher():
    data = toys.Sentences(16)
    with pytest.raises(CacheError, match='filled by another teacher'):
        start(KnowledgeDistillation(teacher_bert(3), cache=cached(data, teacher_bert(4)), **SAME))


def test_dropped_example_ids(tmp_path):
    class WithoutIds(toys.Sentences):
        def __getitem__(self, i):
            return {key: value for key, value in super().__getitem__(i).items() if key != 'example_id'}

    class Columns(WithoutIds):
        column_names = ('input_ids', 'labels')

    table = cached(toys.Sentences(16), teacher_bert())
    with pytest.raises(ValueError, match="batches have no 'example_id'"):
        start(KnowledgeDistillation(cache=table, **SAME), data=WithoutIds(16), fit=True)
    with pytest.raises(ValueError, match="batches have no 'example_id'"):
        start(KnowledgeDistillation(cache=table, **SAME), data=Columns(16), fit=True)
    with pytest.raises(ValueError, match="training rows have no 'example_id'"):
        start(KnowledgeDistillation(teacher_bert(), cache=tmp_path, **SAME), data=WithoutIds(16), fit=True)


def test_examples_that_the_cache_lacks():
    class Known(toys.Sentences):
        example_ids = torch.arange(32)

    table = cached(toys.Sentences(16), teacher_bert())
    with pytest.raises(KeyError, match='16 examples have no stored logits'):
        start(KnowledgeDistillation(cache=table, **SAME), data=Known(32), fit=True)  # seen at FIT_START
    trainer = toys.trainer(toys.tiny_bert(), toys.Sentences(32), [KnowledgeDistillation(cache=table, **SAME)])
    with pytest.raises(KeyError, match='no stored logits'):
        trainer.fit()
    trainer.close()


def test_shapes_that_only_a_forward_pass_shows():
    with pytest.raises(ValueError, match=r'shape \[16, 4\], the student'):
        start(KnowledgeDistillation(nn.Linear(6, 4), **SAME), model=toys.mlp(), data=toys.points(16), fit=True)


def test_a_batch_without_labels():
    class WithoutLabels(toys.Sentences):
        def __getitem__(self, i):
            return {key: value for key, value in super().__getitem__(i).items() if key != 'labels'}

    with pytest.raises(ValueError, match="no labels at 'labels'"):
        start(KnowledgeDistillation(teacher_bert(), **SAME), data=WithoutLabels(16), fit=True)
