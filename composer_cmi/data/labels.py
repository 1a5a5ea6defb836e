"""From cells to rows: texts checked, labels turned into class indices, each fault with its file and line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from composer_cmi.class_names import class_name, clean, is_number, look_alike, same_looking, spelling
from composer_cmi.data.delimited import Fault
from composer_cmi.data.readers import DataError, Table
from composer_cmi.data.splits import UNLABELLED, Split
from composer_cmi.registry import nearest

__all__ = ['infer_label_names', 'respelled', 'texts_of', 'to_split']


def to_split(
    table: Table,
    text_columns: Sequence[str],
    label_column: str | None,
    label_names: Sequence[str] | None = (),
    *,
    first_id: int = 0,
    allow_empty: bool = False,
    indices: bool = False,
) -> Split:
    """Check a table and make rows of it.

    Args:
        table: The table.
        text_columns: The columns of text, one or two.
        label_column: The column of labels; None makes every row unlabelled.
        label_names: The classes. A label is one of them, as far as a reader could tell; None where they are not
            known, so that only the kind of the labels is looked at.
        first_id: Example id of the first row.
        allow_empty: Whether a text may be empty (official files have a few).
        indices: Whether a label may be a class index too, where no name is a number: the order of the names is
            given and not just alphabetical.

    Raises:
        DataError: All that is wrong: a column is missing, a text is empty or no text, a label is missing, unknown
            or no label, and what the table itself lists.
    """
    faults = list(table.faults)
    texts = tuple(
        texts_of(table, name, table.column(name, 'data.text_columns'), allow_empty, faults) for name in text_columns
    )
    labels = np.full(len(table), UNLABELLED, dtype=np.int64)
    if label_column is not None:
        labels = _labels(table, label_column, label_names, indices, faults)
    if faults:
        raise table.error(faults)
    # The file's own row number, skipped rows counted, as the Hub's `idx` does.
    offsets = np.searchsorted(np.array(sorted(table.skipped), dtype=np.int64), np.asarray(table.lines))
    ids = first_id + np.arange(len(table), dtype=np.int64) + offsets
    return Split(texts, labels, ids)


def texts_of(table: Table, name: str, values: list[Any], allow_empty: bool, faults: list[Fault]) -> list[str]:
    """A column's texts without spaces around them; what is none is added to `faults`."""
    texts = []
    for row, value in enumerate(values):
        text = value.strip() if isinstance(value, str) else ''
        texts.append(text)
        if not isinstance(value, str):
            kind = 'missing' if value is None else f'a {type(value).__name__}'
            faults.append(table.fault(row, f'column {name!r} should hold text, here it is {kind}.'))
        elif not text and not allow_empty:
            faults.append(table.fault(row, f'the text in column {name!r} is empty; remove the row or fill it in.'))
        elif not text.isascii() and any('\ud800' <= letter <= '\udfff' for letter in text):
            reason = f'column {name!r} holds half of a surrogate pair, which is no Unicode text.'
            faults.append(table.fault(row, reason))
    return texts


def _labels(
    table: Table, column: str, label_names: Sequence[str] | None, indices: bool, faults: list[Fault]
) -> np.ndarray:
    rows = _rows_by_spelling(table, column, faults)
    faults += _look_alikes(table, column, rows)
    labels = np.full(len(table), UNLABELLED, dtype=np.int64)
    if len(rows) == 1 and (only := next(iter(rows))) in ('', '-1') and len(rows[only]) > 1:
        how = 'has no label in any row' if not only else 'is -1 in every row, which marks rows without a label'
        faults.append(table.fault(0, f'column {column!r} {how}; {_FOR_UNLABELLED}'))
        return labels
    names = tuple(label_names or ())
    index = {look_alike(name): i for i, name in enumerate(names)}
    if indices and not any(map(is_number, names)):
        index |= {str(i): i for i in range(len(names))}
    for label, places in rows.items():
        found = index.get(look_alike(label))
        if not label:
            faults += [table.fault(row, f'column {column!r} has no label; {_FOR_UNLABELLED}') for row in places]
        elif not (indices and label in names) and len(label) > 2 and label[0] == label[-1] == '"':
            reason = (
                f'the label {label} in column {column!r} stands in quotes of its own (a space between comma and '
                'quote, or a TSV with quotes?); remove them.'
            )
            faults.append(table.fault(places[0], reason))
        elif found is not None:
            labels[places] = found
        elif label_names is not None:
            reason = _unknown_label(label, column, names)
            faults += [table.fault(row, reason) for row in places]
    return labels


_FOR_UNLABELLED = 'move rows without labels to a file of their own and name it in data.unlabelled.'


def _rows_by_spelling(table: Table, column: str, faults: list[Fault]) -> dict[str, list[int]]:
    """Rows by the spelling of their label; of each kind of value that is no label the first row is a fault."""
    rows, wrong = dict[str, list[int]](), dict[str, list[int]]()
    values = table.column(column, 'data.label_column')
    for row, value in enumerate(values):
        try:
            label = spelling(value)
            rows.setdefault(label if clean(label) else '', []).append(row)
        except ValueError as error:
            wrong.setdefault(str(error), []).append(row)
    for reason, places in wrong.items():
        more = f' ({len(places):,} such rows)' if len(places) > 1 else ''
        shown = repr(values[places[0]])[:60]
        faults.append(table.fault(places[0], f'column {column!r} holds {shown}, {reason}{more}.'))
    return rows


def _look_alikes(table: Table, column: str, rows: dict[str, list[int]]) -> list[Fault]:
    """Names that a reader takes for one: each would become a class of its own."""
    groups: dict[str, list[str]] = {}
    for name in rows:
        groups.setdefault(look_alike(name), []).append(name)
    faults = []
    for names in groups.values():
        if len(names) > 1:
            names.sort(key=lambda name: -len(rows[name]))
            told = ' and '.join(
                f'{name!a} ({_rows(len(rows[name]))}, first in {table.unit} {table.lines[rows[name][0]]})'
                for name in names
            )
            faults.append(
                table.fault(
                    rows[names[-1]][0], f'column {column!r} has labels that look the same: {told}; write them alike.'
                )
            )
    return faults


def _rows(count: int) -> str:
    return f'{count:,} row' + 's' * (count != 1)


def _unknown_label(label: str, column: str, label_names: Sequence[str]) -> str:
    known = ', '.join(label_names[:20]) + (', ...' if len(label_names) > 20 else '')
    hint = nearest(label, label_names)
    if label == '-1':
        hint = f' -1 marks rows without a label: {_FOR_UNLABELLED}'
    elif label.isdecimal() and not any(map(is_number, label_names)):
        hint = (
            ' A number is not taken for the place of a name: write the names, or list them in the order of the '
            'numbers in data.labels.'
        )
    return f'unknown label {label[:60]!r} in column {column!r}; the classes are {known}.{hint}'


def respelled(table: Table, column: str, label_names: Sequence[str]) -> list[str]:
    """What a user should be told of labels that are spelt unlike the class that they are taken for."""
    names = {look_alike(name): name for name in label_names}
    counts: dict[str, int] = {}
    for value in table.columns[column]:
        label = spelling(value)
        counts[label] = counts.get(label, 0) + 1
    return [
        f'{table.source}: the label {label!a} of {_rows(count)} is taken for the class {names[key]!a}.'
        for label, count in counts.items()
        if (key := look_alike(label)) in names and clean(label) != names[key]
    ]


def infer_label_names(table: Table, column: str) -> tuple[str, ...]:
    """The classes of own data: the column's distinct labels, numbers in order of size, else alphabetically.

    Raises:
        DataError: The labels are those of a regression, are no classes, or are fewer than two.
    """
    values = table.column(column, 'data.label_column')
    where = f'{table.source}: column {column!r}'
    if column in table.class_names:
        names = tuple(map(class_name, table.class_names[column]))
        if pair := same_looking(names):
            raise DataError(f'{where} has classes that look the same, {pair[0]!a} and {pair[1]!a}.')
        return names
    found = {clean(label) for label in _rows_by_spelling(table, column, []) if label}
    names = sorted(found)
    numbers = [name for name in names if is_number(name)]
    fractions = [name for name in numbers if not float(name).is_integer()]
    if fractions and (numbers == names or len(fractions) > len(names) / 2):
        raise DataError(f'{where} holds numbers such as {fractions[0]}, a regression; class labels are wanted.')
    if len(names) < 2:
        found_names = repr(names[0]) if names else 'none'
        hint = f'; {_FOR_UNLABELLED[:-1]}' if names == ['-1'] else ''
        raise DataError(f'{where} has fewer than two classes (found {found_names}{hint}).')
    if len(names) > max(10, len(values) // 2):
        raise DataError(
            f'{where} has {len(names)} different labels in {len(values)} rows, which are no classes; set '
            'data.label_column, or list the classes in data.labels.'
        )
    if several := _several(names):
        raise DataError(
            f'{where} has {several!r} beside its parts as classes of their own, several labels a row (multi-label), '
            'which cannot be used; if it is one class, list all of them in data.labels.'
        )
    places = {str(i) for i in range(len(numbers))}
    if len(numbers) > 1 and set(numbers) == places and 2 * len(numbers) == len(names):
        raise DataError(
            f'{where} has as many numbers ({", ".join(numbers)}) as names '
            f'({", ".join(name for name in names if name not in places)}): write one or the other, or list the '
            'names in the order of the numbers in data.labels.'
        )
    return tuple(sorted(names, key=lambda name: (float(name), name))) if numbers == names else tuple(names)


def _several(names: Sequence[str]) -> str:
    """A name that is made of others of the names, such as 'joy|love' beside 'joy' and 'love'; '' without one."""
    known = set(names)
    for name in names:
        for separator in '|;,':
            parts = [part.strip() for part in name.split(separator)]
            if len(parts) > 1 and all(part in known for part in parts):
                return name
    return ''
