"""What a model's outputs and a batch hold: class logits, labels of every integer kind, and clear refusals of others."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset, default_collate
from transformers.modeling_outputs import SequenceClassifierOutput

import toys
from composer_cmi.algorithms.cmi import CMIRegularization
from composer_cmi.algorithms.distillation import KnowledgeDistillation
from composer_cmi.batch import class_labels, class_logits

LOGITS, LABELS = torch.randn(4, 3), torch.tensor([0, 1, 2, -100])
Pair = namedtuple('Pair', ['x', 'y'])


@pytest.mark.parametrize(
    'outputs',
    [
        LOGITS,
        {'loss': torch.tensor(0.5), 'logits': LOGITS},
        SequenceClassifierOutput(loss=torch.tensor(0.5), logits=LOGITS),  # type: ignore[arg-type]
        (LOGITS,),
        [LOGITS, torch.zeros(4, 9)],
        (torch.tensor(0.5), LOGITS, (torch.zeros(4, 9),)),
        (None, LOGITS),
    ],
)
def test_logits_of_every_kind_of_outputs(outputs: Any):
    assert class_logits(outputs) is LOGITS


@pytest.mark.parametrize('outputs', [{'scores': LOGITS}, (torch.tensor(0.5),), (), None, {'logits': None}, 'logits'])
def test_outputs_without_logits(outputs: Any):
    with pytest.raises(ValueError, match='The model gave no class logits but'):
        class_logits(outputs)


@pytest.mark.parametrize('dtype', [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
@pytest.mark.parametrize(
    ('batch', 'key'),
    [
        (lambda y: {'labels': y}, None),
        (lambda y: {'label': y}, 'label'),
        (lambda y: (None, y), None),
        (lambda y: [None, None, y], 2),
        (lambda y: Pair(None, y), 'y'),
        (lambda y: transformers.BatchEncoding({'labels': y}), None),
        (lambda y: ({'a': y},), lambda batch: batch[0]['a']),
        (lambda y: ({'a': y},), (lambda batch: batch[0]['a'], lambda batch, value: None)),
    ],
)
def test_labels_of_every_kind_of_batch(batch: Any, key: Any, dtype: torch.dtype):
    labels = class_labels(batch(torch.tensor([0, 1, 2]).to(dtype)), key)
    assert labels.dtype == torch.int64 and labels.tolist() == [0, 1, 2]


REFUSED = {
    'label instead of labels': ({'label': LABELS}, None, r"no labels at 'labels' but 'label': label_key"),
    'a key that is not there': ({'labels': LABELS}, 'target', r"no labels at 'target' but 'labels': label_key"),
    'a short tuple': ((LOGITS,), None, r'no labels at 1 but a tuple: label_key'),
    'no attribute': (Pair(LOGITS, LABELS), 'z', r"no labels at 'z' but a Pair: label_key"),
    'a function that fails': ({'label': LABELS}, lambda b: b['labels'], r'no labels at .*: label_key'),
    'floats': ({'labels': LABELS.float()}, None, r'float32 of shape \[4\].*regression .*label_key='),
    'soft labels': ({'labels': LOGITS}, None, r'float32 of shape \[4, 3\].*label_key='),
    'one-hot': ({'labels': torch.eye(3).long()}, None, r'shape \[3, 3\]: one-hot.*label_key='),
    'a column': ({'labels': LABELS[:, None]}, None, r'shape \[4, 1\]: .*label_key='),
    'a scalar': ({'labels': LABELS[0]}, None, r'shape \[\]: .*label_key='),
    'bool': ({'labels': LABELS > 0}, None, r'torch.bool: .*label_key='),
    'a list': ({'labels': [0, 1, 2]}, None, r'a list: .*make a tensor.*label_key='),
    'nothing': ({'labels': None}, None, r'a NoneType: .*label_key='),
}


@pytest.mark.parametrize('case', REFUSED)
def test_promise_21_labels_that_are_not_there_or_no_classes_name_the_argument(case: str):
    batch, key, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        class_labels(batch, key)


ALGORITHMS = [CMIRegularization, lambda: KnowledgeDistillation(toys.tiny_bert(seed=2), assume_same_labels=True)]


class Renamed(toys.Sentences):
    """`label`, as many datasets call it, where Hugging Face's models want `labels`."""

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {'label' if key == 'labels' else key: value for key, value in super().__getitem__(i).items()}


@pytest.mark.parametrize('make', ALGORITHMS)
def test_promise_21_a_trainer_whose_batches_say_label(make: Any):
    trainer = toys.trainer(toys.tiny_bert(), Renamed(32), [make()], max_duration='1ba')
    with pytest.raises(ValueError, match=r"no labels at 'labels' but .*'label'.*label_key"):
        trainer.fit()
    trainer.close()


class Listed(toys.Sentences):
    collate = staticmethod(lambda rows: {**default_collate(rows), 'labels': [int(row['labels']) for row in rows]})


@pytest.mark.parametrize('make', ALGORITHMS)
def test_promise_21_a_trainer_whose_labels_are_a_list(make: Any):
    data = DataLoader(Listed(32), batch_size=16, collate_fn=Listed.collate)
    trainer = toys.trainer(toys.tiny_bert(), Listed(32), [make()], train_dataloader=data, max_duration='1ba')
    with pytest.raises(ValueError, match=r"batch\['labels'\], got a list: .*label_key='labels'"):
        trainer.fit()
    trainer.close()


def test_uint8_labels_train_as_int64_do():
    x, y = toys.points(64).tensors
    weights = []
    for dtype in (torch.int64, torch.uint8):
        model, algorithm = toys.mlp(), CMIRegularization(weight=1.0, form='plain', start='0ba')
        data = DataLoader(TensorDataset(x, y.to(dtype)), batch_size=16)
        trainer = toys.trainer(model, TensorDataset(x), [algorithm], train_dataloader=data, max_duration='4ba')
        trainer.fit()
        trainer.close()
        weights.append(toys.weights(model))
    assert torch.equal(*weights) and algorithm.class_centroids.ready
