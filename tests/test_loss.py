"""The term reaches the gradient in whatever container a model returns its loss, and leaves that container as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from composer.core import Event
from composer.loggers import Logger
from composer.models import ComposerClassifier
from torch import Tensor

import toys
from composer_cmi.algorithms import CMIRegularization, KnowledgeDistillation
from composer_cmi.algorithms.loss import add_to_loss, get_total, replace_total

ONE, TWO = torch.tensor(1.0), torch.tensor(2.0)


@pytest.mark.parametrize(
    ('loss', 'expected'),
    [
        (ONE, torch.tensor(1.5)),
        ({'total': ONE, 'aux': TWO}, {'total': torch.tensor(1.5), 'aux': TWO}),
        ({'ce': ONE, 'aux': TWO}, {'ce': torch.tensor(1.5), 'aux': TWO}),
        ((ONE, TWO), (torch.tensor(1.5), TWO)),
        ([ONE, TWO], [torch.tensor(1.5), TWO]),
    ],
    ids=['tensor', 'total', 'mapping', 'tuple', 'list'],
)
def test_added_out_of_place_in_the_same_container(loss, expected):
    assert get_total(loss) is ONE
    found = add_to_loss(loss, torch.tensor(0.5, dtype=torch.float64))
    assert type(found) is type(loss) and found == expected and get_total(found).dtype == torch.float32
    assert ONE == 1.0 and get_total(loss) is ONE, 'the argument was changed'
    assert get_total(replace_total(loss, TWO)) is TWO


class Contained(ComposerClassifier):
    """Returns the cross-entropy in a container."""

    container: Any

    def loss(self, outputs: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
        return self.container(super().loss(outputs, batch, *args, **kwargs))


CONTAINERS = {
    'total': lambda ce: {'total': ce, 'aux': ce.detach() * 3},
    'tuple': lambda ce: (ce, ce.detach() * 0),
    'list': lambda ce: [ce, ce.detach() * 0],
}


def train(algorithm: Any, container: Any = None) -> Tensor:
    model = toys.mlp()
    if container is not None:
        model.__class__, model.container = Contained, staticmethod(container)
    trainer = toys.trainer(model, toys.points(), [algorithm], device_train_microbatch_size=4, lr=0.02)
    trainer.fit()
    trainer.close()
    return toys.weights(model)


@pytest.mark.parametrize('container', CONTAINERS)
@pytest.mark.parametrize(
    'make',
    [
        lambda: CMIRegularization(1.0, start='1ba'),
        lambda: KnowledgeDistillation(toys.mlp(seed=5).module, assume_same_labels=True),
    ],
    ids=['cmi', 'distillation'],
)
def test_trained_as_with_a_plain_tensor(make, container):
    torch.testing.assert_close(train(make(), CONTAINERS[container]), train(make()), atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize(
    'make',
    [CMIRegularization, lambda: KnowledgeDistillation(toys.mlp(seed=5).module, assume_same_labels=True)],
    ids=['cmi', 'distillation'],
)
def test_a_loss_without_a_forward_pass_is_an_error(make):
    algorithm = make()
    trainer = toys.trainer(toys.mlp(), toys.points(), [algorithm])
    trainer.state.loss, trainer.state.outputs = ONE, torch.zeros(2, toys.CLASSES)
    with pytest.raises(RuntimeError, match='without a forward pass before it'):
        algorithm.apply(Event.AFTER_LOSS, trainer.state, Logger(trainer.state))
    trainer.close()
