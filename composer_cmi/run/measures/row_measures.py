"""A callback that measures the rows of training and evaluation on their way, without a pass of its own."""

from __future__ import annotations

from typing import Any

import torch
from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist
from torch import Tensor

from composer_cmi.batch import class_labels, class_logits
from composer_cmi.features import FeatureReader
from composer_cmi.run.measures.tables import read_table, table_of_rows

__all__ = ['RowMeasures']


class RowMeasures(Callback):
    """Logs score, NLL and CMI of training rows, `metrics/train/...`, and CMI of evaluated ones, `metrics/SPLIT/...`.

    They come from the logits and features of forward passes that are made anyway, so that the training is the same bit
    for bit. Those of training are of the rows since the evaluation before, as the model was when it saw them, with its
    dropout; without evaluations they are logged at the end of each epoch. Ranks meet when values are logged and before
    a checkpoint, and never in a step. A pass that is repeated counts once.

    Args:
        reader: Of the model; this callback's own.
        metric: The task's primary metric.
    """

    def __init__(self, reader: FeatureReader, metric: str) -> None:
        self.reader, self.metric = reader, metric
        self._attached = False
        self._labels: Tensor | None = None
        # Tables: of the pass under way, of the batch, of this rank's batches, and what all ranks have already shared.
        self._pass: Tensor | None = None
        self._batch: Tensor | None = None
        self._window: Tensor | None = None
        self._shared: Tensor | None = None
        self._evaluated: Tensor | None = None
        self._left = 0  # rows of this rank that the evaluation has still to count

    # --- training -----------------------------------------------------------------------------------------------------

    def fit_start(self, state: State, logger: Logger) -> None:
        self._attach(state)

    def before_train_batch(self, state: State, logger: Logger) -> None:
        self._pass = None

    def before_forward(self, state: State, logger: Logger) -> None:
        self.reader.clear()
        self._labels = class_labels(state.batch)  # here: label smoothing makes them dense before the loss

    def after_forward(self, state: State, logger: Logger) -> None:
        if self._labels is not None:
            self._pass = _added(self._pass, self._read(state, self._labels))
            self._labels = None

    def after_train_batch(self, state: State, logger: Logger) -> None:
        self._batch = self._pass if self._batch is None else self._batch
        self._pass = None

    def batch_end(self, state: State, logger: Logger) -> None:
        self._window, self._batch = _added(self._window, self._batch), None

    def epoch_end(self, state: State, logger: Logger) -> None:
        if not state.evaluators:
            self._log_training(state, logger)

    def close(self, state: State, logger: Logger) -> None:
        self.reader.detach()
        self._attached = False

    def share(self) -> None:
        """Bring the ranks' tables together; all ranks call it, before a checkpoint and before values are read."""
        if self._window is not None:
            dist.all_reduce(self._window)
            self._shared, self._window = _added(self._shared, self._window), None

    def _log_training(self, state: State, logger: Logger) -> None:
        self.share()
        if self._shared is not None:
            _log(logger, state, 'train', read_table(self._shared, self.metric))
        self._shared = None

    # --- evaluation ---------------------------------------------------------------------------------------------------

    def eval_start(self, state: State, logger: Logger) -> None:
        # Here, for each split: without a fit before it, Composer has no event before all evaluations.
        self._attach(state)
        self._log_training(state, logger)
        sampler: Any = getattr(state.dataloader, 'sampler', None)
        self._evaluated = None
        self._left = len(range(sampler.rank, len(sampler.dataset), sampler.num_replicas))

    def eval_before_forward(self, state: State, logger: Logger) -> None:
        self.reader.clear()
        labels = class_labels(state.batch)  # here: the model takes them out of the batch
        # A rank that has too few rows is given one of another rank's, alone in a last batch.
        counts = torch.arange(len(labels)) < self._left
        self._left -= len(labels)
        self._labels = torch.where(counts.to(labels.device), labels, -100)

    def eval_after_forward(self, state: State, logger: Logger) -> None:
        if self._labels is not None:
            self._evaluated = _added(self._evaluated, self._read(state, self._labels))
            self._labels = None

    def eval_end(self, state: State, logger: Logger) -> None:
        if self._evaluated is not None:
            dist.all_reduce(self._evaluated)
            found = read_table(self._evaluated, self.metric)
            # Score and NLL of evaluated rows are Composer's to log.
            names = ('cmi', 'mutual_information', 'relative_cmi')
            _log(logger, state, str(state.dataloader_label), {name: found[name] for name in names if name in found})
        self._evaluated = None

    # --- the rest -----------------------------------------------------------------------------------------------------

    def _attach(self, state: State) -> None:
        if not self._attached:
            self.reader.attach(state.model, always=True)
            self._attached = True

    def _read(self, state: State, labels: Tensor) -> Tensor:
        logits = class_logits(state.outputs)
        features = self.reader.read(state.batch, logits)
        self.reader.clear()
        return table_of_rows(features, logits, labels)

    def state_dict(self) -> dict[str, Any]:
        """What all ranks have shared since values were last logged; equal on all ranks."""
        return {} if self._shared is None else {'shared': self._shared.detach().cpu().clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._shared = state['shared'].clone() if 'shared' in state else None


def _added(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    if first is None or second is None:
        return second if first is None else first
    return first.to(second.device) + second


def _log(logger: Logger, state: State, split: str, values: dict[str, float]) -> None:
    # At the step of the evaluation beside them.
    named = {f'metrics/{split}/{name}': value for name, value in values.items()}
    logger.log_metrics(named, step=int(state.timestamp.batch))
