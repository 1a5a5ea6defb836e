"""Mutated bytes of each kind of file that is read; see tests/fuzz.py."""

from __future__ import annotations

import contextlib
import io
import json
import random
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from composer_cmi.data.readers import DataError, read_table
from composer_cmi.data.rows.token_file import open_tokens, write_tokens
from composer_cmi.errors import ConfigError
from composer_cmi.run.config import load_config
from composer_cmi.run.config.yaml_loader import parse_value
from composer_cmi.run.outputs.history import read_history
from composer_cmi.run.outputs.results import load_results
from composer_cmi.study.findings.predictions import read_predictions
from composer_cmi.teachers.loading import load_classifier
from composer_cmi.teachers.logit_cache import CacheKey, LogitCache

SLOWEST = 5.0
YAMLS = sorted((Path(__file__).parents[1] / 'yamls').glob('*.yaml'))
TEXT = 'text,label\n"rain, again",weather\nsnow,weather\nbread,food\n"soup ""hot""",food\n'
LINES = [json.dumps({'text': f'row {i}', 'label': ('a', 'b')[i % 2]}) for i in range(6)]
# What has stopped a parser before.
TOKENS = (
    *(b'\0', b'\xff', b'\xef\xbb\xbf', b'"', b"'", b'\n', b'\r', b'\t', b',', b'{', b'[', b': ', b'? ', b'&a ', b'*a'),
    *(b'!!int ', b'- ', b'<<: ', b'null', b'nan', b'1e999', b'-1', b'9' * 5000, b'[' * 2000),
    *(b'\xed\xa0\x80', b'\\ud800', b'\x1f\x8b'),
)


class FileKind(NamedTuple):
    """Whole files of a kind, how one is read, and what it may raise."""

    name: str
    whole: Callable[[Path], None]
    read: Callable[[Path], Any]
    errors: tuple[type[Exception], ...]


def _written(*texts: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_text(random.choice(texts), encoding='utf-8')

    return write


def _parquet(path: Path) -> None:
    import pandas

    pandas.DataFrame({'text': ['a', 'b', 'c'], 'label': ['x', 'y', 'x']}).to_parquet(path)


def _logit_cache(path: Path) -> None:
    LogitCache(torch.arange(5), torch.randn(5, 3), key=CacheKey('teacher', 'data')).save(path)


def _token_cache(path: Path) -> None:
    lengths = np.array([2, 3, 1], dtype=np.int64)
    write_tokens(path, lambda: [(lengths, {'input_ids': np.arange(6, dtype=np.int32)})])


class Rebuilt(Exception):
    """The product makes such a file anew, with a warning."""


def _read_tokens(path: Path) -> None:
    if open_tokens(path) is None:
        raise Rebuilt


def _results(path: Path) -> None:
    information = {'cmi': 0.1, 'mutual_information': 0.4, 'relative_cmi': 0.25}
    results = {
        **{'run_name': 'a', 'task': 'rte', 'seed': 1, 'metric': 'accuracy', 'scores': {'dev': {'accuracy': 0.5}}},
        'cmi': {'after': {'features': information, 'logits': information}},
        'timing': {'train_seconds': 1.0, 'steps': 3, 'seconds_per_step': 0.3, 'total_seconds': 2.0},
        **{'num_examples': {'dev': 4}, 'majority': {'dev': 0.5}, 'data_fingerprint': 'x', 'versions': {}, 'git': {}},
        'config': {'task': 'rte'},
    }
    path.write_text(json.dumps(results, indent=2))


def _checkpoint(path: Path) -> None:
    torch.save({'state': {'model': {'a': torch.zeros(3)}, 'integrations': {}}}, path)


FILE_KINDS = {
    kind.name: kind
    for kind in (
        FileKind('run.yaml', _written(*(path.read_text() for path in YAMLS)), load_config, (ConfigError,)),
        FileKind('override', _written('1', '[a, b]', '{a: 1}'), lambda path: parse_value(_text(path)), (ConfigError,)),
        FileKind('train.csv', _written(TEXT), read_table, (DataError,)),
        FileKind('train.tsv', _written(TEXT.replace(',', '\t')), read_table, (DataError,)),
        FileKind('train.jsonl', _written('\n'.join(LINES)), read_table, (DataError,)),
        FileKind('train.parquet', _parquet, read_table, (DataError,)),
        FileKind('logits.safetensors', _logit_cache, LogitCache.open, (ValueError,)),
        FileKind('tokens.arrow', _token_cache, _read_tokens, (Rebuilt,)),
        FileKind('results.json', _results, lambda path: load_results(path.parent), (ConfigError,)),
        FileKind(
            'predictions_dev.csv',
            _written('example_id,label,prediction,logit_0,logit_1\n0,1,1,0.5,1.5\n1,0,1,0.1,0.2\n2,,0,2.5,1\n'),
            read_predictions,
            (ConfigError,),
        ),
        FileKind('history.csv', _written('step,loss/train/total\n0,0.7\n1,0.6\n'), read_history, (ConfigError,)),
        FileKind('ep1.pt', _checkpoint, load_classifier, (ValueError,)),
    )
}


def _text(path: Path) -> str:
    return path.read_bytes().decode('utf-8', 'replace')


def mutated(data: bytes, rng: random.Random) -> bytes:
    """One to four changes: a flipped bit, a cut, a piece taken out, doubled or moved, something put in."""
    for _ in range(rng.randint(1, 4)):
        a, b = sorted(rng.randrange(len(data) + 1) for _ in range(2))
        match rng.randrange(6):
            case 0 if data:
                place = min(a, len(data) - 1)
                data = data[:place] + bytes([data[place] ^ (1 << rng.randrange(8))]) + data[place + 1 :]
            case 1:
                data = data[:b]
            case 2:
                data = data[:a] + data[min(b, a + 40) :]
            case 3:
                data = data[:b] + data[a : a + 200] + data[b:]
            case 4:
                data = data[:a] + rng.choice(TOKENS) + data[a:]
            case _:
                data = data[:a] + rng.randbytes(rng.randint(1, 8)) + data[b if rng.random() < 0.3 else a :]
    return data


def fuzz_file(
    name: str, seconds: float, seed: int = 0, say: Callable[[str], None] = print, cases: int = 10**9
) -> Counter[str]:
    """Read mutated files of one kind for so long, or so many; prints each kind of traceback once."""
    kind, rng, counts, seen = FILE_KINDS[name], random.Random(seed), Counter[str](), set()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter('ignore')
        path = Path(folder) / kind.name
        while time.monotonic() - started < seconds and counts['cases'] < cases:
            if counts['cases'] % 50 == 0:
                kind.whole(path)
                whole = path.read_bytes()
            path.unlink()  # a mapped file must not change under its reader
            path.write_bytes(mutated(whole, rng))
            counts['cases'] += 1
            outcome = _outcome(kind, path)
            counts[outcome.split(':')[0]] += 1
            if ':' in outcome and outcome[:60] not in seen:
                seen.add(outcome[:60])
                say(f'{name}, {outcome}')
    return counts


def _outcome(kind: FileKind, path: Path) -> str:
    began = time.perf_counter()
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            kind.read(path)
        outcome = 'accepted'
    except kind.errors as error:
        # Of a data file all faults are listed, a line each.
        lines = len(str(error).splitlines())
        outcome = 'refused' if lines <= (25 if kind.errors == (DataError,) else 1) else f'unclear: {str(error)[:200]!r}'
    except Exception as error:
        outcome = f'traceback: {type(error).__name__}: {str(error)[:200]}'
    return outcome if time.perf_counter() - began < SLOWEST else f'hang: {outcome}'
