"""The report's tables: comparisons and runs as rows of words and formatted numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from composer_cmi.pages import Block, Paragraph, Rows
from composer_cmi.study.findings import statistics
from composer_cmi.study.findings.analysis import Comparison
from composer_cmi.study.findings.runs import Run
from composer_cmi.study.findings.statistics import PairedDifference
from composer_cmi.study.findings.study import SCORE, Metric, Study, Table

__all__ = [
    'difference_rows',
    'interval',
    'mcnemar_rows',
    'pooled',
    'pooled_rows',
    'score_rows',
    'seed_rows',
    'signed',
    'time_rows',
    'tuning_rows',
]


_DIGITS = {'points': '.2f', 'nats': '.3f', '': '.3g'}


def signed(value: float, metric: Metric) -> str:
    """A difference with its sign, in the digits that its unit deserves."""
    return '-' if math.isnan(value) else f'{value:+{_DIGITS[metric.unit]}}'


def interval(low: float, high: float, metric: Metric) -> str:
    """`[low, high]`, or a dash where there is none."""
    return '-' if math.isnan(low) else f'[{signed(low, metric)}, {signed(high, metric)}]'


def _p(value: float) -> str:
    return '-' if math.isnan(value) else '<0.001' if value < 0.001 else f'{value:.3f}'


def _number(value: float | None, spec: str) -> str:
    return '-' if value is None or math.isnan(value) else format(value, spec)


def score_rows(study: Study, tables: Sequence[Table], with_majority: bool = False) -> Rows:
    """Means over the seeds of every kind of score, and of run folders the held-out information of features (nats)."""
    others = {key: metric for key, metric in study.metrics.items() if key != SCORE}
    header = ['setting', 'arm', 'metric', 'seeds', 'mean', 'sd', *(metric.name for metric in others.values())]
    header += ['CMI', 'I(X;Z)', 'rho'] if study.of_folders else []
    header += ['majority'] if with_majority else []
    digits = _DIGITS[study.metrics[SCORE].unit]
    rows = []
    for table in tables:
        for arm in study.arms:
            runs = list(study.of(table.setting, arm).values())
            if not runs:
                continue
            scores = [run.score(table.split, table.metric) for run in runs]
            sd = float(np.std(scores, ddof=1)) if len(runs) > 1 else math.nan
            cells = [table.name, arm, table.metric, str(len(runs)), f'{np.mean(scores):{digits}}', _number(sd, digits)]
            for key, metric in others.items():
                mean = float(np.mean([run.score(table.split, key) for run in runs]))
                cells.append(_number(mean, _DIGITS[metric.unit]))
            rows.append([*cells, *(_information(runs) if study.of_folders else [])])
            if with_majority:
                rows[-1].append(_number(table.majority, '.2f'))
    return Rows(header, rows, 3)


def _information(runs: Sequence[Run]) -> list[str]:
    after = [run.results.cmi['after']['features'] for run in runs]
    values = [(each.cmi, each.mutual_information, each.relative_cmi) for each in after]
    return [_number(float(mean), '.3g') for mean in np.mean(values, axis=0)]


def difference_rows(study: Study, comparisons: Sequence[Comparison]) -> Rows:
    """Each comparison: verdict and what it rests on, intervals, tests, and how many seeds would show more."""
    in_points = not comparisons or comparisons[0].kind.unit == 'points'
    header = ['arm', 'against', 'setting', 'verdict', 'rests on', 'seeds', 'mean', '95 %', 'p', 'p Holm', 'sd of seeds']
    header += ['95 % t, seeds', '95 % bootstrap, seeds', 'p t, seeds', 'p Wilcoxon', 'wins/ties/losses']
    if in_points:
        header += [f'seeds to see {study.gain:g}', 'seen at 80 %']
    rows = []
    for each in comparisons:
        d, metric = each.difference, each.kind
        row = [each.arm, each.baseline, each.table, each.verdict, each.rests_on, str(d.n), signed(d.mean, metric)]
        row += [interval(*each.interval, metric), _p(each.p), _p(each.holm_p)]
        row += [_number(d.sd, _DIGITS[metric.unit]), interval(d.t_low, d.t_high, metric)]
        row += [interval(d.bootstrap_low, d.bootstrap_high, metric), _p(d.t_p), _p(d.wilcoxon_p)]
        row.append(f'{d.wins}/{d.ties}/{d.losses}')
        if in_points:
            row += ['-' if each.seeds_needed is None else str(each.seeds_needed), _number(each.detectable, '.2f')]
        rows.append(row)
    return Rows(header, rows, 5)


def pooled(comparisons: Sequence[Comparison]) -> PairedDifference | None:
    """Of one pair of arms the mean over settings of each seed's difference; None where they do not add up."""
    mine = [each for each in comparisons if not each.apart]
    seeds = [seed for seed in (mine[0].seeds if mine else ()) if all(seed in each.seeds for each in mine)]
    if len(mine) < 2 or len(seeds) < 2 or len({each.metric for each in mine}) > 1:
        return None
    means = [float(np.mean([each.differences[each.seeds.index(seed)] for each in mine])) for seed in seeds]
    return statistics.paired_difference(means, [0.0] * len(means), higher_is_better=not mine[0].kind.lower_is_better)


def pooled_rows(study: Study, comparisons: Sequence[Comparison]) -> Rows | None:
    """Mean over settings of each seed's difference: settings of one metric only, as others do not add up."""
    rows = []
    for arm, baseline in study.comparisons:
        mine = [each for each in comparisons if (each.arm, each.baseline) == (arm, baseline) and not each.apart]
        if d := pooled(mine):
            kind = mine[0].kind
            row = [arm, baseline, str(len(mine)), str(d.n), signed(d.mean, kind), interval(d.t_low, d.t_high, kind)]
            row.append(interval(d.bootstrap_low, d.bootstrap_high, kind))
            rows.append([*row, _p(d.t_p), f'{d.wins}/{d.ties}/{d.losses}'])
    header = ['arm', 'against', 'settings', 'seeds', 'mean', '95 % t', '95 % bootstrap', 'p', 'wins/ties/losses']
    return Rows(header, rows, 2) if rows else None


def mcnemar_rows(comparisons: Sequence[Comparison]) -> Rows:
    """On how many seeds the predictions of the same rows differ beyond chance."""
    header = ['arm', 'against', 'setting', 'seeds', 'only arm right, mean', 'only baseline right, mean']
    header += ['p < 0.05 for the arm', 'p < 0.05 for the baseline']
    rows = []
    for each in (each for each in comparisons if each.mcnemar):
        found = list(each.mcnemar.values())
        clear = [m.only_arm > m.only_baseline for m in found if m.p < 0.05]
        row = [each.arm, each.baseline, each.table, str(len(found)), f'{np.mean([m.only_arm for m in found]):.1f}']
        row += [f'{np.mean([m.only_baseline for m in found]):.1f}', f'{sum(clear)} of {len(found)}']
        rows.append([*row, f'{len(clear) - sum(clear)} of {len(found)}'])
    return Rows(header, rows, 3)


def seed_rows(study: Study) -> list[Block]:
    """All scores, a table a setting: no seed is left out."""
    blocks: list[Block] = []
    digits = _DIGITS[study.metrics[SCORE].unit].replace('3g', '6g')
    for table in study.tables:
        seeds = sorted({run.seed for run in study.runs if run.setting == table.setting})
        rows = []
        for arm in study.arms:
            runs = study.of(table.setting, arm)
            if runs:
                scores = [f'{runs[s].score(table.split, table.metric):{digits}}' if s in runs else '-' for s in seeds]
                rows.append([arm, *scores])
        blocks += [
            Paragraph(f'{table.name}, {table.metric}{f", {table.rows} rows" if table.rows else ""}:'),
            Rows(['seed', *map(str, seeds)], rows),
        ]
    return blocks


def time_rows(study: Study) -> Rows:
    """Medians over the seeds; the ratio is taken seed by seed against the first arm."""
    rows = []
    for setting in dict.fromkeys(table.setting for table in study.tables):
        base = study.of(setting, study.arms[0])
        for arm in study.arms:
            runs = study.of(setting, arm)
            if not runs:
                continue
            timing = [run.results.timing for run in runs.values()]
            ratio = [
                runs[seed].results.timing.seconds_per_step / base[seed].results.timing.seconds_per_step
                for seed in runs
                if seed in base and base[seed].results.timing.seconds_per_step > 0
            ]
            row = [setting, arm, f'{np.median([t.steps for t in timing]):.0f}']
            row += [f'{np.median([t.train_seconds for t in timing]):.1f}']
            row += [f'{1000 * np.median([t.seconds_per_step for t in timing]):.0f}']
            rows.append([*row, f'{np.median(ratio):.3f}' if ratio else '-'])
    header = ['setting', 'arm', 'steps', 'training, seconds', 'ms a step', f'step over that of {study.arms[0]}, paired']
    return Rows(header, rows, 2)


def tuning_rows(study: Study) -> Rows:
    """Everything that was tried on the held-out slice, and what was chosen."""
    rows = []
    for row in study.tuning:
        values = ', '.join(f'{key}={value}' for key, value in row['values'].items())
        scores = [100 * score for score in row['scores']]
        mean = f'{np.mean(scores):.2f}' if scores else '-'
        tries = ' '.join(f'{score:.2f}' for score in scores)
        rows.append([row['setting'], row['arm'], values, 'chosen' if row['chosen'] else '', mean, tries])
    return Rows(['setting', 'arm', 'tried', '', 'held out, mean', 'by seed'], rows, 4)
