"""Tiny classifiers of every architecture, and their heads' inputs worked out by their own modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers
from composer.models import ComposerClassifier
from torch import Tensor, nn

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
