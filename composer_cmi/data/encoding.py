"""Tokenised rows in a few flat arrays, kept on disk between runs."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from composer.utils import dist
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch.utils.data import Dataset

from composer_cmi.data.readers import DataError
from composer_cmi.data.splits import Split, fingerprint

__all__ = ['EncodedSplit', 'default_cache_dir', 'tokenize', 'tokenizer_fingerprint']

_VERSION = 2  # of the file format; part of the key
_CHUNK = 10_000  # rows per call of the tokenizer: enough for its threads, little enough for memory


class EncodedSplit(Dataset[dict[str, Any]]):
    """Tokenised rows.

    ``dataset[i]`` is a dict with ``input_ids`` (int32 [L]), ``token_type_ids`` where the model knows them,
    ``labels`` and ``example_id`` (int).

    Attributes:
        labels: Class indices, -100 where there is none, int64 [N].
        example_ids: Row numbers in the source file, int64 [N].
        lengths: Tokens per row, int64 [N].
        fingerprint: A hash of texts, tokenizer and maximum length.
    """

    def __init__(self, split: Split, tokens: dict[str, np.ndarray], fingerprint: str) -> None:
        self.labels = split.labels
        self.example_ids = split.example_ids
        self.lengths = tokens['lengths']
        self.fingerprint = fingerprint
        self._tokens = {key: value for key, value in tokens.items() if key != 'lengths'}
        self._starts = np.concatenate([[0], np.cumsum(self.lengths)])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        span = slice(self._starts[index], self._starts[index + 1])
        row: dict[str, Any] = {key: values[span] for key, values in self._tokens.items()}
        return row | {'labels': int(self.labels[index]), 'example_id': int(self.example_ids[index])}


def tokenize(split: Split, tokenizer: Any, *, max_length: int, cache_dir: str | Path | None = None) -> EncodedSplit:
    """Tokenise a split, or read it from the cache where the same texts were tokenised before.

    The cache's file name is a hash of the texts, the tokenizer and the length, so a stale file cannot be read;
    a damaged one, by its digest, is built anew with a warning. Labels are not in it. Local rank 0 builds, the other
    ranks wait and read.

    Args:
        split: The rows.
        tokenizer: A Hugging Face tokenizer.
        max_length: Longer rows are cut (of a pair, the longer text first).
        cache_dir: The cache's folder, `default_cache_dir()` unless given.

    Raises:
        DataError: A row has no tokens.
    """
    key = fingerprint('\x1e'.join(split.joined()), tokenizer_fingerprint(tokenizer), str((max_length, _VERSION)))
    path = Path(cache_dir or default_cache_dir()) / f'{key}.safetensors'
    with _local_rank_zero_first():
        tokens = _load(path)
        if tokens is None:
            tokens = _encode(split, tokenizer, max_length)
            _save(path, tokens)
    if len(split) and int(tokens['lengths'].min()) == 0:
        row = int(tokens['lengths'].argmin())
        raise DataError(f'Example {split.example_ids[row]}: the tokenizer makes no token of {split.joined()[row]!r}.')
    return EncodedSplit(split, tokens, key)


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


@contextmanager
def _local_rank_zero_first() -> Iterator[None]:
    if dist.get_world_size() > 1 and not dist.is_initialized():
        yield  # files are renamed into place: building twice costs time, not correctness
        return
    with dist.run_local_rank_zero_first():
        yield


def _encode(split: Split, tokenizer: Any, max_length: int) -> dict[str, np.ndarray]:
    keys = [key for key in ('input_ids', 'token_type_ids') if key in ('input_ids', *tokenizer.model_input_names)]
    parts: dict[str, list[np.ndarray]] = {key: [np.zeros(0, dtype=np.int32)] for key in keys}
    lengths: list[int] = []
    for start in range(0, len(split), _CHUNK):
        texts = [column[start : start + _CHUNK] for column in split.texts]
        encoded = tokenizer(*texts, truncation=True, max_length=max_length, return_attention_mask=False)
        lengths += [len(ids) for ids in encoded['input_ids']]
        for key in keys:
            parts[key].append(np.concatenate([np.asarray(ids, dtype=np.int32) for ids in encoded[key]]))
    tokens = {key: np.concatenate(values) for key, values in parts.items()}
    return tokens | {'lengths': np.array(lengths, dtype=np.int64)}


def _digest(name: str, tokens: dict[str, np.ndarray]) -> str:
    digest = hashlib.blake2b(name.encode(), digest_size=16)
    for key, values in sorted(tokens.items()):
        digest.update(f'{key} {values.dtype.str} {values.shape} '.encode())
        digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()


def _load(path: Path) -> dict[str, np.ndarray] | None:
    if not path.is_file():
        return None
    try:
        with safe_open(path, 'numpy') as file:
            tokens = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  no mapping
            whole = (file.metadata() or {}).get('digest') == _digest(path.name, tokens)
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, AttributeError):
        whole, tokens = False, {}
    if not whole:
        warnings.warn(f'The tokens in {path} are damaged: they are made anew.')
    return tokens if whole else None


def _save(path: Path, tokens: dict[str, np.ndarray]) -> None:
    # Written aside and renamed: a reader never sees half a file, and two writers leave one whole file.
    aside = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob(f'.{path.name}.*.tmp'):
            left.unlink(missing_ok=True)  # of a process that was killed; one at work loses the cache, not its tokens
        try:
            save_file(tokens, aside, {'digest': _digest(path.name, tokens)})
            os.chmod(aside, path.parent.stat().st_mode & 0o666)  # safetensors lets its owner only read it
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)
    except (OSError, SafetensorError):
        return  # a cache that cannot be written (read-only, full disk) only costs time
