"""Logits of texts, whoever gave them: found by the text itself, so that no numbering of rows can be wrong."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from composer_cmi.teachers.logit_cache import CacheKey, LogitCache, MissingExamplesError

__all__ = ['of_rows', 'of_texts', 'text_ids']


def text_ids(rows: Iterable[str | Sequence[str]]) -> Tensor:
    """Ids `[N]` int64 of texts: 63 bits of a hash, equal for equal texts.

    Args:
        rows: A text each, or a row's text columns.
    """
    joined = (row if isinstance(row, str) else '\x1f'.join(row) for row in rows)
    digests = (hashlib.blake2b(text.encode(), digest_size=8).digest() for text in joined)
    return torch.tensor([int.from_bytes(digest, 'big') >> 1 for digest in digests], dtype=torch.int64)


def of_texts(
    rows: Iterable[str | Sequence[str]], logits: Tensor, *, key: CacheKey, label_names: Sequence[str]
) -> LogitCache:
    """A table of what was answered to texts, of no dataset yet; a run makes it one of its rows.

    Args:
        rows: A text each, or a row's text columns, without spaces around them, as a run reads them.
        logits: `[N, C]`, for instance the logarithms of probabilities.
        key: What they depend on; `teacher` stands for their fingerprint.
        label_names: The class of each column.

    Raises:
        ValueError: Two answers to one text differ, or a logit is not finite.
    """
    ids, order = text_ids(rows).sort(stable=True)
    logits = logits.float()[order]
    again = ids[1:] == ids[:-1]
    if bool((again & (logits[1:] != logits[:-1]).any(-1)).any()):
        raise ValueError('A text has two different answers: give one, such as their mean.')
    first = torch.cat([torch.ones(1, dtype=torch.bool), ~again])
    return LogitCache(ids[first], logits[first], key=key, label_names=label_names, by_text=True)


def of_rows(cache: LogitCache, example_ids: Tensor, rows: Iterable[str | Sequence[str]]) -> LogitCache:
    """The table of a dataset's rows, from one of texts.

    Args:
        cache: What `of_texts` made.
        example_ids: `[N]` int64, each once.
        rows: The text, or the text columns, of each.

    Raises:
        MissingExamplesError: Texts without an answer; names the first.
    """
    texts = list(rows)
    hashes = text_ids(texts)
    missing = (~torch.isin(hashes, cache.example_ids)).nonzero().flatten().tolist()
    if missing:
        first = texts[missing[0]]
        shown = first if isinstance(first, str) else ' | '.join(first)
        raise MissingExamplesError(
            f'{len(missing):,} of {len(texts):,} texts have no answer in the logit cache, the first is {shown[:80]!r} '
            f'(id {int(example_ids[missing[0]])}): ask its source about these too, exactly as the data have them.'
        )
    ids, order = example_ids.sort()
    return LogitCache(ids, cache.lookup(hashes[order]), key=cache.key, label_names=cache.label_names)
