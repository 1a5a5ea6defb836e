"""Features of a module that the user names, and the refusal, with the candidates, of what is not clear."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from composer.models import HuggingFaceModel
from torch import Tensor, nn

from composer_cmi.features import FeatureReader
from feature_tools import CLASSES, WIDTH, Mlp, forward, make_batch, make_model


def test_named_modules():
    model, batch = HuggingFaceModel(make_model('bert', head_dropout=0.5)), make_batch()
    bert = model.model.bert
    for module, position, expected in [
        ('bert.pooler', None, lambda: bert(batch['input_ids'], batch['attention_mask']).pooler_output),
        ('model.bert.encoder', 'first', lambda: bert(batch['input_ids'], batch['attention_mask'])[0][:, 0]),
        ('bert', 'last', lambda: bert(batch['input_ids'], batch['attention_mask'])[0][range(4), [8, 5, 3, 0]]),
        ('layer.0', 'first', lambda: bert(**batch_inputs(batch), output_hidden_states=True).hidden_states[1][:, 0]),
        ('pooler.activation', None, lambda: bert(**batch_inputs(batch)).pooler_output),
        ('classifier', None, lambda: bert(**batch_inputs(batch)).pooler_output),
    ]:
        reader = FeatureReader(model, module=module, position=position)
        assert (reader.dim, reader.num_classes) == (WIDTH, CLASSES)
        reader.attach(model)
        logits = model(batch)['logits']
        torch.testing.assert_close(reader.read(batch, logits), expected())
        reader.detach()


def batch_inputs(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: batch[key] for key in ('input_ids', 'attention_mask')}


def test_naming_what_holds_the_head_means_the_heads_input():
    model = make_model('roberta')
    assert FeatureReader(model, module='classifier')._names == ['classifier.out_proj']
    assert FeatureReader(model, module='classifier.out_proj')._names == ['classifier.out_proj']
    reader = FeatureReader(model, module='classifier.dense')
    reader.attach(model)
    logits = forward(model, batch := make_batch()).logits
    first = model.roberta(**batch_inputs(batch))[0][:, 0]
    torch.testing.assert_close(reader.read(batch, logits), model.classifier.dense(first))


def test_what_is_not_clear_is_refused_with_the_candidates():
    two_heads = nn.ModuleDict({'near': nn.Linear(8, CLASSES), 'far': nn.Linear(4, CLASSES)})
    with pytest.raises(ValueError, match=r'near \[8 -> 3\], far \[4 -> 3\].*feature_module='):
        FeatureReader(two_heads, num_classes=CLASSES)
    assert FeatureReader(two_heads, num_classes=CLASSES, module='far').dim == 4
    with pytest.raises(ValueError, match=r'gives 7 logits \(there are: body.0 \[6 -> 16\], head \[16 -> 3\]\)'):
        FeatureReader(Mlp(), num_classes=7)
    with pytest.raises(ValueError, match=r'No linear layer gives any logits \(there are: none\)'):
        FeatureReader(nn.Conv2d(1, 1, 1))
    with pytest.raises(ValueError, match=r"feature_module='pooller' is no module.*pooler"):
        FeatureReader(make_model('bert'), module='pooller')
    with pytest.raises(ValueError, match=r"feature_module='dense' is the end of several names.*layer.0.*dense"):
        FeatureReader(make_model('bert'), module='dense')
    with pytest.raises(ValueError, match="feature_position='middle' is unknown: it is 'first', 'last'"):
        FeatureReader(make_model('bert'), position='middle')
    with pytest.raises(ValueError, match=r"no module 'head' any more"):
        FeatureReader(Mlp()).attach(nn.Linear(2, 2))


def test_features_of_the_wrong_shape_are_refused():
    model, batch = make_model('bert'), make_batch()

    def read(**options: Any) -> Tensor:
        reader = FeatureReader(model, **options)
        reader.attach(model)
        return reader.read(batch, forward(model, batch).logits)

    with pytest.raises(ValueError, match=r"'bert.encoder' have .* \[4, 9, 16\]: feature_position is 'first' or 'last'"):
        read(module='bert.encoder')
    with pytest.raises(ValueError, match=r"\[4, 16\].*only there, but here it is 'first'"):
        read(position='first')
    with pytest.raises(ValueError, match=r'shape \[4, 9, 24\], which does not give \[N, 16\]'):
        read(module='layer.0.intermediate.intermediate_act_fn', position='first')
    unused = nn.ModuleDict({'late': nn.Linear(2, 2)})
    with pytest.raises(RuntimeError, match="There are no features: the last forward did not pass 'late'"):
        FeatureReader(unused).read(batch, torch.zeros(4, 2))
