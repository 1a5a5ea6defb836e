"""What a fair baseline may be given: smoothed labels and other dropout."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

from composer_cmi.errors import ConfigError
from composer_cmi.run.config.schema import ModelConfig
from composer_cmi.run.models import build_model
from composer_cmi.run.parts.classifier import build_composer_model
from run_tools import SENTENCES, make_model


@pytest.fixture
def folder(tmp_path):
    return make_model(tmp_path / 'model')


def _model_and_batch(folder, label_smoothing):
    model, tokenizer = build_model(ModelConfig(name_or_path=str(folder)), ('food', 'weather'))
    batch = dict(
        tokenizer(SENTENCES['food'][:4], padding=True, return_tensors='pt'), labels=torch.tensor([0, 1, -100, 0])
    )
    return build_composer_model(model, tokenizer, label_smoothing=label_smoothing), batch


def test_labels_are_smoothed_in_training_alone(folder):
    model, batch = _model_and_batch(folder, 0.2)
    outputs = model.train()(batch)
    smooth = cross_entropy(outputs['logits'], batch['labels'], label_smoothing=0.2)
    plain = cross_entropy(outputs['logits'], batch['labels'])
    assert abs(float(smooth - plain)) > 1e-4
    assert float(model.loss(outputs, batch)) == pytest.approx(float(smooth), abs=1e-7)
    assert float(model.eval()(batch)['loss']) == pytest.approx(float(plain), abs=1e-7)


def test_without_smoothing_the_loss_is_the_models_own(folder):
    model, batch = _model_and_batch(folder, None)
    outputs = model.train()(batch)
    expected = float(cross_entropy(outputs['logits'], batch['labels']))
    assert float(model.loss(outputs, batch)) == pytest.approx(expected, abs=1e-7)


def test_overrides_reach_the_modules(folder):
    config = ModelConfig(name_or_path=str(folder), config_overrides={'hidden_dropout_prob': 0.3})
    model, _ = build_model(config, ('food', 'weather'))
    assert model.dropout.p == 0.3 and model.bert.embeddings.dropout.p == 0.3


def test_an_unknown_override_names_the_nearest(folder):
    config = ModelConfig(name_or_path=str(folder), config_overrides={'hidden_dropout': 0.3})
    with pytest.raises(ConfigError, match=r"model\.config_overrides\.hidden_dropout'.*hidden_dropout_prob"):
        build_model(config, ('food', 'weather'))
