"""A teacher's logits by example id, in one small file: the teacher runs once over the training set, students read.

The file (safetensors, memory-mapped, so that the ranks of a machine share its pages) is named by a hash of all that the
logits depend on, see `CacheKey`. It is written aside and renamed under a file lock: a reader sees a whole file or none,
and of several processes that want it at once one builds and the others wait. The lock needs no process group: ranks
that wait for a teacher of an hour do not run into the timeout of a barrier.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from composer_cmi.errors import naming

__all__ = ['CacheError', 'CacheKey', 'LogitCache', 'MissingExamplesError', 'open_or_build']

log = logging.getLogger(__name__)

_SCHEMA_VERSION = 1
_PART = 1 << 16  # rows that are looked through at a time


class CacheError(ValueError):
    """A file that is no logit cache, is damaged, or belongs to something else."""


class MissingExamplesError(KeyError, ValueError):
    """Examples whose logits are not stored."""

    def __str__(self) -> str:
        # KeyError prints the repr of its argument, in quotes.
        return str(self.args[0])


@dataclass(frozen=True)
class CacheKey:
    """All that a table of logits depends on.

    Attributes:
        teacher: `Teacher.fingerprint`.
        data: Fingerprint of what it was given, `inputs_fingerprint`.
        task: The task's name.
        tokenizer: Fingerprint or name of the tokenizer.
        max_length: Tokens that a text was cut to, 0 where unknown.
        precision: The precision that the teacher ran in (`'fp32'`, `'amp_bf16'`).
    """

    teacher: str
    data: str
    task: str = ''
    tokenizer: str = ''
    max_length: int = 0
    precision: str = 'fp32'

    def digest(self) -> str:
        """16 hexadecimal digits, the file's name."""
        return hashlib.sha256(json.dumps([_SCHEMA_VERSION, asdict(self)], sort_keys=True).encode()).hexdigest()[:16]


class LogitCache:
    """Logits `[R, C]` (float32) of `R` examples, looked up by example id.

    Args:
        example_ids: `[R]` int64, strictly increasing.
        logits: `[R, C]` float32, in the order of `example_ids`.
        key: What the logits depend on.
        label_names: The class names in the order of the columns; None where the teacher has none.
        by_text: The ids are hashes of texts (`composer_cmi.teachers.by_text`): the table is of no dataset yet.

    Raises:
        ValueError: Shapes do not fit, an id comes twice, or a logit is not finite.
    """

    def __init__(
        self,
        example_ids: Tensor,
        logits: Tensor,
        *,
        key: CacheKey,
        label_names: Sequence[str] | None = None,
        by_text: bool = False,
    ):
        if example_ids.ndim != 1 or logits.ndim != 2 or len(example_ids) != len(logits) or not len(logits):
            raise ValueError(
                f'A logit cache needs ids [R] and logits [R, C] of at least one example, got {list(example_ids.shape)} '
                f'and {list(logits.shape)}.'
            )
        repeated = example_ids[1:] <= example_ids[:-1]
        if bool(repeated.any()):
            raise ValueError(
                f'Example ids must be unique and in increasing order, {int(example_ids[1:][repeated][0])} is not.'
            )
        for ids, part in zip(example_ids.split(_PART), logits.split(_PART), strict=True):
            finite = torch.isfinite(part).all(-1)
            if not bool(finite.all()):
                raise ValueError(f"The teacher's logits of example id {int(ids[~finite][0])} are not finite.")
        self.example_ids, self.key, self.by_text = example_ids, key, by_text
        # In the file's order of columns: in another, every rank would hold a copy.
        self._logits: Tensor = logits
        self._order: Tensor | None = None
        self.label_names = None if label_names is None else tuple(label_names)
        self._missing = torch.zeros((), dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.example_ids)

    @property
    def logits(self) -> Tensor:
        """`[R, C]` float32."""
        return self._logits if self._order is None else self._logits[:, self._order]

    @property
    def num_labels(self) -> int:
        """Number of classes `C`."""
        return self._logits.shape[1]

    def lookup(self, example_ids: Tensor) -> Tensor:
        """The logits `[N, C]` of examples `[N]`, on the ids' device.

        On a GPU nothing waits for the device: unknown ids give rows of NaN, which no loss survives unseen, and are
        counted for `check`.

        Raises:
            MissingExamplesError: On a CPU, at once, for ids that are not stored.
        """
        if self._logits.device != example_ids.device:
            self.to(example_ids.device)
        position = torch.searchsorted(self.example_ids, example_ids).clamp_(max=len(self) - 1)
        found = self.example_ids[position] == example_ids
        rows = self._logits[position]
        rows = rows if self._order is None else rows[:, self._order]
        if example_ids.device.type == 'cpu':
            if not bool(found.all()):
                raise _missing(example_ids[~found], len(self))
            return rows
        self._missing += (~found).sum()
        return torch.where(found[:, None], rows, torch.nan)

    def check(self) -> None:
        """Raise if a lookup on a GPU met an unknown id; waits for the device.

        Raises:
            MissingExamplesError: It did.
        """
        if count := int(self._missing):
            raise MissingExamplesError(
                f'{count} looked up examples have no stored logits: the cache holds {len(self)} other examples; '
                'build it from the training set of this run.'
            )

    def require(self, example_ids: Tensor) -> None:
        """Raise unless all of `example_ids` (`[N]`, on the CPU) are stored.

        Raises:
            MissingExamplesError: With the first few of those that are not.
        """
        stored = self.example_ids.cpu()
        unknown = []
        for ids in example_ids.cpu().split(_PART):
            found = stored[torch.searchsorted(stored, ids).clamp_(max=len(self) - 1)]
            unknown.append(ids[found != ids])
        if len(missing := torch.cat(unknown)):
            raise _missing(missing, len(self))

    def reordered(self, order: Sequence[int] | None) -> LogitCache:
        """The same logits with the columns in another order (`None`: as they are)."""
        if order is None:
            return self
        names = None if self.label_names is None else [self.label_names[i] for i in order]
        other = copy.copy(self)
        other.label_names = None if names is None else tuple(names)
        other._order = torch.tensor(order, device=self._logits.device) if self._order is None else self._order[[*order]]
        return other

    def to(self, device: torch.device | str) -> LogitCache:
        """Move the table to a device (all of GLUE's training logits are 9 MB)."""
        self.example_ids, self._logits = self.example_ids.to(device), self._logits.to(device)
        self._order = None if self._order is None else self._order.to(device)
        self._missing = self._missing.to(device)
        return self

    def save(self, path: str | Path) -> Path:
        """Write the file aside and rename it into place."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {
            'example_ids': self.example_ids.cpu().contiguous(),
            'logits': self.logits.cpu().float().contiguous(),
        }
        metadata = {
            'schema_version': str(_SCHEMA_VERSION),
            'key': json.dumps(asdict(self.key), sort_keys=True),
            'label_names': json.dumps(self.label_names),
            **({'ids': 'text'} if self.by_text else {}),
        }
        metadata['digest'] = _digest(metadata, tensors)
        aside = path.with_name(f'{path.name}.{os.getpid()}.tmp')
        with naming(path):
            save_file(tensors, str(aside), metadata=metadata)
        # safetensors makes it readable to its owner only; a cache is shared like any other file of the folder.
        os.chmod(aside, path.parent.stat().st_mode & 0o666)
        os.replace(aside, path)
        return path

    @classmethod
    def open(cls, path: str | Path, key: CacheKey | None = None) -> LogitCache:
        """Map a stored file into memory and check it.

        Args:
            path: The file.
            key: What the logits should depend on; None accepts any.

        Raises:
            FileNotFoundError: There is no such file.
            CacheError: It is truncated or altered, of a newer version, or of another key.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f'There is no logit cache at {path}.')
        try:
            with safe_open(str(path), framework='pt') as file:
                metadata = dict(file.metadata() or {})
                tensors = {name: file.get_tensor(name) for name in ('example_ids', 'logits')}
            version, digest = int(metadata['schema_version']), metadata.pop('digest')
        except (SafetensorError, KeyError, ValueError, OSError) as error:
            raise CacheError(
                f'{path} is no logit cache, or a truncated one ({error}): delete it, and it is built anew.'
            ) from error
        if version > _SCHEMA_VERSION:
            raise CacheError(
                f'{path} has schema version {version}, this composer-cmi reads up to {_SCHEMA_VERSION}: upgrade it.'
            )
        if digest != _digest(metadata, tensors):
            raise CacheError(f'{path} was altered after it was written: delete it, and it is built anew.')
        stored = CacheKey(**json.loads(metadata['key']))
        if key is not None and stored != key:
            differing = [name for name, value in asdict(key).items() if asdict(stored)[name] != value]
            raise CacheError(f'{path} was built for another {" and ".join(differing)}: name another file or a folder.')
        names, by_text = json.loads(metadata['label_names']), metadata.get('ids') == 'text'
        return cls(tensors['example_ids'], tensors['logits'], key=stored, label_names=names, by_text=by_text)


def open_or_build(folder: str | Path, key: CacheKey, build: Callable[[], LogitCache]) -> LogitCache:
    """Open the table of `key` in `folder`, or build and store it; one process builds, the others wait for it.

    A file that is truncated, altered or wrong is built anew, with a warning in the log.

    Args:
        folder: Where tables are kept; a file each.
        key: What the logits depend on; names the file.
        build: Runs the teacher.
    """
    path = Path(folder) / f'{key.digest()}.safetensors'
    with contextlib.suppress(FileNotFoundError, CacheError):
        return LogitCache.open(path, key)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f'{path}.lock'):
        try:
            return LogitCache.open(path, key)  # another process may have built it while this one waited
        except FileNotFoundError:
            pass
        except CacheError as error:
            log.warning('The logit cache is built anew. %s', error)
        for stale in path.parent.glob(f'{path.name}.*.tmp'):  # of a builder that was killed: the lock is ours
            stale.unlink(missing_ok=True)
        build().save(path)
        return LogitCache.open(path, key)


def _digest(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(sorted(metadata.items())).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f'{name} {tensor.dtype} {list(tensor.shape)}'.encode())
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()


def _missing(ids: Tensor, stored: int) -> MissingExamplesError:
    shown = ', '.join(str(i) for i in ids[:3].tolist())
    return MissingExamplesError(
        f'{len(ids)} examples have no stored logits (ids {shown}{", ..." if len(ids) > 3 else ""}): the cache holds '
        f'{stored} other examples; build it from the training set of this run.'
    )
