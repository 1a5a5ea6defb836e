"""The official scores once more by other means, from a run's predictions file: scikit-learn through `evaluate`."""

from __future__ import annotations

import csv
from pathlib import Path

from composer_cmi.data.readers import DataError
from composer_cmi.data.splits import UNLABELLED
from composer_cmi.data.tasks import Task


def second_scores(task: Task, predictions_csv: str | Path) -> dict[str, float]:
    """The official metrics once more, from a run's predictions file, by scikit-learn through `evaluate`.

    Args:
        task: The task.
        predictions_csv: A file with the columns label (empty or -100: not scored) and prediction, class indices.

    Raises:
        DataError: The file lacks a column, holds something else, or no row has a label.
    """
    import evaluate

    labels, predictions = _read_predictions(task, Path(predictions_csv))
    module = evaluate.load(str(Path(__file__).parent / 'second_scores'))
    computed = module.compute(
        predictions=predictions, references=labels, metrics=list(task.metrics), num_classes=task.num_classes
    )
    return {name: float(value) for name, value in (computed or {}).items()}


def _read_predictions(task: Task, path: Path) -> tuple[list[int], list[int]]:
    known = {str(i): i for i in range(task.num_classes)}
    labels, predictions = [], []
    with path.open(newline='', encoding='utf-8') as file:
        reader = csv.DictReader(file)
        missing = {'label', 'prediction'} - set(reader.fieldnames or ())
        if missing:
            raise DataError(f'{path}: there is no column {min(missing)!r} in this predictions file.')
        for row in reader:
            if row['label'] in ('', str(UNLABELLED)):
                continue
            for cell in (row['label'], row['prediction']):
                if cell not in known:
                    raise DataError(f'{path}, line {reader.line_num}: {cell!r} is no class index of task {task.name}.')
            labels.append(known[row['label']])
            predictions.append(known[row['prediction']])
    if not labels:
        raise DataError(f'{path}: no row has a label.')
    return labels, predictions
