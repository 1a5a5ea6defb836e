"""One pass of a teacher over a dataset: its logits by example id, and what they were computed from."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from composer_cmi.teachers.pass_pieces import PiecesOfPass
from composer_cmi.teachers.teacher import Teacher

__all__ = ['inputs_fingerprint', 'run_teacher']

_PIECE = 4096  # rows that a kill costs at most


def run_teacher(
    teacher: Teacher,
    rows: Any,
    collate: Callable[[list[Any]], Any],
    *,
    batch_size: int = 64,
    context: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
    id_key: str = 'example_id',
    kept: PiecesOfPass | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """The teacher's logits over a map-style dataset; draws no random numbers.

    Args:
        teacher: It runs where its weights are.
        rows: `rows[i]` is a mapping with `id_key`, and `input_ids` or whatever the teacher reads. Where they have
            `lengths` and `example_ids`, each row is read once, else twice.
        collate: Makes a batch of a list of rows (pads).
        batch_size: Rows at a time; rows of like length go together.
        context: Makes the precision context to run in.
        id_key: The key of the example id.
        kept: Where each piece of the pass is stored when it is done, and read back after a kill.
        progress: Called with the rows that are done and those that there are.

    Returns:
        `example_ids [R]` int64 in increasing order and `logits [R, C]` float32, both on the CPU.

    Raises:
        ValueError: The rows have no example ids.
    """
    if len(rows) and (not isinstance(rows[0], Mapping) or id_key not in rows[0]):
        raise ValueError(
            f'The training rows have no {id_key!r}, by which logits are stored: add an int64 column of that name '
            '(and remove_unused_columns=False or the like, so that it reaches the batch).'
        )
    ids, lengths = _ids_and_lengths(rows, id_key)
    order = lengths.argsort(stable=True)
    places = torch.empty_like(order)
    places[ids.argsort(stable=True)] = torch.arange(len(order))
    logits = torch.empty(0)
    step = batch_size * max(1, _PIECE // batch_size)
    for number, piece in enumerate(order.split(step)):
        found = kept.read(number, ids[piece]) if kept is not None else None
        if found is None:
            parts = []
            for done, chosen in enumerate(piece.split(batch_size)):
                with context():
                    parts.append(teacher.logits(collate([rows[i] for i in chosen.tolist()])).cpu())
                if progress is not None:
                    progress(min(number * step + (done + 1) * batch_size, len(order)), len(order))
            found = torch.cat(parts)
            if kept is not None:
                kept.write(number, ids[piece], found)
        elif progress is not None:
            progress(number * step + len(piece), len(order))
        if not number:
            shape = (len(order), found.shape[1])
            logits = torch.empty(shape, dtype=found.dtype) if kept is None else kept.whole(shape, found.dtype)
        logits[places[piece]] = found
    return ids.sort(stable=True).values, logits


def _ids_and_lengths(rows: Any, id_key: str) -> tuple[Tensor, Tensor]:
    known = [getattr(rows, name, None) for name in ('example_ids', 'lengths')]
    if all(each is not None and len(each) == len(rows) for each in known):
        return torch.as_tensor(known[0]).to(torch.int64), torch.as_tensor(known[1])
    numbers = torch.empty(2, len(rows), dtype=torch.int64)
    for i in range(len(rows)):
        row = rows[i]
        numbers[0, i] = int(row[id_key])
        numbers[1, i] = len(row['input_ids']) if 'input_ids' in row else 0
    return numbers[0], numbers[1]


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
    chosen: Sequence[int] = range(len(rows))
    if isinstance(declared, str) and ids is not None:
        digest.update(declared.encode())
        digest.update(torch.as_tensor(ids).to(torch.int64).contiguous().numpy().data)
        lengths = getattr(rows, 'lengths', None)
        order = torch.arange(len(rows)) if lengths is None else torch.as_tensor(lengths).argsort(stable=True)
        step = max(1, len(order) // batch_size)
        chosen = [*order[::step][: batch_size - 1].tolist(), *order[-1:].tolist()]
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
