"""What a report begins with: one sentence a question, one table of arms and settings, and what casts doubt on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from composer_cmi.pages import Bold, Rows
from composer_cmi.study.findings.analysis import Comparison
from composer_cmi.study.findings.runs import Run
from composer_cmi.study.findings.study import SCORE, Metric, Study
from composer_cmi.study.findings.tables import interval, pooled, signed

__all__ = ['doubtful_choices', 'overview', 'same_models', 'sentences']

_NAMED = 3  # settings, or arms, that a sentence names; more are counted
_MOST = 12  # sentences of one kind of score
_ENDS = 3  # values at least: of two each is at an end


def sentences(study: Study, found: Sequence[Comparison], metric: Metric) -> list[str]:
    """Whether each arm gains on its baseline, a sentence each; of many arms those without evidence share one."""
    pairs = [pair for pair in study.comparisons if any(_decides(each, pair) for each in found)]
    told: list[str] = []
    quiet: dict[str, list[str]] = {}
    for arm, baseline in pairs:
        mine = [each for each in found if _decides(each, (arm, baseline))]
        if any(each.verdict in ('gain', 'loss') for each in mine) or len(pairs) <= _NAMED + 1:
            told.append(f'{arm} against {baseline}: {_answer(study, mine)}.')
        else:
            quiet.setdefault(baseline, []).append(arm)
    if len(told) > _MOST:
        told = [*told[:_MOST], f'{len(told) - _MOST} more arms gain or lose somewhere, as the table says.']
    return [*told, *(f'No evidence of a gain over {baseline}: {_listed(arms)}.' for baseline, arms in quiet.items())]


def _decides(each: Comparison, pair: tuple[str, str]) -> bool:
    return (each.arm, each.baseline) == pair and not each.apart


def _answer(study: Study, mine: Sequence[Comparison]) -> str:
    gains, losses = ([each for each in mine if each.verdict == verdict] for verdict in ('gain', 'loss'))
    rest = [each for each in mine if each.verdict not in ('gain', 'loss')]
    parts = [f'gain on {_listed([_with_numbers(each) for each in gains])}'] if gains else []
    parts += [f'LOSS on {_listed([_with_numbers(each) for each in losses])}'] if losses else []
    if parts:
        counted = f'{len(rest)} of {len(mine)} settings'
        return '; '.join(
            [*parts, *([f'no evidence on {rest[0].table if len(rest) == 1 else counted}'] if rest else [])]
        )
    if len(mine) == 1:
        return f'no evidence of a gain on {_with_numbers(mine[0])}'
    over_all = pooled(mine)
    mean = f' (mean {_numbers(over_all.mean, over_all.t_low, over_all.t_high, mine[0].kind)})' if over_all else ''
    return f'no evidence of a gain on any of {len(mine)} settings{mean}'


def _with_numbers(each: Comparison) -> str:
    return f'{each.table} ({_numbers(each.difference.mean, *each.interval, each.kind)})'


def _numbers(mean: float, low: float, high: float, metric: Metric) -> str:
    bounds = interval(low, high, metric)
    return ' '.join(
        [signed(mean, metric), *([metric.unit] if metric.unit else []), *([bounds] if bounds != '-' else [])]
    )


def _listed(names: Sequence[str]) -> str:
    shown, more = names[:_NAMED], len(names) - _NAMED
    return ', '.join(shown) + (f' and {more} more' if more > 0 else '')


def overview(study: Study, found: Sequence[Comparison]) -> Rows:
    """Arms down, settings across: what each arm scores more than its baseline, with its interval and verdict."""
    tables = [table.name for table in study.tables]
    several = len({baseline for _, baseline in study.comparisons}) > 1
    cells = {(each.arm, each.baseline, each.table): _cell(each) for each in found}
    rows: list[list[str]] = []
    for baseline in dict.fromkeys(baseline for _, baseline in study.comparisons):
        rows.append([baseline, *(['-'] if several else []), *_means(study, baseline)])
        for arm, other in study.comparisons:
            if other == baseline:
                mine = [cells.get((arm, baseline, table), '-') for table in tables]
                rows.append([arm, *([baseline] if several else []), *mine])
    header = ['arm', *(['minus'] if several else []), *(f'{table.name}, {table.metric}' for table in study.tables)]
    return Rows(header, rows, 2 if several else 1)


def _cell(each: Comparison) -> str:
    bounds = interval(*each.interval, each.kind)
    numbers = f'{signed(each.difference.mean, each.kind)} {bounds if bounds != "-" else ""}'.strip()
    if each.verdict in ('gain', 'loss'):
        return Bold(f'{numbers} {each.verdict.replace("loss", "LOSS")}')
    return f'{numbers} (set apart)' if each.apart else numbers


def _means(study: Study, arm: str) -> list[str]:
    digits = '.2f' if study.metrics[SCORE].unit == 'points' else '.4g'
    found = []
    for table in study.tables:
        scores = [run.score(table.split, table.metric) for run in study.of(table.setting, arm).values()]
        found.append(f'scores {np.mean(scores):{digits}}' if scores else '-')
    return found


def same_models(study: Study) -> list[str]:
    """A sentence for each compared pair that what sets it apart has not moved: to the last bit the same predictions."""

    def predictions(run: Run) -> list[tuple[str, bytes, bytes]]:
        found = sorted(run.predictions.items())
        return [(split, each.answers.tobytes(), each.logits.tobytes()) for split, each in found]

    said = []
    for arm, baseline in study.comparisons:
        for setting in dict.fromkeys(run.setting for run in study.runs):
            mine, theirs = study.of(setting, arm), study.of(setting, baseline)
            common = [seed for seed in mine if seed in theirs and mine[seed].predictions]
            if common and all(predictions(mine[seed]) == predictions(theirs[seed]) for seed in common):
                said.append(
                    f'{setting}: {arm} and {baseline} have the same predictions, to the last bit: what sets them '
                    'apart did nothing, and comparing them says nothing.'
                )
    return said


def doubtful_choices(study: Study) -> list[str]:
    """A sentence for each value that tuning chose at the end of those it had, and one where each try was one run."""
    tried: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in study.tuning:
        tried.setdefault((row['setting'], row['arm']), []).append(row)
    said = []
    for (setting, arm), rows in tried.items():
        for key, value in next((row['values'] for row in rows if row['chosen']), {}).items():
            values = {row['values'].get(key) for row in rows if isinstance(row['values'].get(key), int | float)}
            if len(values) >= _ENDS and value in (min(values), max(values)):
                end = 'least' if value == min(values) else 'greatest'
                said.append(
                    f'{setting}: tuning chose {key} = {value:g} for {arm}, the {end} of {len(values)} values: a '
                    'better one may lie beyond.'
                )
    if study.tuning and all(len(row['scores']) <= 1 for row in study.tuning):
        said.append('Each try of tuning was one run, so that what was chosen is chance in part.')
    return said
