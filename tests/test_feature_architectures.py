"""Where h_s is read, held for every architecture against the head's input worked out by that architecture's modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from composer.models import ComposerClassifier, HuggingFaceModel
from torch import Tensor, nn

from composer_cmi.batch import class_logits, last_positions
from composer_cmi.features import FeatureReader
from feature_tools import (
    CLASSES,
    COMMON,
    CONFIGS,
    DECODERS,
    PAD,
    SIZES,
    WIDTH,
    forward,
    head_input,
    last_dropout,
    last_linear,
    make_batch,
    make_classifier,
    make_model,
)


@pytest.mark.parametrize('wrap', [lambda model: model, HuggingFaceModel], ids=['bare', 'composer'])
@pytest.mark.parametrize('name', CONFIGS)
def test_finds_the_heads_input_behind_its_dropout(name: str, wrap: Callable[[Any], Any]):
    bare, batch = make_model(name, head_dropout=0.5), make_batch()
    with torch.no_grad():
        expected = head_input(name, bare.eval(), batch)
    model = wrap(bare).train()
    reader = FeatureReader(model)
    assert (reader.dim, reader.num_classes) == (WIDTH, CLASSES)
    reader.attach(model)
    seen: list[Tensor] = []
    last_linear(bare).register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    if last_dropout(bare) is not None and name in ('roberta', 'mpnet', 'electra'):
        first = iter([True])  # their dropout module is called twice: only the second call is in front of the head
        last_dropout(bare).register_forward_hook(lambda _, args, out: args[0] if next(first, False) else out)

    logits = forward(model, batch)['logits']
    features = reader.read(batch, logits)

    torch.testing.assert_close(features.detach(), expected)
    if name in DECODERS:
        torch.testing.assert_close(last_linear(bare)(features), logits)
    else:
        given = seen[0]
        assert ((given == 0) | (given == 2 * features)).all()  # p = 0.5: what is kept is doubled
        assert ((given == 0) & (features != 0)).any()
        torch.testing.assert_close(last_linear(bare)(given), logits)


@pytest.mark.parametrize('name', CONFIGS)
def test_gradients_reach_the_encoder(name: str):
    model, batch = make_model(name, head_dropout=0.1), make_batch()
    reader = FeatureReader(model)
    reader.attach(model)
    logits = forward(model, batch).logits
    reader.read(batch, logits).square().sum().backward()
    assert last_linear(model).weight.grad is None  # the head comes after h_s
    assert sum(p.grad is not None and bool(p.grad.any()) for p in model.base_model.parameters()) > 10


@pytest.mark.parametrize('name', CONFIGS)
def test_eval_is_read_only_when_asked(name: str):
    model, batch = make_model(name, head_dropout=0.5).eval(), make_batch()
    reader = FeatureReader(model)
    reader.attach(model)
    logits = forward(model, batch).logits
    with pytest.raises(RuntimeError, match='in training mode and with gradients'):
        reader.read(batch, logits)
    reader.attach(model, always=True)
    with torch.no_grad():
        logits = forward(model, batch).logits
        torch.testing.assert_close(last_linear(model)(reader.read(batch, logits)), logits)
        torch.testing.assert_close(reader.read(batch, logits), head_input(name, model, batch))


def test_training_forward_without_gradients_is_not_read():
    model, batch = make_classifier()
    reader = FeatureReader(model)
    reader.attach(model)
    with torch.no_grad():
        logits = model(batch)
    with pytest.raises(RuntimeError, match=r"did not pass 'module\.head'"):
        reader.read(batch, logits)


@pytest.mark.parametrize('padding', ['right', 'left'])
@pytest.mark.parametrize('name', DECODERS)
def test_decoder_features_are_those_of_the_last_real_token(name: str, padding: str):
    model, batch = make_model(name), make_batch(padding)
    batch['input_ids'][0, 4] = PAD  # inside the text
    reader = FeatureReader(model)
    reader.attach(model)
    hidden: list[Tensor] = []
    model.score.register_forward_pre_hook(lambda _, args: hidden.append(args[0]))
    logits = forward(model, batch).logits
    positions = [8, 5, 3, 0] if padding == 'right' else [8, 8, 8, 8]
    assert torch.equal(reader.read(batch, logits), hidden[0][range(4), positions])
    torch.testing.assert_close(model.score(reader.read(batch, logits)), logits)


def test_last_positions_by_hand():
    ids = torch.tensor([[5, 6, 0, 0], [0, 0, 5, 6], [5, 0, 6, 0], [0, 0, 0, 0]])
    assert last_positions({'input_ids': ids}, 4, 0).tolist() == [1, 3, 2, 0]
    assert last_positions(transformers.BatchEncoding({'input_ids': ids}), 4, 0).tolist() == [1, 3, 2, 0]
    mask = torch.tensor([[1, 1, 1, 0], [0, 0, 1, 1], [1, 1, 1, 1], [1, 0, 0, 0]])
    assert last_positions({'input_ids': ids, 'attention_mask': mask}, 4, 0).tolist() == [
        1,
        3,
        2,
        0,
    ]  # as the model does
    for cast in (mask, mask.bool(), mask.float()):
        assert last_positions({'input_ids': ids, 'attention_mask': cast}, 4, None).tolist() == [2, 3, 3, 0]
    with pytest.raises(ValueError, match='there are no attention_mask, nor input_ids and pad_token_id'):
        last_positions({'input_ids': ids}, 4, None)
    with pytest.raises(ValueError, match='no attention_mask'):
        last_positions((ids, ids), 4, 0)
    with pytest.raises(ValueError, match='among 6 positions cannot be told, there are 4 tokens'):
        last_positions({'input_ids': ids}, 6, 0)


@pytest.mark.parametrize('inplace', [False, True])
def test_composer_classifier_with_dropout(inplace: bool):
    model, batch = make_classifier(nn.Dropout(0.5, inplace=inplace))
    reader = FeatureReader(model)
    reader.attach(model)
    logits = model(batch)
    expected = model.module.body(batch[0])
    torch.testing.assert_close(reader.read(batch, logits), expected)
    gradients = torch.autograd.grad(reader.read(batch, logits).sin().sum(), list(model.module.body.parameters()))
    wanted = torch.autograd.grad(expected.sin().sum(), list(model.module.body.parameters()))
    torch.testing.assert_close(gradients, wanted)


def test_composer_classifier_without_dropout():
    model, batch = make_classifier()
    reader = FeatureReader(model)
    reader.attach(model)
    logits = model(batch)
    assert (reader.dim, reader.num_classes) == (WIDTH, CLASSES)
    torch.testing.assert_close(reader.read(batch, logits), model.module.body(batch[0]))
    torch.testing.assert_close(model.module.head(reader.read(batch, logits)), logits)


def test_convolutional_classifier_and_layers_in_a_list():
    cnn = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.Dropout2d(0.5), nn.Flatten(), nn.Dropout(0.5), nn.Linear(4 * 36, CLASSES)
    )
    model, x = ComposerClassifier(cnn, num_classes=CLASSES), torch.randn(2, 1, 8, 8)
    reader = FeatureReader(model)
    reader.attach(model)
    logits = model((x, None))
    features = reader.read((x, None), logits)
    channels = features.unflatten(1, (4, 36))
    kept = (channels != 0).any(-1, keepdim=True)
    torch.testing.assert_close(channels, cnn[0](x).flatten(2) * 2 * kept)  # whole channels dropped, no single entries

    layers = nn.ModuleList([nn.Linear(6, WIDTH), nn.Dropout(0.5), nn.Linear(WIDTH, CLASSES)])
    model = nn.ModuleDict({'layers': layers})
    reader = FeatureReader(model)  # no number of classes anywhere: the last linear layer
    assert (reader.dim, reader.num_classes) == (WIDTH, CLASSES)
    reader.attach(model)
    hidden = layers[0](torch.randn(2, 6))
    logits = layers[2](input=layers[1](input=hidden))
    assert reader.read(None, logits) is hidden


@pytest.mark.parametrize(
    ('name', 'targets'),
    [
        ('bert', ['query', 'value']),
        ('roberta', ['query', 'value']),
        ('gpt2', ['c_attn']),
        ('distilbert', ['q_lin', 'v_lin']),
        ('bert', ['query', 'classifier']),  # LoRA on the head itself
    ],
)
def test_lora(name: str, targets: list[str]):
    peft = pytest.importorskip('peft')
    # As many ranks as classes: lora_A and lora_B look like heads.
    saved = {} if 'classifier' in targets else {'task_type': 'SEQ_CLS'}
    config = peft.LoraConfig(r=CLASSES, target_modules=targets, lora_dropout=0.3, peft_type='LORA', **saved)
    batch = make_batch()
    if saved:
        model = HuggingFaceModel(make_model(name, head_dropout=0.5), peft_config=config)
    else:
        model = HuggingFaceModel(peft.get_peft_model(make_model(name, head_dropout=0.5), config))
    reader = FeatureReader(model)
    assert (reader.dim, reader.num_classes) == (WIDTH, CLASSES)
    with torch.no_grad():
        expected = head_input(name, model.eval().model.get_base_model(), batch)
    model.train()
    for layer in model.modules():
        if isinstance(layer, nn.Dropout) and layer.p == 0.3:  # LoRA's own, off to compare
            layer.p = 0.0
    reader.attach(model)
    logits = class_logits(model(batch))
    if name == 'roberta':  # random before its dense layer too
        assert (reader.read(batch, logits) != 0).all()
    else:
        torch.testing.assert_close(reader.read(batch, logits), expected)
    reader.read(batch, logits).sum().backward()
    assert any(p.grad is not None for key, p in model.named_parameters() if 'lora_B' in key)


def test_encoder_as_wide_as_there_are_classes():
    torch.manual_seed(2)
    model = transformers.BertForSequenceClassification(
        transformers.BertConfig(**SIZES, **{**COMMON, 'num_labels': WIDTH})
    )
    reader, batch = FeatureReader(model), make_batch()
    reader.attach(model.eval(), always=True)
    logits = forward(model, batch).logits
    torch.testing.assert_close(model.classifier(reader.read(batch, logits)), logits)
