"""How a model is loaded: attention, checkpointed activations, revisions, and code that comes with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers

from composer_cmi.errors import ConfigError
from composer_cmi.run.command import run_file
from composer_cmi.run.config.schema import ModelConfig
from composer_cmi.run.models import build_model
from composer_cmi.run.parts.classifier import build_composer_model
from run_tools import SENTENCES, make_all, make_model, predictions

NAMES = ('food', 'weather')


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    return make_model(tmp_path_factory.mktemp('options') / 'model')


def build(folder: Path, **options):
    torch.manual_seed(0)
    return build_model(ModelConfig(name_or_path=str(folder), **options), NAMES)


@pytest.mark.parametrize('name', ['eager', 'sdpa'])
def test_attention_is_computed_as_told(folder, name):
    model, _ = build(folder, attn_implementation=name)
    assert model.config._attn_implementation == name


def test_attention_that_is_not_there_is_refused_under_its_key(folder):
    with pytest.raises(ConfigError, match=r'^model\.attn_implementation: ') as caught:
        build(folder, attn_implementation='flash_attention_9')
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('peft', [None, {'r': 2, 'target_modules': ['query']}])
def test_checkpointed_activations_give_the_same_gradients(folder, peft):
    found = []
    for on in (False, True):
        model, tokenizer = build(folder, gradient_checkpointing=on, config_overrides={'hidden_dropout_prob': 0.2})
        assert model.is_gradient_checkpointing is on
        torch.manual_seed(1)
        wrapped = build_composer_model(model, tokenizer, peft=peft).train()
        batch = dict(tokenizer(SENTENCES['food'], padding=True, return_tensors='pt'), labels=torch.tensor([0, 1] * 4))
        runs = []
        layer = next(module for module in model.modules() if type(module).__name__ == 'BertIntermediate')
        layer.register_forward_hook(lambda *_, runs=runs: runs.append(1))
        torch.manual_seed(2)
        wrapped.loss(wrapped(batch), batch).backward()
        found.append([p.grad.clone() for p in wrapped.parameters() if p.grad is not None])
        assert len(runs) == (2 if on else 1)  # once more in the backward pass: that is what saves memory
    assert len(found[0]) == len(found[1]) > 0
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)


def test_a_model_that_cannot_checkpoint_is_refused(folder, monkeypatch):
    monkeypatch.setattr(transformers.BertForSequenceClassification, 'supports_gradient_checkpointing', False)
    with pytest.raises(ConfigError, match=r'model\.gradient_checkpointing: BertForSequenceClassification cannot do it'):
        build(folder, gradient_checkpointing=True)


def test_a_folder_has_no_revision(folder):
    with pytest.raises(ConfigError, match=r'model\.revision: .* is a folder, which has no revisions'):
        build(folder, revision='main')


def test_a_revision_is_asked_of_the_hub(monkeypatch):
    asked = []

    def hub(name, **options):  # a mock: there is no hub here
        asked.append((name, options['revision'], options['trust_remote_code']))
        raise OSError('not reachable')

    monkeypatch.setattr(transformers.AutoConfig, 'from_pretrained', hub)
    with pytest.raises(ConfigError, match='cannot be loaded from the Hugging Face Hub'):
        build(Path('owner/model'), revision='v2')
    assert asked == [('owner/model', 'v2', False)]


CODE = """
from transformers import BertConfig, BertForSequenceClassification

class OwnConfig(BertConfig):
    model_type = 'own_bert'

class OwnModel(BertForSequenceClassification):
    config_class = OwnConfig
"""


def make_own(folder: Path) -> Path:
    """A model whose class comes in a file beside its weights."""
    config = json.loads((make_model(folder) / 'config.json').read_text())
    config |= {'model_type': 'own_bert', 'architectures': ['OwnModel']}
    config['auto_map'] = {
        'AutoConfig': 'modeling_own.OwnConfig',
        'AutoModelForSequenceClassification': 'modeling_own.OwnModel',
    }
    (folder / 'config.json').write_text(json.dumps(config))
    (folder / 'modeling_own.py').write_text(CODE)
    return folder


def test_code_that_comes_with_a_model_runs_only_when_it_is_trusted(tmp_path, capsys):
    path = str(make_all(tmp_path))
    make_own(tmp_path / 'own')
    own = [f'model.name_or_path={tmp_path}/own', 'run_name=own', 'train.max_duration=2ba']
    assert run_file(path, own) == 2
    assert 'comes with Python code of its own' in (said := capsys.readouterr().err)
    assert 'set model.trust_remote_code: true' in said
    assert run_file(path, [*own, 'model.trust_remote_code=true']) == 0, capsys.readouterr().err
    assert len(predictions(tmp_path / 'runs' / 'own')) == 7
    exported = tmp_path / 'runs' / 'own' / 'model'
    assert (exported / 'modeling_own.py').is_file()
    model = transformers.AutoModelForSequenceClassification.from_pretrained(exported, trust_remote_code=True)
    assert type(model).__name__ == 'OwnModel' and model.config.id2label == {0: 'food', 1: 'weather'}


def test_a_registered_model_is_built_by_its_own_function(tmp_path, folder):
    from composer_cmi import registry

    @registry.register_model('test:options')
    def made(label_names):
        return build(folder)

    config = ModelConfig(name_or_path='test:options', attn_implementation='eager')
    with pytest.raises(ConfigError, match=r"model\.attn_implementation: 'test:options' is built by its own function"):
        build_model(config, NAMES)
