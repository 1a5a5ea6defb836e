"""The class head is the module whose output is the logits: two heads, a head called twice, logits made over."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import toys
from composer_cmi.algorithms.cmi import CMIRegularization
from composer_cmi.features import FeatureReader
from feature_tools import CLASSES, WIDTH, make_batch, make_model


class Heads(nn.Module):
    """`heads` run in their order over a body of their own each; `choose` makes the logits of their outputs."""

    def __init__(self, choose: Callable[..., Tensor], *names: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.names, self.choose, self.num_classes = names, choose, CLASSES
        self.bodies = nn.ModuleDict({name: nn.Sequential(nn.Linear(6, WIDTH), nn.Tanh()) for name in set(names)})
        self.heads = nn.ModuleDict({name: nn.Linear(WIDTH, CLASSES) for name in sorted(set(names))})

    def features(self, name: str, x: Tensor) -> Tensor:
        return self.bodies[name](x)

    def forward(self, x: Tensor) -> Tensor:
        return self.choose(*[self.heads[name](self.features(name, x + i)) for i, name in enumerate(self.names)])


CHOICES = {
    'itself': lambda main, other: main,
    'cast': lambda main, other: main.double().float(),
    'view': lambda main, other: main.view(-1)[: main.numel()].view_as(main),
    'index': lambda main, other: main[torch.arange(len(main))],
    'classes in another order': lambda main, other: main[:, [2, 0, 1]],
    'scaled': lambda main, other: 30 * torch.tanh(main / 30),
    'scaled by a weight': lambda main, other: main * nn.Parameter(torch.tensor(2.0)) + nn.Parameter(torch.zeros(3)),
    'in place': lambda main, other: main.mul_(2),
    'probabilities': lambda main, other: main.log_softmax(-1),
    'squeezed': lambda main, other: main.unsqueeze(0).squeeze(0),
}


@pytest.mark.parametrize('order', [('main', 'auxiliary'), ('auxiliary', 'main')])
@pytest.mark.parametrize('choice', CHOICES)
def test_two_heads_of_one_width_give_the_main_ones_features(choice: str, order: tuple[str, str]):
    choose = CHOICES[choice] if order[0] == 'main' else lambda other, main: CHOICES[choice](main, other)
    model, x = Heads(choose, *order), torch.randn(5, 6)
    reader = FeatureReader(model)
    assert (reader.dim, reader.num_classes) == (WIDTH, CLASSES)
    reader.attach(model)
    features = reader.read(None, model(x))
    torch.testing.assert_close(features, model.features('main', x + order.index('main')))
    assert features.grad_fn is not None


@pytest.mark.parametrize('way', ['index', 'index_select', 'rows and classes'])
def test_rows_that_the_model_sorts_and_sorts_back(way: str):
    order = torch.tensor([3, 1, 4, 0, 2])

    class Sorting(Heads):
        def forward(self, x: Tensor) -> Tensor:
            outputs = super().forward(x[order].double().float())
            back = order.argsort()
            if way == 'rows and classes':
                return outputs[back][:, [1, 0, 2]].float()
            return outputs[back] if way == 'index' else outputs.index_select(0, back)

    model, x = Sorting(lambda main: main, 'main'), torch.randn(5, 6)
    reader = FeatureReader(model)
    reader.attach(model)
    torch.testing.assert_close(reader.read(None, model(x)), model.features('main', x))


def test_logits_of_half_of_the_heads_rows_are_refused():
    model, x = Heads(lambda main: main[:5], 'main'), torch.randn(10, 6)
    reader = FeatureReader(model)
    reader.attach(model)
    with pytest.raises(ValueError, match=r'shape \[10, 16\], which does not give \[N, 16\], N=5'):
        reader.read(None, model(x))


@pytest.mark.parametrize('which', [0, 1])
def test_a_head_called_twice_gives_the_call_of_the_logits(which: int):
    model, x = Heads(lambda *outputs: outputs[which].float()[:, :], 'main', 'main'), torch.randn(5, 6)
    reader = FeatureReader(model)
    reader.attach(model)
    torch.testing.assert_close(reader.read(None, model(x)), model.features('main', x + which))
    reader.attach(model.eval(), always=True)
    with torch.no_grad():
        torch.testing.assert_close(reader.read(None, model(x)), model.features('main', x + which))


@pytest.mark.parametrize(
    'choose',
    [
        lambda main, other: (main + other) / 2,
        lambda main, other: torch.cat([main, other]),
        lambda main, other: torch.where(main > 0, main, other),
        lambda main, other: F.linear(
            main, torch.eye(CLASSES, requires_grad=True)
        ),  # past the layers: a head of its own
        lambda main, other: torch.randn(5, CLASSES, requires_grad=True) + 0,
    ],
    ids=['mean', 'both', 'one or the other', 'functional', 'neither'],
)
def test_logits_that_are_no_heads_output_are_refused(choose: Callable[..., Tensor]):
    model = Heads(choose, 'main', 'auxiliary')
    reader = FeatureReader(model)
    reader.attach(model)
    logits = model(torch.randn(5, 6))
    with pytest.raises(ValueError, match=r'come from .* \(heads.auxiliary / heads.main\); .*feature_module='):
        reader.read(None, logits)


def test_one_auxiliary_head_beside_functional_logits_is_refused():
    class Functional(Heads):
        def forward(self, x: Tensor) -> Tensor:
            hidden = self.features('auxiliary', x)
            self.heads['auxiliary'](hidden)
            return F.linear(hidden, self.heads['auxiliary'].weight * 2)

    model = Functional(lambda *_: _[0], 'auxiliary')
    reader = FeatureReader(model)
    reader.attach(model)
    with pytest.raises(ValueError, match='come from none of the linear layers'):
        reader.read(None, model(torch.randn(5, 6)))
    named, x = FeatureReader(model, module='heads.auxiliary'), torch.randn(5, 6)  # who names it, gets it
    reader.detach()
    named.attach(model)
    torch.testing.assert_close(named.read(None, model(x)), model.features('auxiliary', x))


def test_a_mean_over_dropouts_behind_one_vector():
    class MultiSample(nn.Module):
        num_classes = CLASSES

        def __init__(self) -> None:
            super().__init__()
            self.body, self.drop, self.head = nn.Linear(6, WIDTH), nn.Dropout(0.5), nn.Linear(WIDTH, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.body(x)
            return torch.stack([self.head(self.drop(hidden)) for _ in range(5)]).mean(0)

    model, x = MultiSample(), torch.randn(5, 6)
    reader = FeatureReader(model)
    reader.attach(model)
    torch.testing.assert_close(reader.read(None, model(x)), model.body(x))


def test_somebodys_own_head_of_cosines():
    class Cosines(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(CLASSES, WIDTH))

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(F.normalize(x), F.normalize(self.weight))

    model, x = Heads(lambda main, other: main * 10, 'main', 'auxiliary'), torch.randn(5, 6)
    model.heads['main'] = Cosines()
    reader = FeatureReader(model)
    reader.attach(model)
    torch.testing.assert_close(reader.read(None, model(x)), model.features('main', x))


@pytest.mark.parametrize('backend', ['eager', 'aot_eager'])
def test_two_heads_under_torch_compile(backend: str):
    torch.compiler.reset()
    model, x = Heads(lambda main, other: main[:, :], 'main', 'auxiliary'), torch.randn(5, 6)
    reader = FeatureReader(model)
    compiled = torch.compile(model, backend=backend)
    reader.attach(compiled)
    torch.testing.assert_close(reader.read(None, compiled(x)), model.features('main', x))
    reader.clear()
    model.choose = lambda main, other: main[torch.arange(5)] * 2  # a copy
    if backend == 'eager':
        torch.testing.assert_close(reader.read(None, compiled(x)), model.features('main', x))
    else:  # compiled code is one node of the graph, which does not show what is made of what
        with pytest.raises(ValueError, match='come from several calls'):
            reader.read(None, compiled(x))
        reader.detach()
        reader = FeatureReader(model, module='heads.main')
        reader.attach(compiled)
        torch.testing.assert_close(reader.read(None, compiled(x)), model.features('main', x))
    torch.compiler.reset()


@pytest.mark.parametrize('ddp', [False, True])
@pytest.mark.parametrize('name', ['bert', 'roberta', 'llama'])
def test_transformers_with_an_auxiliary_head_of_one_width(name: str, ddp: bool, process_group: None):
    """The auxiliary head runs second, over the first token, and joins the loss."""
    bare, batch = make_model(name), make_batch()

    class WithAuxiliary(type(bare)):
        def forward(self, **inputs: Any) -> Any:
            outputs = super().forward(**inputs, output_hidden_states=True)
            auxiliary = self.auxiliary(outputs.hidden_states[-1][:, 0])
            loss = outputs.loss + F.cross_entropy(auxiliary, inputs['labels'])
            return {'loss': loss, 'logits': outputs.logits, 'auxiliary': auxiliary}

    bare.__class__ = WithAuxiliary
    bare.auxiliary = nn.Linear(WIDTH, CLASSES)
    head = bare.classifier.out_proj if name == 'roberta' else bare.score if name == 'llama' else bare.classifier
    reader = FeatureReader(bare)
    model: Any = DistributedDataParallel(bare, find_unused_parameters=True) if ddp else bare
    reader.attach(model)
    outputs = model(**batch)
    features = reader.read(batch, outputs['logits'])
    torch.testing.assert_close(head(features), outputs['logits'])


@pytest.mark.parametrize('pool', [lambda x: x.mean(1), lambda x: x[:, 0]], ids=['mean', 'first'])
def test_positions_that_are_not_the_last_are_refused(pool: Callable[[Tensor], Tensor]):
    model, batch = nn.Sequential(nn.Embedding(40, WIDTH), nn.Linear(WIDTH, CLASSES)), make_batch()
    model.num_classes, model.config = CLASSES, SimpleNamespace(num_labels=CLASSES, pad_token_id=0)  # type: ignore
    reader = FeatureReader(model)
    reader.attach(model)
    with pytest.raises(ValueError, match="not those of each row's last real token.*feature_position='first'"):
        reader.read(batch, pool(model(batch['input_ids'])))
    reader = FeatureReader(model, position='first')
    reader.attach(model)
    features = reader.read(batch, pool(model(batch['input_ids'])))
    torch.testing.assert_close(features, model[0](batch['input_ids'][:, 0]))


def test_forwards_that_nobody_reads_do_not_pile_up():
    model, x = Heads(lambda main: main, 'main'), torch.randn(5, 6)
    reader = FeatureReader(model)
    reader.attach(model)
    for _ in range(50):
        logits = model(x)
    assert len(reader._box.calls) == 16
    torch.testing.assert_close(reader.read(None, logits), model.features('main', x))


def test_return_dict_false_trains_as_true_does():
    """Hugging Face's tuple begins with the loss: the same weights come out as of its mapping."""
    weights = []
    for return_dict in (True, False):
        model = toys.tiny_bert()
        model.model.config.return_dict = return_dict
        assert isinstance(model(next(iter(toys.loader(toys.Sentences(16))))), tuple) != return_dict
        algorithm = CMIRegularization(weight=1.0, form='plain', start='0ba')
        trainer = toys.trainer(model, toys.Sentences(32), [algorithm], max_duration='2ba')
        trainer.fit()
        trainer.close()
        weights.append(toys.weights(model))
    assert torch.equal(*weights)


def test_needs_neither_composer_nor_transformers():
    code = (
        'import sys, types; bare = types.ModuleType("composer_cmi"); bare.__path__ = ["composer_cmi"]; '
        'sys.modules["composer_cmi"] = bare; import composer_cmi.features, composer_cmi.batch; '
        'print({"composer", "transformers"} & {*sys.modules})'
    )
    done = subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1]
    )
    assert done.stdout.strip() == 'set()'
