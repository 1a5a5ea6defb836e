"""Samplers and dataloaders: the same global batches for any number of ranks, no evaluation row counted twice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from composer.core import DataSpec
from composer.utils import dist
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler

from composer_cmi.data.encoding import EncodedSplit

__all__ = ['Collator', 'EvalSampler', 'TrainSampler', 'eval_dataloader', 'train_dataloader']

# Rows are sorted by length within so many batches, as many as in transformers' own sampler: enough to save nearly all
# padding, little enough to keep batches random. Another number is another order of every longer epoch.
_BATCHES_PER_GROUP = 50


class TrainSampler(DistributedSampler[int]):
    """Length-grouped batches that are a function of (seed, epoch) alone.

    The global batches do not depend on the number of ranks: rank r of W takes rows r, r + W, ... of each. The
    epoch's last batch is filled up with the rows that the epoch began with, so that every batch is full.

    Args:
        lengths: Tokens per row, int [N].
        batch_size: Rows of a global batch.
        seed: With the epoch, decides the order.
        group_by_length: Whether rows of similar length are put into one batch.
        num_replicas: Number of ranks W, this run's unless given.
        rank: This rank r, this process's unless given.

    Raises:
        ValueError: There are no rows, or the batch cannot be shared out evenly among the ranks.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        batch_size: int,
        seed: int,
        *,
        group_by_length: bool = True,
        num_replicas: int | None = None,
        rank: int | None = None,
    ) -> None:
        world = dist.get_world_size() if num_replicas is None else num_replicas
        if batch_size < 1 or batch_size % world:
            raise ValueError(
                f'A global batch of {batch_size} rows cannot be shared out evenly among {world} ranks: '
                f'choose a multiple of {world}.'
            )
        if not len(lengths):
            raise ValueError('There are no training rows.')
        this = dist.get_global_rank() if rank is None else rank
        super().__init__(range(len(lengths)), num_replicas=world, rank=this, seed=seed)  # pyright: ignore[reportArgumentType]
        self.lengths = np.asarray(lengths)
        self.batch_size = batch_size
        self.group_by_length = group_by_length
        self.num_batches = -(-len(lengths) // batch_size)
        self.total_size = self.num_batches * batch_size
        self.num_samples = self.total_size // world

    def _batches(self) -> Iterator[np.ndarray]:
        # One group at a time is in order of length: of the epoch, only the order of its rows is in memory.
        rng = np.random.default_rng([self.seed, self.epoch])
        order = np.arange(len(self.lengths), dtype=np.int32 if len(self.lengths) < 2**31 else np.int64)
        rng.shuffle(order)  # what rng.permutation makes of it, in half the memory
        per_group = _BATCHES_PER_GROUP if self.group_by_length else 1
        numbers = rng.permutation(self.num_batches) if self.group_by_length else range(self.num_batches)
        size = per_group * self.batch_size
        for number in numbers:
            start = number // per_group * size
            group = order.take(np.arange(start, min(start + size, self.total_size)), mode='wrap').astype(np.int64)
            if self.group_by_length:
                group = group[np.argsort(self.lengths[group], kind='stable')]
            first = number % per_group * self.batch_size
            yield group[first : first + self.batch_size]

    def global_batches(self) -> np.ndarray:
        """This epoch's batches of all ranks, row numbers int64 [batches, batch_size]."""
        return np.stack([*self._batches()])

    def __iter__(self) -> Iterator[int]:
        for batch in self._batches():
            yield from batch[self.rank :: self.num_replicas].tolist()


class EvalSampler(DistributedSampler[int]):
    """All rows in order of their length, dealt out to the ranks in turn.

    As with torch's own sampler the last rows are repeated until every rank has as many: Composer's evaluation
    drops exactly those again, so that no row is counted twice.
    """

    def __init__(self, lengths: np.ndarray, num_replicas: int | None = None, rank: int | None = None) -> None:
        world = dist.get_world_size() if num_replicas is None else num_replicas
        this = dist.get_global_rank() if rank is None else rank
        super().__init__(range(len(lengths)), num_replicas=world, rank=this, shuffle=False)  # pyright: ignore[reportArgumentType]
        self.order = np.argsort(lengths, kind='stable')

    def __iter__(self) -> Iterator[int]:
        for place in range(self.rank, self.total_size, self.num_replicas):
            yield int(self.order[place % len(self.order)])


class Collator:
    """Pads a batch to its longest row, on the tokenizer's padding side.

    Args:
        tokenizer: A Hugging Face tokenizer.

    Raises:
        ValueError: The tokenizer has no padding token.
    """

    def __init__(self, tokenizer: Any) -> None:
        if tokenizer.pad_token_id is None:
            raise ValueError(
                f'{type(tokenizer).__name__} has no padding token: set tokenizer.pad_token, for instance to its '
                'eos_token, and model.config.pad_token_id with it.'
            )
        self.padding = {'input_ids': int(tokenizer.pad_token_id), 'token_type_ids': int(tokenizer.pad_token_type_id)}
        self.left = tokenizer.padding_side == 'left'

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Make a batch: input_ids, attention_mask and token_type_ids int64 [N, L], labels, example_id int64 [N]."""
        longest = max(len(row['input_ids']) for row in rows)
        batch = {
            key: torch.full((len(rows), longest), self.padding[key], dtype=torch.int64)
            for key in ('input_ids', 'token_type_ids')
            if key in rows[0]
        }
        batch['attention_mask'] = torch.zeros(len(rows), longest, dtype=torch.int64)
        for i, row in enumerate(rows):
            length = len(row['input_ids'])
            span = slice(longest - length, longest) if self.left else slice(0, length)
            batch['attention_mask'][i, span] = 1
            for key in self.padding.keys() & row.keys():
                batch[key][i, span] = torch.from_numpy(row[key].astype(np.int64))
        for key in ('labels', 'example_id'):
            batch[key] = torch.tensor([row[key] for row in rows], dtype=torch.int64)
        return batch


def _tokens_in_batch(batch: Any) -> int:
    return int(batch['attention_mask'].sum())


def train_dataloader(
    dataset: EncodedSplit,
    tokenizer: Any,
    *,
    batch_size: int,
    seed: int,
    group_by_length: bool = True,
    num_workers: int = 0,
) -> DataSpec:
    """Training batches, every one of them full.

    Args:
        dataset: The rows, labelled and unlabelled.
        tokenizer: The tokenizer that made them.
        batch_size: Rows of a batch over all ranks together.
        seed: With the epoch, decides the order.
        group_by_length: Whether rows of similar length are put into one batch.
        num_workers: Processes that collate.

    Raises:
        ValueError: There are no rows, or the batch size is no multiple of the number of ranks.
    """
    sampler = TrainSampler(dataset.lengths, batch_size, seed, group_by_length=group_by_length)
    loader = DataLoader(
        dataset,
        batch_size=batch_size // sampler.num_replicas,
        sampler=sampler,
        collate_fn=Collator(tokenizer),
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
    )
    return DataSpec(loader, num_samples=sampler.total_size, get_num_tokens_in_batch=_tokens_in_batch)


def eval_dataloader(dataset: EncodedSplit, tokenizer: Any, *, batch_size: int, num_workers: int = 0) -> DataSpec:
    """Evaluation batches in order of length: a row's place says nothing, go by ``example_id``.

    Args:
        dataset: The rows.
        tokenizer: The tokenizer that made them.
        batch_size: Rows of a batch over all ranks together, rounded up to a multiple of their number.
        num_workers: Processes that collate.
    """
    sampler = EvalSampler(dataset.lengths)
    loader = DataLoader(
        dataset,
        batch_size=-(-batch_size // sampler.num_replicas),
        sampler=sampler,
        collate_fn=Collator(tokenizer),
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
    )
    return DataSpec(loader, get_num_tokens_in_batch=_tokens_in_batch)
