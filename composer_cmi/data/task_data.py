"""A task's data for one run: read, checked, cut to size and counted; also the door to tokenising and batching."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from composer_cmi.data.readers import DataError
from composer_cmi.data.source import Source, read_source, read_unlabelled
from composer_cmi.data.splits import (
    Split,
    add_label_noise,
    class_counts,
    concatenate,
    fingerprint,
    hashed_share,
    imbalance,
    stratified_order,
    take,
    without_labels,
)
from composer_cmi.data.tasks import Task, get_task

if TYPE_CHECKING:
    from composer_cmi.data.batches import eval_dataloader, train_dataloader
    from composer_cmi.data.encoding import EncodedSplit, tokenize

__all__ = [
    'DataError',
    'EncodedSplit',
    'Split',
    'TaskData',
    'concatenate',
    'eval_dataloader',
    'load_task_data',
    'load_test_splits',
    'tokenize',
    'train_dataloader',
]

_OWN_DEV_SHARE = 0.2
_FEW = 100  # rows to fit a temperature on


_LATER = {
    'eval_dataloader': 'batches',
    'train_dataloader': 'batches',
    'EncodedSplit': 'encoding',
    'tokenize': 'encoding',
}


def __getattr__(name: str) -> Any:
    # On first use: rows are read without Composer, only tokens and batches need it.
    if name in _LATER:
        return getattr(importlib.import_module(f'composer_cmi.data.{_LATER[name]}'), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


@dataclass(frozen=True)
class TaskData:
    """What a run trains and scores on.

    Attributes:
        task: The task, with class names and text columns filled in for own data too.
        train: Labelled training rows.
        unlabelled: Transfer rows without labels (-100), or None.
        eval_splits: Rows to score on by split name, the primary one first.
        fingerprint: A hash of all of the above.
        counts: Rows per class name for each split; unlabelled rows under ''.
        notes: What a user should be told, a sentence each.
        calibration: Labelled rows that were taken out of training, to fit a temperature on; or None.
    """

    task: Task
    train: Split
    unlabelled: Split | None
    eval_splits: dict[str, Split]
    fingerprint: str
    counts: dict[str, dict[str, int]]
    notes: list[str] = field(default_factory=list)
    calibration: Split | None = None

    @property
    def label_names(self) -> tuple[str, ...]:
        """Class names in the order of the class indices."""
        return self.task.label_names

    @property
    def majority(self) -> dict[str, float]:
        """The share of each evaluation split's most frequent class: what a constant answer scores in accuracy."""
        return {name: max(self.counts[name].values()) / len(split) for name, split in self.eval_splits.items()}

    @property
    def constant_answer(self) -> dict[str, float]:
        """What the best constant answer scores on each evaluation split in the task's primary metric."""
        counts = {name: [self.counts[name][label] for label in self.label_names] for name in self.eval_splits}
        return {name: constant_score(self.task.primary_metric, numbers) for name, numbers in counts.items()}

    def describe(self) -> str:
        """Counts, balance, what a constant answer scores, size of one example in points, and notes; a line each."""
        lines = []
        for name, counts in self.counts.items():
            total = sum(counts.values())
            balance = ', '.join(
                f'{label or "no label"} {count / total:.1%}' for label, count in counts.items() if count
            )
            line = f'{name}: {total:,} rows ({balance})'
            if name in self.eval_splits:
                score, metric = self.constant_answer[name], self.task.primary_metric
                line += f'; a constant answer scores {score:.2%} {metric}, one example is {100 / total:.2f} points'
            lines.append(line)
        return '\n'.join([*lines, *self.notes])


def constant_score(metric: str, counts: Sequence[int]) -> float:
    """What always naming one class scores at best in a metric of `METRICS`, given the rows of each class."""
    shares = [count / sum(counts) for count in counts]
    if metric == 'matthews_correlation':
        return 0.0
    if metric == 'accuracy':
        return max(shares)
    if metric == 'f1':  # of class 1: naming it always is right for its share, and finds all of it
        return 2 * shares[1] / (1 + shares[1])
    return max(2 * share / (1 + share) for share in shares) / len(shares)


def load_task_data(task: Task | str, config: Any, *, calibrate: float | None = None) -> TaskData:
    """Read a task's data and cut it as the run's `data:` section says.

    In this order: own data without a dev file keep a fifth aside as 'dev'; `validation_fraction` of train becomes
    'held_out', in place of the evaluation splits; `class_imbalance`; `train_rows`; `labelled_rows` (the others
    become unlabelled); the `unlabelled` file and `streaming` shards; `label_noise`; the share to `calibrate` on;
    `eval_rows`. Only `data.seed` plays a part, so that runs with different seeds see the same rows, and a smaller
    training set is part of every larger one. The evaluation splits do not depend on any seed.

    Args:
        task: A task or its name.
        config: Any object with the fields of `DataConfig`; what it lacks counts as not set.
        calibrate: Take this share of the training rows out, by a hash of their text: none stands on both sides.

    Raises:
        DataError: The data cannot be had or used; one sentence with file, line and reason.
        FileNotFoundError: A file or folder does not exist.
        ValueError: The task is unknown.
    """
    asked = _task(task)
    fraction = getattr(config, 'validation_fraction', None)
    source = read_source(asked, config, ('train',) if fraction else ('train', *asked.eval_splits))
    found, notes, seed = source.task, list(source.notes), getattr(config, 'seed', 0)
    train, evals = _evaluation(source, fraction, seed, notes)
    next_id = int(source.splits['train'].example_ids.max()) + 1
    train, unlabelled, calibration = _training(found, train, config, calibrate, next_id, notes)
    if rows := getattr(config, 'eval_rows', None):
        evals = {name: take(split, stratified_order(split.labels, seed)[:rows]) for name, split in evals.items()}
    notes += overlap(train, evals)
    measured = evals if calibration is None else {**evals, 'calibration': calibration}
    unlabelled = _without_evaluation_rows(unlabelled, measured, notes)
    if found.caveat:
        notes.append(found.caveat)
    aside = {name: rows for name, rows in (('unlabelled', unlabelled), ('calibration', calibration)) if rows}
    splits = {'train': train, **aside, **evals}
    return TaskData(
        found,
        train,
        unlabelled,
        evals,
        fingerprint(found.name, found.label_names, train, unlabelled, *measured.values()),
        {name: class_counts(split, found.label_names) for name, split in splits.items()},
        notes,
        calibration,
    )


def load_test_splits(task: Task | str, config: Any) -> dict[str, Split]:
    """A GLUE task's test splits, without labels, for the leaderboard's files.

    Raises:
        DataError: The task has none, or they cannot be had.
        FileNotFoundError: A file or folder does not exist.
    """
    asked = _task(task)
    if not asked.test_splits:
        raise DataError(f'Task {asked.name} has no test split without labels.')
    return read_source(asked, config, asked.test_splits).splits


def _task(task: Task | str) -> Task:
    return get_task(task) if isinstance(task, str) else task


def _evaluation(source: Source, fraction: float | None, seed: int, notes: list[str]) -> tuple[Split, dict[str, Split]]:
    splits = dict(source.splits)
    train = splits.pop('train')
    if source.task.name == 'custom' and not splits:
        # By a fixed hash, and kept aside also where `validation_fraction` is set: what is tuned on a held-out share
        # must not be tuned on the rows that are reported later.
        train, splits['dev'] = _divide(train, _OWN_DEV_SHARE, 'dev')
        notes.append(f'No dev file: {len(splits["dev"]):,} rows, chosen by a hash of their text, are the dev split.')
    if not fraction:
        return train, splits
    train, held_out = _divide(train, fraction, str(seed))
    return train, {'held_out': held_out}


def _divide(split: Split, share: float, salt: str) -> tuple[Split, Split]:
    mask = hashed_share(split, share, salt)
    if mask.all() or not mask.any():
        raise DataError(f'Holding out {share:.0%} of {len(split)} rows leaves nothing on one side: give more rows.')
    return take(split, np.flatnonzero(~mask)), take(split, np.flatnonzero(mask))


def _training(
    task: Task, train: Split, config: Any, calibrate: float | None, next_id: int, notes: list[str]
) -> tuple[Split, Split | None, Split | None]:
    seed = getattr(config, 'seed', 0)
    if ratio := getattr(config, 'class_imbalance', None):
        whole, train = len(train), imbalance(train, ratio, task.num_classes, seed)
        notes.append(f'{len(train):,} of {whole:,} training rows are kept (data.class_imbalance).')
    order = stratified_order(train.labels, seed)
    rows = getattr(config, 'train_rows', None)
    labelled = getattr(config, 'labelled_rows', None)
    for key, wanted in (('train_rows', rows), ('labelled_rows', labelled)):
        available = min(len(train), rows or len(train)) if key == 'labelled_rows' else len(train)
        if wanted and wanted > available:
            raise DataError(f'data.{key} asks for {wanted} rows, task {task.name} has {available} to train on.')
    chosen = take(train, order[: rows or len(train)])
    unlabelled = None
    if labelled and labelled < len(chosen):
        unlabelled = without_labels(take(chosen, np.arange(labelled, len(chosen))))
        chosen = take(chosen, np.arange(labelled))
    for key in ('unlabelled', 'streaming'):
        if path := getattr(config, key, None):
            extra = read_unlabelled(task, path, next_id, shards=key == 'streaming')
            next_id += len(extra)
            unlabelled = extra if unlabelled is None else concatenate(unlabelled, extra)
    if noise := getattr(config, 'label_noise', 0.0):
        chosen = add_label_noise(chosen, noise, task.num_classes, seed)
        notes.append(f'{noise:.0%} of the training labels were replaced by wrong ones (data.label_noise).')
    calibration = None
    if calibrate:
        chosen, calibration = _divide(chosen, calibrate, f'calibrate {seed}')
        rough = '' if len(calibration) >= _FEW else ', a rough one: give more rows, or a larger share'
        notes.append(
            f'{len(calibration):,} training rows are kept out of training, to fit a temperature (calibrate){rough}.'
        )
    present = len(np.unique(chosen.labels))
    if present < 2:
        raise DataError(f'The {len(chosen)} training rows are all of one class; two are wanted: give more rows.')
    if present < task.num_classes:
        absent = [name for c, name in enumerate(task.label_names) if c not in chosen.labels]
        notes.append(f'No training row has the class {", ".join(absent[:10])}.')
    return chosen, unlabelled, calibration


def overlap(train: Split, evals: Mapping[str, Split]) -> list[str]:
    """What a user should be told of rows to score on that are trained on too, a sentence a split."""
    # Of train, however large, only what is looked for is kept.
    wanted = {key for split in evals.values() for key in split.text_keys()}
    verbatim = {text for split in evals.values() for text in split.joined()}
    exact, labels = set[str](), dict[str, set[int]]()
    for text, key, label in zip(train.joined(), train.text_keys(), train.labels, strict=True):
        if key in wanted:
            labels.setdefault(key, set()).add(int(label))
            if text in verbatim:
                exact.add(text)
    notes = []
    for name, split in evals.items():
        shared = nearly = other = 0
        for text, key, label in zip(split.joined(), split.text_keys(), split.labels, strict=True):
            if key in labels:
                shared += 1
                nearly += text not in exact
                other += int(label) not in labels[key]
        details = [f"{nearly} but for letter case, spaces or the columns' order"] if nearly else []
        details += [f'{other} with another label'] if other else []
        if shared:
            told = f' ({", ".join(details)})' if details else ''
            notes.append(f'{shared} of the {len(split)} rows of {name} are in train too{told}.')
    return notes


def _without_evaluation_rows(unlabelled: Split | None, evals: Mapping[str, Split], notes: list[str]) -> Split | None:
    """Transfer rows that are not scored on: a student that is taught their answers has seen the examination."""
    if unlabelled is None:
        return None
    scored = {key for split in evals.values() for key in split.text_keys()}
    kept = np.fromiter((key not in scored for key in unlabelled.text_keys()), dtype=bool, count=len(unlabelled))
    if kept.all():
        return unlabelled
    notes.append(
        f'{int((~kept).sum()):,} of the {len(unlabelled):,} rows without labels are rows of {", ".join(evals)} too: '
        'they are left out, no model is scored on what it was taught.'
    )
    return take(unlabelled, np.flatnonzero(kept)) if kept.any() else None
