"""The commands of this room; nothing heavy is imported before it is used."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import typer

from composer_cmi.data.delimited import DataError
from composer_cmi.errors import ConfigError, needs
from composer_cmi.run.command import imports, one_sentence

__all__ = ['cache_command', 'export_command', 'predict_command', 'push_command']

Run = Annotated[str, typer.Argument(help="A finished run's folder, or that of an exported model")]
TextColumns = Annotated[list[str] | None, typer.Option(help='A column of text (twice for pairs)')]


@contextlib.contextmanager
def _told_errors() -> Iterator[None]:
    """What is wrong with files and data is told as it is."""
    try:
        yield
    except (DataError, FileNotFoundError) as error:
        raise ConfigError(str(error)) from error


def predict_command(
    run: Run,
    file: Annotated[str, typer.Argument(help='.csv, .tsv, .jsonl, .parquet, or .txt with a text a line')],
    out: Annotated[str | None, typer.Option(help='.csv or .jsonl; FILE_predictions.csv by default')] = None,
    text_column: TextColumns = None,
    keep: Annotated[list[str] | None, typer.Option(help='A column of FILE to copy (may be repeated)')] = None,
    batch_size: Annotated[int, typer.Option(min=1, help='Rows of a forward pass')] = 64,
) -> None:
    """Write the class probabilities of a file's rows, of any number, by a run's exported model."""
    with one_sentence(), _told_errors():
        with imports('run', 'A prediction'):
            from composer_cmi.exchange.predict import predict
        with _bar() as progress:
            done = predict(
                run, file, out, text_columns=text_column, keep=keep or (), batch_size=batch_size, progress=progress
            )
    rows = sum(done.counts.values())
    shares = ', '.join(f'{name} {count / rows:.1%}' for name, count in done.counts.items() if count)
    print(f'{rows:,} rows: {shares}.')
    if done.full:
        print(f'{done.full:,} rows fill all {done.max_length} tokens; what was longer is cut.')
    print(done.path)


def cache_command(
    file: Annotated[str, typer.Argument(help='.csv, .tsv, .jsonl or .parquet: the text, and one column a class')],
    out: Annotated[str, typer.Option(help='The folder that the cache goes to')],
    data: Annotated[str | None, typer.Option(help="A run's YAML file: compare with its data")] = None,
    text_column: TextColumns = None,
    id_column: Annotated[str | None, typer.Option(help='With --data: a column of row numbers, from 0')] = None,
) -> None:
    """Make a teacher of a file of class probabilities: of a language model, or of any service."""
    with one_sentence(), _told_errors():
        with imports('run', 'A logit cache'):
            from composer_cmi.exchange.answers import import_answers
        found = _data_of(data) if data else None
        done = import_answers(file, out, data=found, text_columns=text_column, id_column=id_column)
    print(*done.notes, f'{done.rows:,} texts, {len(done.classes)} classes: {", ".join(done.classes)}.', sep='\n')
    print(f'In a run: algorithms: {{knowledge_distillation: {{cache: {done.path}}}}}')


def _data_of(yaml_file: str) -> Any:
    with imports('run', 'The data of a run'):
        from composer_cmi.data.task_data import load_task_data
        from composer_cmi.run.config import load_config
    config = load_config(yaml_file, [])
    return load_task_data(config.task, config.data)


def push_command(
    run: Run,
    repo: Annotated[str, typer.Argument(metavar='REPO', help='OWNER/NAME on the Hugging Face hub')],
    private: Annotated[bool, typer.Option('--private', help='Visible to its owners only')] = False,
) -> None:
    """Put a run's exported model and its card on the Hugging Face hub."""
    with one_sentence():
        with imports('run', 'A push'):
            from composer_cmi.exchange.push import push
        print(push(run, repo, private=private))


def export_command(
    run: Run,
    out: Annotated[str | None, typer.Option(help='The folder that it goes to; MODEL/onnx by default')] = None,
) -> None:
    """Write a run's exported model as ONNX, by the exporter of transformers 5, and compare the two."""
    with one_sentence(), needs('onnx', 'An export to ONNX'):
        from composer_cmi.exchange.onnx_model import export_onnx

        print(export_onnx(run, out))


@contextlib.contextmanager
def _bar() -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal, nothing in a file."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn('rows'), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task('rows', total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
