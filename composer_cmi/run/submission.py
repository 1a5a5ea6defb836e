"""The GLUE leaderboard's files, from predictions on the test splits."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from composer_cmi.run.readers import DataError
from composer_cmi.run.tasks import Task

__all__ = ['write_submission']


def write_submission(
    task: Task, split: str, example_ids: Sequence[int], predictions: Sequence[int], folder: str | Path
) -> Path:
    """Write one of the leaderboard's TSV files, e.g. ``MNLI-mm.tsv``: index and prediction, in order of the index.

    The site wants a zip of all tasks' files, STS-B.tsv and AX.tsv among them, which this package cannot predict.

    Args:
        task: A GLUE task.
        split: One of its test splits.
        example_ids: Row numbers in the test file, every one exactly once, in any order.
        predictions: The class index of each row.
        folder: Where the file goes.

    Returns:
        The file's path.

    Raises:
        DataError: The split has no leaderboard file, or a row is missing, doubled or of no class.
    """
    if split not in task.submission:
        known = ', '.join(task.submission) or 'none'
        raise DataError(f'Task {task.name} has no leaderboard file for split {split!r}; it has them for {known}.')
    answers = dict(zip(map(int, example_ids), map(int, predictions), strict=True))
    rows = sum(task.published[split].values())
    if len(answers) != len(example_ids) or sorted(answers) != list(range(rows)):
        found = f'{len(example_ids):,} predictions, {len(answers):,} different'
        raise DataError(
            f'{task.submission[split]}: every one of the {rows:,} test rows is wanted once; here are {found}.'
        )
    wrong = [answer for answer in answers.values() if not 0 <= answer < task.num_classes]
    if wrong:
        raise DataError(f'{task.submission[split]}: {wrong[0]} is no class index of task {task.name}.')
    names = task.label_names if task.submit_names else [str(c) for c in range(task.num_classes)]
    lines = [f'{index}\t{names[answers[index]]}' for index in range(rows)]
    path = Path(folder) / task.submission[split]
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix('.part')
    aside.write_text('\n'.join(['index\tprediction', *lines]) + '\n', encoding='utf-8')
    os.replace(aside, path)
    return path
