"""Where h_s is read, held for every architecture against the head's input worked out by that architecture's modules."""

from __future__ import annotations

import copy
import gc
import io
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
import transformers
from composer.models import ComposerClassifier, HuggingFaceModel
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from composer_cmi.features import FeatureReader, last_positions

CLASSES, WIDTH, VOCABULARY, PAD = 3, 16, 40, 0
SIZES = {'num_hidden_layers': 2, 'num_attention_heads': 2, 'hidden_size': WIDTH, 'intermediate_size': 24}
COMMON = {'vocab_size': VOCABULARY, 'num_labels': CLASSES, 'pad_token_id': PAD, 'max_position_embeddings': 32}
UNUSED = {'bos_token_id': 1, 'eos_token_id': 2, 'cls_token_id': 1, 'sep_token_id': 2}

CONFIGS: dict[str, Callable[[], Any]] = {
    'bert': lambda: transformers.BertConfig(**SIZES, **COMMON, attention_probs_dropout_prob=0.0),
    'distilbert': lambda: transformers.DistilBertConfig(
        dim=WIDTH, n_layers=2, n_heads=2, hidden_dim=24, attention_dropout=0.0, **COMMON
    ),
    'roberta': lambda: transformers.RobertaConfig(**SIZES, **COMMON, **UNUSED, attention_probs_dropout_prob=0.0),
    'mpnet': lambda: transformers.MPNetConfig(**SIZES, **COMMON, **UNUSED),
    'electra': lambda: transformers.ElectraConfig(**SIZES, **COMMON, embedding_size=8),
    'albert': lambda: transformers.AlbertConfig(**SIZES, **COMMON, embedding_size=8),
    'deberta-v2': lambda: transformers.DebertaV2Config(
        **SIZES, **COMMON, relative_attention=True, pos_att_type=['p2c', 'c2p'], pooler_hidden_size=WIDTH
    ),
    'modernbert': lambda: transformers.ModernBertConfig(
        **SIZES, **COMMON, **UNUSED, global_attn_every_n_layers=2, local_attention=4, reference_compile=False
    ),
    'gpt2': lambda: transformers.GPT2Config(
        vocab_size=VOCABULARY, num_labels=CLASSES, pad_token_id=PAD, n_embd=WIDTH, n_layer=2, n_head=2, n_positions=32
    ),
    'llama': lambda: transformers.LlamaConfig(**SIZES, **COMMON),
}
DECODERS = ['gpt2', 'llama']
ENCODERS = [name for name in CONFIGS if name not in DECODERS]


def head_input(name: str, model: Any, batch: dict[str, Tensor]) -> Tensor:
    """h_s by the architecture's own modules, without the dropout in front of the head (call in eval mode)."""
    hidden = model.base_model(input_ids=batch['input_ids'], attention_mask=batch['attention_mask'])
    first = hidden[0][:, 0]
    match name:
        case 'bert' | 'albert':
            return hidden.pooler_output
        case 'distilbert':
            return model.pre_classifier(first).relu()
        case 'roberta' | 'mpnet':
            return model.classifier.dense(first).tanh()
        case 'electra':
            return nn.functional.gelu(model.classifier.dense(first))
        case 'deberta-v2':
            return model.pooler(hidden[0])
        case 'modernbert':
            return model.head(first)
    rows = [int(ids.nonzero().max()) for ids in batch['input_ids']]  # PAD is 0
    return torch.stack([hidden[0][row, position] for row, position in enumerate(rows)])


def make_model(name: str, head_dropout: float = 0.0) -> Any:
    """A tiny classifier with random weights, whose only dropout is the one in front of the head."""
    torch.manual_seed(7)
    model = transformers.AutoModelForSequenceClassification.from_config(CONFIGS[name]())
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(std=0.3)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    if dropout := last_dropout(model):
        dropout.p = head_dropout
    return model.train()


def last_dropout(model: Any) -> Any:
    owner = model.classifier if hasattr(getattr(model, 'classifier', None), 'dropout') else model
    return getattr(owner, 'dropout', getattr(owner, 'drop', None))


def last_linear(model: nn.Module) -> nn.Linear:
    return [module for module in model.modules() if isinstance(module, nn.Linear) and module.out_features == CLASSES][
        -1
    ]


def make_batch(padding: str = 'right') -> dict[str, Tensor]:
    torch.manual_seed(3)
    ids = torch.randint(3, VOCABULARY, (4, 9))
    mask = torch.ones_like(ids)
    for row, length in enumerate((9, 6, 4, 1)):
        pads = slice(length, None) if padding == 'right' else slice(0, 9 - length)
        ids[row, pads], mask[row, pads] = PAD, 0
    return {'input_ids': ids, 'attention_mask': mask, 'labels': torch.tensor([0, 1, 2, 1])}


def forward(model: nn.Module, batch: Any) -> Any:
    return model(batch) if hasattr(model, 'eval_forward') else model(**batch)


class Mlp(nn.Module):
    def __init__(self, dropout: nn.Module | None = None, in_features: int = 6, out_features: int = CLASSES) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features  # as many people's modules have: not a layer
        self.body = nn.Sequential(nn.Linear(in_features, WIDTH), nn.SiLU())
        self.dropout = dropout or nn.Identity()
        self.head = nn.Linear(WIDTH, out_features)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.dropout(self.body(x)))


def make_classifier(dropout: nn.Module | None = None) -> tuple[ComposerClassifier, tuple[Tensor, Tensor]]:
    torch.manual_seed(5)
    return ComposerClassifier(Mlp(dropout), num_classes=CLASSES), (torch.randn(4, 6), torch.tensor([0, 1, 2, 0]))


@pytest.fixture
def process_group(tmp_path: Path):
    made = not torch.distributed.is_initialized()
    if made:
        torch.distributed.init_process_group('gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1)
    yield
    if made:
        torch.distributed.destroy_process_group()


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
    features = reader.read(batch)

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
    forward(model, batch)
    reader.read(batch).square().sum().backward()
    assert last_linear(model).weight.grad is None  # the head comes after h_s
    assert sum(p.grad is not None and bool(p.grad.any()) for p in model.base_model.parameters()) > 10


@pytest.mark.parametrize('name', CONFIGS)
def test_eval_is_read_only_when_asked(name: str):
    model, batch = make_model(name, head_dropout=0.5).eval(), make_batch()
    reader = FeatureReader(model)
    reader.attach(model)
    forward(model, batch)
    with pytest.raises(RuntimeError, match='in training mode and with gradients'):
        reader.read(batch)
    reader.attach(model, always=True)
    with torch.no_grad():
        logits = forward(model, batch).logits
        torch.testing.assert_close(last_linear(model)(reader.read(batch)), logits)
        torch.testing.assert_close(reader.read(batch), head_input(name, model, batch))


def test_training_forward_without_gradients_is_not_read():
    model, batch = make_classifier()
    reader = FeatureReader(model)
    reader.attach(model)
    with torch.no_grad():
        model(batch)
    with pytest.raises(RuntimeError, match=r"did not pass 'module\.head'"):
        reader.read(batch)


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
    assert torch.equal(reader.read(batch), hidden[0][range(4), positions])
    torch.testing.assert_close(model.score(reader.read(batch)), logits)


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
    model(batch)
    expected = model.module.body(batch[0])
    torch.testing.assert_close(reader.read(batch), expected)
    gradients = torch.autograd.grad(reader.read(batch).sin().sum(), list(model.module.body.parameters()))
    wanted = torch.autograd.grad(expected.sin().sum(), list(model.module.body.parameters()))
    torch.testing.assert_close(gradients, wanted)


def test_composer_classifier_without_dropout():
    model, batch = make_classifier()
    reader = FeatureReader(model)
    reader.attach(model)
    logits = model(batch)
    assert (reader.dim, reader.num_classes) == (WIDTH, CLASSES)
    torch.testing.assert_close(reader.read(batch), model.module.body(batch[0]))
    torch.testing.assert_close(model.module.head(reader.read(batch)), logits)


def test_convolutional_classifier_and_layers_in_a_list():
    cnn = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.Dropout2d(0.5), nn.Flatten(), nn.Dropout(0.5), nn.Linear(4 * 36, CLASSES)
    )
    model, x = ComposerClassifier(cnn, num_classes=CLASSES), torch.randn(2, 1, 8, 8)
    reader = FeatureReader(model)
    reader.attach(model)
    model((x, None))
    features = reader.read((x, None))
    channels = features.unflatten(1, (4, 36))
    kept = (channels != 0).any(-1, keepdim=True)
    torch.testing.assert_close(channels, cnn[0](x).flatten(2) * 2 * kept)  # whole channels dropped, no single entries

    layers = nn.ModuleList([nn.Linear(6, WIDTH), nn.Dropout(0.5), nn.Linear(WIDTH, CLASSES)])
    model = nn.ModuleDict({'layers': layers})
    reader = FeatureReader(model)  # no number of classes anywhere: the last linear layer
    assert (reader.dim, reader.num_classes) == (WIDTH, CLASSES)
    reader.attach(model)
    hidden = layers[0](torch.randn(2, 6))
    layers[2](input=layers[1](input=hidden))
    assert reader.read(None) is hidden


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
    model(batch)
    if name == 'roberta':  # random before its dense layer too
        assert (reader.read(batch) != 0).all()
    else:
        torch.testing.assert_close(reader.read(batch), expected)
    reader.read(batch).sum().backward()
    assert any(p.grad is not None for key, p in model.named_parameters() if 'lora_B' in key)


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
        model(batch)
        torch.testing.assert_close(reader.read(batch), expected())
        reader.detach()


def batch_inputs(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: batch[key] for key in ('input_ids', 'attention_mask')}


def test_naming_what_holds_the_head_means_the_heads_input():
    model = make_model('roberta')
    assert FeatureReader(model, module='classifier')._names == ['classifier.out_proj']
    assert FeatureReader(model, module='classifier.out_proj')._names == ['classifier.out_proj']
    reader = FeatureReader(model, module='classifier.dense')
    reader.attach(model)
    forward(model, batch := make_batch())
    first = model.roberta(**batch_inputs(batch))[0][:, 0]
    torch.testing.assert_close(reader.read(batch), model.classifier.dense(first))


def test_encoder_as_wide_as_there_are_classes():
    torch.manual_seed(2)
    model = transformers.BertForSequenceClassification(
        transformers.BertConfig(**SIZES, **{**COMMON, 'num_labels': WIDTH})
    )
    reader, batch = FeatureReader(model), make_batch()
    reader.attach(model.eval(), always=True)
    logits = forward(model, batch).logits
    torch.testing.assert_close(model.classifier(reader.read(batch)), logits)


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
        forward(model, batch)
        return reader.read(batch)

    with pytest.raises(ValueError, match=r"'bert.encoder' have .* \[4, 9, 16\]: feature_position is 'first' or 'last'"):
        read(module='bert.encoder')
    with pytest.raises(ValueError, match=r"\[4, 16\].*only there, but here it is 'first'"):
        read(position='first')
    with pytest.raises(ValueError, match=r'shape \[4, 9, 24\], which does not give \[N, 16\]'):
        read(module='layer.0.intermediate.intermediate_act_fn', position='first')
    unused = nn.ModuleDict({'late': nn.Linear(2, 2)})
    with pytest.raises(RuntimeError, match="There are no features: the last forward did not pass 'late'"):
        FeatureReader(unused).read(batch)


def test_detach_removes_every_hook():
    model, batch = make_classifier(nn.Dropout(0.5))
    reader = FeatureReader(model)

    def hooks() -> int:
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())

    assert hooks() == 0
    reader.attach(model)
    reader.attach(model)  # not twice
    assert hooks() == 3
    model(batch)
    reader.detach()
    assert hooks() == 0
    with pytest.raises(RuntimeError):
        reader.read(batch)


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
    features = weakref.ref(reader.read(batch))
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
    model(batch)  # a live, non-leaf tensor is in the box now
    features = reader.read(batch)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    for twin in (
        copy.deepcopy(model),
        AveragedModel(model, device=torch.device('cpu')).module,
        torch.load(buffer, weights_only=False),
    ):
        twin.train()((torch.randn(2, 6), None))
        assert reader.read(batch) is features
        hooks = [hook for m in twin.modules() for hook in [*m._forward_hooks.values(), *m._forward_pre_hooks.values()]]
        assert len(hooks) == 3
        assert all(hook.box is None for hook in hooks)
        again = FeatureReader(twin)
        again.attach(twin)
        twin(batch)
        torch.testing.assert_close(again.read(batch), features)


def test_gradient_checkpointing_fires_again_but_is_not_read():
    model, batch = make_model('bert').train(), make_batch()
    model.gradient_checkpointing_enable({'use_reentrant': False})
    reader = FeatureReader(model, module='layer.1.attention', position='first')
    reader.attach(model)
    fired: list[bool] = []
    model.bert.encoder.layer[1].attention.register_forward_hook(lambda *_: fired.append(True))
    loss = forward(model, batch).loss
    total = loss + reader.read(batch).square().mean()
    reader.clear()
    total.backward()
    assert len(fired) == 2
    with pytest.raises(RuntimeError):
        reader.read(batch)

    plain = make_model('bert')
    twin = FeatureReader(plain, module='layer.1.attention', position='first')
    twin.attach(plain)
    (forward(plain, batch).loss + twin.read(batch).square().mean()).backward()
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
    features = reader.read(batch)
    torch.testing.assert_close(features, nn.functional.silu(inner.read(batch)))
    torch.testing.assert_close(features, model.module.body(batch[0]))
    (logits.sum() + features.sum() + inner.read(batch).sum()).backward()
    assert model.module.body[0].weight.grad.any()


@pytest.mark.parametrize('name', ['bert', 'llama'])
def test_under_ddp(name: str, process_group: None):
    model, batch = HuggingFaceModel(make_model(name, head_dropout=0.5)), make_batch()
    with torch.no_grad():
        expected = head_input(name, model.model.eval(), batch)
    reader = FeatureReader(model)
    wrapped = DistributedDataParallel(model.train(), find_unused_parameters=True)
    reader.attach(wrapped)
    loss = wrapped(batch)['loss']
    torch.testing.assert_close(reader.read(batch), expected)
    (loss + reader.read(batch).square().mean()).backward()
    assert all(p.grad is not None for p in model.model.base_model.parameters() if p.requires_grad)

    classifier, pair = make_classifier(nn.Dropout(0.5))  # its own attribute is called `module`, like DDP's
    reader = FeatureReader(classifier)
    reader.attach(wrapped := DistributedDataParallel(classifier))
    wrapped(pair)
    torch.testing.assert_close(reader.read(pair), classifier.module.body(pair[0]))


def test_under_fsdp2_with_mixed_precision(process_group: None):
    model, batch = make_classifier(nn.Dropout(0.5))
    reader = FeatureReader(model)
    mesh = torch.distributed.init_device_mesh('cpu', (1,))
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16)  # casts the head's input: a new tensor
    for module in (model.module.body, model.module.head, model):
        fully_shard(module, mesh=mesh, mp_policy=policy)
    reader.attach(model)
    model(batch)
    features = reader.read(batch)
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
    features = reader.read(batch)
    torch.testing.assert_close(features, expected)
    (logits.sum() + features.square().sum()).backward()
    assert model.module.body[0].weight.grad.any()
    reader.clear()
    compiled.eval()
    compiled(batch)
    with pytest.raises(RuntimeError):
        reader.read(batch)
    compiled.train()
    reader.detach()
    compiled(batch)
    with pytest.raises(RuntimeError):
        reader.read(batch)
    torch.compiler.reset()


def test_under_torch_compile_bert():
    torch.compiler.reset()
    model, batch = HuggingFaceModel(make_model('bert', head_dropout=0.5)), make_batch()
    with torch.no_grad():
        expected = head_input('bert', model.model.eval(), batch)
    reader = FeatureReader(model)
    compiled = torch.compile(model.train(), backend='eager')
    reader.attach(compiled)
    compiled(batch)
    torch.testing.assert_close(reader.read(batch), expected)
    reader.detach()
