"""Checkpoint files are pickles: they are read as numbers and text, and nothing that they name is run.

Composer 0.32.1 unpickles what it resumes from. `safe_loading` makes every `torch.load` in its block read by
`weights_only=True` and the list below, whatever the caller asked for; `check_checkpoint` reads one file by the same
rules and says in one sentence what is wrong with it.
"""

from __future__ import annotations

import contextlib
import datetime
import io
import os
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from composer_cmi.errors import ConfigError

__all__ = ['check_checkpoint', 'read_checkpoint', 'safe_loading']

_FORCE, _FORCE_NOT = 'TORCH_FORCE_WEIGHTS_ONLY_LOAD', 'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'

_BROKEN = '{} is no Composer checkpoint, or a broken one: restore it from a copy, or delete it.'
_FOREIGN = (
    '{} holds {}, which is no part of a checkpoint: loading it could run foreign code, so nothing was loaded; take the '
    'file from where you trust it, or delete it.'
)


def read_checkpoint(path: str | Path, map_location: Any = 'cpu', *, mmap: bool = False) -> Any:
    """`torch.load` of a file in which nothing but tensors, arrays, plain values and time spans is allowed.

    Raises:
        ConfigError: The file names anything else (then nothing of it was run), or is broken or empty.
        FileNotFoundError: There is no such file.
    """
    return _explained(path, lambda: _load(str(path), map_location, mmap=mmap))


def check_checkpoint(path: str | Path) -> None:
    """Read a checkpoint file, or all files of a sharded checkpoint's folder, and drop what was read.

    Raises:
        ConfigError: In one sentence with the file's name, for what `read_checkpoint` refuses.
    """
    path = Path(path)
    if path.is_file():
        read_checkpoint(path, mmap=zipfile.is_zipfile(path))
    for index in sorted(path.rglob('.metadata')) if path.is_dir() else []:
        _check_shards(index)
    for file in sorted(path.rglob('*.pt')) if path.is_dir() else []:
        check_checkpoint(file)


@contextlib.contextmanager
def safe_loading(folder: str | Path) -> Iterator[None]:
    """Every `torch.load` inside reads numbers and text only; sharded checkpoints below `folder` are checked before.

    Args:
        folder: Where the checkpoints are that the block may read; it need not exist.

    Raises:
        ConfigError: A file in `folder` holds something else, or is broken.
    """
    for index in sorted(Path(folder).rglob('.metadata')):
        _check_shards(index)
    before = {name: os.environ.pop(name, None) for name in (_FORCE, _FORCE_NOT)}
    os.environ[_FORCE] = '1'
    try:
        with torch.serialization.safe_globals(_allowed()):
            yield
    except (pickle.UnpicklingError, EOFError, RuntimeError, zipfile.BadZipFile):
        # Which file it was, the error does not say; if none is at fault, it was about something else.
        for file in sorted(Path(folder).rglob('*.pt')):
            check_checkpoint(file)
        raise
    finally:
        os.environ.pop(_FORCE, None)
        os.environ.update({name: value for name, value in before.items() if value is not None})


def _allowed() -> list[Any]:
    """What a checkpoint of Composer's may name beside tensors: the time, torch's version, NumPy's random state."""
    core: Any = getattr(np, '_core', None) or np.core  # its name before and since NumPy 2
    numbers = [np.dtype(code) for code in ('?', *np.typecodes['AllInteger'], *np.typecodes['AllFloat'])]
    return [
        datetime.timedelta,
        type(torch.__version__),
        np.ndarray,
        np.dtype,
        *{type(number) for number in numbers},
        core.multiarray._reconstruct,
        (core.multiarray._reconstruct, 'numpy.core.multiarray._reconstruct'),  # as NumPy 1 wrote it
        core.multiarray.scalar,
    ]


def _load(file: Any, map_location: Any = 'cpu', *, mmap: bool = False) -> Any:
    with torch.serialization.safe_globals(_allowed()):
        return torch.load(file, map_location=map_location, weights_only=True, mmap=mmap)


def _explained(path: str | Path, read: Any) -> Any:
    try:
        return read()
    except FileNotFoundError:
        raise
    except pickle.UnpicklingError as error:
        name = _named(error)
        if name is not None:
            raise ConfigError(_FOREIGN.format(path, name)) from error
        raise ConfigError(_BROKEN.format(path)) from error
    except Exception as error:  # whatever a cut or altered file makes the reader stumble over
        raise ConfigError(_BROKEN.format(path)) from error


def _named(error: Exception) -> str | None:
    """The name in torch's 'Unsupported global: GLOBAL posix.system was not an allowed global', or None."""
    words = str(error).split()
    return next((words[i + 1].strip('`\'"') for i, word in enumerate(words[:-1]) if word == 'GLOBAL'), None)


class _IndexUnpickler(pickle.Unpickler):
    """Reads the index of a sharded checkpoint, which PyTorch itself unpickles without any check."""

    def find_class(self, module: str, name: str) -> Any:
        if name in _OF_AN_INDEX.get(module, ()):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f'Unsupported global: GLOBAL {module}.{name} was not an allowed global')


_METADATA = 'torch.distributed.checkpoint.metadata'
_OF_AN_INDEX = {
    _METADATA: (
        *('Metadata', 'MetadataIndex', 'StorageMeta', 'TensorProperties', '_MEM_FORMAT_ENCODING'),
        *('BytesStorageMetadata', 'ChunkStorageMetadata', 'TensorStorageMetadata'),
    ),
    'torch.distributed.checkpoint.filesystem': ('_StorageInfo', '_StoragePrefix'),
    'torch': (
        *('Size', 'device', 'float16', 'bfloat16', 'float32', 'float64', 'bool'),
        *('uint8', 'int8', 'int16', 'int32', 'int64'),
    ),
    'torch.serialization': ('_get_layout',),
    'collections': ('OrderedDict',),
    'pathlib': ('PosixPath',),
    'pathlib._local': ('PosixPath',),
}


def _check_shards(index: Path) -> None:
    def read_index() -> Any:
        with index.open('rb') as file:
            return _IndexUnpickler(file).load()

    metadata = _explained(index, read_index)
    for stored in (getattr(metadata, 'storage_data', None) or {}).values():
        shard = index.parent / stored.relative_path

        def read_item(shard: Path = shard, stored: Any = stored) -> Any:
            with shard.open('rb') as file:
                file.seek(stored.offset)
                return _load(io.BytesIO(file.read(stored.length)))

        _explained(shard, read_item)
