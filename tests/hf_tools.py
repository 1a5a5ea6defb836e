"""Tiny Hugging Face models, rows and trainers for the tests of `composer_cmi.hf`; no Composer in here."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    TrainingArguments,
)

from composer_cmi.hf import CMITrainer

CLASSES, LENGTH = 3, 8


class Rows(Dataset):
    """Token ids of their class's words, with ids; the last `unlabelled` rows have no label."""

    def __init__(self, n: int = 54, unlabelled: int = 0, shift: int = 0):
        g = torch.Generator().manual_seed(3)
        self.labels = torch.randint(CLASSES, (n,), generator=g)
        self.ids = 5 + self.labels[:, None] * 5 + torch.randint(5, (n, LENGTH), generator=g)
        self.mask = (torch.arange(LENGTH) < torch.randint(3, LENGTH + 1, (n, 1), generator=g)).long()
        self.ids = self.ids * self.mask
        self.labels[n - unlabelled :] = -100
        self.shift = shift

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> dict[str, Any]:
        row = {'input_ids': self.ids[i], 'attention_mask': self.mask[i], 'labels': self.labels[i]}
        return {**row, 'example_id': torch.tensor(i + self.shift)}


_SMALL = {
    'vocab_size': 24,
    'hidden_size': 16,
    'num_hidden_layers': 2,
    'num_attention_heads': 2,
    'intermediate_size': 32,
    'max_position_embeddings': 16,
    'num_labels': CLASSES,
    'pad_token_id': 0,
    'initializer_range': 0.2,  # CMI far above rounding
}


def bert(seed: int = 1, dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(seed)
    rates = {'hidden_dropout_prob': dropout, 'attention_probs_dropout_prob': dropout}
    return BertForSequenceClassification(BertConfig(**_SMALL, **rates))


def llama(seed: int = 1) -> nn.Module:
    torch.manual_seed(seed)
    return LlamaForSequenceClassification(LlamaConfig(**_SMALL))


def trainer(
    folder: Path | str,
    *,
    accumulation: int = 1,
    batch: int = 16,
    model: nn.Module | None = None,
    rows: Dataset | None = None,
    cls: type = CMITrainer,
    settings: dict[str, Any] | None = None,
    **terms: Any,
) -> Any:
    """A quiet trainer with SGD and no clipping, `batch` rows a step over all ranks."""
    ranks = int(os.environ.get('WORLD_SIZE', 1))
    options = {
        'output_dir': str(folder),
        'per_device_train_batch_size': batch // accumulation // ranks,
        'gradient_accumulation_steps': accumulation,
        'num_train_epochs': 2,
        'optim': 'sgd',
        'learning_rate': 0.2,
        'lr_scheduler_type': 'constant',
        'max_grad_norm': 0.0,
        'data_seed': 5,
        'use_cpu': True,
        'report_to': [],
        'save_strategy': 'no',
        'disable_tqdm': True,
        'logging_steps': 1,
        'dataloader_pin_memory': False,
    }
    return cls(
        model or bert(),
        TrainingArguments(**{**options, **(settings or {})}),
        train_dataset=rows or Rows(),
        **terms,
    )


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten().double() for p in model.parameters()])


def update(model: nn.Module, before: nn.Module) -> torch.Tensor:
    return weights(model) - weights(before)


def away(a: torch.Tensor, b: torch.Tensor) -> float:
    """The distance of two updates relative to the second."""
    return float((a - b).norm() / b.norm())
