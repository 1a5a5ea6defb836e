"""What one rank of a machine makes and the others read: turns at a file lock, and rows in files that all map."""

from __future__ import annotations

import atexit
import dataclasses
import pickle
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from composer.utils import dist
from filelock import FileLock

from composer_cmi.data.rows.columns import Texts
from composer_cmi.data.splits import Split

__all__ = ['open_splits', 'shared', 'store_splits', 'taking_turns']

T = TypeVar('T')
_LABELS, _IDS, _TEXTS = 'labels.npy', 'example_ids.npy', 'texts{}.arrow'


@contextmanager
def taking_turns() -> Iterator[None]:
    """Local rank 0 of this machine first, then its other ranks; all ranks enter.

    The others wait at a file lock: in a barrier of the process group they would run into its timeout. Ranks that are
    not connected do not wait: what they make is renamed into place, and making it twice costs time, not correctness.
    """
    if dist.get_world_size() == 1 or not dist.is_initialized():
        yield
        return
    # A lock of this turn alone: of one for all turns, local rank 0 could take the next while another waits for this.
    lock = FileLock(_scratch() / f'turn{next(_turns)}.lock')
    first = dist.get_local_rank() == 0
    if first:
        lock.acquire()
    dist.barrier()  # none comes before the first has the lock
    if not first:
        lock.acquire()
        lock.release()
    try:
        yield
    finally:
        lock.release()


_turns = iter(range(10**9))  # all ranks count alike


def shared(read: Callable[[], T]) -> T:
    """What local rank 0 reads, with its rows in files that all ranks of the machine map; all ranks call it.

    The files are in the system's temporary folder until local rank 0 ends. Where it fails, the others read for
    themselves, and fail by the same sentence.

    Args:
        read: Gives a dataclass that holds a task, as `task`, and splits.
    """
    if dist.get_world_size() == 1 or not dist.is_initialized():
        return read()
    with taking_turns():
        place = _scratch() / f'rows{next(_shares)}'
        if dist.get_local_rank() == 0:
            data = read()
            try:
                _store(data, place)
            except OSError as error:
                warnings.warn(f'{place} cannot be written ({error}): every rank holds its own rows.')
                shutil.rmtree(place, ignore_errors=True)
                return data
            del data
        return _open(place) if (place / 'all').is_file() else read()


_shares = iter(range(10**9))


@cache
def _scratch() -> Path:
    """A folder of this job's on this machine."""
    own = None
    if dist.get_local_rank() == 0:
        own = tempfile.mkdtemp(prefix='composer-cmi-')
        atexit.register(shutil.rmtree, own, ignore_errors=True)
    found = dist.all_gather_object((dist.get_node_rank(), own))
    return next(Path(path) for node, path in found if path is not None and node == dist.get_node_rank())


def _store(data: Any, place: Path) -> None:
    place.mkdir()
    splits: list[Split] = []

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj: Any) -> Any:
            if not isinstance(obj, Split):
                return None
            splits.append(obj)
            return len(splits) - 1

    with (place / 'aside').open('wb') as file:
        # How the rows were loaded is not needed any more, and a function of a user's may not be picklable.
        Pickler(file).dump(dataclasses.replace(data, task=dataclasses.replace(data.task, load=None)))
    store_splits(splits, place)
    (place / 'aside').rename(place / 'all')


def _open(place: Path) -> Any:
    splits = open_splits(place)

    class Unpickler(pickle.Unpickler):
        def persistent_load(self, pid: Any) -> Any:
            return splits[pid]

    with (place / 'all').open('rb') as file:
        return Unpickler(file).load()


def store_splits(splits: Sequence[Split], folder: Path) -> None:
    """Write the columns of splits into a folder: numbers of all one after the other, texts in a file each."""
    import pyarrow as pa

    np.save(folder / _LABELS, np.concatenate([split.labels for split in splits]))
    np.save(folder / _IDS, np.concatenate([split.example_ids for split in splits]))
    for place, split in enumerate(splits):
        names = [str(column) for column in range(len(split.texts))]
        table = pa.table([column.array for column in split.texts], names=names)
        with pa.ipc.new_stream(str(folder / _TEXTS.format(place)), table.schema) as writer:
            writer.write_table(table)


def open_splits(folder: Path) -> list[Split]:
    """Map what `store_splits` wrote; it may be deleted then."""
    import pyarrow as pa

    # Copied on write: nothing is written, but torch warns of arrays that cannot be.
    labels, ids = (np.load(folder / name, mmap_mode='c').view(np.ndarray) for name in (_LABELS, _IDS))
    splits, start = [], 0
    for place in range(len([*folder.glob(_TEXTS.format('*'))])):
        with pa.memory_map(str(folder / _TEXTS.format(place))) as file:
            table = pa.ipc.open_stream(file.read_buffer()).read_all()
        rows = slice(start, start := start + table.num_rows)
        splits.append(Split([Texts(column) for column in table.columns], labels[rows], ids[rows]))
    return splits
