"""`composer-cmi report FOLDER`: what a study found, in words, tables and pictures, from run folders alone."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from composer_cmi.errors import ConfigError
from composer_cmi.pages import Block, Details, Heading, Lines, Paragraph, to_html, to_markdown
from composer_cmi.run.outputs.files import write_json, write_text
from composer_cmi.study.findings.analysis import Comparison, compare
from composer_cmi.study.findings.calibration import calibration_blocks
from composer_cmi.study.findings.elsewhere import load_table
from composer_cmi.study.findings.latex import to_latex
from composer_cmi.study.findings.opening import doubtful_choices, overview, same_models, sentences
from composer_cmi.study.findings.pictures import draw_pictures
from composer_cmi.study.findings.predictions import SCALED_NLL
from composer_cmi.study.findings.study import SCORE, Study, load_runs
from composer_cmi.study.findings.tables import (
    difference_rows,
    mcnemar_rows,
    pooled_rows,
    score_rows,
    seed_rows,
    time_rows,
    tuning_rows,
)
from composer_cmi.text import for_csv

__all__ = ['report', 'report_from']

_READING = (
    'Runs of one seed share initialisation and data order, so arms are compared by their differences per seed. A '
    'verdict rests on an interval over seeds and rows together (crossed analysis of variance, degrees of freedom '
    'after Satterthwaite): it speaks of new seeds and of new rows. Student t and bootstrap (expanded percentile, from'
    ' 8 seeds on) over seeds alone stand beside it: they speak of these rows only, and where predictions are missing '
    'the verdict rests on t over seeds alone, as the table then says. All intervals are 95 %. p is two-sided, and '
    'corrected by Holm over the whole study: all arms, settings and metrics that may become a verdict are one family.'
    ' A gain or a loss is claimed below a corrected p of 0.05, from five seeds on, and nowhere else. All other '
    'numbers are exploratory: ECE, Wilcoxon signed-rank, McNemar and means over settings are shown uncorrected and '
    'claim nothing. The seeds to see a gain, and the gain seen at 80 %, are those of one test at 5 % on these rows; a'
    ' dash says that no number of seeds would do. Scores are in points of 100, of the last step of training unless '
    'the configuration says otherwise. Scaled NLL is NLL at the one temperature that lowers it most on these rows, '
    'plus 1 / rows for having chosen it there: where it gains and NLL loses, the probabilities tell the classes apart'
    ' better and only their scale is off, which one temperature, fitted on held-out rows, mends.'
)


def report(folder: str | Path, out: str | Path | None = None, against: Sequence[str] = ()) -> dict[str, Path]:
    """Write the report of a study.

    Args:
        folder: a study's folder or any folder with finished run folders below it.
        out: where to write; `FOLDER/report` by default.
        against: baselines to compare with, instead of the study's own.

    Returns:
        dict[str, Path]: the files: `markdown`, `html`, `latex`, `json`, `comparisons` and `runs` (CSV).

    Raises:
        ConfigError: in one sentence, if there is nothing to report on or no place to write to.
    """
    folder = Path(folder).expanduser()
    return _write(load_runs(folder, against), folder / 'report' if out is None else Path(out).expanduser())


def report_from(
    path: str | Path, out: str | Path | None = None, against: Sequence[str] = (), lower: Sequence[str] = ()
) -> dict[str, Path]:
    """Write the same report of scores or predictions that another program has written.

    Args:
        path: a file or folder as `elsewhere.load_table` reads it.
        out: where to write; `report` in a folder, `NAME_report` beside a file by default.
        against: baselines; the first arm that is named by default.
        lower: columns whose lower values are better.

    Returns:
        dict[str, Path]: as `report`.

    Raises:
        ConfigError: if the file cannot be used; a line each for its first twenty faults.
    """
    path = Path(path).expanduser()
    study = load_table(path, against, lower)
    beside = path / 'report' if path.is_dir() else path.with_name(f'{study.name}_report')
    return _write(study, beside if out is None else Path(out).expanduser())


def _write(study: Study, out: Path) -> dict[str, Path]:
    found = compare(study)
    everything = list(chain.from_iterable(found.values()))
    files = {
        'markdown': out / 'report.md',
        'html': out / 'report.html',
        'latex': out / 'report.tex',
        'json': out / 'report.json',
        'comparisons': out / 'comparisons.csv',
        'runs': out / 'runs.csv',
    }
    try:
        blocks = _blocks(study, found, out)
        write_text(files['markdown'], to_markdown(blocks))
        write_text(files['html'], to_html(blocks, f'Study {study.name}'))
        write_text(files['latex'], to_latex(study, found[SCORE]))
        write_json(files['json'], _as_json(study, everything))
        write_text(files['comparisons'], _csv([_comparison_row(each) for each in everything]))
        write_text(files['runs'], _csv(_run_rows(study)))
    except OSError as error:
        raise ConfigError(f'The report cannot be written to {out}: {error.strerror or error}.') from error
    return files


def _blocks(study: Study, comparisons: dict[str, list[Comparison]], out: Path) -> list[Block]:
    settings = list(dict.fromkeys(table.setting for table in study.tables))
    seeds = sorted({run.seed for run in study.runs})
    first = f'{len(study.runs)} runs: {len(settings)} settings, {len(study.arms)} arms, {len(seeds)} seeds.'
    blocks: list[Block] = [Heading(f'Study {study.name}', 1), Paragraph(first), Heading('What was found')]
    found = []
    for metric, kind in study.metrics.items():
        better = ' (lower is better)' if kind.lower_is_better else ''
        name = '' if metric == SCORE else f'{kind.name}{better}: '
        told = [] if kind.exploratory else sentences(study, comparisons[metric], kind)
        found += [f'{name}{line}' for line in told]
    by_score = comparisons[SCORE]
    nothing = (
        'No setting can decide: all are set apart, as is said below.' if by_score else 'There is nothing to compare.'
    )
    blocks.append(Lines(found) if found else Paragraph(nothing))
    if study.missing:
        blocks.append(Paragraph(f'NOT FINISHED: {len(study.missing)} planned runs are missing from all of this:'))
        blocks.append(Lines(study.missing))
    if by_score:
        note = 'Arm minus baseline, mean over the seeds with its 95 % interval; without a word there is no evidence.'
        blocks += [Heading('Arms and settings'), overview(study, by_score), Paragraph(note)]
    if told := [*study.remarks, *same_models(study), *doubtful_choices(study), *_what_verdicts_rest_on(comparisons)]:
        blocks += [Heading('To know before'), Lines(told)]
    failed: list[str] = []
    pictures, of_settings = draw_pictures(study, comparisons, out, failed)
    blocks += [Heading('Pictures'), *pictures] if pictures else []
    blocks += [Details('Pictures of the settings', of_settings)] if of_settings else []
    blocks += [Lines(failed)] if failed else []
    return [
        *blocks,
        Heading('Details'),
        *_details(study, comparisons),
        Details('How to read this', [Paragraph(_READING)]),
    ]


def _details(study: Study, comparisons: dict[str, list[Comparison]]) -> list[Details]:
    found: list[Details] = []
    by_score = comparisons[SCORE]
    decided = [table for table in study.tables if not table.apart]
    apart = [table for table in study.tables if table.apart]
    if decided:
        found.append(Details('Scores', [score_rows(study, decided)]))
    for metric, kind in study.metrics.items():
        if comparisons[metric]:
            unit = f', {kind.unit.replace("points", "points of 100")}' if metric != SCORE and kind.unit else ''
            better = ' (lower is better)' if kind.lower_is_better else ''
            title = f'Paired differences in {kind.name}{unit}{better}'
            found.append(Details(title, _differences_of(study, comparisons[metric])))
    if calibrated := calibration_blocks(study) if study.of_folders else []:
        found.append(Details('Calibration', calibrated))
    if apart:
        why = [f'{t.name}: {t.apart}; a constant answer scores {t.majority:.2f}.' for t in apart]
        found.append(
            Details('Set apart: these decide nothing', [score_rows(study, apart, with_majority=True), Lines(why)])
        )
    if any(each.mcnemar for each in by_score):
        found.append(Details('The same rows: McNemar, seed by seed (exploratory)', [mcnemar_rows(by_score)]))
    found.append(Details('Every seed', seed_rows(study)))
    if study.of_folders:
        found.append(Details('Cost in time', [time_rows(study)]))
    if study.tuning:
        note = 'Chosen on a held-out slice of train; the reported rows played no part.'
        found.append(Details('What was tuned', [Paragraph(note), tuning_rows(study)]))
    if remarks := _remarks(study) if study.of_folders else []:
        found.append(Details('Remarks', [Lines(remarks)]))
    return found


def _differences_of(study: Study, comparisons: Sequence[Comparison]) -> list[Block]:
    blocks: list[Block] = [difference_rows(study, comparisons)]
    if pooled := pooled_rows(study, comparisons):
        blocks += [
            Paragraph('Mean over all settings that decide, seed by seed (exploratory, over seeds alone):'),
            pooled,
        ]
    return blocks


def _what_verdicts_rest_on(comparisons: dict[str, list[Comparison]]) -> list[str]:
    family = [each for found in comparisons.values() for each in found if not each.apart and not each.kind.exploratory]
    alone = [each for each in family if each.crossed is None]
    if not alone:
        return []
    return [
        f'VERDICTS ON SEEDS ALONE: {len(alone)} of {len(family)} comparisons lack predictions of some run, and speak '
        'of these rows only: a t test over seeds claims what new rows would not show more often than 5 % of the time.'
    ]


def _remarks(study: Study) -> list[str]:
    """What a reader must know of the runs: data that differ between arms, and what the runs' data loaders said."""
    remarks = []
    for setting in dict.fromkeys(run.setting for run in study.runs):
        runs = [run for run in study.runs if run.setting == setting]
        if len({run.results.data_fingerprint for run in runs}) > 1:
            remarks.append(f'{setting}: the runs did not all see the same data (their fingerprints differ).')
        if len({run.results.versions.get('torch') for run in runs}) > 1:
            remarks.append(f'{setting}: the runs were made with several versions of torch.')
        remarks += [f'{setting}: {note}' for note in dict.fromkeys(note for run in runs for note in run.results.notes)]
    return remarks


def _comparison_row(each: Comparison) -> dict[str, Any]:
    row = {'setting': each.table, 'arm': each.arm, 'baseline': each.baseline, 'metric': each.metric}
    low, high = each.interval
    row |= {'verdict': each.verdict, 'rests_on': each.rests_on, 'low': low, 'high': high, 'p': each.p}
    row |= {'holm_p': each.holm_p, **each.difference._asdict()}
    return row | {'seeds_needed': each.seeds_needed, 'detectable_gain': each.detectable}


def _run_rows(study: Study) -> list[dict[str, Any]]:
    rows = []
    for table in study.tables:
        for run in (run for run in study.runs if run.setting == table.setting):
            row: dict[str, Any] = {'setting': run.setting, 'split': table.split, 'arm': run.arm, 'seed': run.seed}
            if run.stored is None:
                rows.append({**row, **run.scores[table.split]})
                continue
            row |= run.results.scores[table.split]
            row[SCALED_NLL] = run.score(table.split, SCALED_NLL)
            for space, information in run.results.cmi['after'].items():
                row |= {f'{name}_{space}': value for name, value in information.model_dump().items()}
            rows.append(row | {'steps': run.results.timing.steps, 'train_seconds': run.results.timing.train_seconds})
    return rows


def _csv(rows: Sequence[dict[str, Any]]) -> str:
    text = io.StringIO()
    names = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(text, names, lineterminator='\n')
    writer.writeheader()
    for row in rows:
        writer.writerow(
            {name: f'{value:.6g}' if isinstance(value, float) else _cell(value) for name, value in row.items()}
        )
    return text.getvalue()


def _cell(value: Any) -> Any:
    return for_csv(value) if isinstance(value, str) else value


def _as_json(study: Study, comparisons: Sequence[Comparison]) -> dict[str, Any]:
    rows = [
        {
            **_comparison_row(each),
            'by_seed': dict(zip(map(str, each.seeds), each.differences, strict=True)),
            'mcnemar': {str(seed): found._asdict() for seed, found in each.mcnemar.items()},
        }
        for each in comparisons
    ]
    tables = [table._asdict() for table in study.tables]
    return _finite({'name': study.name, 'tables': tables, 'missing': study.missing, 'comparisons': rows})


def _finite(value: Any) -> Any:
    """NaN is not JSON: it becomes null."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
