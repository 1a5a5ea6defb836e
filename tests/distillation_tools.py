"""Distillation from a small BERT with dropout: teachers, their caches, and runs that keep every loss."""

from __future__ import annotations

import copy

import torch
from composer.core import Algorithm, Event
from torch import nn
from torch.utils.data import default_collate

import toys
from composer_cmi.teachers.forward import run_teacher
from composer_cmi.teachers.logit_cache import CacheKey, LogitCache
from composer_cmi.teachers.teacher import load_teacher

SAME = {'assume_same_labels': True}


def teacher_bert(seed: int = 9) -> nn.Module:
    """Another BERT with dropout, with logits far enough apart to teach something."""
    model = toys.tiny_bert(dropout=0.3, seed=seed, layers=3).model
    with torch.no_grad():
        model.classifier.weight.mul_(20)
    return model


def cached(data, teacher, **changes) -> LogitCache:
    ids, logits = run_teacher(load_teacher(copy.deepcopy(teacher)), data, default_collate)
    return LogitCache(ids, logits, key=CacheKey(load_teacher(teacher).fingerprint, 'd'), **changes)


class Losses(Algorithm):
    """Keeps the loss of every microbatch: listed first, it comes last at AFTER_LOSS but for KnowledgeDistillation."""

    def __init__(self):
        self.values: list[float] = []

    def match(self, event, state):
        return event == Event.BEFORE_BACKWARD

    def apply(self, event, state, logger):
        self.values.append(float(state.loss.detach()))


def train(algorithms, data=None, *, model=None, **kwargs) -> tuple[torch.Tensor, list[float]]:
    """Weights and losses after three epochs of a small BERT with dropout."""
    model = toys.tiny_bert(dropout=0.1) if model is None else model
    losses = Losses()
    data = toys.Sentences(48) if data is None else data
    options = {'max_duration': '3ep', **kwargs}
    trainer = toys.trainer(model, data, [losses, *algorithms], **options)
    trainer.fit()
    trainer.close()
    return toys.weights(model), losses.values


def start(*algorithms, model=None, data=None, fit: bool = False) -> None:
    model = toys.tiny_bert() if model is None else model
    trainer = toys.trainer(model, toys.Sentences(16) if data is None else data, list(algorithms), max_duration='1ba')
    try:
        if fit:
            trainer.fit()
    finally:
        trainer.close()
