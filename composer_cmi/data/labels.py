"""From cells to rows: texts checked, labels turned into class indices, each fault with its file and line."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from composer_cmi.data.readers import DataError, Table
from composer_cmi.data.splits import UNLABELLED, Split
from composer_cmi.registry import nearest

__all__ = ['infer_label_names', 'to_split']


def to_split(
    table: Table,
    text_columns: Sequence[str],
    label_column: str | None,
    label_names: Sequence[str] = (),
    *,
    first_id: int = 0,
    allow_empty: bool = False,
) -> Split:
    """Check a table and make rows of it.

    Args:
        table: The table.
        text_columns: The columns of text, one or two.
        label_column: The column of labels; None makes every row unlabelled.
        label_names: The classes. A label is one of them, or a class index where no name is a number.
        first_id: Example id of the first row.
        allow_empty: Whether a text may be empty (official files have a few).

    Raises:
        DataError: A column is missing, a text is empty or no text, a label is missing or unknown.
    """
    texts = tuple(_texts(table, name, table.column(name, 'data.text_columns'), allow_empty) for name in text_columns)
    if label_column is None:
        labels = np.full(len(table), UNLABELLED, dtype=np.int64)
    else:
        labels = _labels(table, label_column, label_names)
    # The file's own row number, skipped rows counted, as the Hub's `idx` does.
    offsets = np.searchsorted(np.array(sorted(table.skipped), dtype=np.int64), np.asarray(table.lines))
    ids = first_id + np.arange(len(table), dtype=np.int64) + offsets
    return Split(texts, labels, ids)


def _texts(table: Table, name: str, values: list[Any], allow_empty: bool) -> list[str]:
    texts = []
    for row, value in enumerate(values):
        if not isinstance(value, str):
            kind = 'missing' if value is None else f'a {type(value).__name__}'
            raise table.error(row, f'column {name!r} should hold text, here it is {kind}.')
        text = value.strip()
        if not text and not allow_empty:
            raise table.error(row, f'the text in column {name!r} is empty; remove the row or fill it in.')
        if not text.isascii() and any('\ud800' <= letter <= '\udfff' for letter in text):
            raise table.error(row, f'column {name!r} holds half of a surrogate pair, which is no Unicode text.')
        texts.append(text)
    return texts


def _label_text(value: Any) -> str:
    # 1, 1.0 and '1' are one class: Parquet and pandas turn integers with gaps into floats.
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ''
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def _labels(table: Table, column: str, label_names: Sequence[str]) -> np.ndarray:
    index = {name: i for i, name in enumerate(label_names)}
    if not any(_is_number(name) for name in label_names):
        index |= {str(i): i for i in range(len(label_names))}
    labels = np.empty(len(table), dtype=np.int64)
    for row, value in enumerate(table.column(column, 'data.label_column')):
        label = _label_text(value)
        if label not in index:
            raise table.error(row, _unknown_label(label, column, label_names))
        labels[row] = index[label]
    return labels


def _unknown_label(label: str, column: str, label_names: Sequence[str]) -> str:
    if not label:
        return (
            f'column {column!r} has no label; move rows without labels to a file of their own and name it in '
            'data.unlabelled.'
        )
    known = ', '.join(label_names[:20]) + (', ...' if len(label_names) > 20 else '')
    return f'unknown label {label[:60]!r} in column {column!r}; the classes are {known}.{nearest(label, label_names)}'


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def infer_label_names(table: Table, column: str) -> tuple[str, ...]:
    """The classes of own data: the column's distinct labels, numbers in order of size, else alphabetically.

    Raises:
        DataError: The labels are those of a regression, are no classes, or are fewer than two.
    """
    values = [_label_text(value) for value in table.column(column, 'data.label_column')]
    if column in table.class_names:
        return tuple(table.class_names[column])
    names = sorted(set(values) - {''})
    numeric = bool(names) and all(map(_is_number, names))
    if numeric and any(not float(name).is_integer() for name in names):
        example = next(name for name in names if not float(name).is_integer())
        raise DataError(
            f'{table.source}: column {column!r} holds numbers such as {example}, a regression; class labels are wanted.'
        )
    if len(names) < 2:
        found = repr(names[0]) if names else 'none'
        raise DataError(f'{table.source}: column {column!r} has fewer than two classes (found {found}).')
    if len(names) > max(10, len(values) // 2):
        raise DataError(
            f'{table.source}: column {column!r} has {len(names)} different labels in {len(values)} rows, which '
            'are no classes; set data.label_column, or list the classes in data.labels.'
        )
    return tuple(sorted(names, key=lambda name: (float(name), name))) if numeric else tuple(names)
