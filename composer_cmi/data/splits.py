"""Rows of text with labels, and the pure functions that cut them to size.

Every choice of rows depends on the data and `data.seed` alone, never on the run's seed: runs that are compared
must see the same rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from composer_cmi.class_names import clean
from composer_cmi.data.rows.columns import Texts, all_in_one, joined, repr_of_all, together

__all__ = [
    'UNLABELLED',
    'Split',
    'add_label_noise',
    'class_counts',
    'concatenate',
    'fingerprint',
    'hashed_share',
    'imbalance',
    'stratified_order',
    'take',
    'without_labels',
]

UNLABELLED = -100  # what torch's cross entropy ignores


@dataclass(frozen=True, init=False)
class Split:
    """Rows of one split, as text.

    Attributes:
        texts: N texts per text column (one for sentences, two for pairs); lists of strings become `Texts`.
        labels: Class indices, int64 [N]; -100 where a row has no label.
        example_ids: Row numbers in the split's source file, int64 [N]; they stay with a row when rows are
            dropped or shuffled.

    Raises:
        DataError: One of the texts is none.
    """

    texts: tuple[Texts, ...]
    labels: np.ndarray
    example_ids: np.ndarray

    def __init__(self, texts: Sequence[Iterable[str]], labels: np.ndarray, example_ids: np.ndarray) -> None:
        columns = tuple(column if isinstance(column, Texts) else Texts(column) for column in texts)
        for name, value in (('texts', columns), ('labels', labels), ('example_ids', example_ids)):
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self) -> Iterator[tuple[str, ...]]:
        """Each row's text columns."""
        return zip(*self.texts, strict=True)

    def joined(self) -> Texts:
        """Each row's text columns in one string: equal exactly for equal texts."""
        return joined(self.texts)

    def text_keys(self) -> Iterator[str]:
        """Each row's text in one string that is equal too where letter case, spaces or the columns' order differ."""
        return ('\x1f'.join(sorted(clean(text).casefold() for text in row)) for row in self.rows())

    def text_hashes(self) -> np.ndarray:
        """A hash of 16 bytes of each row's key, [N] of type S16: 50 times less than a set of the keys takes."""
        digests = (hashlib.blake2b(key.encode(), digest_size=16).digest() for key in self.text_keys())
        return np.fromiter(digests, dtype='S16', count=len(self))


def take(split: Split, rows: np.ndarray | Sequence[int]) -> Split:
    """The given rows in the given order, with their example ids."""
    index = np.asarray(rows, dtype=np.int64)
    texts = tuple(column.take(index) for column in split.texts)
    return Split(texts, split.labels[index], split.example_ids[index])


def concatenate(first: Split, second: Split | None) -> Split:
    """Both splits' rows in one, e.g. labelled rows and unlabelled transfer rows for distillation."""
    if second is None:
        return first
    texts = [together(columns) for columns in zip(first.texts, second.texts, strict=True)]
    return Split(texts, _append(first.labels, second.labels), _append(first.example_ids, second.example_ids))


def _append(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Both, without a copy where they follow each other in memory, as in a file that the ranks of a machine map."""
    base = first.base
    if (
        isinstance(base, np.ndarray)
        and base is second.base
        and base.dtype == first.dtype == second.dtype
        and all(array.ndim == 1 and array.flags.c_contiguous for array in (base, first, second))
        and first.ctypes.data + first.nbytes == second.ctypes.data
    ):
        start = (first.ctypes.data - base.ctypes.data) // base.itemsize
        return base[start : start + len(first) + len(second)]
    return np.concatenate([first, second])


def without_labels(split: Split) -> Split:
    """The same rows as unlabelled ones."""
    return replace(split, labels=np.full(len(split), UNLABELLED, dtype=np.int64))


def class_counts(split: Split, label_names: Sequence[str]) -> dict[str, int]:
    """Rows per class name; rows without a label, if any, under ''."""
    counts = {name: int((split.labels == i).sum()) for i, name in enumerate(label_names)}
    unlabelled = int((split.labels == UNLABELLED).sum())
    return counts | ({'': unlabelled} if unlabelled else {})


def hashed_share(split: Split, fraction: float, salt: str = '') -> np.ndarray:
    """Which rows fall into a share of about `fraction` that depends on each row's text alone, bool [N].

    Equal texts fall on the same side, so that no duplicate leaks from one side to the other, and a row's side
    does not change when other rows are added or removed.
    """
    digests = (hashlib.sha256(f'{salt}\x1e{key}'.encode()).digest()[:8] for key in split.joined())
    values = np.fromiter((int.from_bytes(digest, 'big') for digest in digests), dtype=np.uint64, count=len(split))
    return values < np.uint64(int(fraction * 2**63) * 2)


def stratified_order(labels: np.ndarray, seed: int) -> np.ndarray:
    """An order in which every prefix has the whole's class balance, to within one row per class, int64 [N].

    Prefixes are nested: the first 500 rows are among the first 1,000. Row k of the n shuffled rows of a class is
    placed at (k + u) / n, with one u per class so that small classes do not all come last.
    """
    rng = np.random.default_rng(seed)
    places = np.empty(len(labels))
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        places[rows] = (np.arange(len(rows)) + rng.random()) / len(rows)
    return np.argsort(places, kind='stable')


def imbalance(split: Split, ratio: float, num_classes: int, seed: int) -> Split:
    """Thin classes out along an exponential profile: the last class keeps `ratio` times the first one's rows.

    Class c of the C that have rows keeps at most n * ratio ** (c / (C - 1)) rows, n being the size of the smallest of
    them, so that the profile is the same whatever the balance was before (the long-tailed sets of Cui et al. 2019).
    """
    sizes = np.bincount(split.labels, minlength=num_classes)
    present = np.flatnonzero(sizes)
    profile = sizes[present].min() * ratio ** (np.arange(len(present)) / max(len(present) - 1, 1))
    keep = np.maximum(np.rint(profile).astype(np.int64), 1)
    rng = np.random.default_rng(seed)
    chosen = [rng.permutation(np.flatnonzero(split.labels == c))[:k] for c, k in zip(present, keep, strict=True)]
    return take(split, np.sort(np.concatenate(chosen)))


def add_label_noise(split: Split, share: float, num_classes: int, seed: int) -> Split:
    """Give round(share * N) randomly chosen labelled rows another label, uniform over the other classes."""
    rng = np.random.default_rng(seed)
    labelled = np.flatnonzero(split.labels != UNLABELLED)
    rows = rng.choice(labelled, size=round(share * len(labelled)), replace=False)
    labels = split.labels.copy()
    labels[rows] = (labels[rows] + rng.integers(1, num_classes, size=len(rows))) % num_classes
    return replace(split, labels=labels)


def fingerprint(*parts: Split | Texts | Sequence[str] | str | None) -> str:
    """A short hash of texts, labels, ids and names: equal exactly for equal data (16 hex digits)."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Split):
            for text in all_in_one(part.joined()):
                digest.update(text.encode())
            for numbers in (part.labels, part.example_ids):
                digest.update(np.ascontiguousarray(numbers, dtype='<i8').data)
        else:
            for text in repr_of_all(part) if isinstance(part, Texts) else [repr(part)]:
                digest.update(text.encode())
        digest.update(b'\x00')
    return digest.hexdigest()[:16]
