"""``composer-cmi``: starting files, one run, what can be named in it, and a study of many.

Nothing heavy is imported before it is used: a question for help is answered at once, and without Composer.
"""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from composer_cmi import __version__, registry
from composer_cmi.errors import ConfigError
from composer_cmi.exchange import command_line
from composer_cmi.run.command import imports, one_sentence, run_file
from composer_cmi.starters import STARTERS, write_starters

__all__ = ['app']

app = typer.Typer(
    help='Fine-tune, distil and compare text classifiers by conditional mutual information.',
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f'composer-cmi {__version__}')
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option('--version', callback=_show_version, is_eager=True, help='Print the version')
    ] = False,
) -> None:
    pass


@app.command('init')
def init_command(
    kind: Annotated[str, typer.Argument(help='demo, glue, custom (your own data) or study')],
    folder: Annotated[str, typer.Argument(metavar='[DIR]', help='Where the files go')] = '.',
) -> None:
    """Write commented files to start from."""
    with one_sentence():
        if kind not in STARTERS:
            known = ', '.join(STARTERS)
            raise ConfigError(f'There are no files for {kind!r}.{registry.nearest(kind, STARTERS)} Known: {known}.')
        written = write_starters(kind, folder)
    print(*written, sep='\n')
    command = f'composer-cmi {"sweep" if kind == "study" else "run"} {next(iter(STARTERS[kind]))}'
    print(f'Next: {command if Path(folder) == Path() else f"cd {shlex.quote(folder)} && {command}"}')


@app.command('run')
def run_command(
    yaml_file: Annotated[str, typer.Argument(help='A run, e.g. demo.yaml of `composer-cmi init demo`')],
    overrides: Annotated[list[str] | None, typer.Argument(help='key.sub=value, e.g. train.max_duration=1ep')] = None,
) -> None:
    """Run one YAML file on this machine; several processes: composer -n N -m composer_cmi FILE."""
    raise typer.Exit(run_file(yaml_file, overrides or []))


@app.command('list')
def list_command(
    kind: Annotated[str, typer.Argument(help='tasks, algorithms, models, loggers, callbacks or all')] = 'all',
) -> None:
    """List the tasks, algorithms, models, loggers and callbacks that a YAML file can name."""
    with one_sentence():
        for line in _lines(kind):
            print(line)


def _lines(kind: str) -> Iterator[str]:
    kinds: dict[str, Callable[[], tuple[list[str], Callable[[str], Any]]]] = {
        'tasks': lambda: (registry.known_tasks(), registry.get_task),
        'algorithms': _algorithms,
        'models': lambda: (registry.known_models(), registry.get_model),
        'loggers': _loggers,
        'callbacks': _callbacks,
    }
    if kind not in (*kinds, 'all'):
        known = ', '.join(kinds)
        raise ConfigError(f'There is no list of {kind!r}.{registry.nearest(kind, kinds)} Lists: {known}.')
    # One line each: cut to a terminal, whole in a file.
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for name, find in kinds.items():
        if kind in (name, 'all'):
            with imports('run', f'The list of {name}'):
                entries, get = find()
            yield f'{name}:'
            for entry in entries:
                yield f'  {entry:<{max(map(len, entries))}}  {_summary(get, entry)}'[:width]
    if kind in ('models', 'all'):
        yield 'Any Hugging Face hub name or folder, and any finished run folder, is a model too.'


def _algorithms() -> tuple[list[str], Callable[[str], Any]]:
    from composer_cmi.run.parts.by_name import get_algorithm, known_algorithms

    return known_algorithms(), get_algorithm


def _loggers() -> tuple[list[str], Callable[[str], Any]]:
    from composer_cmi.run.loggers import get_logger, known_loggers

    return known_loggers(), get_logger


def _callbacks() -> tuple[list[str], Callable[[str], Any]]:
    from composer_cmi.run.parts.by_name import get_callback, known_callbacks

    return known_callbacks(), get_callback


def _summary(get: Callable[[str], Any], name: str) -> str:
    try:
        return registry.describe(get(name))
    except ValueError as error:  # a task that is there to be refused, or a plugin that is broken
        return registry.describe(str(error))


@app.command('check')
def check_command(
    data: Annotated[str, typer.Argument(help='A file or folder of your own data, a task, or OWNER/NAME on the Hub')],
    task: Annotated[str | None, typer.Option(help="The task of a folder of GLUE's own files")] = None,
    text_column: Annotated[list[str] | None, typer.Option(help='A column of text (twice for pairs)')] = None,
    label_column: Annotated[str | None, typer.Option(help='The column of labels')] = None,
    unlabelled: Annotated[str | None, typer.Option(help='A file of text without labels')] = None,
    model: Annotated[str | None, typer.Option(help='Count the tokens of this model')] = None,
    max_length: Annotated[int, typer.Option(min=4, help='Tokens that a run would keep of a row')] = 128,
) -> None:
    """Say what a run would see of a data set, and all that is wrong with its files."""
    columns = {'text_columns': text_column, 'label_column': label_column}
    with one_sentence():
        with imports('run', 'A look at data'):
            from rich.console import Console

            from composer_cmi.data.check import check_data, render
        try:
            found = check_data(data, task=task, unlabelled=unlabelled, model=model, max_length=max_length, **columns)
        except (ValueError, FileNotFoundError) as error:
            raise ConfigError(str(error)) from error
        render(found, Console(highlight=False))
    raise typer.Exit(2 if found.faults else 0)


@app.command('try')
def try_command(
    data: Annotated[str, typer.Argument(help='A file or folder of your own labelled text, or OWNER/NAME on the Hub')],
    model: Annotated[str, typer.Option(help='What is fine-tuned: a hub name, a folder, a run')] = 'embedded:minilm',
    minutes: Annotated[float, typer.Option(help='How long it may take; decides how much is compared')] = 60.0,
    unlabelled: Annotated[str | None, typer.Option(help='A file of text without labels')] = None,
    teacher: Annotated[str | None, typer.Option(help='A classifier of these classes to distil from, besides')] = None,
    text_column: Annotated[list[str] | None, typer.Option(help='A column of text (twice for pairs)')] = None,
    label_column: Annotated[str | None, typer.Option(help='The column of labels')] = None,
    out: Annotated[str | None, typer.Option(help='Where everything goes; runs/try_NAME by default')] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help='Trainings at a time; by default one a core')] = None,
    plan: Annotated[bool, typer.Option('--plan', help='Measure, print the plan, and stop')] = False,
    train: Annotated[bool, typer.Option('--train', help='Train the recommended recipe at the end')] = False,
) -> None:
    """From labelled text to a decision: which recipe helps on these data, by how much, and its YAML file."""
    with one_sentence():
        with imports('run', 'A trial'):
            from composer_cmi.study.trial.trial import try_data
        trial = try_data(
            data,
            out,
            model=model,
            minutes=minutes,
            unlabelled=unlabelled,
            teacher=teacher,
            text_columns=text_column,
            label_column=label_column,
            jobs=jobs,
            plan_only=plan,
        )
    if train and trial is not None and trial.recipe is not None:
        raise typer.Exit(run_file(str(trial.recipe), []))


@app.command('schema')
def schema_command(kind: Annotated[str, typer.Argument(help='run or study')] = 'run') -> None:
    """Print the JSON schema of a run's or a study's YAML file, for editors."""
    with one_sentence():
        if kind not in ('run', 'study'):
            raise ConfigError(f'There is no schema of {kind!r}: it is run or study.')
        with imports('run', 'The schema'):
            from composer_cmi.run.config.json_schema import run_json_schema
            from composer_cmi.study.json_schema import study_json_schema
        print(json.dumps(run_json_schema() if kind == 'run' else study_json_schema(), indent=2))


@app.command('submit')
def submit_command(
    folders: Annotated[list[str], typer.Argument(help='Finished runs of GLUE tasks, one a task')],
    out: Annotated[str, typer.Option(help='Where the files go')] = 'submission',
    run_code: Annotated[
        bool, typer.Option('--run-code', help="Run the code_paths of the folders' configurations")
    ] = False,
) -> None:
    """Predict the test splits of finished GLUE runs and write the leaderboard's TSV files."""
    with one_sentence():
        with imports('run', 'A submission'):
            from composer_cmi.run.outputs.submission import submit
        files = submit(folders, out, run_code=run_code)
    print(*files, sep='\n')
    print('The site wants them in one zip with a file for every task: STS-B.tsv and AX.tsv come from elsewhere.')


@app.command('sweep')
def sweep_command(
    study_file: Annotated[
        str, typer.Argument(help='A study, e.g. studies/mincmi_small.yaml of `composer-cmi init study`')
    ],
    overrides: Annotated[list[str] | None, typer.Argument(help="key.sub=value of the study's keys: seeds=30")] = None,
    jobs: Annotated[int, typer.Option(help='Runs at a time')] = 1,
    backend: Annotated[
        str,
        typer.Option(help='local: this machine; ray: a Ray cluster; commands: print one line a run for a scheduler'),
    ] = 'local',
    dry_run: Annotated[bool, typer.Option('--dry-run', help='Check the study and list its runs')] = False,
) -> None:
    """Do what is left of a study: every setting, arm and seed once, tuned arms first."""
    with one_sentence():
        with imports('run', 'A study'):
            from rich.console import Console

            from composer_cmi.study.execution.sweep import describe, sweep
        summary = sweep(study_file, overrides or [], jobs=jobs, backend=backend, dry_run=dry_run)
    if not dry_run and backend != 'commands':
        describe(summary, study_file, Console(file=sys.stdout, highlight=False))
    raise typer.Exit(1 if summary.failed else 0)


@app.command('report')
def report_command(
    folder: Annotated[str | None, typer.Argument(help="A study's folder, or any folder with finished runs")] = None,
    table: Annotated[
        str | None,
        typer.Option('--from', help='Instead, a file of scores (setting, arm, seed, score) or of predictions'),
    ] = None,
    out: Annotated[str | None, typer.Option(help='Where to write; beside what is read by default')] = None,
    against: Annotated[
        list[str] | None,
        typer.Option('--baseline', '--against', help='Compare with this arm (may be repeated)'),
    ] = None,
    lower: Annotated[list[str] | None, typer.Option(help='A column of --from whose lower values are better')] = None,
) -> None:
    """Say what a study, or a table of scores, shows: tables and pictures as HTML, Markdown, LaTeX, CSV and JSON."""
    with one_sentence():
        if (folder is None) == (table is None):
            raise ConfigError('Report on what? Give a folder of runs, or --from and a file of scores or predictions.')
        if folder is not None and lower:
            raise ConfigError('--lower is for columns of --from: what a run scores is known.')
        with imports('run', "A study's report"):
            from composer_cmi.study.findings.report import report, report_from
        if folder is not None:
            files = report(folder, out, against or [])
        else:
            files = report_from(str(table), out, against or [], lower or [])
    sections = files['markdown'].read_text(encoding='utf-8').split('\n## ')
    told = [section for section in sections if section.startswith(('What was found', 'To know before'))]
    found = [section.split('\n', 1)[1].strip() for section in told]
    print(*found, *(f'{name}: {path}' for name, path in files.items()), sep='\n')


app.command('predict')(command_line.predict_command)
app.command('cache')(command_line.cache_command)
app.command('push')(command_line.push_command)
app.command('export')(command_line.export_command)


if __name__ == '__main__':
    app()
