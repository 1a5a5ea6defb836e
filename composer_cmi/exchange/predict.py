"""Class probabilities of a file's rows by an exported model: any size in bounded memory, without Composer."""

from __future__ import annotations

import csv
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor

from composer_cmi.data.delimited import Fault
from composer_cmi.data.labels import texts_of
from composer_cmi.data.own_files import guess_text
from composer_cmi.data.readers import SUFFIXES, Table
from composer_cmi.data.rows.pieces import MOST_FAULTS, ROWS, read_pieces
from composer_cmi.errors import ConfigError, naming
from composer_cmi.exchange.exported import exported_folder, load_exported, run_settings
from composer_cmi.teachers.pretrained import positions

__all__ = ['PREFIX', 'Classifier', 'Predicted', 'predict']

PREFIX = 'p_'  # of a class's column: a class may be called as any column
_KEY = '--text-column'


@dataclass(frozen=True)
class Predicted:
    """What was written.

    Attributes:
        path: The file: the kept columns, `prediction` (the likeliest class) and a column `p_CLASS` a class.
        counts: Rows by predicted class, in the order of the classes.
        full: Rows that fill all tokens that the model takes: what was longer is cut.
        max_length: So many tokens, None without a limit.
    """

    path: Path
    counts: dict[str, int]
    full: int
    max_length: int | None


class Classifier:
    """An exported model that gives class probabilities, as `transformers.pipeline` does with `truncation=True`.

    Args:
        folder: See `exported_folder`.
        batch_size: Rows of a forward pass; those of like length go together.
    """

    def __init__(self, folder: Path, batch_size: int = 64):
        from transformers.data.data_collator import DataCollatorWithPadding

        self.teacher, self.batch_size = load_exported(folder), batch_size
        self.teacher.to('cuda' if torch.cuda.is_available() else 'cpu')
        module, self.tokenizer = self.teacher.members[0].module, self.teacher.tokenizer
        names = module.config.id2label
        self.classes = [str(names[i]) for i in sorted(names)]
        limits = [self.tokenizer.model_max_length, positions(module)]
        self.max_length: int | None = min((each for each in limits if each and each < 10**9), default=None)
        self._collate = DataCollatorWithPadding(self.tokenizer)

    def probabilities(self, texts: Sequence[Sequence[str]]) -> tuple[Tensor, int]:
        """Of `N` rows, given a list of texts for each column: `[N, C]` float32 on the CPU, and how many are full."""
        encoded = self.tokenizer(
            *map(list, texts), truncation=self.max_length is not None, max_length=self.max_length, verbose=False
        )
        lengths = torch.tensor([len(ids) for ids in encoded['input_ids']])
        order = lengths.argsort(stable=True)
        parts = []
        for chosen in order.split(self.batch_size):
            rows = [{key: values[i] for key, values in encoded.items()} for i in chosen.tolist()]
            parts.append(self.teacher.logits(self._collate(rows)).softmax(-1).cpu())
        found = torch.empty(len(lengths), len(self.classes))
        found[order] = torch.cat(parts)
        return found, int((lengths == self.max_length).sum()) if self.max_length else 0


def predict(
    run: str | Path,
    file: str | Path,
    out: str | Path | None = None,
    *,
    text_columns: Sequence[str] | None = None,
    keep: Sequence[str] = (),
    batch_size: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> Predicted:
    """Write the class probabilities of a file's rows, in their order.

    The file is read twice, in pieces: first every row is checked and counted, then it is predicted. The result is
    written aside and renamed.

    Args:
        run: A finished run's folder, or that of an exported model.
        file: .csv, .tsv, .jsonl, .parquet or .txt (a text a line), text also .gz.
        out: Where to write, .csv or .jsonl; by default `FILE_predictions.csv` beside the file.
        text_columns: One or two; by default those of the run, else those with the usual names.
        keep: Columns of the file to copy, in front.
        batch_size: Rows of a forward pass.
        progress: Called with the rows that are done and those that there are.

    Raises:
        ConfigError: There is no such model, or nothing can be written so.
        DataError: Rows cannot be used; names up to twenty with the reason, before anything is predicted.
        FileNotFoundError: There is no such file.
    """
    file, folder = Path(file).expanduser(), exported_folder(run)
    out = _default_out(file) if out is None else Path(out).expanduser()
    if out.suffix not in _FORMATS:
        raise ConfigError(f'{out}: predictions are written as .csv or .jsonl: choose one of these suffixes.')
    if out.exists() and out.samefile(file):
        raise ConfigError(f'{out} is the file that is read: choose another --out.')
    asked = text_columns or (run_settings(folder).get('data') or {}).get('text_columns')
    columns, total = _check(file, asked, keep, bool(text_columns))
    classifier = Classifier(folder, batch_size)
    columns_out = [*keep, 'prediction', *(f'{PREFIX}{name}' for name in classifier.classes)]
    if doubled := [name for name, count in Counter(columns_out).items() if count > 1]:
        raise ConfigError(f'--keep {doubled[0]}: a column of this name is written already.')
    counts, full, done = dict.fromkeys(classifier.classes, 0), 0, 0
    with _aside(out) as stream:
        write = _FORMATS[out.suffix](stream, columns_out)
        for piece in read_pieces(file, ROWS):
            found, some = classifier.probabilities(
                [texts_of(piece, name, piece.columns[name], False, []) for name in columns]
            )
            best = [classifier.classes[i] for i in found.argmax(-1).tolist()]
            kept = [piece.columns.get(name, [None] * len(piece)) for name in keep]
            write(kept, best, found.tolist())
            for name in best:
                counts[name] += 1
            full, done = full + some, done + len(piece)
            if progress is not None:
                progress(done, total)
    return Predicted(out, counts, full, classifier.max_length)


def _default_out(file: Path) -> Path:
    stem = file.name.removesuffix('.gz')
    for suffix in (*SUFFIXES, '.txt'):
        stem = stem.removesuffix(suffix)
    return file.with_name(f'{stem}_predictions.csv')


def _check(file: Path, asked: Sequence[str] | None, keep: Sequence[str], insist: bool) -> tuple[tuple[str, ...], int]:
    """The columns of text and the number of rows of a file in which all is right."""
    columns: tuple[str, ...] = ()
    faults: list[Fault] = []
    piece: Table | None = None
    total = 0
    for piece in read_pieces(file, ROWS):
        if not columns and len(piece):
            columns = _text_columns(piece, asked, insist)
            for name in keep:
                piece.column(name, '--keep')
        faults += piece.faults
        for name in columns:
            texts_of(piece, name, piece.column(name, _KEY), False, faults)
        total += len(piece)
        if len(faults) > MOST_FAULTS:
            break
    if piece is not None and faults:
        raise piece.error(faults)
    return columns, total


def _text_columns(piece: Table, asked: Sequence[str] | None, insist: bool) -> tuple[str, ...]:
    if asked and (insist or all(name in piece.columns for name in asked)):
        for name in asked:
            piece.column(name, _KEY)
        return tuple(asked)
    columns = guess_text(piece, _KEY)
    if asked and len(asked) != len(columns):
        raise ConfigError(
            f'{piece.source}: the model was trained on {len(asked)} columns of text ({", ".join(asked)}), here are '
            f'{", ".join(columns)}: name {"them" if len(asked) > 1 else "it"} by {_KEY}.'
        )
    return columns


@contextmanager
def _aside(out: Path) -> Iterator[TextIO]:
    aside = out.with_name(f'.{out.name}.{os.getpid()}.tmp')
    with naming(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        try:
            with aside.open('w', encoding='utf-8', newline='') as stream:
                yield stream
            os.replace(aside, out)
        finally:
            aside.unlink(missing_ok=True)


_Write = Callable[[list[list[Any]], list[str], list[list[float]]], None]


def _csv(stream: TextIO, columns: list[str]) -> _Write:
    writer = csv.writer(stream, lineterminator='\n')
    writer.writerow(columns)

    def write(kept: list[list[Any]], best: list[str], found: list[list[float]]) -> None:
        for i, (name, row) in enumerate(zip(best, found, strict=True)):
            writer.writerow([*(column[i] for column in kept), name, *(f'{value:.9g}' for value in row)])

    return write


def _jsonl(stream: TextIO, columns: list[str]) -> _Write:
    def write(kept: list[list[Any]], best: list[str], found: list[list[float]]) -> None:
        for i, (name, row) in enumerate(zip(best, found, strict=True)):
            values = [*(column[i] for column in kept), name, *(float(f'{value:.9g}') for value in row)]
            stream.write(json.dumps(dict(zip(columns, values, strict=True)), ensure_ascii=False, default=str) + '\n')

    return write


_FORMATS: dict[str, Callable[[TextIO, list[str]], _Write]] = {'.csv': _csv, '.jsonl': _jsonl}
