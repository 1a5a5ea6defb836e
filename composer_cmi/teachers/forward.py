"""One pass of a teacher over a dataset: its logits by example id, and what they were computed from."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from composer_cmi.batch import class_labels
from composer_cmi.teachers.teacher import Teacher

__all__ = ['inputs_fingerprint', 'labels_of_rows', 'run_teacher']


def run_teacher(
    teacher: Teacher,
    rows: Any,
    collate: Callable[[list[Any]], Any],
    *,
    batch_size: int = 64,
    context: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
    id_key: str = 'example_id',
) -> tuple[Tensor, Tensor]:
    """The teacher's logits over a map-style dataset; draws no random numbers.

    Args:
        teacher: It runs where its weights are.
        rows: `rows[i]` is a mapping with `id_key`, and `input_ids` or whatever the teacher reads.
        collate: Makes a batch of a list of rows (pads).
        batch_size: Rows at a time; rows of like length go together.
        context: Makes the precision context to run in.
        id_key: The key of the example id.

    Returns:
        `example_ids [R]` int64 in increasing order and `logits [R, C]` float32, both on the CPU.

    Raises:
        ValueError: The rows have no example ids.
    """
    _require_ids(rows, id_key)
    items = [rows[i] for i in range(len(rows))]
    items.sort(key=lambda row: len(row['input_ids']) if 'input_ids' in row else 0)
    parts = []
    for start in range(0, len(items), batch_size):
        with context():
            parts.append(teacher.logits(collate(items[start : start + batch_size])).cpu())
    ids, order = torch.tensor([int(row[id_key]) for row in items]).sort(stable=True)
    return ids, torch.cat(parts)[order]


def labels_of_rows(
    rows: Any, collate: Callable[[list[Any]], Any], *, id_key: str, label_key: Any = None, batch_size: int = 256
) -> tuple[Tensor, Tensor]:
    """Example ids `[R]` and classes `[R]` of a map-style dataset, as its batches have them.

    Raises:
        ValueError: The rows have no example ids; the batches have no classes, or not one a row.
    """
    _require_ids(rows, id_key)
    ids, labels = [], []
    for start in range(0, len(rows), batch_size):
        items = [rows[i] for i in range(start, min(start + batch_size, len(rows)))]
        ids += [int(item[id_key]) for item in items]
        labels.append(class_labels(collate(items), label_key))
    return torch.tensor(ids), torch.cat(labels)


def _require_ids(rows: Any, id_key: str) -> None:
    if len(rows) and (not isinstance(rows[0], Mapping) or id_key not in rows[0]):
        raise ValueError(
            f'The training rows have no {id_key!r}, by which logits are stored: add an int64 column of that name '
            '(and remove_unused_columns=False or the like, so that it reaches the batch).'
        )


def inputs_fingerprint(rows: Any, collate: Callable[[list[Any]], Any], *, batch_size: int = 64) -> str:
    """A hash of what a teacher is given, so of the rows and of what `collate` makes of them; labels do not count.

    All batches are made for it, unless the rows know their own hash (`rows.fingerprint` and `rows.example_ids`): then
    that is taken, and of the batches a sample with the longest and the shortest rows.

    Args:
        rows: A map-style dataset.
        collate: Makes a batch of a list of rows.
        batch_size: Rows at a time.
    """
    digest = hashlib.sha256()
    declared, ids = getattr(rows, 'fingerprint', None), getattr(rows, 'example_ids', None)
    chosen = list(range(len(rows)))
    if isinstance(declared, str) and ids is not None:
        digest.update(declared.encode())
        digest.update(torch.as_tensor(ids).to(torch.int64).numpy().tobytes())
        lengths = getattr(rows, 'lengths', None)
        if lengths is not None:
            chosen.sort(key=lambda i: int(lengths[i]))
        step = max(1, len(chosen) // batch_size)
        chosen = [*chosen[::step][: batch_size - 1], *chosen[-1:]]
    for start in range(0, len(chosen), batch_size):
        _update(digest, collate([rows[i] for i in chosen[start : start + batch_size]]))
    return digest.hexdigest()


def _update(digest: Any, value: Any) -> None:
    if isinstance(value, Mapping):
        for name in sorted(value.keys() - {'labels', 'label'}):
            digest.update(f'{name}='.encode())
            _update(digest, value[name])
    elif isinstance(value, Tensor):
        digest.update(f'{value.dtype}{list(value.shape)}'.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    else:
        digest.update(repr(value).encode())
