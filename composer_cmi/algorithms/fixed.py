"""One pass over the training rows that the training does not notice, for centroids that are fixed."""

from __future__ import annotations

import contextlib
import random
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.distributed
from composer.core import State, get_precision_context
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

__all__ = ['outputs_of_all_rows', 'require_rows']


def require_rows(loader: Any) -> None:
    """Refuse a training dataloader whose rows cannot be read a second time beside it.

    Raises:
        ValueError: It has no map-style dataset, or does not make batches of rows itself.
    """
    dataset = getattr(loader, 'dataset', None)
    map_style = hasattr(dataset, '__getitem__') and hasattr(dataset, '__len__')
    batches_rows = getattr(loader, 'batch_sampler', None) is not None
    if isinstance(dataset, IterableDataset) or not map_style or not batches_rows:
        what = type(loader).__name__ if dataset is None else type(dataset).__name__
        raise ValueError(
            "centroids='fixed' reads all training rows once beside the training, which needs a DataLoader over a "
            f"map-style dataset that makes the batches itself, got {what}: use centroids='ema'."
        )


@torch.no_grad()
def outputs_of_all_rows(state: State) -> Iterator[tuple[Any, Tensor]]:
    """The model's outputs in eval mode for all rows of the training dataset, each on one rank.

    The rows come from a loader of its own: the training's loader deals its batches as if nothing had been. Every rank
    makes the same number of batches, since a forward of DDP or FSDP is a meeting of the ranks: one that has a row less
    reads one twice, and counts it once.

    Args:
        state: Composer's, in a `fit`; while this goes on, `state.batch` is the batch of the outputs.

    Yields:
        The outputs for a microbatch, and which of its rows count, `[N]` bool.
    """
    loader: Any = state.train_dataloader
    require_rows(loader)
    if state.dataloader_len is not None and int(state.dataloader_len) < len(loader):
        warnings.warn(
            f"centroids='fixed' takes all {len(loader.dataset)} training rows: which of them train_subset_num_batches "
            'leaves is known only when they are dealt.'
        )
    grouped = torch.distributed.is_available() and torch.distributed.is_initialized()
    rank, ranks = (torch.distributed.get_rank(), torch.distributed.get_world_size()) if grouped else (0, 1)
    total, size = len(loader.dataset), state.device_train_microbatch_size
    if not isinstance(size, int):
        size = loader.batch_size or getattr(loader.batch_sampler, 'batch_size', 1)
    rows = range(rank, -(-total // ranks) * ranks, ranks)
    own = DataLoader(
        loader.dataset,
        batch_size=size,
        sampler=[row % total for row in rows],
        collate_fn=loader.collate_fn,
        generator=torch.Generator(),
    )
    was_training, batch_in_hand = state.model.training, state.batch
    state.model.eval()
    try:
        with _generators_untouched():
            for start, batch in zip(range(0, len(rows), size), own, strict=True):
                state.batch = state.device.batch_to_device(batch)
                counts = torch.tensor([row < total for row in rows[start : start + size]])
                with get_precision_context(state.precision, state.precision_config):
                    outputs = state.model(state.batch)
                yield outputs, state.device.tensor_to_device(counts)
    finally:
        state.batch = batch_in_hand
        state.model.train(was_training)


@contextlib.contextmanager
def _generators_untouched() -> Iterator[None]:
    """A run with the pass and one without draw the same random numbers."""
    # Datasets that augment may draw from any of the global generators.
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
