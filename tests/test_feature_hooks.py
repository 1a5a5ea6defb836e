"""The reader's hooks: what they leave and hold, and what is read under checkpointing, DDP, FSDP2 and torch.compile."""

from __future__ import annotations

import copy
import gc
import io
import shutil
import weakref

import pytest
import torch
import torch.distributed
from composer.models import HuggingFaceModel
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from composer_cmi.features import FeatureReader
from feature_tools import forward, head_input, make_batch, make_classifier, make_model


def test_detach_removes_every_hook():
    model, batch = make_classifier(nn.Dropout(0.5))
    reader = FeatureReader(model)

    def hooks() -> int:
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())

    assert hooks() == 0
    reader.attach(model)
    reader.attach(model)  # not twice
    assert hooks() == 3
    logits = model(batch)
    reader.detach()
    assert hooks() == 0
    with pytest.raises(RuntimeError):
        reader.read(batch, logits)


def test_dropouts_inside_the_encoders_blocks_are_left_alone():
    model = make_model('bert')
    FeatureReader(model).attach(model)
    hooked = [name for name, module in model.named_modules() if module._forward_hooks or module._forward_pre_hooks]
    assert hooked == ['bert.embeddings.dropout', 'dropout', 'classifier']


def test_clear_lets_go_of_the_graph():
    model, batch = make_classifier(nn.Dropout(0.5))
    reader = FeatureReader(model)
    reader.attach(model)
    logits = model(batch)
    features = weakref.ref(reader.read(batch, logits))
    del logits
    gc.collect()
    assert features() is not None
    reader.clear()
    gc.collect()
    assert features() is None


def test_a_copy_of_the_model_neither_writes_nor_holds():
    model, batch = make_classifier(nn.Dropout(0.5))
    reader = FeatureReader(model)
    reader.attach(model)
    logits = model(batch)  # a live, non-leaf tensor is in the box now
    features = reader.read(batch, logits)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    for twin in (
        copy.deepcopy(model),
        AveragedModel(model, device=torch.device('cpu')).module,
        torch.load(buffer, weights_only=False),
    ):
        twin.train()((torch.randn(2, 6), None))
        assert reader.read(batch, logits) is features
        hooks = [hook for m in twin.modules() for hook in [*m._forward_hooks.values(), *m._forward_pre_hooks.values()]]
        assert len(hooks) == 3
        assert all(hook.box is None for hook in hooks)
        again = FeatureReader(twin)
        again.attach(twin)
        torch.testing.assert_close(again.read(batch, twin(batch)), features)


def test_gradient_checkpointing_fires_again_but_is_not_read():
    model, batch = make_model('bert').train(), make_batch()
    model.gradient_checkpointing_enable({'use_reentrant': False})
    reader = FeatureReader(model, module='layer.1.attention', position='first')
    reader.attach(model)
    fired: list[bool] = []
    model.bert.encoder.layer[1].attention.register_forward_hook(lambda *_: fired.append(True))
    outputs = forward(model, batch)
    total = outputs.loss + reader.read(batch, outputs.logits).square().mean()
    reader.clear()
    total.backward()
    assert len(fired) == 2
    with pytest.raises(RuntimeError):
        reader.read(batch, outputs.logits)

    plain = make_model('bert')
    twin = FeatureReader(plain, module='layer.1.attention', position='first')
    twin.attach(plain)
    outputs = forward(plain, batch)
    (outputs.loss + twin.read(batch, outputs.logits).square().mean()).backward()
    for (name, one), other in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, msg=name)


def test_wrapped_by_checkpointing():
    model, batch = make_classifier(nn.Dropout(0.5))
    reader, inner = FeatureReader(model), FeatureReader(model, module='body.0')
    model.module.head = checkpoint_wrapper(model.module.head)  # type: ignore[assignment]
    model.module.body = checkpoint_wrapper(model.module.body)  # type: ignore[assignment]
    reader.attach(model)
    inner.attach(model)
    logits = model(batch)
    features = reader.read(batch, logits)
    torch.testing.assert_close(features, nn.functional.silu(inner.read(batch, logits)))
    torch.testing.assert_close(features, model.module.body(batch[0]))
    (logits.sum() + features.sum() + inner.read(batch, logits).sum()).backward()
    assert model.module.body[0].weight.grad.any()


@pytest.mark.parametrize('name', ['bert', 'llama'])
def test_under_ddp(name: str, process_group: None):
    model, batch = HuggingFaceModel(make_model(name, head_dropout=0.5)), make_batch()
    with torch.no_grad():
        expected = head_input(name, model.model.eval(), batch)
    reader = FeatureReader(model)
    wrapped = DistributedDataParallel(model.train(), find_unused_parameters=True)
    reader.attach(wrapped)
    outputs = wrapped(batch)
    features = reader.read(batch, outputs['logits'])
    torch.testing.assert_close(features, expected)
    (outputs['loss'] + features.square().mean()).backward()
    assert all(p.grad is not None for p in model.model.base_model.parameters() if p.requires_grad)

    classifier, pair = make_classifier(nn.Dropout(0.5))  # its own attribute is called `module`, like DDP's
    reader = FeatureReader(classifier)
    reader.attach(wrapped := DistributedDataParallel(classifier))
    torch.testing.assert_close(reader.read(pair, wrapped(pair)), classifier.module.body(pair[0]))


def test_under_fsdp2_with_mixed_precision(process_group: None):
    model, batch = make_classifier(nn.Dropout(0.5))
    reader = FeatureReader(model)
    mesh = torch.distributed.init_device_mesh('cpu', (1,))
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16)  # casts the head's input: a new tensor
    for module in (model.module.body, model.module.head, model):
        fully_shard(module, mesh=mesh, mp_policy=policy)
    reader.attach(model)
    logits = model(batch)
    features = reader.read(batch, logits)
    assert (features != 0).all()
    torch.testing.assert_close(features, model.module.body(batch[0]))


@pytest.mark.parametrize('backend', ['eager', 'aot_eager', pytest.param('inductor', marks=pytest.mark.slow)])
def test_under_torch_compile(backend: str):
    if backend == 'inductor' and not shutil.which('g++'):
        pytest.skip('torch.compile needs a C++ compiler')
    torch.compiler.reset()
    model, batch = make_classifier(nn.Dropout(0.5))
    reader = FeatureReader(model)
    compiled = torch.compile(model, backend=backend)
    compiled(batch)  # compiled before there were hooks: they must be seen all the same
    reader.attach(compiled)
    expected = model.module.body(batch[0])
    logits = compiled(batch)
    features = reader.read(batch, logits)
    torch.testing.assert_close(features, expected)
    (logits.sum() + features.square().sum()).backward()
    assert model.module.body[0].weight.grad.any()
    reader.clear()
    compiled.eval()
    logits = compiled(batch)
    with pytest.raises(RuntimeError):
        reader.read(batch, logits)
    compiled.train()
    reader.detach()
    logits = compiled(batch)
    with pytest.raises(RuntimeError):
        reader.read(batch, logits)
    torch.compiler.reset()


@pytest.mark.parametrize('prepended', [False, True])
def test_two_readers_under_torch_compile(prepended: bool):
    """A CMI term and a relation to the teacher read the same features; torch 2.6 and 2.7 ended at a guard."""
    torch.compiler.reset()
    model, batch = make_classifier(nn.Dropout(0.5))
    if prepended:
        model.module.head.register_forward_pre_hook(lambda module, args: None)
    readers = [FeatureReader(model), FeatureReader(model)]
    compiled = torch.compile(model, backend='eager')
    for reader in readers:
        reader.attach(compiled)
    for _ in range(2):
        logits = compiled(batch)
        for reader in readers:
            torch.testing.assert_close(reader.read(batch, logits), model.module.body(batch[0]))
            reader.clear()
    torch.compiler.reset()


def test_under_torch_compile_bert():
    torch.compiler.reset()
    model, batch = HuggingFaceModel(make_model('bert', head_dropout=0.5)), make_batch()
    with torch.no_grad():
        expected = head_input('bert', model.model.eval(), batch)
    reader = FeatureReader(model)
    compiled = torch.compile(model.train(), backend='eager')
    reader.attach(compiled)
    logits = compiled(batch)['logits']
    torch.testing.assert_close(reader.read(batch, logits), expected)
    reader.detach()
