"""The one page that a trial ends with, in a browser and on a terminal."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table as Screen

from composer_cmi.data.check import render
from composer_cmi.pages import Block, Bold, Code, Details, Heading, Lines, Paragraph, Rows, to_html
from composer_cmi.run.outputs.files import write_text
from composer_cmi.study.findings.analysis import Comparison
from composer_cmi.study.findings.pictures import draw_pictures
from composer_cmi.study.findings.study import SCORE, Study
from composer_cmi.study.findings.tables import interval, signed, tuning_rows
from composer_cmi.study.trial.decision import Decision
from composer_cmi.study.trial.files import FINAL
from composer_cmi.study.trial.look import Look
from composer_cmi.study.trial.plan import CONTROL, Plan

__all__ = ['PAGE', 'for_screen', 'recipe_rows', 'write_page']

PAGE = 'page.html'
_READING = (
    'Every recipe trained the same number of models, from the same seeds, on the same rows; each is compared with '
    'tuned cross-entropy seed by seed. An interval is of 95 %, over seeds and rows together; a gain or a loss is '
    'claimed only where chance would give it in less than 5 % of whole trials (Holm over all comparisons of the '
    'trial). Length and rate were chosen on rows held out of train, with other seeds. Students of one average share '
    'some of its members, so their seeds are a little less independent than they look.'
)


def recipe_rows(study: Study, found: Mapping[str, Sequence[Comparison]], plan: Plan, chosen: str | None) -> Rows:
    """A row a recipe: mean score, difference to tuned cross-entropy, verdict, probabilities, time."""
    table = study.tables[0]
    words = {recipe.name: recipe.words for recipe in plan.recipes}
    against = {each.arm: each for each in found[SCORE] if each.baseline == CONTROL and each.table == table.name}
    rows = []
    for arm in study.arms:
        runs = list(study.of(table.setting, arm).values())
        mean = {m: float(np.mean([run.score(table.split, m) for run in runs])) for m in (table.metric, 'nll', 'ece')}
        each = against.get(arm)
        difference, verdict = ('', '') if each is None else (
            f'{signed(each.difference.mean, each.kind)} {interval(*each.interval, each.kind)}', each.verdict
        )  # fmt: skip
        seconds = float(np.mean([run.results.timing.total_seconds for run in runs]))
        cells = [words.get(arm, arm), f'{mean[table.metric]:.1f}', difference, verdict]
        cells += [f'{mean["nll"]:.3f}', f'{mean["ece"]:.1f}', f'{seconds:.0f}']
        rows.append([Bold(cell) for cell in cells] if arm == chosen else cells)
    header = ['recipe', table.metric, 'against tuned cross-entropy', 'verdict', 'NLL', 'ECE']
    return Rows([*header, 'seconds'], rows)


def for_screen(rows: Rows, study: Study) -> Screen:
    """The same for eighty columns: recipes by their short names."""
    screen = Screen()
    for column in ('recipe', rows.header[1], 'against ce_tuned', 'verdict', 'NLL', 'seconds'):
        screen.add_column(column, justify='left' if column in ('recipe', 'verdict') else 'right')
    for arm, (_, score, difference, verdict, nll, _, seconds) in zip(study.arms, rows.rows, strict=True):
        short = verdict if verdict in ('', 'gain', 'loss') else 'none proven'
        cells = (arm, score, difference, short, nll, seconds)
        screen.add_row(*map(escape, cells), style='bold' if isinstance(score, Bold) else None)
    return screen


def write_page(
    out: Path,
    study: Study,
    found: dict[str, list[Comparison]],
    plan: Plan,
    look: Look,
    decision: Decision,
    recipe: str,
) -> Path:
    """Write the page of a trial.

    Args:
        out: the trial's folder.
        study: its runs.
        found: their comparisons.
        plan: what was planned.
        look: what the data are.
        decision: what is recommended.
        recipe: the recommended YAML file, or empty.
    """
    failed: list[str] = []
    of_all, of_settings = draw_pictures(study, found, out / 'study' / 'report', failed)
    pictures = [*of_all, *of_settings]
    blocks: list[Block] = [
        Heading('What helps on these data', 1),
        *map(Paragraph, map(Bold, decision.sentences[:1])),
        *map(Paragraph, decision.sentences[1:]),
        *([Lines(decision.notes)] if decision.notes else []),
        recipe_rows(study, found, plan, decision.arm),
        *pictures[:1],
    ]
    if recipe:
        text = f'Train it: composer-cmi run {out / FINAL}'
        blocks += [Heading('The recommended recipe'), Paragraph(text), Code(recipe, 'yaml')]
    blocks += [Heading('Details'), Details('What the data are', [Code(data_text(look))])]
    if study.tuning:
        blocks.append(Details('What was tuned, on rows held out of train', [tuning_rows(study)]))
    if len(pictures) > 1:
        blocks.append(Details('More pictures', pictures[1:]))
    told = [*study.remarks, *failed, *(f'NOT FINISHED: {each}' for each in study.missing)]
    if plan.left_out:
        told.append(f'Left out, as the time did not allow them: {", ".join(plan.left_out)}.')
    if told:
        blocks.append(Details('Remarks', [Lines(told)]))
    blocks.append(Details('How to read this', [Paragraph(_READING)]))
    write_text(out / PAGE, to_html(blocks, 'What helps on these data'))
    return out / PAGE


def data_text(look: Look) -> str:
    """What `composer-cmi check` prints of the data."""
    text = io.StringIO()
    render(look.findings, Console(file=text, width=100, no_color=True, highlight=False))
    return text.getvalue()
