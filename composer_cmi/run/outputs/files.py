"""The files of a run folder. Each is written aside and renamed, so that none is ever half there."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from composer_cmi.run.evaluate import Evaluation

__all__ = [
    'write_features',
    'write_json',
    'write_predictions',
    'write_text',
    'write_yaml',
]

_FEATURE_ROWS = 2000


def write_text(path: str | Path, text: str) -> None:
    """Write a text file so that a reader sees the old content or the new one, never a part."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    try:
        aside.write_text(text, encoding='utf-8')
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def write_json(path: str | Path, data: Any) -> None:
    """Write JSON, indented, with a final newline."""
    write_text(path, json.dumps(data, indent=2, ensure_ascii=False) + '\n')


def write_yaml(path: str | Path, data: Any) -> None:
    """Write YAML in the order of ``data``."""
    write_text(path, yaml.safe_dump(data, sort_keys=False, allow_unicode=True))


def write_predictions(path: str | Path, evaluation: Evaluation) -> None:
    """Write ``example_id, label, prediction, logit_0, ...``, one row an example; label -100 is written empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    writer.writerow(['example_id', 'label', 'prediction', *(f'logit_{c}' for c in range(evaluation.logits.shape[1]))])
    rows = zip(
        evaluation.example_ids.tolist(),
        evaluation.labels.tolist(),
        evaluation.predictions.tolist(),
        evaluation.logits.tolist(),
        strict=True,
    )
    for example_id, label, prediction, logits in rows:
        writer.writerow([example_id, '' if label < 0 else label, prediction, *(f'{x:.9g}' for x in logits)])
    write_text(path, text.getvalue())


def write_features(path: str | Path, evaluation: Evaluation, label_names: Sequence[str]) -> None:
    """Write what pictures need of up to 2,000 rows, as arrays of a compressed NumPy file.

    They are `features` `[n, D]` float16, `labels` `[n]`, `example_ids` `[n]` and `label_names` `[C]`.
    """
    path = Path(path)
    rows = slice(_FEATURE_ROWS)
    arrays = {
        'features': evaluation.features[rows].half().numpy(),
        'labels': evaluation.labels[rows].numpy(),
        'example_ids': evaluation.example_ids[rows].numpy(),
        'label_names': np.array(label_names),
    }
    aside = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    try:
        with aside.open('wb') as file:
            np.savez_compressed(file, **arrays)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
