"""Where a task's rows come from: the Hub, files, a `datasets` folder, or an embedded set; one interface for all."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from composer_cmi.data.delimited import Fault
from composer_cmi.data.glue import GLUE_TASKS
from composer_cmi.data.labels import respelled, texts_of, to_split
from composer_cmi.data.own_files import find_file, is_datasets_folder, listing, read_own_files
from composer_cmi.data.readers import (
    DataError,
    Table,
    in_one_go,
    read_datasets_folder,
    read_table,
    table_from_dataset,
)
from composer_cmi.data.rows.columns import Texts, together
from composer_cmi.data.rows.pieces import MOST_FAULTS, read_pieces
from composer_cmi.data.rows.shards import read_shards
from composer_cmi.data.splits import UNLABELLED, Split
from composer_cmi.data.tasks import FileLayout, Task
from composer_cmi.registry import get_task

__all__ = ['Source', 'read_source', 'read_unlabelled']


@dataclass(frozen=True)
class Source:
    """A task's splits as they were found.

    Attributes:
        task: The task, with the names that own data bring filled in.
        splits: Rows by name of the split.
        notes: What a user should be told about them.
    """

    task: Task
    splits: dict[str, Split]
    notes: list[str] = field(default_factory=list)


def read_source(task: Task, config: Any, wanted: Sequence[str]) -> Source:
    """Read the splits named by `wanted`; of own data, whatever splits there are.

    Args:
        task: The task.
        config: The run's `data:` section.
        wanted: Names of splits, of 'train', `task.eval_splits`, `task.test_splits`.

    Raises:
        DataError: The data cannot be had or are not right; the sentence says where and what would help.
        FileNotFoundError: `data.path` does not exist.
    """
    if task.name == 'custom':
        return Source(*read_own_files(task, config))
    for key in ('text_columns', 'label_column', 'labels', 'metrics', 'hub'):
        if getattr(config, key, None):
            raise DataError(f'data.{key} is for task: custom; task {task.name} brings its own.')
    if task.load is not None:
        return _embedded(task, config, wanted)
    if config.path:
        tables = _glue_tables(task, Path(config.path), wanted)
    elif task.hub:
        tables = _hub_tables(task, wanted)
    else:
        raise DataError(f'Task {task.name} needs data.path: the folder with its train and dev files.')
    labelled = {name: name not in task.test_splits for name in tables}
    splits = in_one_go({name: partial(_known_split, task, table, labelled[name]) for name, table in tables.items()})
    notes = []
    for name, table in tables.items():
        _refuse_published_sizes_of_another(task, name, splits[name], table.source)
        if labelled[name]:
            notes += respelled(table, _label_column(task, table), task.label_names)
        if table.skipped:
            lines = ', '.join(map(str, table.skipped))
            notes.append(f'{table.source}: {len(table.skipped)} broken rows left out (lines {lines}).')
        notes += _compare_with_published(task, name, splits[name], table.source)
    return Source(task, splits, notes)


def read_unlabelled(task: Task, path: str | Path, first_id: int, shards: bool = False) -> Split:
    """Read text without labels; a label column in the file is not looked at.

    Args:
        task: The task whose text columns are read. A .txt file holds one text a line (sentence tasks).
        path: The file.
        first_id: Example id of the first row: ids go on where train's end.
        shards: Whether `path` is what `read_shards` reads.
    """
    suffixes = [suffix.lower() for suffix in Path(path).suffixes if suffix.lower() != '.gz']
    plain, pairs = suffixes[-1:] == ['.txt'], len(task.text_columns) > 1
    # Of a pair, a .txt file holds the columns between tabs.
    in_pieces = read_shards(str(path)) if shards else read_pieces(path)
    tables = [read_table(path, keep_faults=True)] if plain and pairs else in_pieces
    columns: tuple[str, ...] = ('text',) if plain and not pairs else ()
    faults: list[Fault] = []
    parts: list[tuple[Texts, ...]] = []
    table: Table | None = None
    for table in tables:
        columns = columns or _unlabelled_columns(task, table)
        faults += table.faults
        # A key that no row of a piece has is missing in each of them.
        values = {name: table.columns.get(name, [None] * len(table)) for name in columns}
        parts.append(tuple(Texts(texts_of(table, name, values[name], False, faults)) for name in columns))
        if len(faults) > MOST_FAULTS:
            break
    if table is not None and faults:
        raise table.error(faults)
    texts = [together(column) for column in zip(*parts, strict=True)]
    count = len(texts[0])
    return Split(texts, np.full(count, UNLABELLED, dtype=np.int64), first_id + np.arange(count, dtype=np.int64))


def _unlabelled_columns(task: Task, table: Table) -> tuple[str, ...]:
    columns = _text_columns(task, table)
    if missing := [name for name in columns if name not in table.columns]:
        found = ', '.join(repr(name[:40]) for name in list(table.columns)[:12])
        raise DataError(
            f'{table.source}: there is no column {missing[0]!r}, the columns are {found}; text without labels stands '
            f"under the names of train's, {' and '.join(columns)}."
        )
    return columns


def _known_split(task: Task, table: Table, labelled: bool) -> Split:
    label = _label_column(task, table)
    known = table.class_names.get(label, list(task.label_names))
    if labelled and sorted(known) != sorted(task.label_names):
        raise DataError(
            f'{table.source}: its classes are {", ".join(known)}, those of task {task.name} are '
            f'{", ".join(task.label_names)}; give the folder of the right task, or use task: custom.'
        )
    columns = _text_columns(task, table)
    missing = [name for name in (*columns, *([label] if labelled else [])) if name not in table.columns]
    if missing:
        found = ', '.join(repr(name[:40]) for name in list(table.columns)[:12])
        raise DataError(
            f'{table.source}: there is no column {missing[0]!r}, the columns are {found}; task {task.name} reads '
            f'{", ".join(columns)} and {label}: {_whose_columns(task, table, missing == [label])}.'
        )
    labels = label if labelled else None
    return to_split(table, columns, labels, task.label_names, allow_empty=len(columns) > 1, indices=True)


def _label_column(task: Task, table: Table) -> str:
    names = {task.label_column, task.layout.label_column if task.layout else task.label_column}
    return next((name for name in sorted(names) if name in table.columns), task.label_column)


def _whose_columns(task: Task, table: Table, only_labels: bool) -> str:
    if only_labels:
        return 'a test file without labels cannot be trained or scored on'
    others = [get_task(name) for name in GLUE_TASKS if name != task.name]
    fitting = [o for o in others if not o.layout.headerless and {*_text_columns(o, table)} <= {*table.columns}]
    widest = max((len(other.text_columns) for other in fitting), default=0)
    likely = [other.name for other in fitting if len(other.text_columns) == widest]
    if len(table.columns) == 4 and list(table.columns)[1] in ('0', '1'):
        likely = ['cola']  # the only one without a header
    if likely:
        return f'this looks like a file of {" or ".join(likely)}, give the folder of {task.name}'
    return f'give the folder of {task.name}, or use task: custom'


def _refuse_published_sizes_of_another(task: Task, name: str, split: Split, source: str) -> None:
    """RTE and WNLI, or MRPC and STS-B, have the same columns: only the number of rows tells them apart."""
    if sum(task.published.get(name, {}).values()) in (0, len(split)):
        return
    for other in map(get_task, GLUE_TASKS):
        if sum(other.published.get(name, {}).values()) == len(split) and other.text_columns == task.text_columns:
            raise DataError(f'{source}: {len(split):,} rows, as {other.name} has them; give the folder of {task.name}.')


def _text_columns(task: Task, table: Table) -> tuple[str, ...]:
    layouts = (task.layout.text_columns,) if task.layout else ()
    for columns in (*layouts, task.text_columns):
        if all(column in table.columns for column in columns):
            return columns
    return layouts[0] if layouts else task.text_columns


def _compare_with_published(task: Task, name: str, split: Split, source: str) -> list[str]:
    published = task.published.get(name)
    if published is None:
        return []
    total = sum(published.values())
    if len(split) != total:
        return [f'{source}: {len(split):,} rows, published are {total:,} for {task.name} {name}.']
    shares = [published.get(label, 0) / total for label in task.label_names]
    found = [float((split.labels == c).mean()) for c in range(task.num_classes)]
    if '' not in published and max(abs(a - b) for a, b in zip(shares, found, strict=True)) > 0.005:
        return [f'{source}: the label balance differs from the published one of {task.name} {name}.']
    return []


# Hub ---------------------------------------------------------------------------------------------------------------


def _hub_tables(task: Task, wanted: Sequence[str]) -> dict[str, Table]:
    import datasets

    repository, configuration = task.hub or ('', '')
    try:
        loaded = datasets.load_dataset(repository, configuration)
    except Exception as error:  # no network, no such name, a proxy's answer, a broken cache: all mean no data
        reason = f'{type(error).__name__}: {error}'.split('\n', 1)[0][:160]
        folder = task.layout.folder if task.layout else task.name
        raise DataError(
            f"Could not get {repository} ({configuration}) from the Hub ({reason}). Set data.path to GLUE's own "
            f'{folder} folder (train.tsv, dev.tsv; from gluebenchmark.com), or to a `datasets` folder written by '
            'save_to_disk on a machine that reaches the Hub.'
        ) from None
    return _pick(dict(loaded), wanted, f'{repository} ({configuration})', table_from_dataset)


def _pick(splits: dict[Any, Any], wanted: Sequence[str], source: str, convert: Any) -> dict[str, Table]:
    tables = {}
    for name in wanted:
        candidates = (name, name.replace('dev', 'validation'))
        found = next((candidate for candidate in candidates if candidate in splits), None)
        if found is None:
            raise DataError(f'{source}: there is no split {name!r}, only {", ".join(map(str, splits))}.')
        tables[name] = convert(splits[found], f'{source} {found}')
    return tables


# Files -------------------------------------------------------------------------------------------------------------


def _glue_tables(task: Task, path: Path, wanted: Sequence[str]) -> dict[str, Table]:
    layout = task.layout or FileLayout(task.name, task.text_columns, task.label_column)
    if path.is_file():
        raise DataError(f'data.path {str(path)!r} is a file; task {task.name} wants its folder.')
    if not path.is_dir():
        raise FileNotFoundError(f'data.path: there is no folder {str(path)!r}.')
    known = {'sts-b': 'stsb'}
    for name in GLUE_TASKS:
        known |= dict.fromkeys((name, get_task(name).layout.folder.casefold()), name)
    whose = known.get(path.resolve().name.casefold(), task.name)
    if whose != task.name:
        raise DataError(f'data.path: {str(path)!r} is the folder of {whose}, not of {task.name}.')
    folders = [path, path / layout.folder, path / task.name]
    for folder in folders:
        if is_datasets_folder(folder):
            tables = read_datasets_folder(folder)
            return _pick(tables, wanted, str(folder), lambda table, _: table)
        if find_file(folder, 'train') or (folder / 'msr_paraphrase_train.txt').is_file():
            return in_one_go({name: partial(_glue_table, layout, folder, name) for name in wanted})
    if wanted and wanted[0] != 'train' and (found := next((f for f in folders if find_file(f, wanted[0])), None)):
        return in_one_go({name: partial(_glue_table, layout, found, name) for name in wanted})
    raise FileNotFoundError(
        f'data.path: neither {str(path)!r} nor its folder {layout.folder} has a train.tsv; it holds {listing(path)}.'
    )


def _glue_table(layout: FileLayout, folder: Path, name: str) -> Table:
    file = find_file(folder, name)
    if file is not None:
        return read_table(file, headerless=layout.headerless, short_rows=layout.short_rows, keep_faults=True)
    if layout.folder == 'MRPC':
        return _original_mrpc(folder, name)
    raise FileNotFoundError(f'{folder}: there is no {name}.tsv; the folder holds {listing(folder)}.')


def _original_mrpc(folder: Path, name: str) -> Table:
    # Microsoft's own files: dev is the part of train whose pairs of ids GLUE lists in dev_ids.tsv.
    if name == 'test':
        return read_table(folder / 'msr_paraphrase_test.txt')
    table = read_table(folder / 'msr_paraphrase_train.txt')
    if not (folder / 'dev_ids.tsv').is_file():
        raise FileNotFoundError(
            f"{folder}: msr_paraphrase_train.txt needs GLUE's dev_ids.tsv beside it to tell train from dev."
        )
    listed = read_table(folder / 'dev_ids.tsv', headerless=('#1 ID', '#2 ID'))
    pairs = set(zip(listed.columns['#1 ID'], listed.columns['#2 ID'], strict=True))
    ids = zip(table.column('#1 ID', 'data.path'), table.column('#2 ID', 'data.path'), strict=True)
    rows = [i for i, pair in enumerate(ids) if (pair in pairs) == (name == 'dev')]
    columns = {key: [values[i] for i in rows] for key, values in table.columns.items()}
    return dataclasses.replace(table, columns=columns, lines=[table.lines[i] for i in rows])


# Embedded ----------------------------------------------------------------------------------------------------------


def _embedded(task: Task, config: Any, wanted: Sequence[str]) -> Source:
    if config.path:
        raise DataError(f'data.path is not read by the embedded task {task.name}; use task: custom for own data.')
    splits = dict(task.load()) if task.load else {}
    missing = [name for name in wanted if name not in splits]
    if missing:
        raise DataError(f'Task {task.name} has no split {missing[0]!r}, only {", ".join(splits)}.')
    return Source(task, {name: splits[name] for name in wanted})
