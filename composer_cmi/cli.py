"""``composer-cmi``: run a YAML file, list what can be named in one, run and report a study of many."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer
from rich.console import Console

from composer_cmi import registry
from composer_cmi.errors import ConfigError
from composer_cmi.run.command import fail, run_file

__all__ = ['app']

app = typer.Typer(
    help='Fine-tune, distil and compare text classifiers by conditional mutual information.',
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.command('run')
def run_command(
    yaml_file: Annotated[str, typer.Argument(help='A run, e.g. yamls/demo_mincmi.yaml')],
    overrides: Annotated[list[str] | None, typer.Argument(help='key.sub=value, e.g. train.max_duration=1ep')] = None,
) -> None:
    """Run one YAML file on this machine; several processes: composer -n N train.py FILE."""
    raise typer.Exit(run_file(yaml_file, overrides or []))


@app.command('list')
def list_command(
    kind: Annotated[str, typer.Argument(help='tasks, algorithms, models, loggers or all')] = 'all',
) -> None:
    """List the tasks, algorithms, models and loggers that a YAML file can name."""
    from composer_cmi.run.loggers import get_logger, known_loggers

    kinds = {
        'tasks': (registry.known_tasks, registry.get_task),
        'algorithms': (registry.known_algorithms, registry.get_algorithm),
        'models': (registry.known_models, registry.get_model),
        'loggers': (known_loggers, get_logger),
    }
    if kind not in (*kinds, 'all'):
        raise typer.Exit(
            fail(f'There is no list of {kind!r}.{registry.nearest(kind, kinds)} Lists: {", ".join(kinds)}.')
        )
    # One line each: cut to a terminal, whole in a file.
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for name, (known, get) in kinds.items():
        if kind in (name, 'all'):
            entries = known()
            print(f'{name}:')
            for entry in entries:
                print(f'  {entry:<{max(map(len, entries))}}  {_summary(get, entry)}'[:width])
    if kind in ('models', 'all'):
        print('Any Hugging Face hub name or folder, and any finished run folder, is a model too.')


def _summary(get: Callable[[str], Any], name: str) -> str:
    try:
        return registry.describe(get(name))
    except ValueError as error:  # a task that is there to be refused, or a plugin that is broken
        return registry.describe(str(error))


@app.command('submit')
def submit_command(
    folders: Annotated[list[str], typer.Argument(help='Finished runs of GLUE tasks, one a task')],
    out: Annotated[str, typer.Option(help='Where the files go')] = 'submission',
    run_code: Annotated[
        bool, typer.Option('--run-code', help="Run the code_paths of the folders' configurations")
    ] = False,
) -> None:
    """Predict the test splits of finished GLUE runs and write the leaderboard's TSV files."""
    from composer_cmi.run.outputs.submission import submit

    try:
        files = submit(folders, out, run_code=run_code)
    except ConfigError as error:
        raise typer.Exit(fail(str(error))) from None
    print(*files, sep='\n')
    print('The site wants them in one zip with a file for every task: STS-B.tsv and AX.tsv come from elsewhere.')


@app.command('sweep')
def sweep_command(
    study_file: Annotated[str, typer.Argument(help='A study, e.g. studies/mincmi_small.yaml')],
    overrides: Annotated[list[str] | None, typer.Argument(help="key.sub=value of the study's keys: seeds=30")] = None,
    jobs: Annotated[int, typer.Option(help='Runs at a time')] = 1,
    backend: Annotated[str, typer.Option(help='local: this machine; ray: a Ray cluster')] = 'local',
    dry_run: Annotated[bool, typer.Option('--dry-run', help='Check the study and list its runs')] = False,
) -> None:
    """Do what is left of a study: every setting, arm and seed once, tuned arms first."""
    from composer_cmi.study.execution.sweep import describe, sweep

    try:
        summary = sweep(study_file, overrides or [], jobs=jobs, backend=backend, dry_run=dry_run)
    except ConfigError as error:
        raise typer.Exit(fail(str(error))) from None
    if not dry_run:
        describe(summary, study_file, Console(file=sys.stdout, highlight=False))
    raise typer.Exit(1 if summary.failed else 0)


@app.command('report')
def report_command(
    folder: Annotated[str, typer.Argument(help="A study's folder, or any folder with finished runs below it")],
    out: Annotated[str | None, typer.Option(help='Where to write; FOLDER/report by default')] = None,
    against: Annotated[list[str] | None, typer.Option(help='Compare with this arm (may be repeated)')] = None,
) -> None:
    """Say what a study found: tables and pictures as Markdown, HTML, CSV and JSON."""
    from composer_cmi.study.findings.report import report

    try:
        files = report(folder, out, against or [])
    except ConfigError as error:
        raise typer.Exit(fail(str(error))) from None
    found = files['markdown'].read_text(encoding='utf-8').split('## What was found', 1)[1].split('\n## ', 1)[0]
    print(found.strip(), *(f'{name}: {path}' for name, path in files.items()), sep='\n')


if __name__ == '__main__':
    app()
