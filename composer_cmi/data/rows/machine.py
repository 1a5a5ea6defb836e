"""What one rank of a machine makes and the others read: turns at a file lock, and rows in files that all map."""

from __future__ import annotations

import atexit
import dataclasses
import pickle
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from composer.utils import dist
from filelock import FileLock

from composer_cmi.data.rows.texts import Texts
from composer_cmi.data.splits import Split

__all__ = ['open_split', 'shared', 'store_split', 'taking_turns']

T = TypeVar('T')
_LABELS, _IDS, _TEXTS = 'labels.npy', 'example_ids.npy', 'texts.arrow'


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
    count = iter(range(10**9))

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj: Any) -> Any:
            if not isinstance(obj, Split):
                return None
            name = str(next(count))
            store_split(obj, place / name)
            return name

    with (place / 'aside').open('wb') as file:
        # How the rows were loaded is not needed any more, and a function of a user's may not be picklable.
        Pickler(file).dump(dataclasses.replace(data, task=dataclasses.replace(data.task, load=None)))
    (place / 'aside').rename(place / 'all')


def _open(place: Path) -> Any:
    class Unpickler(pickle.Unpickler):
        def persistent_load(self, pid: Any) -> Any:
            return open_split(place / pid)

    with (place / 'all').open('rb') as file:
        return Unpickler(file).load()


def store_split(split: Split, folder: Path) -> None:
    """Write a split's columns into a new folder."""
    import pyarrow as pa

    folder.mkdir()
    np.save(folder / _LABELS, split.labels)
    np.save(folder / _IDS, split.example_ids)
    names = [str(place) for place in range(len(split.texts))]
    table = pa.table([column.array for column in split.texts], names=names)
    with pa.ipc.new_stream(str(folder / _TEXTS), table.schema) as writer:
        writer.write_table(table)


def open_split(folder: Path) -> Split:
    """Map what `store_split` wrote; it may be deleted then."""
    import pyarrow as pa

    with pa.memory_map(str(folder / _TEXTS)) as file:
        table = pa.ipc.open_stream(file.read_buffer()).read_all()
    # Copied on write: nothing is written, but torch warns of arrays that cannot be.
    labels, ids = (np.load(folder / name, mmap_mode='c') for name in (_LABELS, _IDS))
    return Split([Texts(column) for column in table.columns], labels, ids)
