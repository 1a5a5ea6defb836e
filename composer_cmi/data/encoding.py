"""Tokenised rows in flat arrays, kept on disk between runs and mapped into memory by all ranks of a machine."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from composer_cmi.data.readers import DataError
from composer_cmi.data.rows.machine import taking_turns
from composer_cmi.data.rows.token_file import Pieces, open_tokens, write_tokens
from composer_cmi.data.splits import Split, fingerprint

__all__ = ['EncodedSplit', 'default_cache_dir', 'tokenize', 'tokenizer_fingerprint']

_VERSION = 2  # of what tokens are, not of a file's layout: part of the key, and so of the keys of stored logits
_PIECE = 16_384  # rows of a piece of the file
_TYPES = {'input_ids': np.int32, 'token_type_ids': np.int8}
_CALL = 1_024  # rows of a call of the tokenizer: enough for its threads, few enough to keep Python's garbage small


class EncodedSplit(Dataset[dict[str, Any]]):
    """Tokenised rows.

    ``dataset[i]`` is a dict with ``input_ids`` (int32 [L]), ``token_type_ids`` (int8 [L]) where the model knows them,
    ``labels`` and ``example_id`` (int).

    Attributes:
        labels: Class indices, -100 where there is none, int64 [N].
        example_ids: Row numbers in the source file, int64 [N].
        lengths: Tokens per row, int32 [N].
        fingerprint: A hash of texts, tokenizer and maximum length.
    """

    def __init__(self, split: Split, tokens: Pieces, fingerprint: str) -> None:
        self.labels = split.labels
        self.example_ids = split.example_ids
        self.fingerprint = fingerprint
        self._tokens = tokens
        self._first = np.cumsum([0, *(piece.rows for piece in tokens)])  # row of each piece
        lengths = [np.diff(piece.starts).astype(np.int32) for piece in tokens]
        self.lengths = np.concatenate([np.zeros(0, dtype=np.int32), *lengths])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        place = int(np.searchsorted(self._first, index, side='right')) - 1
        piece, row = self._tokens[place], index - self._first[place]
        span = slice(piece.starts[row], piece.starts[row + 1])
        found: dict[str, Any] = {key: values[span] for key, values in piece.values.items()}
        return found | {'labels': int(self.labels[index]), 'example_id': int(self.example_ids[index])}


def tokenize(split: Split, tokenizer: Any, *, max_length: int, cache_dir: str | Path | None = None) -> EncodedSplit:
    """Tokenise a split, or map it from the cache where the same texts were tokenised before.

    The cache's file name is a hash of the texts, the tokenizer and the length, so a stale file cannot be read;
    a damaged one, by its digest, is built anew with a warning. Labels are not in it. Of the ranks of a machine one
    builds, a piece at a time with all cores, and the others wait for its file.

    Args:
        split: The rows.
        tokenizer: A Hugging Face tokenizer.
        max_length: Longer rows are cut (of a pair, the longer text first).
        cache_dir: The cache's folder, `default_cache_dir()` unless given.

    Raises:
        DataError: A row has no tokens.
    """
    key = fingerprint(split.joined(), tokenizer_fingerprint(tokenizer), str((max_length, _VERSION)))
    path = Path(cache_dir or default_cache_dir()) / f'{key}.arrow'
    with taking_turns():
        tokens = open_tokens(path)
        if tokens is None:
            tokens = write_tokens(path, lambda: _encode(split, tokenizer, max_length))
    encoded = EncodedSplit(split, tokens, key)
    if len(split) and int(encoded.lengths.min()) == 0:
        row = int(encoded.lengths.argmin())
        raise DataError(f'Example {split.example_ids[row]}: the tokenizer makes no token of {split.joined()[row]!r}.')
    return encoded


def default_cache_dir() -> Path:
    """`COMPOSER_CMI_CACHE` where set, else a folder in the user's cache."""
    return Path(os.environ.get('COMPOSER_CMI_CACHE') or Path.home() / '.cache' / 'composer_cmi') / 'tokens'


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """A hash of everything that decides which tokens a text becomes, equal for equal tokenizers."""
    backend = getattr(tokenizer, 'backend_tokenizer', None)
    if backend is not None:
        # Padding and truncation are remembered from the last call: they are no part of the tokenizer.
        state = json.loads(backend.to_str())
        state.pop('truncation', None)
        state.pop('padding', None)
    else:
        state = {'class': type(tokenizer).__name__, 'vocab': tokenizer.get_vocab(), 'init': str(tokenizer.init_kwargs)}
    special = {key: str(value) for key, value in tokenizer.special_tokens_map.items()}
    names = [special, tokenizer.truncation_side, list(tokenizer.model_input_names)]
    return hashlib.sha256(json.dumps([state, names], sort_keys=True).encode()).hexdigest()[:16]


def _encode(split: Split, tokenizer: Any, max_length: int) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Of each piece the tokens per row, and the tokens, one row after the other."""
    keys = [key for key in _TYPES if key in ('input_ids', *tokenizer.model_input_names)]
    for texts in zip(*(column.pieces(_PIECE) for column in split.texts), strict=True):
        lengths: list[int] = []
        parts: dict[str, list[np.ndarray]] = {key: [] for key in keys}
        for start in range(0, len(texts[0]), _CALL):
            some = [column[start : start + _CALL] for column in texts]
            encoded = tokenizer(*some, truncation=True, max_length=max_length, return_attention_mask=False)
            lengths += [len(ids) for ids in encoded['input_ids']]
            for key in keys:
                parts[key].append(np.fromiter(chain.from_iterable(encoded[key]), dtype=_TYPES[key]))
        yield np.array(lengths), {key: np.concatenate(values) for key, values in parts.items()}
