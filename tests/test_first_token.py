"""The last layer computes the first token alone where no other is read: the same function, and less arithmetic."""

from __future__ import annotations

import copy
import json
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from composer_cmi import registry
from composer_cmi.features import skip_unread_tokens
from composer_cmi.run.command import run_file
from composer_cmi.run.config.loading import load_config
from composer_cmi.run.prepare import Setup, prepare
from composer_cmi.run.train import load_data
from composer_cmi.teachers.loading import load_classifier
from run_tools import make_all, make_model

SIZE = {
    'vocab_size': 99,
    'hidden_size': 32,
    'num_hidden_layers': 3,
    'num_attention_heads': 4,
    'intermediate_size': 64,
    'max_position_embeddings': 40,
    'num_labels': 3,
    'hidden_dropout_prob': 0.0,
    'attention_probs_dropout_prob': 0.0,
}
FAMILIES = {  # whose head reads the first token alone, of those built as BERT is, and DistilBERT
    'Bert': 'sdpa',
    'Camembert': 'sdpa',
    'DistilBert': 'sdpa',
    'Electra': 'eager',
    'Roberta': 'sdpa',
    'XLMRoberta': 'sdpa',
}


def make(family: str, attention: str = 'eager', **changes: Any) -> Any:
    torch.manual_seed(1)
    if family == 'DistilBert':
        changes = {'dim': 32, 'n_layers': 3, 'n_heads': 4, 'hidden_dim': 64, 'dropout': 0, 'attention_dropout': 0}
        changes['seq_classif_dropout'] = 0
    config = getattr(transformers, f'{family}Config')(**{**SIZE, **changes})
    kind = getattr(transformers, f'{family}ForSequenceClassification')
    return kind._from_config(config, attn_implementation=attention)


def batch(padded: bool) -> dict[str, Tensor]:
    ids = torch.randint(5, 99, (4, 11), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(ids)
    if padded:
        mask[1, 7:], mask[3, 2:] = 0, 0
    return {'input_ids': ids, 'attention_mask': mask}


def logits_and_gradients(model: nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
    model.zero_grad()
    logits = model(**inputs).logits
    logits.log_softmax(-1)[:, 0].sum().backward()
    return logits.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]


def narrowed(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if 'forward' in vars(module)]


@pytest.mark.parametrize('padded', [False, True])
@pytest.mark.parametrize(('family', 'attention'), [*FAMILIES.items(), ('Bert', 'eager'), ('DistilBert', 'eager')])
def test_same_logits_and_gradients(family, attention, padded):
    model = make(family, attention)
    before = logits_and_gradients(model, batch(padded))
    assert skip_unread_tokens(model)
    after = logits_and_gradients(model, batch(padded))
    torch.testing.assert_close(after[0], before[0])
    assert len(after[1]) == len(before[1]) > 0
    for one, other in zip(after[1], before[1], strict=True):
        torch.testing.assert_close(one, other)


def test_of_the_other_tokens_only_keys_and_values_are_multiplied():
    """By torch's own count, which leaves out the attention itself on a CPU."""
    model, inputs = make('Bert', 'sdpa'), batch(padded=False)

    def flops() -> int:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(**inputs)
        return counter.get_total_flops()

    width, ffn, rows, tokens = 32, 64, 4, 11
    before = flops()
    skip_unread_tokens(model)
    products = 2 * rows * (tokens - 1) * (2 * width * width + 2 * width * ffn)  # query, output, two of the feed-forward
    assert before - flops() == products


def test_dropout_is_still_drawn_in_training_and_only_there():
    model = make('Bert', 'sdpa', attention_probs_dropout_prob=0.5)
    skip_unread_tokens(model)
    inputs, layers = batch(padded=True), model.bert.encoder.layer
    for layer in layers[:-1]:
        layer.attention.self.eval()
    draws = [model.train()(**inputs).logits for _ in range(2)]
    assert not torch.equal(*draws)
    assert torch.equal(model.eval()(**inputs).logits, model(**inputs).logits)


def test_weights_keep_their_names_and_training_mode_its_state():
    model = make('Bert').train()
    names = [*model.state_dict()]
    state = torch.get_rng_state()
    skip_unread_tokens(model)
    assert [*model.state_dict()] == names and all(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in model.parameters())


def test_a_copy_computes_with_its_own_weights():
    model = make('Bert')
    skip_unread_tokens(model)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    plain = make('Bert')
    inputs = batch(padded=True)
    torch.testing.assert_close(twin.eval()(**inputs).logits, plain.eval()(**inputs).logits)


@pytest.mark.parametrize('family', ['Bert', 'DistilBert'])
def test_torch_compile_follows_it_without_a_break(family):
    model = make(family, 'sdpa')
    plain = model(**batch(padded=True)).logits
    skip_unread_tokens(model)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend='eager', fullgraph=True)
    torch.testing.assert_close(compiled(**batch(padded=True)).logits, plain)


class MeanHead(nn.Module):
    """In the place of RoBERTa's: reads the mean over the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(32, 3)

    def forward(self, features: Tensor, **_: Any) -> Tensor:
        return self.out(features.mean(1))


class ZeroHead(MeanHead):
    """Gives zeros, whatever it reads: nobody can tell what that will be once it is trained."""

    def __init__(self) -> None:
        super().__init__()
        nn.init.zeros_(self.out.weight)


@pytest.mark.parametrize('head', [MeanHead, ZeroHead])
def test_a_head_that_reads_other_tokens_or_does_not_show_what_it_reads_is_left_alone(head):
    model = make('Roberta')
    model.classifier = head()
    before = logits_and_gradients(model, batch(padded=True))
    assert not skip_unread_tokens(model)
    assert not narrowed(model)
    assert torch.equal(logits_and_gradients(model, batch(padded=True))[0], before[0])


@pytest.mark.parametrize(
    ('family', 'changes'),
    [
        ('Albert', {'embedding_size': 16}),
        ('GPT2', {'n_embd': 32, 'n_layer': 2, 'n_head': 4, 'pad_token_id': 0}),
        ('DebertaV2', {}),
        ('Bert', {'output_hidden_states': True}),
        ('Bert', {'is_decoder': True}),
    ],
)
def test_other_families_are_left_alone(family, changes):
    model = make(family, **changes)
    assert not skip_unread_tokens(model)
    assert not narrowed(model)


class OwnClassifier(transformers.BertForSequenceClassification):
    """Takes and gives something else."""

    def forward(self, texts: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().forward(input_ids=texts).logits


def test_a_class_of_somebody_elses_is_left_alone():
    model = OwnClassifier(transformers.BertConfig(**SIZE))
    assert not skip_unread_tokens(model)
    assert not narrowed(model)


@pytest.mark.parametrize('how', ['forward', 'class', 'dropout', 'asked'])
def test_an_attention_that_was_replaced_or_is_asked_for_more_is_computed_in_full(how):
    model = make('Bert')
    skip_unread_tokens(model)
    heads, wide = model.bert.encoder.layer[-1].attention.self, []
    model.bert.encoder.layer[-1].output.register_forward_hook(lambda _, __, out: wide.append(out.shape[1]))
    inputs: dict[str, Any] = batch(padded=True)
    if how == 'forward':  # as Composer's ALiBi does it
        heads.forward = types.MethodType(type(heads).forward, heads)
    elif how == 'class':
        heads.__class__ = type('Other', (type(heads),), {})
    elif how == 'dropout':
        heads.dropout = nn.Identity()
    elif transformers.__version__.startswith('4.'):  # in 5, attentions are taken by hooks and not by the layers
        inputs['output_attentions'] = True
    else:
        pytest.skip('transformers 5 takes attentions by hooks')
    logits = model.eval()(**inputs).logits
    assert wide == [11]
    torch.testing.assert_close(logits, make('Bert').eval()(**batch(padded=True)).logits)


@contextmanager
def prepared(path: Path) -> Iterator[Setup]:
    config = load_config(path)
    yield prepare(config, load_data(config))


def test_a_run_does_so(tmp_path):
    with prepared(make_all(tmp_path)) as setup:
        assert narrowed(setup.model) == ['model.bert.encoder.layer.1.attention']


@pytest.mark.parametrize(
    'changes',
    [
        {'algorithms': {'cmi_regularization': {'feature_module': 'bert.encoder', 'feature_position': 'last'}}},
        {'algorithms': {'cmi_maximization': {'feature_module': 'bert.pooler'}}},
        {'callbacks': {'activation_monitor': {}}},
        {'algorithms': {'reads_hidden_states': {}}},
    ],
)
def test_a_run_in_which_someone_else_may_read_the_tokens_does_not(tmp_path, changes):
    if 'reads_hidden_states' in changes.get('algorithms', {}):
        from composer.core import Algorithm

        class Foreign(Algorithm):
            def match(self, event: Any, state: Any) -> bool:
                return False

            def apply(self, event: Any, state: Any, logger: Any) -> None: ...

        registry.register_algorithm('reads_hidden_states')(Foreign)
    with prepared(make_all(tmp_path, **changes)) as setup:
        assert not narrowed(setup.model)


@pytest.mark.parametrize('peft', [None, {'r': 2, 'target_modules': ['query', 'value']}])
def test_a_run_with_it_and_one_without_end_alike(tmp_path, monkeypatch, peft):
    """No dropout here, so both see the same numbers: nine steps of training, then the scores."""
    found = []
    for skip in (True, False):
        folder = tmp_path / str(skip)
        if not skip:
            monkeypatch.setattr('composer_cmi.run.prepare.skip_unread_tokens', lambda model: False)
        assert run_file(str(make_all(folder, **({} if peft is None else {'peft': peft}))), []) == 0
        results = json.loads((folder / 'runs/tiny/results.json').read_text())
        weights = load_classifier(folder / 'runs/tiny')[0].state_dict()
        found.append((results['scores']['dev']['nll'], weights))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-4)
    for name, weight in found[0][1].items():
        torch.testing.assert_close(weight, found[1][1][name], rtol=1e-3, atol=2e-5, msg=name)


def test_a_teacher_that_is_read_from_a_folder_does_so(tmp_path):
    model, _ = load_classifier(make_model(tmp_path / 'model'))
    assert narrowed(model) == ['bert.encoder.layer.1.attention']
    plain = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / 'model')
    inputs = {'input_ids': torch.arange(5, 25).view(2, 10), 'attention_mask': torch.ones(2, 10, dtype=torch.int64)}
    torch.testing.assert_close(model.eval()(**inputs).logits, plain.eval()(**inputs).logits)
