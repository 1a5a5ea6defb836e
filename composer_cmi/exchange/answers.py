"""Class probabilities of a language model or any service, from a file, as a logit cache that students read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from composer_cmi.class_names import class_name, look_alike, same_looking
from composer_cmi.data.delimited import Fault
from composer_cmi.data.labels import texts_of
from composer_cmi.data.own_files import guess_text
from composer_cmi.data.readers import DataError, Table, read_table
from composer_cmi.data.splits import Split, concatenate
from composer_cmi.data.task_data import TaskData
from composer_cmi.teachers.by_text import of_texts
from composer_cmi.teachers.logit_cache import CacheKey

__all__ = ['Imported', 'import_answers']

PREFIX = 'p_'  # as `composer-cmi predict` writes them
FLOOR = 1e-6  # a probability of 0 has no logarithm
TOLERANCE = 0.02  # of a sum: probabilities rounded to two places
_NO_CLASSES = ('label', 'prediction')  # of what stands beside the classes, usually
_IDS = ('id', 'example_id')


@dataclass(frozen=True)
class Imported:
    """A cache that was written.

    Attributes:
        path: The file, the `cache` of a run.
        rows: Texts that have an answer.
        classes: Their names, in the order of the columns.
        notes: What a user should be told, a sentence each.
    """

    path: Path
    rows: int
    classes: tuple[str, ...]
    notes: list[str] = field(default_factory=list)


def import_answers(
    file: str | Path,
    out: str | Path,
    *,
    data: TaskData | None = None,
    text_columns: Sequence[str] | None = None,
    id_column: str | None = None,
) -> Imported:
    """Make a logit cache of a file of class probabilities, one column a class.

    A row is known by its text. Where `data` are given it may be known by its example id instead: the row's number in
    the file of the data, counted from 0; text without labels goes on where train ends.

    Args:
        file: .csv, .tsv, .jsonl or .parquet; a class's column is called as the class, or `p_CLASS`.
        out: The folder that the cache goes to, `FILE.safetensors` there, or a name that ends in .safetensors.
        data: A run's data: classes and texts are compared, and every training row must have an answer.
        text_columns: One or two; by default those of the data, else those with the usual names.
        id_column: By default `id` or `example_id`.

    Raises:
        DataError: The file cannot be used; names up to twenty rows with the reason.
        FileNotFoundError: There is no such file.
    """
    file = Path(file).expanduser()
    table = read_table(file, keep_faults=True)
    faults, notes = list(table.faults), list[str]()
    texts, ids = _columns(table, data, text_columns, id_column)
    classes = _classes(table, data, {*texts, *([ids] if ids else [])}, notes)
    rows = _texts(table, texts, ids, data, faults)
    values = _probabilities(table, list(classes.values()), faults)
    known = [row for row, text in enumerate(rows) if text is not None]
    if not faults:
        _conflicts(table, rows, values, known, faults)
    if faults:
        raise table.error(faults)
    notes += _cleaned(values)
    if data is not None:
        notes += _compared(file, data, list(classes), [rows[row] for row in known], values[known])
    key = CacheKey(teacher=f'{file.name} {_digest(rows, values)}', data='texts')
    logits = torch.from_numpy(np.log(values[known]))
    cache = of_texts([rows[row] for row in known], logits, key=key, label_names=list(classes))  # pyright: ignore
    if len(cache) < len(known):
        notes.append(f'{len(known) - len(cache):,} rows repeat an answer to the same text.')
    out = Path(out).expanduser()
    path = out if out.suffix == '.safetensors' else out / f'{_stem(file)}.safetensors'
    return Imported(cache.save(path), len(cache), tuple(classes), notes)


def _stem(file: Path) -> str:
    return file.name.removesuffix('.gz').rpartition('.')[0]


def _columns(
    table: Table, data: TaskData | None, asked: Sequence[str] | None, id_column: str | None
) -> tuple[tuple[str, ...], str | None]:
    """The columns of text, none where rows are known by their ids, and the column of ids."""
    for name in (*(asked or ()), *([id_column] if id_column else [])):
        table.column(name, '--text-column' if name != id_column else '--id-column')
    ids = id_column or next((name for name in _IDS if name in table.columns), None)
    own = data.task.text_columns if data is not None else ()
    columns = tuple(asked or (own if own and all(name in table.columns for name in own) else ()))
    if columns:
        return columns, id_column  # a service's own ids are no row numbers: they are compared where that is asked for
    if ids is not None and data is not None:
        return (), ids
    if ids is not None and 'text' not in table.columns:
        raise DataError(
            f'{table.source}: the column {ids!r} alone does not say which texts these are: add --data RUN.yaml, or a '
            'column of the texts.'
        )
    return guess_text(table, '--text-column'), None


def _classes(table: Table, data: TaskData | None, taken: set[str], notes: list[str]) -> dict[str, str]:
    """The column of each class by its name, in the order of the data or of the file."""
    prefixed = [name for name in table.columns if name.startswith(PREFIX)]
    named = {look_alike(name.removeprefix(PREFIX)): name for name in prefixed}
    rest = [name for name in table.columns if name not in taken and name not in prefixed]
    if data is not None:
        named = {**{look_alike(name): name for name in rest}, **named}
        found = {name: named.get(look_alike(name)) for name in data.label_names}
        if missing := [name for name, column in found.items() if column is None]:
            raise DataError(
                f'{table.source}: there is no column for the class {", ".join(map(repr, missing[:10]))}, the columns '
                f'are {", ".join(map(repr, list(table.columns)[:20]))}; a column is called as its class, or p_CLASS.'
            )
        classes = {name: column for name, column in found.items() if column is not None}
    else:
        columns = prefixed or [name for name in rest if name not in _NO_CLASSES]
        classes = {_class_of(table, name): name for name in columns}
        if len(classes) < 2:
            raise DataError(f'{table.source}: one column a class is wanted, here is {", ".join(classes) or "none"}.')
        if pair := same_looking(classes):
            raise DataError(f'{table.source}: the columns of {pair[0]!a} and {pair[1]!a} look the same.')
    if unread := [name for name in table.columns if name not in taken and name not in classes.values()]:
        notes.append(f'Columns that were not read: {", ".join(unread[:20])}.')
    return classes


def _class_of(table: Table, column: str) -> str:
    try:
        return class_name(column.removeprefix(PREFIX))
    except ValueError as error:
        raise DataError(f'{table.source}: the column {column!r} is called as {error}.') from None


_Row = tuple[str, ...]


def _texts(
    table: Table, columns: Sequence[str], ids: str | None, data: TaskData | None, faults: list[Fault]
) -> list[_Row | None]:
    """The text of each row; None where its id is of no training row. An id and a text that disagree are a fault."""
    read = [texts_of(table, name, table.columns[name], False, faults) for name in columns]
    texts: list[_Row | None] = list(zip(*read, strict=True)) if columns else [None] * len(table)
    if ids is None or data is None:
        return texts
    rows = concatenate(data.train, data.unlabelled)
    known = dict(zip(rows.example_ids.tolist(), zip(*rows.texts, strict=True), strict=True))
    for row, value in enumerate(table.columns[ids]):
        try:
            number = int(str(value))
        except ValueError:
            faults.append(table.fault(row, f'{str(value)[:40]!r} in column {ids!r} is no example id, a whole number.'))
            continue
        text = known.get(number)
        if columns and text is not None and texts[row] != text:
            reason = f'the text is not that of row {number} of the data, {" | ".join(text)[:60]!r}; are they mixed up?'
            faults.append(table.fault(row, reason))
        elif not columns:
            texts[row] = text
    return texts


def _probabilities(table: Table, columns: Sequence[str], faults: list[Fault]) -> np.ndarray:
    """`[N, C]` float64; whatever is no distribution is a fault."""
    values = np.full((len(table), len(columns)), np.nan)
    for place, name in enumerate(columns):
        for row, cell in enumerate(table.columns[name]):
            number = _number(cell)
            if number is None:
                shown = 'empty' if cell in ('', None) else repr(str(cell)[:40])
                faults.append(table.fault(row, f'column {name!r} should hold a probability, here it is {shown}.'))
            elif not 0 <= number <= 1 + TOLERANCE:
                hint = '; are these percent?' if 1 < number <= 100 else '; are these logits?'
                faults.append(table.fault(row, f'column {name!r} holds {number:g}, which is no probability{hint}'))
            else:
                values[row, place] = number
    sums = values.sum(1)
    for row in np.flatnonzero(np.abs(sums - 1) > TOLERANCE):
        faults.append(table.fault(int(row), f'the probabilities add up to {sums[row]:.4g}, 1 is wanted.'))
    return values


def _number(cell: Any) -> float | None:
    try:
        value = float(cell)
    except (TypeError, ValueError):
        return None
    return value if np.isfinite(value) else None


def _conflicts(
    table: Table, rows: Sequence[_Row | None], values: np.ndarray, known: Sequence[int], faults: list[Fault]
) -> None:
    first: dict[_Row | None, int] = {}
    for row in known:
        other = first.setdefault(rows[row], row)
        if not np.array_equal(values[row], values[other]):
            where = f'{table.unit} {table.lines[other]}'
            faults.append(
                table.fault(row, f'the same text has other probabilities in {where}; give one, or their mean.')
            )


def _cleaned(values: np.ndarray) -> list[str]:
    """Divide each row by its sum and raise what is near 0, in place; says so."""
    notes = []
    sums = values.sum(1, keepdims=True)
    if off := int((np.abs(sums - 1) > 1e-4).sum()):
        notes.append(f'{off:,} rows add up to {sums.min():.4g} to {sums.max():.4g}: each is divided by its sum.')
    values /= sums
    low = values < FLOOR
    if low.any():
        zeros = int((values == 0).sum())
        notes.append(
            f'{int(low.sum()):,} of {values.size:,} probabilities ({zeros:,} of them 0) are raised to {FLOOR:g}.'
        )
    np.maximum(values, FLOOR, out=values)
    values /= values.sum(1, keepdims=True)
    return notes


def _compared(
    file: Path, data: TaskData, classes: Sequence[str], rows: Sequence[_Row | None], values: np.ndarray
) -> list[str]:
    """How good the answers are on the labelled rows; all training rows must have one."""
    answers = dict(zip(rows, values.argmax(1).tolist(), strict=True))
    wanted = concatenate(data.train, data.unlabelled)
    texts = list(zip(*wanted.texts, strict=True))
    missing = sorted((row for row, text in enumerate(texts) if text not in answers), key=wanted.example_ids.__getitem__)
    if missing:
        told = [f'id {wanted.example_ids[row]} {" | ".join(texts[row])[:60]!r}' for row in missing[:20]]
        more = ', ...' if len(missing) > 20 else ''
        raise DataError(
            f'{file}: {len(missing):,} of the {len(texts):,} training rows have no answer ({", ".join(told)}{more}): '
            'ask about these too, exactly as the data have them.'
        )
    notes = [f'All {len(texts):,} training rows have an answer.']
    if beyond := len(answers.keys() - {*texts}):
        notes.append(f'{beyond:,} answers are to texts that are not trained on.')
    notes.append(_accuracy(data.train, data, answers, classes))
    return notes


def _accuracy(train: Split, data: TaskData, answers: dict[_Row | None, int], classes: Sequence[str]) -> str:
    named = np.array([data.label_names.index(classes[answers[text]]) for text in zip(*train.texts, strict=True)])
    right, most = float((named == train.labels).mean()), max(data.counts['train'][name] for name in data.label_names)
    return (
        f'{right:.1%} of the {len(train):,} labelled training rows are answered right; the commonest class is '
        f'{most / len(train):.1%} of them.'
    )


def _digest(rows: Sequence[_Row | None], values: np.ndarray) -> str:
    import hashlib

    return hashlib.sha256(repr(rows).encode() + values.tobytes()).hexdigest()[:16]
