"""`composer-cmi try DATA`: look, measure, plan, sweep, decide, and on request train what is recommended."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from rich.console import Console
from rich.table import Table as Screen

from composer_cmi.data.check import render
from composer_cmi.data.own_files import may_be_on_hub
from composer_cmi.errors import ConfigError
from composer_cmi.run.outputs.files import write_json, write_text
from composer_cmi.study.config import load_study
from composer_cmi.study.execution.sweep import describe, sweep
from composer_cmi.study.findings.analysis import compare
from composer_cmi.study.findings.study import load_runs
from composer_cmi.study.trial import files
from composer_cmi.study.trial.decision import Decision, decide
from composer_cmi.study.trial.look import Look, look_at
from composer_cmi.study.trial.pace import measure_pace
from composer_cmi.study.trial.page import for_screen, recipe_rows, write_page
from composer_cmi.study.trial.plan import BATCH, Pace, Plan, plan_trial

__all__ = ['Trial', 'try_data']


class Trial(NamedTuple):
    """What a trial found: the decision, its page, and the run file of the recipe (None where none is recommended)."""

    decision: Decision
    page: Path
    recipe: Path | None


def try_data(
    data: Any,
    out: str | Path | None = None,
    *,
    model: str = 'embedded:minilm',
    minutes: float = 60.0,
    unlabelled: str | Path | None = None,
    teacher: str | None = None,
    text_columns: Sequence[str] | None = None,
    label_column: str | None = None,
    jobs: int | None = None,
    plan_only: bool = False,
    console: Console | None = None,
    runner: Sequence[str] | None = None,
) -> Trial | None:
    """Compare recipes on labelled text, and recommend one.

    What is done is printed before it starts, and is kept in ordinary files below `out`: the same call goes on where an
    earlier one was stopped.

    Args:
        data: a file, a folder with a train file, a `datasets` folder, `OWNER/NAME` of a Hub's data set, or a
            `pandas.DataFrame`.
        out: the trial's folder; `runs/try_NAME` by default.
        model: what is fine-tuned, as `model.name_or_path` of a run.
        minutes: how long it may take. It decides how much is compared, and is planned for, not enforced.
        unlabelled: a file of text without labels.
        teacher: a classifier of the same classes to distil from, besides.
        text_columns: the column of text, or two for pairs; guessed by default.
        label_column: the column of labels; guessed by default.
        jobs: runs at a time; the number of CPU cores by default, one with a GPU.
        plan_only: print the plan and stop.
        console: where it is told.
        runner: see `sweep`.

    Returns:
        The decision, or None with `plan_only`.

    Raises:
        ConfigError: in one sentence, for whatever is wrong with the arguments, the data, the time or the folder.
    """
    console = console or Console(highlight=False)
    if not minutes > 0:
        raise ConfigError(f'--minutes must be above 0, got {minutes:g}.')
    place, out = _places(data, out)
    section = {
        **place,
        'unlabelled': None if unlabelled is None else str(Path(unlabelled).expanduser().absolute()),
        'text_columns': list(text_columns) if text_columns else None,
        'label_column': label_column,
    }
    section = {key: value for key, value in section.items() if value is not None}
    asked = {'data': section, 'model': model, 'minutes': float(minutes), 'teacher': teacher}
    goes_on = files.take_up(out, asked)
    look = look_at(model, section)
    render(look.findings, console)
    plan = _planned(out, asked, look, jobs or _cores(), console, runner, goes_on)
    _show(plan, look, console)
    if plan_only:
        return None
    summary = sweep(out / files.STUDY, jobs=jobs or _cores(), console=console, runner=runner)
    if summary.failed:
        describe(summary, out / files.STUDY, console)
    return _conclude(out, plan, look, console)


def _places(data: Any, out: str | Path | None) -> tuple[dict[str, str], Path]:
    """Where the data are and, absolute, where the trial is; a DataFrame becomes a file in the latter."""
    if isinstance(data, (str, Path)):
        path = Path(data).expanduser().absolute()
        on_hub = not path.exists() and may_be_on_hub(str(data))
        place = {'hub': str(data)} if on_hub else {'path': str(path)}
        return place, Path(out or f'runs/try_{path.stem}').expanduser().absolute()
    if not hasattr(data, 'to_json'):
        raise ConfigError(f'data must be a path or a pandas.DataFrame, got {type(data).__name__}.')
    out = Path(out or 'runs/try_dataframe').expanduser().absolute()
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / 'data.jsonl', data.to_json(orient='records', lines=True, force_ascii=False))
    return {'path': str(out / 'data.jsonl')}, out


def _cores() -> int:
    import torch

    return 1 if torch.cuda.is_available() else max(len(os.sched_getaffinity(0)), 1)


def _planned(
    out: Path,
    asked: dict[str, Any],
    look: Look,
    jobs: int,
    console: Console,
    runner: Sequence[str] | None,
    goes_on: bool,
) -> Plan:
    """The plan of this folder: the one that is there, or a new one by a measurement."""
    if goes_on:
        pace = _kept_pace(out / files.PLAN)
        console.print(f'Going on with the trial in {out}.', markup=False, soft_wrap=True)
        return plan_trial(look, pace, asked['minutes'], asked['teacher'], str(out / 'logits'))
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / files.ASKED, asked)
    title = 'Plain cross-entropy on your data: what the study varies.'
    files.write_yaml(out / files.BASE, files.base_run(out, asked['model'], asked['data'], look, 10), title)
    console.print('Measuring how long a run takes here ...')
    pace = measure_pace(out / files.BASE, out / 'pace', jobs, runner)
    plan = plan_trial(look, pace, asked['minutes'], asked['teacher'], str(out / 'logits'))
    base = files.base_run(out, asked['model'], asked['data'], look, plan.short)
    files.write_yaml(out / files.BASE, base, title)
    write_json(out / files.PLAN, pace._asdict())
    files.write_yaml(out / files.STUDY, files.study_file(out, plan), 'What is compared. composer-cmi sweep study.yaml')
    return plan


def _kept_pace(path: Path) -> Pace:
    try:
        return Pace(**json.loads(path.read_text(encoding='utf-8')))
    except (ValueError, TypeError, OSError) as error:
        raise ConfigError(
            f'{path} is not what a trial writes ({error}): delete {path.parent} to start again.'
        ) from error


def _show(plan: Plan, look: Look, console: Console) -> None:
    screen = Screen(title=f'The plan: {plan.runs} trainings, about {plan.minutes:.0f} minutes', title_justify='left')
    for column in ('recipe', 'what', 'models'):
        screen.add_column(column, justify='right' if column == 'models' else 'left')
    for recipe in plan.recipes:
        screen.add_row(recipe.name, recipe.words, str(plan.seeds))
    console.print(screen)
    epochs = plan.steps * BATCH / look.rows
    console.print(
        f'Tuned first, on rows held out of train: rate, and {plan.short} or {plan.steps} steps ({epochs:.1f} epochs).'
    )
    if plan.cut:
        console.print(plan.cut)
    if plan.left_out:
        console.print(f'Left out, as the time does not allow them: {", ".join(plan.left_out)}.')
    console.print('It can be stopped at any time: the same command goes on.')


def _conclude(out: Path, plan: Plan, look: Look, console: Console) -> Trial:
    study = load_runs(out / 'study')
    found = compare(study)
    decision = decide(study, found, plan.recipes)
    if plan.cut:
        decision = decision._replace(notes=[plan.cut, *decision.notes])
    recipe, text = None, ''
    if decision.arm is not None:
        tuned = next((row['values'] for row in study.tuning if row['chosen']), {})
        base = yaml.safe_load((out / files.BASE).read_text(encoding='utf-8'))
        settings = load_study(out / files.STUDY)
        takes = settings.arms[decision.arm].tune or settings.arms[decision.arm].tuned_as
        content = files.recommended_run(out, base, settings, decision.arm, tuned if takes else {})
        recipe = out / files.FINAL
        text = files.write_yaml(recipe, content, f'Recommended: composer-cmi run {recipe}')
    page = write_page(out, study, found, plan, look, decision, text)
    console.print(for_screen(recipe_rows(study, found, plan, decision.arm), study))
    for line in (*decision.sentences, *decision.notes):
        console.print(line, markup=False, soft_wrap=True)
    for name, path in (('Page', page), ('Recipe', recipe)):
        if path is not None:
            console.print(f'{name}: {path}', markup=False, soft_wrap=True)
    return Trial(decision, page, recipe)
