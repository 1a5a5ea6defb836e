"""The CMI algorithms on small models: whole runs, and single batches driven event by event."""

from __future__ import annotations

import torch
from composer.core import Event
from composer.loggers import InMemoryLogger
from torch.utils.data import TensorDataset

import toys


def fit(algorithms, model=None, dataset=None, **kwargs):
    logger = InMemoryLogger()
    trainer = toys.trainer(model or toys.mlp(), dataset or toys.points(), algorithms, loggers=[logger], **kwargs)
    trainer.fit()
    trainer.close()
    return trainer, {name: [float(value) for _, value in series] for name, series in logger.data.items()}


def drive(algorithm, x: torch.Tensor, labels: torch.Tensor, batches: int = 1):
    """Runs the real engine's events by hand on a batch; returns the state before the last commit."""
    trainer = toys.trainer(toys.mlp(), TensorDataset(x, labels), [algorithm], batch_size=len(x))
    state, engine = trainer.state, trainer.engine
    engine.run_event(Event.FIT_START)
    for i in range(batches):
        state.batch = (x, labels)
        for event in (Event.BATCH_START, Event.BEFORE_TRAIN_BATCH, Event.BEFORE_FORWARD):
            engine.run_event(event)
        state.outputs = state.model(state.batch)
        state.loss = state.model.loss(state.outputs, state.batch)
        plain = state.loss
        engine.run_event(Event.AFTER_LOSS)
        if i < batches - 1:
            state.timestamp = state.timestamp.to_next_batch(len(x))
            engine.run_event(Event.AFTER_TRAIN_BATCH)
            engine.run_event(Event.BATCH_END)
    return trainer, plain
