"""`composer-cmi sweep study.yaml`: all runs of a study, each once, in two phases: tune on a slice of train, report.

Nothing is kept but run folders and two small files, `tuning.json` (what was tried and chosen) and `study.json` (the
plan, for the report). A sweep that is killed is started again by the same command.
"""

from __future__ import annotations

import shlex
import shutil
import tempfile
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from composer_cmi.errors import ConfigError
from composer_cmi.run.outputs.files import write_json
from composer_cmi.study.config import StudyConfig, combinations, load_study
from composer_cmi.study.execution.cluster import RayBackend
from composer_cmi.study.execution.facts import changes, definition, read_facts, study_facts
from composer_cmi.study.execution.plan import Cell, plan_reported, plan_tuning
from composer_cmi.study.execution.processes import LocalBackend, command_of, is_finished, job_of, log_file
from composer_cmi.study.execution.progress import Progress
from composer_cmi.study.execution.refusals import check_cells, check_slices, rehearse_runs
from composer_cmi.study.execution.tuning import choose

__all__ = ['BACKENDS', 'STUDY_FILE', 'TUNING_FILE', 'Summary', 'describe', 'run_cells', 'sweep']

BACKENDS = ('local', 'ray', 'commands')
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
        backend: 'local', 'ray', or 'commands', which starts nothing and prints a line for a shell for each run that can
            be done now: those of tuning first, and those of teachers before their students.
        dry_run: check and print the plan only.
        runner: a command that a run's file and overrides are appended to, instead of `composer-cmi run`.
        console: where progress is shown.

    Raises:
        ConfigError: in one sentence, before the first run, for whatever is wrong.
        KeyboardInterrupt, SystemExit: on Ctrl-C and SIGTERM, after its runs are ended and a line says how far it got.
    """
    # Commands are alone on the standard output.
    console = console or Console(highlight=False, stderr=backend == 'commands')
    study = load_study(path, overrides)
    if jobs < 1:
        raise ConfigError(f'--jobs must be at least 1, got {jobs}.')
    if backend not in BACKENDS:
        raise ConfigError(f'--backend must be one of {", ".join(BACKENDS)}, got {backend!r}.')
    tuning = plan_tuning(study)
    # The first candidate stands in for what is not chosen yet: any error of a run shows before the first one starts.
    foreseen = plan_reported(study, _first_candidates(tuning, study))
    unsettled = {name for name, arm in study.arms.items() if arm.tune or arm.tuned_as}
    check_cells(study, [*tuning, *foreseen], may_differ=unsettled)
    repeats = check_slices(study, tuning, foreseen)
    everything = [*tuning, *foreseen]
    weak = rehearse_runs(study, [cell for cell in everything if not is_finished(cell.folder)])
    names = f'{len(study.settings)} settings, arms {", ".join(study.arms)}, {len(study.seeds)} seeds'
    console.print(f'{study.name}: {names}; {len(tuning)} tuning runs, then {len(foreseen)} reported runs', markup=False)
    for sentence in weak:
        console.print(sentence, markup=False)
    for setting, rows in repeats.items():
        console.print(f'{setting}: {len(rows)} rows of the held-out slice repeat reported texts; tuning ignores them')
    facts = read_facts(study.folder / STUDY_FILE)
    if changed := changes(facts.get('definition'), definition(study)):
        kept = sum(is_finished(cell.folder) for cell in everything)
        console.print(
            f'The study has changed since its last sweep: {changed}; {kept} finished runs are kept', markup=False
        )
    if dry_run:
        for cell in everything:
            state = 'finished' if is_finished(cell.folder) else 'to do'
            console.print(f'{state:9} {cell.folder}', markup=False)
        return Summary(0, 0, {})
    _refuse_read_only(study.folder)
    if backend == 'commands':
        return _print_commands(study, tuning, repeats, runner, console)
    engine = LocalBackend() if backend == 'local' else RayBackend(study.threads)
    try:
        first = run_cells(study, tuning, engine, jobs, runner, console, 'tuning')
        reported = _settle(study, tuning, repeats)
        second = run_cells(study, reported, engine, jobs, runner, console, 'reported')
    except BaseException as error:
        engine.stop()
        # Composer's own handler makes a SystemExit of Ctrl-C and SIGTERM.
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            done = sum(is_finished(cell.folder) for cell in everything)
            console.print(
                f'Stopped: {done} of {len(everything)} runs are finished. The same command goes on: '
                f'{shlex.join(["composer-cmi", "sweep", str(path), *overrides])}',
                markup=False,
                soft_wrap=True,
            )
        raise
    failed = {**first.failed, **second.failed}
    there = {(cell.setting, cell.arm) for cell in reported}
    for setting, arm in sorted({(cell.setting, cell.arm) for cell in tuning} - there):
        failed[f'{study.folder}/runs/{setting}/{arm}'] = 'none of its tuning runs has finished'
    return Summary(first.skipped + second.skipped, first.done + second.done, failed)


def _refuse_read_only(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(f'The study folder {folder} cannot be written to: {error.strerror or error}.') from error


def _settle(study: StudyConfig, tuning: Sequence[Cell], repeats: Mapping[str, Collection[int]]) -> list[Cell]:
    """Choose what is tuned, write both files of the study, and plan the reported runs."""
    chosen, choices = choose(study, tuning, repeats)
    if tuning:
        write_json(study.folder / TUNING_FILE, choices)
    reported = plan_reported(study, chosen)
    check_cells(study, reported)
    write_json(study.folder / STUDY_FILE, study_facts(study, reported))
    return reported


def _print_commands(
    study: StudyConfig,
    tuning: Sequence[Cell],
    repeats: Mapping[str, Collection[int]],
    runner: Sequence[str] | None,
    console: Console,
) -> Summary:
    cells = [cell for cell in tuning if not is_finished(cell.folder)]
    if cells:
        then = 'when they have finished, the same command prints the reported ones'
        console.print(f'{len(cells)} tuning runs; {then}', markup=False)
    else:
        cells = _settle(study, tuning, repeats)
        by_folder = {cell.folder: cell for cell in cells}

        def depth(cell: Cell) -> int:
            return 1 + max((depth(by_folder[needed]) for needed in cell.needs), default=-1)

        cells = sorted((cell for cell in cells if not is_finished(cell.folder)), key=depth)
        console.print(f'{len(cells)} reported runs; a line that ends with "# needs" waits for those runs', markup=False)
    for cell in cells:
        needs = [needed for needed in cell.needs if not is_finished(needed)]
        end = f'  # needs {" ".join(needs)}' if needs else ''
        print(command_of(job_of(cell, study.base, study.threads, runner)) + end, flush=True)
    return Summary(0, 0, {})


def _first_candidates(tuning: Sequence[Cell], study: StudyConfig) -> dict[tuple[str, str], dict[str, Any]]:
    return {(cell.setting, cell.arm): combinations(study.arms[cell.arm].tune)[0] for cell in tuning}


def run_cells(
    study: StudyConfig,
    cells: Sequence[Cell],
    engine: LocalBackend | RayBackend,
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
            while len(running) < jobs and (cell := _next(waiting, not_before)):
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
            if study.keep_models is not True:
                _tidy(cells, study.keep_models or ())
            if waiting or running:
                time.sleep(_POLL)
    return Summary(skipped, done, failed)


def _next(waiting: Sequence[Cell], not_before: Mapping[str, float]) -> Cell | None:
    now = time.monotonic()
    for cell in waiting:
        if not_before.get(cell.folder, 0.0) <= now and all(is_finished(needed) for needed in cell.needs):
            return cell
    return None


def _tidy(cells: Sequence[Cell], keep: Collection[str]) -> None:
    """Remove the weights of finished runs once nobody needs them: a study would fill the disk with models."""
    needed = {folder for cell in cells if not is_finished(cell.folder) for folder in cell.needs}
    for cell in cells:
        if cell.folder not in needed and is_finished(cell.folder):
            of_kept = cell.candidate is None and cell.arm.split(',')[0] in keep
            for name in ('checkpoints',) if of_kept else ('checkpoints', 'model'):
                if (Path(cell.folder) / name).exists():
                    shutil.rmtree(Path(cell.folder) / name, ignore_errors=True)


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
