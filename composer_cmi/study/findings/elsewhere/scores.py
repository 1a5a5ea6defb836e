"""A table of scores, a row a run: `setting, arm, seed, score` and further columns of numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from composer_cmi.data.delimited import Fault
from composer_cmi.data.readers import Table
from composer_cmi.errors import ConfigError
from composer_cmi.study.findings.elsewhere.columns import Place, cells, need, number, places, remarks_on_seeds
from composer_cmi.study.findings.runs import Run
from composer_cmi.study.findings.study import SCORE, Metric, Study, pairs_of
from composer_cmi.study.findings.study import Table as ScoreTable

__all__ = ['study_of_scores']

_KEYS = ('setting', 'arm', 'seed', SCORE)
_WANTED = 'a table of scores has setting, arm, seed and score, predictions have row and label'
_IN_NATS = ('nll', 'log_loss', 'logloss', 'cross_entropy', 'negative_log_likelihood')
_ERRORS = ('loss', 'ece', 'brier', 'error', 'error_rate', 'perplexity', 'ppl', 'wer', 'cer', 'mae', 'mse', 'rmse')
_LOWER = (*_IN_NATS, *_ERRORS)
_SPLIT = 'reported'


def study_of_scores(table: Table, path: Path, against: Sequence[str], lower: Sequence[str]) -> Study:
    """The study of a table of scores.

    Raises:
        DataError: the table cannot be used, a line each for its first twenty faults.
        ConfigError: there is no such baseline, no such column in `lower`, or one arm only.
    """
    need(table, _KEYS, _WANTED)
    faults: list[Fault] = list(table.faults)
    found = places(table, faults)
    others = [name for name in table.columns if name not in _KEYS]
    texts = [name for name in others if not any(_is_number(cell) for cell in table.columns[name])]
    columns = {name: cells(table, name, number, faults) for name in (SCORE, *others) if name not in texts}
    first: dict[Place, int] = {}
    for row, place in enumerate(found):
        if place is not None and (before := first.setdefault(place, row)) != row:
            faults.append(table.fault(row, f'{place} stands in {table.unit} {table.lines[before]} already.'))
    if not faults:
        faults = _single_seeds(table, first)
    if faults:
        raise table.error(faults)
    for name in lower:
        if name not in columns:
            raise ConfigError(f'{path} has no column of scores {name!r} (columns: {", ".join(columns)}).')
    values = {name: [float(value) for value in column if value is not None] for name, column in columns.items()}
    metrics = {name: _metric(name, column, name in lower) for name, column in values.items()}
    runs = [
        Run(*place, scores={_SPLIT: {name: _in_unit(values[name][row], metrics[name]) for name in metrics}})
        for place, row in first.items()
    ]
    arms = list(dict.fromkeys(place.arm for place in first))
    pairs = pairs_of_arms(arms, against, path)
    remarks = [compared_with(pairs, against), *remarks_on_seeds(first, pairs), *_on_units(metrics)]
    if texts:
        remarks.append(f'Not read, as they hold no number: {", ".join(texts)}.')
    settings = dict.fromkeys(place.setting for place in first)
    return Study(
        name=path.name.split('.')[0] or path.name,
        runs=runs,
        arms=arms,
        comparisons=pairs,
        gain=1.0,
        missing=[],
        tuning=[],
        remarks=remarks,
        tables=[ScoreTable(setting, _SPLIT, setting, SCORE, 0, math.nan, '') for setting in settings],
        metrics=metrics,
    )


def pairs_of_arms(arms: Sequence[str], against: Sequence[str], path: Path) -> list[tuple[str, str]]:
    """Every arm with the baselines, by default with the first arm.

    Raises:
        ConfigError: there is one arm only, or no such baseline.
    """
    if len(arms) < 2:
        raise ConfigError(f'{path} has one arm only, {arms[0]!r}: there is nothing to compare it with.')
    return pairs_of(arms, {}, against or arms[:1])


def compared_with(pairs: Sequence[tuple[str, str]], against: Sequence[str]) -> str:
    """The sentence that says what the baseline is, and why."""
    if against:
        return f'Compared with {", ".join(against)}, as was asked.'
    return f'Compared with {pairs[0][1]}, the first arm that is named (--baseline NAME for another).'


def _single_seeds(table: Table, first: dict[Place, int]) -> list[Fault]:
    seeds: dict[tuple[str, str], list[int]] = {}
    for place, row in first.items():
        seeds.setdefault((place.setting, place.arm), []).append(row)
    reason = 'one seed only: no difference can be told from chance with fewer than two, better five or more.'
    return [
        table.fault(rows[0], f'arm {arm!r} has on {setting!r} {reason}')
        for (setting, arm), rows in seeds.items()
        if len(rows) == 1
    ]


def _is_number(cell: object) -> bool:
    try:
        number(cell)
    except ValueError:
        return False
    return True


def _metric(name: str, values: Sequence[float], lower: bool) -> Metric:
    plain = name.lower().replace(' ', '_').replace('-', '_')
    lower = lower or plain in _LOWER or plain.endswith(tuple(f'_{end}' for end in _LOWER))
    if plain.endswith(_IN_NATS):
        return Metric(name, 'nats', lower)
    # Shares are shown in points; what is larger has no unit that is known here.
    return Metric(
        name, 'points' if all(-1 <= value <= 1 for value in values) else '', lower, exploratory=plain == 'ece'
    )


def _in_unit(value: float, metric: Metric) -> float:
    return round(100 * value, 10) if metric.unit == 'points' else value


def _on_units(metrics: dict[str, Metric]) -> list[str]:
    shares = [name for name, metric in metrics.items() if metric.unit == 'points']
    lower = [name for name, metric in metrics.items() if metric.lower_is_better]
    told = (
        [f'Values within -1 and 1 are taken for shares and shown in points of 100: {", ".join(shares)}.']
        if shares
        else []
    )
    return told + ([f'Lower is better: {", ".join(lower)}.'] if lower else [])
