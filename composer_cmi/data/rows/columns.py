"""Columns of text in Arrow: their UTF-8 and 8 bytes a row, where Python's strings take a hundred or two."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Any, overload

import numpy as np

from composer_cmi.data.delimited import DataError

__all__ = ['PIECE', 'Texts', 'all_in_one', 'joined', 'repr_of_all', 'together']

PIECE = 8192  # texts that are Python strings at a time
_BETWEEN_ROWS, _BETWEEN_COLUMNS = '\x1e', '\x1f'


class Texts(Sequence[str]):
    """`N` texts that are read like a list of strings, and are equal to one.

    Args:
        texts: Strings, or a `pyarrow.ChunkedArray` of type `large_string`.

    Raises:
        DataError: One of them is no text.
    """

    __slots__ = ('array',)
    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def __init__(self, texts: Iterable[str] | Any) -> None:
        import pyarrow as pa

        self.array: Any = texts
        if not isinstance(texts, pa.ChunkedArray):
            strings = iter(texts)
            chunks = iter(lambda: _chunk([*islice(strings, PIECE)]), None)
            self.array = pa.chunked_array([*chunks], pa.large_string())

    def __len__(self) -> int:
        return len(self.array)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: Any) -> Any:
        found = self.array[index]
        return found.to_pylist() if isinstance(index, slice) else found.as_py()

    def __iter__(self) -> Iterator[str]:
        return chain.from_iterable(self.pieces())

    def pieces(self, rows: int = PIECE) -> Iterator[list[str]]:
        """The texts, so many at a time."""
        for start in range(0, len(self), rows):
            yield self.array.slice(start, rows).to_pylist()

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Texts):
            return bool(self.array.equals(other.array))
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    def __repr__(self) -> str:
        return f'<{len(self)} texts>'

    def take(self, rows: np.ndarray) -> Texts:
        """Those of the given rows, int64 [n], in their order."""
        import pyarrow as pa

        whole = self.array.combine_chunks()  # else each piece below would look through all chunks
        whole = whole if isinstance(whole, pa.ChunkedArray) else pa.chunked_array([whole], pa.large_string())
        return Texts(whole.take(pa.array(rows)))


def _chunk(texts: list[str]) -> Any:
    import pyarrow as pa

    if not texts:
        return None
    try:
        chunk = pa.array(texts, pa.large_string())
        fault = 'a text is missing' if chunk.null_count else ''
    except (pa.ArrowInvalid, pa.ArrowTypeError, UnicodeEncodeError) as error:
        fault = ' '.join(str(error).split())
    if fault:
        raise DataError(f'Rows must be Unicode text in every column ({fault}).')
    return chunk


def together(parts: Iterable[Texts]) -> Texts:
    """The texts of all, without a copy."""
    import pyarrow as pa

    return Texts(pa.chunked_array([chunk for part in parts for chunk in part.array.chunks], pa.large_string()))


def joined(columns: Sequence[Texts]) -> Texts:
    """Each row's columns in one text: equal exactly for equal rows."""
    if len(columns) == 1:
        return columns[0]
    import pyarrow as pa
    import pyarrow.compute as pc

    between = pa.scalar(_BETWEEN_COLUMNS, pa.large_string())
    return Texts(pc.binary_join_element_wise(*(column.array for column in columns), between))  # pyright: ignore


def all_in_one(texts: Texts) -> Iterator[str]:
    """All texts in one, a piece at a time: equal exactly for equal texts in equal order."""
    for number, piece in enumerate(texts.pieces()):
        yield (_BETWEEN_ROWS if number else '') + _BETWEEN_ROWS.join(piece)


def repr_of_all(texts: Texts) -> Iterator[str]:
    """`repr` of `all_in_one`, a piece at a time: what keys of stored tokens have always been made of."""
    import pyarrow.compute as pc

    single, double = (bool(pc.any(pc.match_substring(texts.array, mark)).as_py()) for mark in '\'"')  # pyright: ignore
    quote = '"' if single and not double else "'"
    yield quote
    for text in all_in_one(texts):
        shown = repr(text)
        yield shown[1:-1].replace("'", "\\'") if quote == "'" and shown[0] == '"' else shown[1:-1]
    yield quote
