"""The files of a run folder: written aside and renamed, so that none is ever half there, and read back with a check.

``digests.json`` holds the SHA-256 of every file that is read back. A file's new digest is entered before the file is
renamed into place and the old one stays beside it, so that a kill between the two leaves a file that is known.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import shutil
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from composer_cmi.errors import ConfigError, naming
from composer_cmi.run.evaluate import Evaluation

__all__ = [
    'DIGESTS_FILE',
    'enter_digests',
    'file_digest',
    'is_whole',
    'read_checked',
    'read_digests',
    'read_features',
    'sweep_up',
    'write_bytes',
    'write_checked',
    'write_features',
    'write_json',
    'write_predictions',
    'write_text',
    'write_yaml',
]

DIGESTS_FILE = 'digests.json'
_FEATURE_ROWS = 2000
_KNOWN_VERSIONS = 8  # digests that are kept of one name


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write a file so that a reader sees the old content or the new one, never a part."""
    path = Path(path)
    aside = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            aside.write_bytes(content)
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all."""
    write_bytes(path, text.encode())


def write_json(path: str | Path, data: Any, *, checked: bool = False) -> None:
    """Write JSON, indented, with a final newline; ``checked`` enters its digest."""
    text = json.dumps(data, indent=2, ensure_ascii=False) + '\n'
    (write_checked if checked else write_bytes)(path, text.encode())


def write_yaml(path: str | Path, data: Any) -> None:
    """Write YAML in the order of ``data``, with its digest."""
    write_checked(path, yaml.safe_dump(data, sort_keys=False, allow_unicode=True).encode())


def write_checked(path: str | Path, content: bytes) -> None:
    """Write a file that is read back later, and its digest into the folder's ``digests.json``."""
    path = Path(path)
    enter_digests(path.parent, {path.name: hashlib.sha256(content).hexdigest()})
    write_bytes(path, content)


def read_checked(path: str | Path, remedy: str) -> bytes:
    """Read a file whose digest was entered when it was written.

    Args:
        path: The file.
        remedy: What to do about a damaged file, the end of the sentence: ``'delete it to ...'``.

    Raises:
        ConfigError: if it is not what was written.
        OSError: if it cannot be read.
    """
    path = Path(path)
    content = path.read_bytes()
    known = read_digests(path.parent).get(path.name)
    if known is None:
        _unchecked()
    elif hashlib.sha256(content).hexdigest() not in known:
        raise ConfigError(f'{path} is damaged: it is not what was written (its SHA-256 differs); {remedy}.')
    return content


def file_digest(path: str | Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with Path(path).open('rb') as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def is_whole(folder: Path, name: str) -> bool:
    """Whether a file of the folder is there as it was written; one whose digest was never entered counts as such."""
    path, known = folder / name, read_digests(folder).get(name)
    if known is None and path.is_file():
        _unchecked()
    return path.is_file() and (known is None or file_digest(path) in known)


def _unchecked() -> None:
    # One text for all folders: Python shows it once.
    warnings.warn('A run folder of an earlier version has no digests: its files are read unchecked.', stacklevel=3)


def read_digests(folder: str | Path) -> dict[str, list[str]]:
    """Digests by file name, the newest first; empty in a folder that has none.

    Raises:
        ConfigError: if the list itself is damaged.
    """
    path = Path(folder) / DIGESTS_FILE
    try:
        stored = json.loads(path.read_bytes())
        files = stored['files']
        if stored['sha256'] == _digest_of(files):
            return files
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError):
        pass
    raise ConfigError(f'{path} is damaged; delete it to read the other files of the folder unchecked.')


def enter_digests(folder: str | Path, digests: Mapping[str, str], *, drop: Iterable[str] = ()) -> None:
    """Enter the digests of files that are about to be written, and forget those of ``drop``."""
    files = read_digests(folder)
    for name in drop:
        files.pop(name, None)
    for name, digest in digests.items():
        files[name] = [*dict.fromkeys([digest, *files.get(name, [])])][:_KNOWN_VERSIONS]
    write_json(Path(folder) / DIGESTS_FILE, {'sha256': _digest_of(files), 'files': files})


def _digest_of(files: Any) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def sweep_up(folder: str | Path) -> None:
    """Delete what killed processes left half-written: ``.NAME.PID.tmp`` files and folders; under a lock."""
    for left in Path(folder).glob('.*.tmp'):
        shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()


def write_predictions(path: str | Path, evaluation: Evaluation) -> None:
    """Write ``example_id, label, prediction, logit_0, ...``, one row an example; label -100 is written empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    writer.writerow(['example_id', 'label', 'prediction', *(f'logit_{c}' for c in range(evaluation.logits.shape[1]))])
    rows = zip(
        evaluation.example_ids.tolist(),
        evaluation.labels.tolist(),
        evaluation.predictions.tolist(),
        evaluation.logits.tolist(),
        strict=True,
    )
    for example_id, label, prediction, logits in rows:
        writer.writerow([example_id, '' if label < 0 else label, prediction, *(f'{x:.9g}' for x in logits)])
    write_checked(path, text.getvalue().encode())


def write_features(path: str | Path, evaluation: Evaluation, label_names: Sequence[str]) -> None:
    """Write what pictures need of up to 2,000 rows, as arrays of a compressed NumPy file.

    They are `features` `[n, D]` float16, `labels` `[n]`, `example_ids` `[n]` and `label_names` `[C]`.
    """
    rows = slice(_FEATURE_ROWS)
    arrays = {
        'features': evaluation.features[rows].half().numpy(),
        'labels': evaluation.labels[rows].numpy(),
        'example_ids': evaluation.example_ids[rows].numpy(),
        'label_names': np.array(label_names),
    }
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    write_checked(path, content.getvalue())


def read_features(path: str | Path, remedy: str) -> dict[str, Any]:
    """The arrays of :func:`write_features` by name.

    Raises:
        ConfigError: if the file is damaged; ``remedy`` ends the sentence.
    """
    with np.load(io.BytesIO(read_checked(path, remedy))) as arrays:
        return dict(arrays)
