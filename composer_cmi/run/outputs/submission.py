"""The GLUE leaderboard's files, from predictions on the test splits."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from composer.core import get_precision_context
from composer.devices import Device
from composer.utils import get_device

from composer_cmi.data.batches import Collator
from composer_cmi.data.readers import DataError
from composer_cmi.data.splits import Split
from composer_cmi.data.task_data import load_test_splits, tokenize
from composer_cmi.data.tasks import Task, get_task
from composer_cmi.errors import ConfigError
from composer_cmi.run.config import build_config
from composer_cmi.run.config.schema import RunConfig
from composer_cmi.run.config.yaml_loader import read_yaml
from composer_cmi.run.outputs.folder import CONFIG_FILE
from composer_cmi.run.outputs.results import RESULTS_FILE, load_results
from composer_cmi.run.setup import choose_precision, is_here, user_errors
from composer_cmi.teachers.forward import run_teacher
from composer_cmi.teachers.teacher import load_teacher

__all__ = ['submit', 'write_submission']


def submit(folders: Sequence[str | Path], out: str | Path, *, run_code: bool = False) -> list[Path]:
    """Predict the test splits of finished GLUE runs, one run a task, and write the leaderboard's files.

    Every test split is read and counted before the first model runs.

    Args:
        folders: Run folders.
        out: Where the files go.
        run_code: Run the Python files that a folder's configuration names under ``code_paths``.

    Returns:
        The files' paths.

    Raises:
        ConfigError: A folder is no finished run of a GLUE task, two are of the same task, or a test split is not
            where the run's data came from, or not whole, or ``run_code`` is needed; one sentence.
    """
    runs: dict[str, tuple[Path, RunConfig, dict[str, Split]]] = {}
    out = Path(out).expanduser()
    for folder in (Path(each).expanduser() for each in folders):
        config = _finished_config(folder, run_code)
        if config.task in runs:
            raise ConfigError(f'{runs[config.task][0]} and {folder} are both runs of {config.task}: name one a task.')
        task = get_task(config.task)
        if not task.submission:
            raise ConfigError(f'{folder}: task {task.name} is not on the GLUE leaderboard.')
        with user_errors(str(folder)):
            splits = load_test_splits(task, config.data)
            for name, split in splits.items():
                _check_rows(task, name, split.example_ids.tolist())
        runs[config.task] = folder, config, splits
    written = []
    for folder, config, splits in runs.values():
        task = get_task(config.task)
        # Where the run was trained is not where it must be scored.
        device = get_device(config.train.device if is_here(config.train.device) else None)
        for name, split in splits.items():
            with user_errors(str(folder)):
                ids, classes = _predict(folder, config, task, split, device)
                written.append(write_submission(task, name, ids, classes, out))
    return written


def _finished_config(folder: Path, run_code: bool) -> RunConfig:
    if load_results(folder) is None:
        below = sorted(path.parent.name for path in folder.glob(f'*/{RESULTS_FILE}'))
        hint = f'its arms are runs: {", ".join(below)}' if below else f'it has no {RESULTS_FILE}'
        raise ConfigError(f'{folder} is not the folder of a finished run: {hint}.')
    settings, file = read_yaml(folder / CONFIG_FILE), folder / CONFIG_FILE
    if (code := settings.get('code_paths')) and not run_code:
        raise ConfigError(f'{file} names Python files that would be run, {code}: read them, then add --run-code.')
    return build_config(settings, source=str(file), here=False)


def _predict(folder: Path, config: RunConfig, task: Task, split: Split, device: Device) -> tuple[list[int], list[int]]:
    model = load_teacher(folder).to(device.tensor_to_device(torch.zeros(())).device)
    if list(model.label_names or ()) != list(task.label_names):
        raise ConfigError(f'{folder}/model has the classes {model.label_names}, not {list(task.label_names)}.')
    rows = tokenize(split, model.tokenizer, max_length=config.data.max_length, cache_dir=config.data.cache_dir)
    precision = choose_precision(config.train, device)
    ids, logits = run_teacher(
        model,
        rows,
        Collator(model.tokenizer),
        batch_size=config.train.eval_batch_size,
        context=lambda: get_precision_context(precision),
    )
    return ids.tolist(), logits.argmax(-1).tolist()


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
    _check_rows(task, split, example_ids)
    answers = dict(zip(map(int, example_ids), map(int, predictions), strict=True))
    wrong = [answer for answer in answers.values() if not 0 <= answer < task.num_classes]
    if wrong:
        raise DataError(f'{task.submission[split]}: {wrong[0]} is no class index of task {task.name}.')
    names = task.label_names if task.submit_names else [str(c) for c in range(task.num_classes)]
    lines = [f'{index}\t{names[answers[index]]}' for index in range(len(answers))]
    path = Path(folder) / task.submission[split]
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix('.part')
    aside.write_text('\n'.join(['index\tprediction', *lines]) + '\n', encoding='utf-8')
    os.replace(aside, path)
    return path


def _check_rows(task: Task, split: str, example_ids: Sequence[int]) -> None:
    if split not in task.submission:
        known = ', '.join(task.submission) or 'none'
        raise DataError(f'Task {task.name} has no leaderboard file for split {split!r}; it has them for {known}.')
    rows, different = sum(task.published[split].values()), set(map(int, example_ids))
    if len(different) != len(example_ids) or sorted(different) != list(range(rows)):
        found = f'{len(example_ids):,} predictions, {len(different):,} different'
        raise DataError(
            f'{task.submission[split]}: every one of the {rows:,} test rows is wanted once; here are {found}.'
        )
