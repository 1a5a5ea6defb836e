"""Small real models and data for the tests: an MLP on points, and a tiny BERT on token ids."""

from __future__ import annotations

import torch
from composer import Trainer
from composer.models import ComposerClassifier, HuggingFaceModel
from composer.utils import dist, reproducibility
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from transformers import BertConfig, BertForSequenceClassification

CLASSES, INPUTS, HIDDEN = 3, 6, 8


def points(n: int = 64, seed: int = 0) -> TensorDataset:
    """`n` points around one centre per class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (n,), generator=generator)
    centres = torch.randn(CLASSES, INPUTS, generator=generator)
    return TensorDataset(centres[labels] + 0.7 * torch.randn(n, INPUTS, generator=generator), labels)


def mlp(dropout: float = 0.0, seed: int = 1) -> ComposerClassifier:
    """Two layers, with a dropout in front of the last."""
    reproducibility.seed_all(seed)
    module = nn.Sequential(nn.Linear(INPUTS, HIDDEN), nn.Tanh(), nn.Dropout(dropout), nn.Linear(HIDDEN, CLASSES))
    return ComposerClassifier(module, num_classes=CLASSES)


class Sentences(Dataset):
    """`n` sequences of token ids, mostly of their class's words, of different lengths; some rows may be unlabelled."""

    def __init__(self, n: int = 32, seed: int = 0, unlabelled: int = 0, length: int = 8):
        generator = torch.Generator().manual_seed(seed)
        self.labels = torch.randint(CLASSES, (n,), generator=generator)
        self.ids = 5 + self.labels[:, None] * 5 + torch.randint(5, (n, length), generator=generator)
        lengths = torch.randint(3, length + 1, (n,), generator=generator)
        self.mask = (torch.arange(length) < lengths[:, None]).long()
        self.ids = self.ids * self.mask
        self.labels[n - unlabelled :] = -100

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {
            'input_ids': self.ids[i],
            'attention_mask': self.mask[i],
            'labels': self.labels[i],
            'example_id': torch.tensor(i),
        }


def tiny_bert(dropout: float = 0.0, seed: int = 1, layers: int = 2) -> HuggingFaceModel:
    """A randomly initialised BERT, 16 wide."""
    reproducibility.seed_all(seed)
    config = BertConfig(
        vocab_size=24,
        hidden_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
        num_labels=CLASSES,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    return HuggingFaceModel(BertForSequenceClassification(config), use_logits=True)


def loader(dataset: Dataset, batch_size: int = 16, shuffle: bool = False) -> DataLoader:
    """Global batches of `batch_size`, the same whatever the number of ranks."""
    sampler = dist.get_sampler(dataset, shuffle=shuffle, drop_last=True)
    return DataLoader(dataset, batch_size=batch_size // dist.get_world_size(), sampler=sampler)


def trainer(model, dataset: Dataset, algorithms, *, lr: float = 0.05, batch_size: int = 16, **kwargs) -> Trainer:
    """A quiet Composer Trainer on the CPU with plain SGD, so that a difference in gradients shows in the weights."""
    options = {
        'max_duration': '2ep',
        'device': 'cpu',
        'precision': 'fp32',
        'progress_bar': False,
        'log_to_console': False,
        'optimizers': torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9),
        'train_dataloader': loader(dataset, batch_size),
        'seed': 7,
    }
    return Trainer(model=model, algorithms=algorithms, **{**options, **kwargs})


def weights(model: nn.Module) -> Tensor:
    """All parameters in one vector."""
    return torch.cat([p.detach().flatten() for p in model.parameters()])
