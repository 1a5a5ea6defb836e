"""The files of a run folder. Each is written aside and renamed, so that none is ever half there."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from composer.core import State
from composer.loggers import Logger, LoggerDestination
from composer.models import HuggingFaceModel
from composer.utils import dist
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from composer_cmi.run.evaluate import Evaluation

__all__ = [
    'HistoryLogger',
    'export_model',
    'read_history',
    'write_features',
    'write_json',
    'write_predictions',
    'write_text',
    'write_yaml',
]

HISTORY_FILE = 'history.csv'
_HISTORY_SECONDS = 10.0
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


class HistoryLogger(LoggerDestination):
    """Keep every logged metric in ``history.csv``, one row a step; a killed and resumed run leaves one history.

    The rows travel in Composer's checkpoint, so that a resumed run goes on from those of the step that it resumes at.
    The file is rewritten in whole every few seconds and at the end of each epoch.

    Args:
        path: The file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.rows: dict[int, dict[str, Any]] = {}
        self._written = time.monotonic()

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        if step is None:
            return
        row = self.rows.setdefault(step, {})
        for name, value in metrics.items():
            # A tensor is read when the file is written: reading it now would wait for the device at every step.
            row[name] = value.detach().clone() if isinstance(value, torch.Tensor) else value

    def batch_end(self, state: State, logger: Logger) -> None:
        if time.monotonic() - self._written > _HISTORY_SECONDS:
            self.write()

    def epoch_end(self, state: State, logger: Logger) -> None:
        self.write()

    def fit_end(self, state: State, logger: Logger) -> None:
        self.write()

    def state_dict(self) -> dict[str, Any]:
        # A plain string: it loads with weights_only=True and needs no schema of its own.
        return {'csv': self._as_csv()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rows = {int(row.pop('step')): row for row in _parse_history(state['csv'])}

    def write(self) -> None:
        """Write what has been logged so far."""
        self._written = time.monotonic()
        if dist.get_global_rank() == 0 and self.rows:
            write_text(self.path, self._as_csv())

    def _as_csv(self) -> str:
        for row in self.rows.values():
            for name, value in row.items():
                if isinstance(value, torch.Tensor):
                    row[name] = value.item()
        names = sorted({name for row in self.rows.values() for name in row}, key=_column_order)
        text = io.StringIO()
        writer = csv.DictWriter(text, ['step', *names], lineterminator='\n')
        writer.writeheader()
        writer.writerows({'step': step, **self.rows[step]} for step in sorted(self.rows))
        return text.getvalue()


def _column_order(name: str) -> tuple[int, str]:
    groups = ('loss/', 'cmi/', 'metrics/')
    return next((i for i, prefix in enumerate(groups) if name.startswith(prefix)), len(groups)), name


def read_history(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a ``history.csv``, without the cells that are empty."""
    return _parse_history(Path(path).read_text(encoding='utf-8'))


def _parse_history(text: str) -> list[dict[str, Any]]:
    return [{name: _number(cell) for name, cell in row.items() if cell} for row in csv.DictReader(io.StringIO(text))]


def _number(cell: str) -> Any:
    try:
        return float(cell)
    except ValueError:
        return cell


def export_model(
    model: HuggingFaceModel, folder: str | Path, *, rebuild: Callable[[], HuggingFaceModel] | None = None
) -> None:
    """Save a folder that ``transformers.pipeline('text-classification', model=FOLDER)`` loads. All ranks call it.

    Args:
        model: The trained model. LoRA weights are merged into it.
        folder: Replaced as a whole.
        rebuild: For a sharded model: makes the model anew, unsharded, to take up the gathered weights.
    """
    folder = Path(folder)
    weights = None
    if rebuild is not None:
        # A collective: every rank takes part, rank 0 receives the whole.
        weights = get_model_state_dict(model.model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if dist.get_global_rank() == 0:
        if rebuild is not None and weights is not None:
            model = rebuild()
            model.model.load_state_dict(weights)
        plain: Any = model.model.merge_and_unload() if model.using_peft else model.model  # pyright: ignore[reportCallIssue]
        aside = folder.with_name(f'.{folder.name}.{os.getpid()}.tmp')
        plain.save_pretrained(aside)
        if model.tokenizer is not None:
            model.tokenizer.save_pretrained(aside)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(aside, folder)
    dist.barrier()
