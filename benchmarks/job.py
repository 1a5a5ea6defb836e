"""One piece of work for all contenders: the same rows, model, batches, steps; and when each began and ended training.

A job is a folder: `train.csv` and `dev.csv` (text, label), and `job.json`. What is imported here every contender pays
for, so it is little.
"""

from __future__ import annotations

import csv
import json
import time
from pathlib import Path
from typing import Any, NamedTuple


class Stamps:
    """The clock before the first batch is read and after the last step, and what came out, in one file.

    Args:
        out: The file.
        device: `cpu` or `cuda`, which is waited for.
    """

    def __init__(self, out: str | Path, device: str):
        self.path, self.device = Path(out), device
        self.begun = self.ended = 0.0

    def begin(self) -> None:
        """Several times, where there are several epochs: the first counts."""
        self.begun = self.begun or self._now()

    def end(self) -> None:
        self.ended = self._now()

    def write(self, **values: Any) -> None:
        if self.device == 'cuda':
            import torch

            values['device_peak_mib'] = round(torch.cuda.max_memory_allocated() / 2**20)
        self.path.write_text(json.dumps({'begun': self.begun, 'ended': self.ended, **values}), encoding='utf-8')

    def _now(self) -> float:
        if self.device == 'cuda':
            import torch

            torch.cuda.synchronize()
        return time.time()


class Job(NamedTuple):
    """What a contender reads of `job.json`."""

    folder: str
    out: str
    model: str
    """A Hugging Face folder."""
    label_names: list[str]
    batches: list[list[int]]
    """Numbers of the training rows of each step, of like length: ours, for the loops that we write ourselves."""
    batch_size: int
    lr: float
    max_length: int
    seed: int
    device: str
    precision: str
    """`fp32` or `bf16`."""
    keep_layers: list[int] | None = None
    """Of the model, for a student."""
    teacher: str | None = None
    alpha: float = 0.7
    temperature: float = 2.0

    @classmethod
    def read(cls, path: str | Path) -> Job:
        return cls(**json.loads(Path(path).read_text(encoding='utf-8')))

    def write(self, path: Path) -> Path:
        path.write_text(json.dumps(self._asdict()), encoding='utf-8')
        return path

    @property
    def steps(self) -> int:
        return len(self.batches)

    @property
    def stamps(self) -> Stamps:
        return Stamps(self.out, self.device)

    def rows(self, split: str) -> tuple[list[str], list[int]]:
        """Texts and class numbers."""
        with Path(self.folder, f'{split}.csv').open(newline='', encoding='utf-8') as file:
            rows = [*csv.DictReader(file)]
        return [row['text'] for row in rows], [self.label_names.index(row['label']) for row in rows]
