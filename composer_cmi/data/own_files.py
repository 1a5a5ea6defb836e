"""A user's own data, by YAML alone: one file, a folder with a train file, or a `datasets` folder."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from composer_cmi.data.labels import infer_label_names, to_split
from composer_cmi.data.readers import SUFFIXES, DataError, Table, read_datasets_folder, read_table
from composer_cmi.data.splits import Split
from composer_cmi.data.tasks import Task

__all__ = ['find_file', 'is_datasets_folder', 'listing', 'read_own_files']

_DEV_STEMS = ('dev', 'validation', 'valid', 'val')
_TEXT_GUESSES = (('text',), ('sentence',), ('sentence1', 'sentence2'), ('premise', 'hypothesis'))


def read_own_files(task: Task, config: Any) -> tuple[Task, dict[str, Split]]:
    """Read 'train', and 'dev' and 'test' where they are there.

    Args:
        task: The task `custom`.
        config: The run's `data:` section: `path`, and optionally `text_columns` (default: text, sentence,
            sentence1 and sentence2, or premise and hypothesis, whichever are there), `label_column` (default:
            label), `labels` (class names in order; default: those in train, sorted), `metrics`.

    Returns:
        The task with the names that the data bring, and the rows by name of the split.

    Raises:
        DataError: The data are not right; file, line and reason.
        FileNotFoundError: There is no such file or folder, or no train file.
    """
    if not config.path:
        raise DataError('Task custom needs data.path: a file, a folder with a train file, or a `datasets` folder.')
    tables = _tables(Path(config.path))
    train = tables['train']
    label = getattr(config, 'label_column', None) or 'label'
    names = tuple(getattr(config, 'labels', None) or ()) or infer_label_names(train, label)
    if len(names) < 2 or len(set(names)) < len(names):
        raise DataError(f'data.labels: two or more different class names are wanted, here are {list(names)}.')
    texts = tuple(getattr(config, 'text_columns', None) or ()) or _guess_text(train)
    own = dataclasses.replace(
        task,
        text_columns=texts,
        label_names=names,
        label_column=label,
        metrics=tuple(getattr(config, 'metrics', None) or task.metrics),
        eval_splits=tuple(name for name in tables if name != 'train'),
    )
    return own, {name: to_split(table, texts, label, names) for name, table in tables.items()}


def _tables(path: Path) -> dict[str, Table]:
    if path.is_file():
        return {'train': read_table(path)}
    if not path.is_dir():
        raise FileNotFoundError(f'data.path: there is no file or folder {str(path)!r}.')
    if is_datasets_folder(path):
        found = read_datasets_folder(path)
    else:
        files = {stem: find_file(path, stem) for stem in ('train', *_DEV_STEMS, 'test')}
        found = {stem: read_table(file) for stem, file in files.items() if file is not None}
    if 'train' not in found:
        raise FileNotFoundError(
            f'data.path: {str(path)!r} has no train file ({", ".join(SUFFIXES)}, also .gz); it holds {listing(path)}.'
        )
    devs = [stem for stem in _DEV_STEMS if stem in found]
    if len(devs) > 1:
        raise DataError(f'{path}: both {devs[0]} and {devs[1]} are there; keep one as the evaluation split.')
    renamed = {'train': 'train', **dict.fromkeys(devs, 'dev'), 'test': 'test'}
    return {name: found[stem] for stem, name in renamed.items() if stem in found}


def _guess_text(table: Table) -> tuple[str, ...]:
    for columns in _TEXT_GUESSES:
        if all(column in table.columns for column in columns):
            return columns
    table.column('text', 'data.text_columns')  # raises, naming the columns that are there
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


def listing(folder: Path) -> str:
    """The first names in a folder, for messages."""
    names = sorted(entry.name for entry in folder.iterdir())
    return ', '.join(names[:12]) + (', ...' if len(names) > 12 else '') if names else 'nothing'
