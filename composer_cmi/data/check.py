"""What a run would see of a data set, in seconds and without Composer: for `composer-cmi check`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from rich.columns import Columns
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from composer_cmi.data.delimited import DataError
from composer_cmi.data.own_files import may_be_on_hub
from composer_cmi.data.splits import UNLABELLED, Split
from composer_cmi.data.task_data import TaskData, load_task_data
from composer_cmi.registry import get_task, known_tasks

__all__ = ['Findings', 'Lengths', 'check_data', 'render']

_SHOWN = 60  # classes on a screen


@dataclass(frozen=True)
class Lengths:
    """How long the rows of a split are: median, 95th percentile and longest, all text columns of a row together.

    Attributes:
        characters: In characters.
        words: In words between spaces.
        tokens: In the model's tokens, None without a model.
        cut: Rows that `max_length` cuts; without a model, rows with more words than it has tokens, a lower bound.
    """

    characters: tuple[int, int, int]
    words: tuple[int, int, int]
    tokens: tuple[int, int, int] | None
    cut: int


@dataclass(frozen=True)
class Findings:
    """What is found in a data set.

    Attributes:
        data: The rows as a run sees them, None where something is wrong.
        faults: What is wrong, a sentence each.
        lengths: By split.
        repeated: Rows of a split that repeat an earlier one of it, by split.
        conflicting: Texts of a split that stand under more than one class, by split.
        max_length: Tokens that a run would keep of a row.
    """

    data: TaskData | None = None
    faults: list[str] = field(default_factory=list)
    lengths: dict[str, Lengths] = field(default_factory=dict)
    repeated: dict[str, int] = field(default_factory=dict)
    conflicting: dict[str, int] = field(default_factory=dict)
    max_length: int = 128


def check_data(data: str | Path, *, model: str | None = None, max_length: int = 128, **options: Any) -> Findings:
    """Look at a data set as a run would.

    Args:
        data: A file or folder of own data, the name of a task, or of a data set of the Hub.
        model: A model's folder (or hub name): its tokenizer counts tokens.
        max_length: Tokens that a run would keep of a row.
        options: Further keys of a run's `data:` section, and `task` for a folder of GLUE's own files.

    Raises:
        FileNotFoundError: There is neither a file or folder nor a task of this name, and it cannot
            be one of the Hub's.
        ValueError: The tokenizer cannot be loaded.
    """
    name, path = str(data), str(data) if Path(data).exists() else None
    task = options.pop('task', None) or (name if path is None and name in known_tasks() else 'custom')
    if path is None and task == 'custom':
        if not may_be_on_hub(name):
            raise FileNotFoundError(
                f'{name!r} is no file or folder, no task (composer-cmi list tasks), and no OWNER/NAME of the Hub.'
            )
        options['hub'] = name
    try:
        found = load_task_data(get_task(task), SimpleNamespace(path=path, **options))
    except DataError as error:
        return Findings(faults=str(error).split('\n'), max_length=max_length)
    tokenizer = _tokenizer(model)
    splits = _splits(found)
    again = {name: _repeated_and_conflicting(split) for name, split in splits.items()}
    return Findings(
        found,
        [],
        {name: _lengths(split, tokenizer, max_length) for name, split in splits.items()},
        {name: repeated for name, (repeated, _) in again.items()},
        {name: conflicting for name, (_, conflicting) in again.items()},
        max_length,
    )


def _splits(data: TaskData) -> dict[str, Split]:
    extra = {} if data.unlabelled is None else {'unlabelled': data.unlabelled}
    return {'train': data.train, **extra, **data.eval_splits}


def _tokenizer(model: str | None) -> Any:
    if model is None:
        return None
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().split('\n')[0]
        raise ValueError(f'--model {model}: its tokenizer cannot be loaded ({reason}).') from None


def _lengths(split: Split, tokenizer: Any, max_length: int) -> Lengths:
    count = len(split)
    characters = np.fromiter((sum(map(len, row)) for row in split.rows()), dtype=np.int64, count=count)
    words = np.fromiter((sum(len(text.split()) for text in row) for row in split.rows()), dtype=np.int64, count=count)
    tokens = None
    if tokenizer is not None:
        parts = []
        for texts in zip(*(column.pieces() for column in split.texts), strict=True):
            encoded = tokenizer(*texts, return_attention_mask=False, verbose=False)
            parts.append([len(ids) for ids in encoded['input_ids']])
        tokens = np.concatenate(parts)
    cut = int(((words if tokens is None else tokens) > max_length).sum())
    return Lengths(_three(characters), _three(words), None if tokens is None else _three(tokens), cut)


def _three(values: np.ndarray) -> tuple[int, int, int]:
    middle, high = np.percentile(values, [50, 95], method='higher')
    return int(middle), int(high), int(values.max())


def _repeated_and_conflicting(split: Split) -> tuple[int, int]:
    """Rows that repeat an earlier one, and texts under more than one class."""
    keys, which = np.unique(split.text_hashes(), return_inverse=True)
    labelled = split.labels != UNLABELLED
    pairs = np.unique(np.stack([which[labelled], split.labels[labelled]]), axis=1)
    return len(split) - len(keys), int((np.bincount(pairs[0]) > 1).sum())


def render(findings: Findings, console: Console) -> None:
    """Print what was found, with one line at the end that says how to go on."""
    if findings.data is None:
        for fault in findings.faults:
            console.print(f'[red]-[/] {escape(fault)}', soft_wrap=True)  # a path is copied whole
        console.print('Next: mend these, then check again.')
        return
    data = findings.data
    console.print(_split_table(findings, data))
    console.print(f'{len(data.label_names)} classes, rows in {", ".join(data.counts)}:')
    console.print(_classes(data))
    for name, split in _splits(data).items():
        for count, what in (
            (findings.repeated[name], f'of {len(split):,} rows repeat an earlier one'),
            (findings.conflicting[name], 'different texts stand under more than one class'),
        ):
            if count:
                console.print(f'[yellow]![/] {escape(name)}: {count:,} {what}.')
    for note in data.notes:
        console.print(f'[yellow]![/] {escape(note)}', soft_wrap=True)
    for name, score in data.constant_answer.items():
        points = 100 / len(data.eval_splits[name])
        metric = data.task.primary_metric
        console.print(f'{escape(name)}: a constant answer scores {score:.2%} {metric}, one row is {points:.2f} points.')
    console.print(_next_step(findings, data))


def _split_table(findings: Findings, data: TaskData) -> Table:
    tokens = any(length.tokens for length in findings.lengths.values())
    # A word is a token or more: without a tokenizer this many are cut at least.
    cut = f'cut at {findings.max_length} tokens' if tokens else f'over {findings.max_length} words'
    columns = ('split', 'rows', 'characters', 'words', *(['tokens'] if tokens else []), cut)
    table = Table(title='Length of a row: median / 95 % below / longest', title_justify='left')
    for i, column in enumerate(columns):
        table.add_column(column, justify='left' if i == 0 else 'right')
    for name, split in _splits(data).items():
        length = findings.lengths[name]
        counted = [length.characters, length.words, *([length.tokens] if length.tokens else [])]
        cells = [' / '.join(f'{value:,}' for value in values) for values in counted]
        table.add_row(escape(name), f'{len(split):,}', *cells, f'{length.cut:,} ({length.cut / len(split):.1%})')
    return table


def _classes(data: TaskData) -> Table | Columns:
    """A row a class where few are there, else as many as a screen holds side by side, the largest first."""
    names = sorted(data.label_names, key=lambda name: -data.counts['train'][name])
    if len(names) <= 12:
        table = Table()
        table.add_column('class')
        labelled = [split for split in data.counts if split != 'unlabelled']
        for split in labelled:
            table.add_column(split, justify='right')
        for name in names:
            table.add_row(escape(name), *(_share(data.counts[split], name) for split in labelled))
        return table
    shown = names if len(names) <= _SHOWN else [*names[: _SHOWN - 10], '', *names[-9:]]
    width = min(28, max(map(len, shown)))
    hidden = names[_SHOWN - 10 : -9]
    counts = [data.counts['train'][name] for name in hidden]
    cells = [
        f'{escape(_short(name, width).ljust(width))} {_share(data.counts["train"], name):>14}'
        if name
        else f'... {len(hidden)} more, {min(counts):,} to {max(counts):,} rows each'
        for name in shown
    ]
    return Columns(cells, equal=True, column_first=True)


def _short(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 3] + '...'


def _share(counts: dict[str, int], name: str) -> str:
    return f'{counts[name]:,} ({counts[name] / sum(counts.values()):.1%})'


def _next_step(findings: Findings, data: TaskData) -> str:
    if sum(findings.conflicting.values()):
        return 'Next: decide about the texts under two classes, or leave them as noise.'
    smallest: Sequence[int] = [data.counts['train'][name] for name in data.label_names]
    if min(smallest) < 5:
        return 'Next: give more rows of the smallest classes, or leave them out: nobody learns a class from under five.'
    path = 'task: custom with data.path' if data.task.name == 'custom' else f'task: {data.task.name}'
    return f'Next: train on it, {path} in the YAML file of `composer-cmi run`.'
