"""Rows of MDS shards, Composer's format for data in a bucket: one shard of them on this machine at a time."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from composer_cmi.data.readers import DataError, Table
from composer_cmi.data.rows.pieces import ROWS

__all__ = ['read_shards']

_DOWNLOAD = {'download_retry': 2, 'download_timeout': 300, 'validate_hash': None, 'keep_zip': False, 'split': None}


def read_shards(source: str, rows: int = ROWS) -> Iterator[Table]:
    """Read a folder or bucket that `streaming.MDSWriter` wrote, in its order, so many rows at a time.

    Each shard is fetched, unpacked and deleted again by `mosaicml-streaming`; a folder is not written to.

    Args:
        source: The folder, or what that library takes for a bucket: `s3://`, `gs://`, `azure://` and the like.
        rows: Rows of a table at most.

    Raises:
        DataError: The library is not there, or it cannot read this; a shard holds pickled objects, which are not read.
        FileNotFoundError: There is no such folder.
    """
    try:
        from streaming import Stream  # pyright: ignore[reportMissingImports]
        from streaming.base.world import World  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise DataError(
            f"data.streaming needs mosaicml-streaming ({error}): pip install 'composer-cmi[streaming]', in an "
            'environment with transformers below 5.'
        ) from None
    if '://' not in source and not Path(source).is_dir():
        raise FileNotFoundError(f'data.streaming: there is no folder {source!r}.')
    start = 1
    with tempfile.TemporaryDirectory(prefix='composer-cmi-shards-') as folder:
        try:
            stream = Stream(remote=source, local=folder)
            stream.apply_default(_DOWNLOAD)
            # As if this process were alone: the other ranks read what it makes of the rows.
            for shard in stream.get_shards(World(1, 1, 1, 0), allow_unsafe_types=False):
                stream.prepare_shard(shard)
                for first in range(0, shard.size, rows):
                    items = [shard[i] for i in range(first, min(first + rows, shard.size))]
                    yield _table(source, items, start)
                    start += len(items)
                shard.evict()
        except (OSError, RuntimeError, ValueError, KeyError, ImportError) as error:
            said = ' '.join(str(error).split())[:300]
            raise DataError(f'data.streaming: {source!r} cannot be read as MDS shards: {said}') from error
    if start == 1:
        raise DataError(f'data.streaming: {source!r} holds no rows.')


def _table(source: str, items: list[dict[str, Any]], first: int) -> Table:
    columns = {name: [item.get(name) for item in items] for name in items[0]}
    return Table(source, columns, range(first, first + len(items)), 'row')
