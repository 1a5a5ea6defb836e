"""Tokens in an Arrow file that is written a piece at a time and mapped into memory, so that processes share its pages.

The file is an Arrow stream, a record batch a piece, with a digest of 16 bytes behind its end, where readers of Arrow do
not look.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ['Pieces', 'TokenPiece', 'open_tokens', 'write_tokens']

_DIGEST = 16  # bytes
Make = Callable[[], Iterable[tuple[np.ndarray, Mapping[str, np.ndarray]]]]


@dataclass(frozen=True)
class TokenPiece:
    """Tokens of `R` rows, one row after the other.

    Attributes:
        starts: Where each row begins, and the last one's end, int64 [R + 1].
        values: By name, integers [tokens].
    """

    starts: np.ndarray
    values: dict[str, np.ndarray]

    @property
    def rows(self) -> int:
        """Number of rows `R`."""
        return len(self.starts) - 1


Pieces = list[TokenPiece]


def open_tokens(path: Path) -> Pieces | None:
    """Map a file that was written under this name; None where there is none, or, with a warning, a damaged one."""
    if not path.is_file():
        return None
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as file:
            content = file.read_buffer()
        if content.size > _DIGEST and _digest(path.name, content[:-_DIGEST]) == content[-_DIGEST:].to_pybytes():
            return _read(content)
    except (OSError, ValueError):  # pyarrow's own errors are of these
        pass
    warnings.warn(f'The tokens in {path} are damaged: they are made anew.')
    return None


def write_tokens(path: Path, make: Make) -> Pieces:
    """Write what `make` gives, aside and renamed, and map it; where it cannot be written it stays in memory.

    Args:
        path: A reader never sees half a file there, and two writers leave one whole file.
        make: Yields, of each piece, the tokens per row, int [R], and the tokens by name, integers.
    """
    import pyarrow as pa

    aside = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob(f'.{path.name}.*.tmp'):
            left.unlink(missing_ok=True)  # of a process that was killed; one at work loses the cache, not its tokens
        try:
            with aside.open('wb') as file:
                _write(file, make)
            with pa.memory_map(str(aside)) as file:
                content = file.read_buffer()
            with aside.open('ab') as file:
                file.write(_digest(path.name, content))
            with contextlib.suppress(OSError):
                os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)
    except OSError:  # a cache that cannot be written (read-only, full disk) only costs time and memory
        sink = pa.BufferOutputStream()
        _write(sink, make)
        content = sink.getvalue()
    return _read(content)


def _write(sink: Any, make: Make) -> None:
    import pyarrow as pa

    writer: Any = None
    for lengths, tokens in make():
        starts = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))
        columns = [pa.LargeListArray.from_arrays(starts, pa.array(values)) for values in tokens.values()]
        batch = pa.record_batch(columns, names=[*tokens])
        writer = writer or pa.ipc.new_stream(sink, batch.schema)
        writer.write_batch(batch)
    (writer or pa.ipc.new_stream(sink, pa.schema([]))).close()


def _read(content: Any) -> Pieces:
    import pyarrow as pa

    pieces = []
    for batch in pa.ipc.open_stream(content):
        columns: dict[str, Any] = dict(zip(batch.schema.names, batch.columns, strict=True))
        starts = columns['input_ids'].offsets.to_numpy()
        pieces.append(TokenPiece(starts, {key: column.values.to_numpy() for key, column in columns.items()}))
    return pieces


def _digest(name: str, content: Any) -> bytes:
    digest = hashlib.blake2b(name.encode(), digest_size=_DIGEST)
    digest.update(content)
    return digest.digest()
