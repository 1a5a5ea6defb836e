"""What a task is, and the tasks that ship: all of GLUE's classification tasks, embedded sets, own data.

This file imports nothing heavy, so that the registry can list tasks quickly. The data itself is read by
`composer_cmi.run.sources`, the GLUE facts stand in `composer_cmi.run.glue`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from composer_cmi.run.splits import Split

__all__ = ['FileLayout', 'Task', 'get_task']


@dataclass(frozen=True)
class FileLayout:
    """How a task's own files look where they differ from the task's own names (GLUE's TSV files).

    Attributes:
        folder: Name of the task's folder inside an unpacked GLUE folder (``'RTE'``).
        text_columns: The text columns' names in the files.
        label_column: The label column's name in the files.
        files: File stem of each split (``{'dev_matched': 'dev_matched'}``).
        no_header: Column names of files without a header line (CoLA), else empty.
        short_rows: How many rows with too few columns are known to be in the official files; so many are skipped and counted, one more is an error.
    """

    folder: str
    text_columns: tuple[str, ...]
    label_column: str = 'label'
    files: Mapping[str, str] = field(default_factory=dict)
    no_header: tuple[str, ...] = ()
    short_rows: int = 0


@dataclass(frozen=True)
class Task:
    """A classification task: what is read, what the classes are called and how answers are scored.

    Attributes:
        name: The name in the registry and in ``task:`` of a YAML file.
        summary: One line for ``composer-cmi list``.
        text_columns: One column (sentence) or two (sentence pair).
        label_names: Class names in the order of the class indices; empty for ``custom`` until the data are read
            (`TaskData.task` has them).
        metrics: Official metrics, the primary one first: of ``accuracy``, ``f1`` (of class 1), ``macro_f1``,
            ``matthews_correlation``.
        eval_splits: Names of the splits that are scored, the primary one first.
        test_splits: Names of the splits without public labels.
        hub: Hub repository and configuration, or None.
        layout: The task's own file format, or None.
        published: Rows per class name and split, as published; tests without labels hold ``{'': rows}``.
        submission: GLUE leaderboard's file name per test split (or eval split).
        submit_names: Whether the leaderboard wants class names (else indices).
        caveat: A sentence that is printed with every score of this task.
        load: Returns the splits of an embedded set (or of a user's own task).
    """

    name: str
    summary: str
    text_columns: tuple[str, ...]
    label_names: tuple[str, ...]
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

    @property
    def primary_metric(self) -> str:
        """The metric that a study compares."""
        return self.metrics[0]

    @property
    def num_classes(self) -> int:
        """Number of classes (0 for ``custom`` until the data are read)."""
        return len(self.label_names)


def get_task(name: str) -> Task:
    """Look a task up by name.

    Raises:
        ValueError: The name is unknown (the message lists the known ones), or the task is a regression (STS-B).
    """
    raise NotImplementedError
