"""What reading a task's data yields."""

from __future__ import annotations

from dataclasses import dataclass, field

from composer_cmi.run.splits import Split
from composer_cmi.run.tasks import Task

__all__ = ['Source']


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
