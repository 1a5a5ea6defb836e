"""A task's data: read, checked, cut to size, tokenised and batched, the same for every number of ranks.

SKELETON: signatures are final, bodies follow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from composer.core import DataSpec
from torch.utils.data import Dataset

from composer_cmi.run.tasks import Task


@dataclass(frozen=True)
class Split:
    """Rows of one split as text. `labels` int64 [N], -100 = unlabelled; `example_ids` int64 [N]. -> run/splits.py"""

    texts: tuple[list[str], ...]  # one list per text column
    labels: np.ndarray
    example_ids: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


class EncodedSplit(Dataset):
    """Tokenised rows. `[i]` -> dict of input_ids, (token_type_ids), labels, example_id. -> run/encoding.py

    Attributes: labels int64 [N]; example_ids int64 [N]; lengths int64 [N]; fingerprint: str (texts, tokenizer, max_length).
    """


@dataclass(frozen=True)
class TaskData:
    task: Task  # with label_names and text_columns filled in, also for `custom`
    train: Split
    unlabelled: Split | None
    eval_splits: dict[str, Split]  # first one is the primary: 'dev', 'dev_matched', or 'held_out'
    fingerprint: str
    counts: dict[str, dict[str, int]]  # {split: {class name: rows}}, unlabelled rows under ''
    notes: list[str] = field(default_factory=list)  # what a user should be told

    @property
    def label_names(self) -> tuple[str, ...]: ...

    @property
    def majority(self) -> dict[str, float]:
        """Share of the most frequent class per eval split."""
        ...

    def describe(self) -> str:
        """Counts, label balance, majority baseline, size of one example in points, notes: for printing."""
        ...


def load_task_data(task: Task | str, config: Any) -> TaskData:
    """`config` is the run's `data:` section (its `seed` fixes every subset; the run's seed plays no part)."""
    raise NotImplementedError


def load_test_splits(task: Task | str, config: Any) -> dict[str, Split]:
    """GLUE's test splits without labels (all -100), for `composer-cmi submit`."""
    raise NotImplementedError


def concatenate(first: Split, second: Split | None) -> Split:
    """Labelled and unlabelled rows in one split, for distillation on both."""
    raise NotImplementedError


def tokenize(split: Split, tokenizer: Any, *, max_length: int, cache_dir: str | Path | None = None) -> EncodedSplit:
    raise NotImplementedError


def train_dataloader(
    dataset: EncodedSplit, tokenizer: Any, *, batch_size: int, seed: int, group_by_length: bool = True, num_workers: int = 0
) -> DataSpec:
    """`batch_size` is global (all ranks together) and must be a multiple of the number of ranks."""
    raise NotImplementedError


def eval_dataloader(dataset: EncodedSplit, tokenizer: Any, *, batch_size: int, num_workers: int = 0) -> DataSpec:
    """`batch_size` is global. Rows come in order of length, each exactly once: go by example_id."""
    raise NotImplementedError
