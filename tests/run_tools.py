"""A tiny BERT with a tiny vocabulary and a small set of sentences, for tests that run the whole of a run."""

from __future__ import annotations

import csv
import itertools
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast
from transformers.utils import logging as transformers_logging

SENTENCES = {
    'weather': [
        'heavy rain is expected over the hills tonight',
        'a cold wind from the north brings snow',
        'the storm moved out to sea before dawn',
        'sunny spells with light clouds in the west',
        'fog covers the valley every autumn morning',
        'thunder and hail over the lake this evening',
        'frost on the roads after a clear night',
        'warm air from the south melts the snow',
    ],
    'food': [
        'bake the bread until the crust is golden',
        'the soup needs more salt and fresh herbs',
        'slice the onions and fry them in butter',
        'a ripe tomato makes the best salad',
        'stir the rice slowly and add warm stock',
        'grate the cheese over the hot pasta',
        'the cake rises better with fresh eggs',
        'roast the lamb with garlic and rosemary',
    ],
}


def make_model(folder: Path, *, layers: int = 2, seed: int = 0, positions: int = 32) -> Path:
    """A random BERT of width 16 without dropout, and a tokenizer that knows exactly the words above."""
    words = sorted({word for text in itertools.chain(*SENTENCES.values()) for word in text.split()})
    folder.mkdir(parents=True)
    vocabulary = folder / 'vocab.txt'
    vocabulary.write_text('\n'.join(['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', *words]) + '\n')
    tokenizer = BertTokenizerFast(str(vocabulary), model_max_length=positions)
    transformers_logging.disable_progress_bar()  # that of transformers 5 for writing a model
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=positions,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_data(folder: Path, *, train_rows: int = 24, dev_rows: int = 7) -> Path:
    """``train.tsv`` and ``dev.tsv`` with the columns ``text`` and ``label``; no text stands in both."""
    folder.mkdir(parents=True)
    rows = [(f'{text} {extra}', label) for extra in ('', 'today', 'again', 'now') for label, text in _alternating()]
    rows = [(text.strip(), label) for text, label in rows]
    for name, part in (('train', rows[:train_rows]), ('dev', rows[-dev_rows:])):
        lines = ['text\tlabel', *(f'{text}\t{label}' for text, label in part)]
        (folder / f'{name}.tsv').write_text('\n'.join(lines) + '\n')
    return folder


def _alternating() -> list[tuple[str, str]]:
    pairs = zip(*([(label, text) for text in texts] for label, texts in SENTENCES.items()), strict=True)
    return list(itertools.chain(*pairs))


def make_yaml(folder: Path, **changes: Any) -> Path:
    """A run of 9 steps on that model and data; ``changes`` replace whole top-level keys."""
    config: dict[str, Any] = {
        'task': 'custom',
        'run_name': 'tiny',
        'output_dir': str(folder / 'runs'),
        'model': {'name_or_path': str(folder / 'model')},
        'data': {
            'path': str(folder / 'data'),
            'text_columns': ['text'],
            'label_column': 'label',
            'max_length': 16,
            'cache_dir': str(folder / 'cache'),
        },
        'train': {'max_duration': '3ep', 'batch_size': 8, 'progress_bar': False, 'device': 'cpu'},
        'optimizer': {'lr': 1e-3},
        'algorithms': {'cmi_regularization': {'start': '0.5dur'}},
    }
    path = folder / 'run.yaml'
    path.write_text(yaml.safe_dump({**config, **changes}))
    return path


def make_all(folder: Path, **changes: Any) -> Path:
    """Model, data and YAML file below ``folder``; returns the YAML file."""
    make_model(folder / 'model')
    make_data(folder / 'data')
    return make_yaml(folder, **changes)


def predictions(folder: Path, split: str = 'dev') -> list[dict[str, str]]:
    with (folder / f'predictions_{split}.csv').open() as file:
        return list(csv.DictReader(file))
