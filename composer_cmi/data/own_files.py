"""A user's own data, by YAML alone: one file, a folder with a train file, or a `datasets` folder."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from composer_cmi.class_names import class_name, same_looking
from composer_cmi.data.labels import infer_label_names, respelled, to_split
from composer_cmi.data.readers import (
    SUFFIXES,
    DataError,
    Table,
    in_one_go,
    read_datasets_folder,
    read_table,
    table_from_dataset,
)
from composer_cmi.data.splits import Split
from composer_cmi.data.tasks import Task

__all__ = ['find_file', 'guess_text', 'is_datasets_folder', 'listing', 'may_be_on_hub', 'read_own_files']

_DEV_STEMS = ('dev', 'validation', 'valid', 'val')
_TEXT_GUESSES = (('text',), ('sentence',), ('sentence1', 'sentence2'), ('premise', 'hypothesis'))


def read_own_files(task: Task, config: Any) -> tuple[Task, dict[str, Split], list[str]]:
    """Read 'train', and 'dev' and 'test' where they are there.

    Args:
        task: The task `custom`.
        config: The run's `data:` section: `path` or `hub`, and optionally `text_columns` (default: text, sentence,
            sentence1 and sentence2, or premise and hypothesis, whichever are there), `label_column` (default:
            label), `labels` (class names in order; default: those in train, sorted), `metrics`.

    Returns:
        The task with the names that the data bring, the rows by name of the split, and what a user should be told.

    Raises:
        DataError: The data are not right; all faults of all files, each with file, line and reason.
        FileNotFoundError: There is no such file or folder, or no train file.
    """
    hub = getattr(config, 'hub', None)
    if bool(hub) == bool(config.path):
        raise DataError(
            'Task custom needs data.path (a file, a folder with a train file, or a `datasets` folder) or data.hub (a '
            f'data set of the Hub by name), {"not both" if hub else "and has neither"}.'
        )
    given = _given_names(getattr(config, 'labels', None))
    if hub:
        found = _read_hub(hub, getattr(config, 'hub_config', None), getattr(config, 'hub_revision', None))
        tables = _by_split(found, f'data.hub: {hub!r}', ', '.join(found))
    else:
        tables = _tables(Path(config.path))
    train = tables['train']
    label = getattr(config, 'label_column', None) or 'label'
    train.column(label, 'data.label_column')
    texts = tuple(getattr(config, 'text_columns', None) or ()) or guess_text(train)

    def read(names: Sequence[str] | None) -> dict[str, Split]:
        # With the order given, a number is the place of a name; in alphabetical order it would be a guess.
        jobs = {key: partial(_rows, table, texts, label, names, bool(given)) for key, table in tables.items()}
        return in_one_go(jobs)

    try:
        names = given or infer_label_names(train, label)
    except DataError:
        read(None)  # what is wrong with single rows may be the cause, and is told instead
        raise
    # An unpaired quote swallows rows, and with them classes that other files then seem not to know.
    splits = read(None if any('unpaired quote' in fault.reason for fault in train.faults) else names)
    own = dataclasses.replace(
        task,
        text_columns=texts,
        label_names=names,
        label_column=label,
        metrics=tuple(getattr(config, 'metrics', None) or task.metrics),
        eval_splits=tuple(name for name in tables if name != 'train'),
    )
    return own, splits, [note for table in tables.values() for note in respelled(table, label, names)]


def _given_names(labels: Sequence[Any] | None) -> tuple[str, ...]:
    if not labels:
        return ()
    try:
        names = tuple(map(class_name, labels))
    except ValueError as error:
        raise DataError(f'data.labels holds {error}.') from None
    if len(names) < 2 or len(set(names)) < len(names) or '' in names:
        raise DataError(f'data.labels: two or more different class names are wanted, here are {list(labels)}.')
    if pair := same_looking(names):
        raise DataError(f'data.labels: the names {pair[0]!a} and {pair[1]!a} look the same; choose others.')
    return names


def _rows(table: Table, texts: Sequence[str], label: str, names: Sequence[str] | None, indices: bool) -> Split:
    if table.source.removesuffix('.gz').endswith('.tsv'):
        faults = [
            table.fault(
                row,
                f'the text in column {name!r} is quoted as in a CSV, but a TSV has no quotes here; save '
                'the file as .csv (pandas: read_csv(FILE, sep="\\t").to_csv(NEW, index=False)).',
            )
            for name in texts
            for row, text in enumerate(table.columns.get(name, ()))
            if _quoted_as_csv(text)
        ]
        table = dataclasses.replace(table, faults=table.faults + faults)
    return to_split(table, texts, label, names, indices=indices)


def _quoted_as_csv(text: str) -> bool:
    """Whether a TSV's cell is written as pandas and Excel quote one: quotes around it, those inside doubled."""
    body = text[1:-1]
    return text[:1] == text[-1:] == '"' and '""' in body and '"' not in body.replace('""', '')


def _tables(path: Path) -> dict[str, Table]:
    if path.is_file():
        return {'train': read_table(path, keep_faults=True)}
    if not path.is_dir():
        raise FileNotFoundError(f'data.path: there is no file or folder {str(path)!r}.')
    if is_datasets_folder(path):
        found = read_datasets_folder(path)
    else:
        files = {stem: find_file(path, stem) for stem in ('train', *_DEV_STEMS, 'test')}
        jobs = {stem: partial(read_table, file, keep_faults=True) for stem, file in files.items() if file is not None}
        found = in_one_go(jobs) if 'train' in jobs else {}
    if 'train' not in found:
        raise FileNotFoundError(
            f'data.path: {str(path)!r} has no train file ({", ".join(SUFFIXES)}, also .gz); it holds {listing(path)}.'
        )
    return _by_split(found, str(path), listing(path))


def _by_split(found: dict[str, Table], source: str, held: str) -> dict[str, Table]:
    if 'train' not in found:
        raise DataError(f'{source} has no split train; it holds {held}.')
    devs = [stem for stem in _DEV_STEMS if stem in found]
    if len(devs) > 1:
        raise DataError(f'{source}: both {devs[0]} and {devs[1]} are there; keep one as the evaluation split.')
    renamed = {'train': 'train', **dict.fromkeys(devs, 'dev'), 'test': 'test'}
    return {name: found[stem] for stem, name in renamed.items() if stem in found}


def guess_text(table: Table, key: str = 'data.text_columns') -> tuple[str, ...]:
    """The columns of text by their usual names.

    Raises:
        DataError: None of them is there; names the config's `key` that would say so.
    """
    for columns in _TEXT_GUESSES:
        if all(column in table.columns for column in columns):
            return columns
    table.column('text', key)  # raises, naming the columns that are there
    return ('text',)


def find_file(folder: Path, stem: str) -> Path | None:
    """The file of a split in a folder, e.g. dev.tsv.gz for 'dev'; two of them are refused."""
    names = [f'{stem}{suffix}{gz}' for suffix in SUFFIXES for gz in ('', '.gz')]
    found = [folder / name for name in names if (folder / name).is_file()]
    if len(found) > 1:
        raise DataError(f'{folder}: both {found[0].name} and {found[1].name} are there; keep one.')
    return found[0] if found else None


def is_datasets_folder(path: Path) -> bool:
    """Whether `datasets` wrote this folder by save_to_disk."""
    return (path / 'dataset_dict.json').is_file() or (path / 'state.json').is_file()


def may_be_on_hub(name: str) -> bool:
    """Whether a name that is no path here is meant as `owner/name` of a Hub's data set, and not as a missing file."""
    owner, slash, rest = name.partition('/')
    words = all(re.fullmatch(r'[A-Za-z0-9][A-Za-z0-9._-]*', part) for part in (owner, rest))
    data_file = rest.lower().removesuffix('.gz').endswith((*SUFFIXES, '.txt'))
    return bool(slash) and words and not data_file and not Path(owner).exists()


def listing(folder: Path) -> str:
    """The first names in a folder, for messages."""
    names = sorted(entry.name for entry in folder.iterdir())
    return ', '.join(names[:12]) + (', ...' if len(names) > 12 else '') if names else 'nothing'


def _read_hub(name: str, config: str | None = None, revision: str | None = None) -> dict[str, Table]:
    """Read what `datasets.load_dataset` gives for a name: a data set of the Hub, or a folder of data files, by split.

    Raises:
        DataError: It cannot be had.
    """
    import datasets

    if any((Path(name) / file).is_file() for file in ('dataset_dict.json', 'state.json')):
        raise DataError(f'data.hub: {name!r} was written by save_to_disk: give it as data.path.')
    try:
        loaded: Any = datasets.load_dataset(name, config, revision=revision)
    except Exception as error:  # no network, no such name, a proxy's answer, a broken cache: all mean no data
        reason = ' '.join(f'{type(error).__name__}: {error}'.split())[:300]
        raise DataError(
            f'data.hub: {name!r} cannot be had ({reason}): check the name, data.hub_config and the connection, or give '
            'data.path, a folder written by save_to_disk on a machine that reaches the Hub.'
        ) from None
    return {str(split): table_from_dataset(rows, f'{name} ({split})') for split, rows in loaded.items()}
