"""`composer-cmi sweep study.yaml`: all runs of a study, each once, in two phases: tune on a slice of train, report.

Nothing is kept but run folders and two small files, `tuning.json` (what was tried and chosen) and `study.json` (the
plan, for the report). A sweep that is killed is started again by the same command.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console

from composer_cmi.errors import ConfigError
from composer_cmi.run.outputs.files import write_json
from composer_cmi.run.outputs.results import load_results
from composer_cmi.study.config import StudyConfig, combinations, load_study
from composer_cmi.study.execution.plan import Cell, check_cells, names_of_tuned_ce, plan_reported, plan_tuning
from composer_cmi.study.execution.processes import Backend, LocalBackend, RayBackend, is_finished, job_of, log_file
from composer_cmi.study.execution.progress import Progress
from composer_cmi.study.execution.slices import check_slices

__all__ = ['STUDY_FILE', 'TUNING_FILE', 'Summary', 'choose', 'describe', 'run_cells', 'sweep']

STUDY_FILE = 'study.json'
TUNING_FILE = 'tuning.json'
_POLL = 0.2
_BUSY_AGAIN = 2.0


class Summary(NamedTuple):
    """What a sweep did: runs finished before, runs finished now, and why the others are not."""

    skipped: int
    done: int
    failed: dict[str, str]


def sweep(
    path: str | Path,
    overrides: Sequence[str] = (),
    *,
    jobs: int = 1,
    backend: str = 'local',
    dry_run: bool = False,
    runner: Sequence[str] | None = None,
    console: Console | None = None,
) -> Summary:
    """Do what is left of a study.

    Args:
        path: the study's YAML file.
        overrides: `key=value` of the study's own keys.
        jobs: runs at a time.
        backend: 'local' or 'ray'.
        dry_run: check and print the plan only.
        runner: a command that a run's file and overrides are appended to, instead of `composer-cmi run`.
        console: where progress is shown.

    Raises:
        ConfigError: in one sentence, before the first run, for whatever is wrong.
    """
    console = console or Console(highlight=False)
    study = load_study(path, overrides)
    if jobs < 1:
        raise ConfigError(f'--jobs must be at least 1, got {jobs}.')
    if backend not in ('local', 'ray'):
        raise ConfigError(f"--backend must be 'local' or 'ray', got {backend!r}.")
    tuning = plan_tuning(study)
    # The first candidate stands in for what is not chosen yet: any error of a run shows before the first one starts.
    foreseen = plan_reported(study, _first_candidates(tuning, study))
    unsettled = {name for name, arm in study.arms.items() if arm.tune or arm.tuned_as}
    check_cells(study, [*tuning, *foreseen], may_differ=unsettled)
    check_slices(study, tuning, foreseen)
    names = f'{len(study.settings)} settings, arms {", ".join(study.arms)}, {len(study.seeds)} seeds'
    console.print(f'{study.name}: {names}; {len(tuning)} tuning runs, then {len(foreseen)} reported runs', markup=False)
    if dry_run:
        for cell in (*tuning, *foreseen):
            state = 'finished' if is_finished(cell.folder) else 'to do'
            console.print(f'{state:9} {cell.folder}', markup=False)
        return Summary(0, 0, {})
    engine: Backend = LocalBackend(jobs) if backend == 'local' else RayBackend(jobs, study.threads)
    try:
        first = run_cells(study, tuning, engine, jobs, runner, console, 'tuning')
        chosen, choices = choose(study, tuning)
        if tuning:
            write_json(study.folder / TUNING_FILE, choices)
        reported = plan_reported(study, chosen)
        check_cells(study, reported)
        write_json(study.folder / STUDY_FILE, _study_facts(study, reported))
        second = run_cells(study, reported, engine, jobs, runner, console, 'reported')
    except BaseException:
        engine.stop()
        raise
    failed = {**first.failed, **second.failed}
    for setting, arm in sorted({(cell.setting, cell.arm) for cell in tuning} - set(chosen)):
        failed[f'{study.folder}/runs/{setting}/{arm}'] = 'none of its tuning runs has finished'
    return Summary(first.skipped + second.skipped, first.done + second.done, failed)


def _first_candidates(tuning: Sequence[Cell], study: StudyConfig) -> dict[tuple[str, str], dict[str, Any]]:
    return {(cell.setting, cell.arm): combinations(study.arms[cell.arm].tune)[0] for cell in tuning}


def _study_facts(study: StudyConfig, cells: Sequence[Cell]) -> dict[str, Any]:
    return {
        'name': study.name,
        'arms': list(dict.fromkeys(cell.arm for cell in cells)),
        'baselines': ['ce', *(name for name in names_of_tuned_ce(study) if name != 'ce')],
        'comparisons': study.comparisons,
        'gain': study.gain,
        'runs': [f'{Path(cell.folder).relative_to(study.folder)}' for cell in cells],
    }


def run_cells(
    study: StudyConfig,
    cells: Sequence[Cell],
    engine: Backend,
    jobs: int,
    runner: Sequence[str] | None,
    console: Console,
    phase: str,
) -> Summary:
    """Do every cell that is not finished, once; a failed one is reported and blocks only those that need it."""
    by_folder = {str(Path(cell.folder).absolute()): cell for cell in cells}
    waiting = [cell for cell in cells if not is_finished(cell.folder)]
    skipped, done, failed = len(cells) - len(waiting), 0, {}
    not_before: dict[str, float] = {}
    running: set[str] = set()
    with Progress(phase, cells, jobs, console) as progress:
        while waiting or running:
            for cell in [cell for cell in waiting if any(needed in failed for needed in cell.needs)]:
                waiting.remove(cell)
                failed[cell.folder] = 'a run that it needs has failed'
                progress.failed(cell, failed[cell.folder])
            while engine.free() > 0 and (cell := _next(waiting, not_before)):
                waiting.remove(cell)
                running.add(cell.folder)
                progress.started(cell)
                engine.submit(job_of(cell, study.base, study.threads, runner))
            for outcome in engine.poll():
                cell = by_folder[outcome.folder]
                running.discard(cell.folder)
                if outcome.state == 'busy':
                    not_before[cell.folder] = time.monotonic() + _BUSY_AGAIN
                    waiting.append(cell)
                    progress.waits(cell)
                elif outcome.state == 'failed':
                    failed[cell.folder] = outcome.message
                    progress.failed(cell, outcome.message)
                else:
                    done += 1
                    progress.finished(cell, outcome)
            if not study.keep_models:
                _tidy(cells)
            if waiting or running:
                time.sleep(_POLL)
    return Summary(skipped, done, failed)


def _next(waiting: Sequence[Cell], not_before: Mapping[str, float]) -> Cell | None:
    now = time.monotonic()
    for cell in waiting:
        if not_before.get(cell.folder, 0.0) <= now and all(is_finished(needed) for needed in cell.needs):
            return cell
    return None


def _tidy(cells: Sequence[Cell]) -> None:
    """Remove the weights of finished runs once nobody needs them: a study would fill the disk with models."""
    needed = {folder for cell in cells if not is_finished(cell.folder) for folder in cell.needs}
    for cell in cells:
        if cell.folder not in needed and is_finished(cell.folder):
            for name in ('checkpoints', 'model'):
                if (Path(cell.folder) / name).exists():
                    shutil.rmtree(Path(cell.folder) / name, ignore_errors=True)


def choose(
    study: StudyConfig, tuning: Sequence[Cell]
) -> tuple[dict[tuple[str, str], dict[str, Any]], list[dict[str, Any]]]:
    """The best candidate of each tuned arm and setting, by the mean primary score over the tuning seeds.

    A candidate counts when all of its tuning runs have finished. Equal means are decided by NLL, then by order.

    Returns:
        The chosen values by setting and arm, and all tries as rows for `tuning.json`.
    """
    chosen: dict[tuple[str, str], dict[str, Any]] = {}
    rows: list[dict[str, Any]] = []
    for setting, arm in dict.fromkeys((cell.setting, cell.arm) for cell in tuning):
        candidates = combinations(study.arms[arm].tune)
        tries = []
        for number, values in enumerate(candidates):
            mine = [cell for cell in tuning if (cell.setting, cell.arm, cell.candidate) == (setting, arm, number)]
            runs = [load_results(cell.folder) for cell in mine]
            found = [run for run in runs if run is not None]
            complete = len(found) == len(mine)
            nll = [next(iter(run.scores.values())).get('nll', 0.0) for run in found]
            row = {
                'setting': setting,
                'arm': arm,
                'values': values,
                'scores': [run.primary_score for run in found],
                'nll': nll,
                'chosen': False,
            }
            rows.append(row)
            if complete:
                tries.append(((round(float(np.mean(row['scores'])), 9), -float(np.mean(nll)), -number), row))
        if tries:
            best = max(tries, key=lambda each: each[0])[1]
            best['chosen'] = True
            chosen[setting, arm] = best['values']
    return chosen, rows


def describe(summary: Summary, study_file: str | Path, console: Console) -> None:
    """Say how a sweep ended, with the log of each run that failed."""
    console.print(
        f'{summary.skipped} runs were finished before, {summary.done} finished now, {len(summary.failed)} failed.'
    )
    for folder, reason in summary.failed.items():
        log = log_file(folder)
        console.print(f'FAILED {folder}: {reason}' + (f' (log: {log})' if log.exists() else ''), markup=False)
    if summary.failed:
        console.print(f'The same command does the failed ones again: composer-cmi sweep {study_file}', markup=False)
