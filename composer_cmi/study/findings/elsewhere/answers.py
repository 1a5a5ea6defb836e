"""Predictions of rows by any program: labels, answers and probabilities, from which the scores are computed here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from composer_cmi.data.delimited import Fault
from composer_cmi.data.readers import DataError, Table
from composer_cmi.data.tasks import Task
from composer_cmi.run.scoring import score
from composer_cmi.study.findings.elsewhere.columns import Place, cells, need, number, places, remarks_on_seeds, word
from composer_cmi.study.findings.elsewhere.scores import compared_with, pairs_of_arms
from composer_cmi.study.findings.predictions import SCALED_NLL, Floats, Predictions
from composer_cmi.study.findings.runs import Run, in_points
from composer_cmi.study.findings.study import METRICS, SCORE, Study, undecided
from composer_cmi.study.findings.study import Table as ScoreTable

__all__ = ['study_of_answers']

_ROW = ('row', 'id', 'example_id')
_PREFIXES = ('p_', 'prob_', 'proba_', 'probability_', 'logit_')
_SMALLEST = 1e-7  # a probability of 0 would make one row's NLL infinite
_ROUNDING = 0.02  # of probabilities that add up to 1
_SPLIT = 'reported'


class _Row(NamedTuple):
    """A row of a file, understood: `scores` are logits or log probabilities by class, empty where there are none."""

    table: Table
    place: int
    id: str
    label: str
    answer: str
    scores: dict[str, float]

    @property
    def where(self) -> str:
        return f'{self.table.unit} {self.table.lines[self.place]}'


def study_of_answers(tables: Mapping[Path, Table], path: Path, against: Sequence[str]) -> Study:
    """The study of predictions.

    Raises:
        DataError: they cannot be used; a line each for the first twenty faults of each file.
        ConfigError: there is no such baseline, or one arm only.
    """
    faults: dict[str, list[Fault]] = {}
    remarks: list[str] = []
    runs: dict[Place, list[_Row]] = {}
    wrong: list[str] = []
    for table in tables.values():
        try:
            for place, row in _rows(table, path if path.is_dir() else None, faults, remarks):
                runs.setdefault(place, []).append(row)
        except DataError as error:
            wrong.append(str(error))
    if not wrong and not any(faults.values()):
        _check_rows(runs, faults)
    wrong += [str(table.error(found)) for table in tables.values() if (found := faults.get(table.source))]
    if wrong:
        raise DataError('\n'.join(wrong))
    arms = list(dict.fromkeys(place.arm for place in runs))
    pairs = pairs_of_arms(arms, against, path)
    done = _scored(runs, remarks)
    split_rows = {run.setting: len(run.predictions[_SPLIT].labels) for run in done}
    majority = {run.setting: _majority(run.predictions[_SPLIT]) for run in done}
    known = [any(metric in run.scores[_SPLIT] for run in done) for metric in ('nll', 'ece')]
    metrics = {k: m for k, m in METRICS.items() if k == SCORE or all(known)}
    told = [compared_with(pairs, against), *remarks_on_seeds(runs, pairs), *dict.fromkeys(remarks)]
    if len({place.seed for place in runs}) == 1:
        told.append('One seed: no interval over seeds. McNemar, in the details, speaks of these two models only.')
    return Study(
        name=path.name.split('.')[0] or path.resolve().name,
        runs=done,
        arms=arms,
        comparisons=pairs,
        gain=1.0,
        missing=[],
        tuning=[],
        remarks=told,
        tables=[
            ScoreTable(setting, _SPLIT, setting, 'accuracy', rows, majority[setting], undecided('', rows))
            for setting, rows in split_rows.items()
        ],
        metrics=metrics,
    )


def _rows(
    table: Table, below: Path | None, faults: dict[str, list[Fault]], remarks: list[str]
) -> list[tuple[Place, _Row]]:
    wanted = (
        'predictions have setting, arm, seed, row, label, and prediction or a column of probabilities for each class'
    )
    row_name = next((name for name in _ROW if name in table.columns), _ROW[0])
    need(table, (row_name, 'label'), wanted)
    found = faults.setdefault(table.source, list(table.faults))
    where = places(table, found, below)
    ids, labels = (cells(table, name, word, found) for name in (row_name, 'label'))
    classes = _class_columns(table, [label for label in labels if label is not None], row_name)
    if not classes and 'prediction' not in table.columns:
        need(table, ('prediction',), wanted)
    # A file of several settings leaves the classes of the others empty.
    numbers = {name: cells(table, name, _number_or_none, found) for name in classes.values()}
    given = cells(table, 'prediction', word, found) if 'prediction' in table.columns else [None] * len(table)
    read = {row_name, 'label', 'prediction', 'setting', 'arm', 'seed', *classes.values()}
    if ignored := [name for name in table.columns if name not in read]:
        remarks.append(f'Not read: the columns {", ".join(ignored[:10])}{" and more" if len(ignored) > 10 else ""}.')
    rows, clipped = [], 0
    for i, (place, row_id, label) in enumerate(zip(where, ids, labels, strict=True)):
        known = {name: value for name, column in classes.items() if (value := numbers[column][i]) is not None}
        if place is None or row_id is None or label is None:
            continue
        scores, reason = (known, '') if _of_logits(classes) else _log_probabilities(known)
        if known and label not in known:
            reason = f'label {label!r} has no probability; there are those of {", ".join(list(known)[:8])}.'
        elif not known and not given[i]:
            reason = 'there is no prediction and no probability.'
        if reason:
            found.append(table.fault(i, reason))
            continue
        clipped += sum(value < _SMALLEST for value in known.values()) if not _of_logits(classes) else 0
        answer = given[i] or max(scores, key=lambda name: scores[name])
        rows.append((place, _Row(table, i, row_id, label, answer, scores)))
    if clipped:
        remarks.append(f'{table.source}: {clipped} probabilities below {_SMALLEST:g} count as {_SMALLEST:g} in NLL.')
    return rows


def _number_or_none(cell: Any) -> float | None:
    return None if cell is None or (isinstance(cell, str) and not cell.strip()) else number(cell)


def _class_columns(table: Table, labels: Sequence[str], row_name: str) -> dict[str, str]:
    """Columns of probabilities or logits by class."""
    prefix = next((p for p in _PREFIXES if any(name.startswith(p) for name in table.columns)), None)
    if prefix is not None:
        return {name.removeprefix(prefix): name for name in table.columns if name.startswith(prefix)}
    named = set(labels) & set(table.columns)
    taken = {'setting', 'arm', 'seed', 'label', 'prediction', row_name}
    # Bare names of classes: where one of them is a label, every other column of numbers is a class too.
    return (
        {n: n for n in table.columns if n not in taken and (n in named or _has_shares(table.columns[n]))}
        if named
        else {}
    )


def _has_shares(column: Sequence[object]) -> bool:
    try:
        return all(0 <= number(cell) <= 1 for cell in column)
    except ValueError:
        return False


def _of_logits(classes: Mapping[str, str]) -> bool:
    return any(column.startswith('logit_') for column in classes.values())


def _log_probabilities(values: Mapping[str, float]) -> tuple[dict[str, float], str]:
    for name, value in values.items():
        if not 0 <= value <= 1 + 1e-6:
            return (
                {},
                f'the probability of {name!r} is {value:g}, not between 0 and 1 (columns of logits begin with logit_).',
            )
    if values and abs(total := math.fsum(values.values()) - 1) > _ROUNDING:
        return {}, f'the probabilities add up to {total + 1:.4g}, not to 1.'
    return {name: math.log(max(value, _SMALLEST)) for name, value in values.items()}, ''


def _check_rows(runs: Mapping[Place, Sequence[_Row]], faults: dict[str, list[Fault]]) -> None:
    """Every run of a setting has the same rows with the same labels, each once."""
    models: dict[str, tuple[Place, dict[str, _Row]]] = {}
    for place, rows in runs.items():

        def wrong(row: _Row, reason: str) -> None:
            faults[row.table.source].append(row.table.fault(row.place, reason))

        by_id: dict[str, _Row] = {}
        for row in rows:
            if (before := by_id.setdefault(row.id, row)) is not row:
                wrong(row, f'row {row.id!r} of {place} stands in {before.where} of {before.table.source} already.')
        of, model = models.setdefault(place.setting, (place, by_id))
        absent, more = [i for i in model if i not in by_id], [i for i in by_id if i not in model]
        for ids, who, other in ((absent, place, of), (more, of, place)):
            if ids:
                wrong(rows[0], f'{who} has no row {ids[0]!r}{_others(ids)}, which {other} has: all need the same rows.')
        for row in by_id.values():
            if row.id in model and row.label != model[row.id].label:
                where = f'{model[row.id].where} of {model[row.id].table.source}'
                wrong(row, f'label {row.label!r} of row {row.id!r} is {model[row.id].label!r} in {where}.')
            if set(row.scores) != set(next(iter(model.values())).scores):
                wrong(row, f'row {row.id!r} of {place} has probabilities of other classes than {of}.')


def _others(ids: Sequence[str]) -> str:
    return f' and {len(ids) - 1} more' if len(ids) > 1 else ''


def _scored(runs: Mapping[Place, Sequence[_Row]], remarks: list[str]) -> list[Run]:
    done = []
    for setting in dict.fromkeys(place.setting for place in runs):
        mine = {place: sorted(rows, key=lambda row: row.id) for place, rows in runs.items() if place.setting == setting}
        every = [row for rows in mine.values() for row in rows]
        classes = list(every[0].scores) or sorted({name for row in every for name in (row.label, row.answer)})
        if strange := sorted({row.answer for row in every} - {row.label for row in every} - set(every[0].scores)):
            remarks.append(f'{setting}: answers that are no label count as wrong: {", ".join(strange[:5])}.')
        index = {name: i for i, name in enumerate(dict.fromkeys([*classes, *strange]))}
        for place, rows in mine.items():
            done.append(_run(place, rows, index))
    return done


def _run(place: Place, rows: Sequence[_Row], index: Mapping[str, int]) -> Run:
    labels, answers = (
        np.array([index[name] for name in names]) for names in zip(*((r.label, r.answer) for r in rows), strict=True)
    )
    logits: Floats = np.full((len(rows), len(index)), math.log(_SMALLEST) if rows[0].scores else math.nan)
    for i, row in enumerate(rows):
        for name, value in row.scores.items():
            logits[i, index[name]] = value
    scores = {'accuracy': float((labels == answers).mean())}
    if rows[0].scores:
        task = Task('elsewhere', '', ('text',), tuple(index))
        scores |= {name: value for name, value in score(task, logits, labels).items() if name in ('nll', 'ece')}
    found = Predictions(np.arange(len(rows)), labels, answers, logits)
    run = Run(*place, scores={_SPLIT: in_points(scores)}, predictions={_SPLIT: found})
    if rows[0].scores:
        run.scores[_SPLIT][SCALED_NLL] = run.score(_SPLIT, SCALED_NLL)
    return run


def _majority(found: Predictions) -> float:
    return 100 * float(np.bincount(found.labels).max() / len(found.labels))
