"""One pass of a teacher over a dataset: its logits by example id, what they were computed from, and how far it is."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from composer_cmi.batch import class_labels
from composer_cmi.teachers.logit_cache import CacheError, CacheKey, LogitCache, open_or_build
from composer_cmi.teachers.teacher import Teacher

__all__ = ['PiecesOfPass', 'inputs_fingerprint', 'labels_of_rows', 'open_or_pass', 'rows_bar', 'run_teacher']

Progress = Callable[[int, int], None]
_PIECE = 4096  # rows that a kill costs at most
_SOON = 5.0  # seconds: what takes less needs no bar


def run_teacher(
    teacher: Teacher,
    rows: Any,
    collate: Callable[[list[Any]], Any],
    *,
    batch_size: int = 64,
    context: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
    id_key: str = 'example_id',
    kept: PiecesOfPass | None = None,
    progress: Progress | None = None,
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
    _require_ids(rows, id_key)
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


class PiecesOfPass:
    """Pieces of one pass in a folder of their own, each a `LogitCache`: whole, of this pass, or computed again.

    Args:
        folder: Made when it is needed; `remove` deletes it.
        key: What the logits depend on.
        batch_size: Of the pass: in other batches, the last bits of the logits may be others.
    """

    def __init__(self, folder: Path, key: CacheKey, batch_size: int) -> None:
        self.folder, self.key, self.batch_size = folder, key, batch_size

    def read(self, number: int, ids: Tensor) -> Tensor | None:
        """The logits `[n, C]` of the rows `ids` `[n]` where this piece is stored, else None."""
        with contextlib.suppress(FileNotFoundError, CacheError, ValueError):
            stored = LogitCache.open(self._path(number), self.key)
            if torch.equal(stored.example_ids, ids.sort().values):
                return stored.lookup(ids)
        return None

    def write(self, number: int, ids: Tensor, logits: Tensor) -> None:
        """Store a piece.

        Raises:
            ValueError: An id comes twice, or a logit is not finite.
        """
        order = ids.argsort()
        LogitCache(ids[order], logits[order], key=self.key).save(self._path(number))

    def whole(self, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
        """Room for all logits, in a file and not in memory."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / 'all'
        return torch.from_file(str(path), shared=True, size=shape[0] * shape[1], dtype=dtype).view(shape)

    def remove(self) -> None:
        """Delete the folder: the pass is stored."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, number: int) -> Path:
        return self.folder / f'{self.batch_size}-{number:06}.safetensors'


def open_or_pass(
    folder: str | Path,
    key: CacheKey,
    run: Callable[[PiecesOfPass], tuple[Tensor, Tensor]],
    *,
    batch_size: int,
    label_names: Sequence[str] | None,
) -> LogitCache:
    """The table of `key` in `folder`, by a pass that goes on where a killed one has ended, where there is none yet.

    Args:
        folder: Where tables are kept.
        key: What the logits depend on.
        run: Makes the pass, with the pieces that it keeps; gives ids and logits.
        batch_size: Of the pass.
        label_names: The class of each column.
    """
    kept = PiecesOfPass(Path(folder) / f'{key.digest()}.pass', key, batch_size)

    def build() -> LogitCache:
        ids, logits = run(kept)
        return LogitCache(ids, logits, key=key, label_names=label_names)

    table = open_or_build(folder, key, build)
    kept.remove()
    return table


@contextlib.contextmanager
def rows_bar(label: str, shown: bool = True) -> Iterator[Progress | None]:
    """A progress bar with the time that is left, on the standard error; of what is over at once, none."""
    if not shown:
        yield None
        return
    from tqdm.auto import tqdm

    interactive = sys.stderr.isatty()
    # In a log file every refresh is a line.
    interval, width = (0.3, None) if interactive else (15.0, 120)
    options = {'mininterval': interval, 'maxinterval': interval, 'ncols': width, 'dynamic_ncols': interactive}
    with tqdm(desc=label, unit='row', unit_scale=True, file=sys.stderr, delay=_SOON, **options) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield progress


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
