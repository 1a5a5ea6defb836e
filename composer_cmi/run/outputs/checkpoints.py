"""Composer's checkpoints of a run: each with a digest and with the identity of the run that wrote it."""

from __future__ import annotations

import errno
import json
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from composer.callbacks import CheckpointSaver
from composer.core import State
from composer.loggers import Logger
from composer.utils import dist

from composer_cmi.errors import ConfigError, naming
from composer_cmi.run.outputs.files import DIGESTS_FILE, enter_digests, file_digest, is_whole, read_digests

__all__ = ['CHECKPOINTS', 'CheckedCheckpoints', 'latest_checkpoint', 'loading']

CHECKPOINTS = 'checkpoints'
_NAME = re.compile(r'ep\d+-ba(\d+)(-rank\d+\.pt)?')


class CheckedCheckpoints(CheckpointSaver):
    """Composer's checkpoints, each entered with its digests as soon as it is whole; older ones go only then.

    Args:
        folder: The run folder.
        identity: Of this run; it travels in each checkpoint, so that none is taken up by another run.
        save_interval: A Composer time.
        num_keep: So many are kept.
        refuse: Called with the identity in a checkpoint that is being loaded; raises for another run's.
        check: Called before each checkpoint; raises if training has diverged.
    """

    def __init__(
        self,
        folder: Path,
        *,
        identity: Mapping[str, Any],
        save_interval: str,
        num_keep: int,
        refuse: Callable[[Mapping[str, Any]], None],
        check: Callable[[], None],
    ) -> None:
        super().__init__(
            _escape_braces(str(folder / CHECKPOINTS)),
            remote_file_name=None,
            latest_remote_file_name=None,
            save_interval=save_interval,
            overwrite=True,
            num_checkpoints_to_keep=-1,
        )
        self.run_folder, self.identity, self.num_keep = folder, identity, num_keep
        self.refuse, self.check = refuse, check
        self.identified = False

    def state_dict(self) -> dict[str, Any]:
        return {'identity': json.dumps(self.identity)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.refuse(json.loads(state['identity']))
        self.identified = True

    def _save_checkpoint(self, state: State, logger: Logger) -> None:
        self.check()
        try:
            with naming(self.run_folder / CHECKPOINTS):
                super()._save_checkpoint(state, logger)
        except RuntimeError as error:
            if 'PytorchStreamWriter' in str(error) or 'unexpected pos' in str(error):
                # torch's words for a write that failed; what made it fail is the error before.
                cause = error.__context__ if isinstance(error.__context__, OSError) else None
                number, reason = (cause.errno, cause.strerror) if cause else (errno.ENOSPC, 'No space left on device?')
                raise OSError(number, reason, str(self.run_folder / CHECKPOINTS)) from error
            raise
        if state.fsdp_sharded_state_dict_enabled:
            dist.barrier()  # every rank's shard is there
        if dist.get_global_rank() == 0:
            self._enter(Path(self.saved_checkpoints[-1]), sharded=state.fsdp_sharded_state_dict_enabled)

    def _enter(self, saved: Path, *, sharded: bool) -> None:
        saved = saved.parent if sharded else saved
        name = saved.name
        kept = [*[other for other in _checkpoints(self.run_folder) if other != name], name][-self.num_keep :]
        old = [key for key in read_digests(self.run_folder) if _checkpoint_of(key) not in (None, *kept)]
        enter_digests(self.run_folder, _digests(self.run_folder, saved), drop=old)
        _delete_others(self.run_folder, kept)


def _escape_braces(path: str) -> str:
    """Double the braces of a path, in which Composer fills in its placeholders."""
    return path.replace('{', '{{').replace('}', '}}')


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that is whole; what kills have left half-written, and what is damaged, is deleted.

    Raises:
        ConfigError: if there are checkpoints and all of them are damaged.
    """
    names = _checkpoints(folder)
    if not (folder / DIGESTS_FILE).is_file():
        # Of an earlier version: its latest is what its link says.
        link = folder / CHECKPOINTS / 'latest-rank0.pt'
        if not link.exists():
            return None
        found = link.resolve()
        enter_digests(folder, _digests(folder, found))
        return found
    _delete_others(folder, names)
    digests, damaged = read_digests(folder), []
    for name in reversed(names):
        files = [key for key in digests if _checkpoint_of(key) == name]
        broken = [folder / key for key in files if not is_whole(folder, key)]
        if not broken:
            if damaged:
                warnings.warn(f'{damaged[0]} is damaged: the run goes on from the checkpoint before it, {name}.')
                enter_digests(folder, {}, drop=[key for key in digests if _newer(_checkpoint_of(key), name)])
                _delete_others(folder, _checkpoints(folder))
            return folder / CHECKPOINTS / name
        # A file that is not there was deleted by somebody: that is the way out that is offered below.
        damaged += [path for path in broken if path.exists()]
    if damaged:
        raise ConfigError(
            f'The checkpoint {damaged[0]} is damaged: it is not what was written (its SHA-256 differs). Delete it, and '
            'the same command trains from the beginning.'
        )
    return None


def _digests(folder: Path, saved: Path) -> dict[str, str]:
    files = [path for path in sorted(saved.iterdir()) if path.is_file()] if saved.is_dir() else [saved]
    return {f'{CHECKPOINTS}/{path.relative_to(saved.parent).as_posix()}': file_digest(path) for path in files}


def _checkpoint_of(key: str) -> str | None:
    top, _, rest = key.partition('/')
    return rest.split('/')[0] if top == CHECKPOINTS else None


def _batch(name: str) -> int:
    match = _NAME.fullmatch(name)
    return int(match[1]) if match else -1


def _newer(name: str | None, than: str) -> bool:
    return name is not None and _batch(name) > _batch(than)


def _checkpoints(folder: Path) -> list[str]:
    """Names of the checkpoints with digests, the newest last."""
    names = {_checkpoint_of(key) for key in read_digests(folder)}
    return sorted((name for name in names if name is not None), key=_batch)


def _delete_others(folder: Path, kept: list[str]) -> None:
    """Delete Composer's checkpoints that are not in the list; nothing that has another name."""
    for path in (folder / CHECKPOINTS).glob('ep*-ba*'):
        if _NAME.fullmatch(path.name) and path.name not in kept:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextmanager
def loading(checkpoint: Path | None) -> Iterator[str | None]:
    """The path by which Composer can load it; one of an earlier version, without a digest, may be anything.

    Raises:
        ConfigError: if it cannot be loaded; names it.
    """
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = checkpoint
            if checkpoint is not None and {'{', '}'} & {*str(checkpoint)}:
                # Composer fills in placeholders more than once on the way: it is given a path without braces.
                path = Path(folder) / 'checkpoint'
                path.symlink_to(checkpoint.absolute())
            yield None if path is None else str(path)
    except ConfigError:
        raise
    except (RuntimeError, EOFError, KeyError, AttributeError, UnpicklingError) as error:
        if checkpoint is None:
            raise
        reason = f'{type(error).__name__}: {" ".join(str(error).split())[:200]}'
        raise ConfigError(
            f'The checkpoint {checkpoint} cannot be taken up ({reason}). Delete it, and the same command trains from '
            'the beginning.'
        ) from error
