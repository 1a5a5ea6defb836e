"""A teacher's pass on its way: a small file a piece, so that a kill loses one piece and not the whole pass."""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from composer_cmi.teachers.logit_cache import CacheError, CacheKey, LogitCache, open_or_build

__all__ = ['PiecesOfPass', 'open_or_pass', 'rows_bar']

Progress = Callable[[int, int], None]
_SOON = 5.0  # seconds: what takes less needs no bar


class PiecesOfPass:
    """Pieces of one pass in a folder of their own, each a `LogitCache`: whole, of this pass, or computed again.

    Args:
        folder: Made when it is needed; `remove` deletes it.
        key: What the logits depend on.
        batch_size: Of the pass: in other batches, the last bits of the logits may be others.
    """

    def __init__(self, folder: Path, key: CacheKey, batch_size: int) -> None:
        self.folder, self.key, self.batch_size = folder, key, batch_size

    def read(self, number: int, ids: Tensor) -> Tensor | None:
        """The logits `[n, C]` of the rows `ids` `[n]` where this piece is stored, else None."""
        with contextlib.suppress(FileNotFoundError, CacheError, ValueError):
            stored = LogitCache.open(self._path(number), self.key)
            if torch.equal(stored.example_ids, ids.sort().values):
                return stored.lookup(ids)
        return None

    def write(self, number: int, ids: Tensor, logits: Tensor) -> None:
        """Store a piece.

        Raises:
            ValueError: An id comes twice, or a logit is not finite.
        """
        order = ids.argsort()
        LogitCache(ids[order], logits[order], key=self.key).save(self._path(number))

    def whole(self, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
        """Room for all logits, in a file and not in memory."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / 'all'
        return torch.from_file(str(path), shared=True, size=shape[0] * shape[1], dtype=dtype).view(shape)

    def remove(self) -> None:
        """Delete the folder: the pass is stored."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, number: int) -> Path:
        return self.folder / f'{self.batch_size}-{number:06}.safetensors'


def open_or_pass(
    folder: str | Path,
    key: CacheKey,
    run: Callable[[PiecesOfPass], tuple[Tensor, Tensor]],
    *,
    batch_size: int,
    label_names: Sequence[str] | None,
) -> LogitCache:
    """The table of `key` in `folder`, by a pass that goes on where a killed one has ended, where there is none yet.

    Args:
        folder: Where tables are kept.
        key: What the logits depend on.
        run: Makes the pass, with the pieces that it keeps; gives ids and logits.
        batch_size: Of the pass.
        label_names: The class of each column.
    """
    kept = PiecesOfPass(Path(folder) / f'{key.digest()}.pass', key, batch_size)

    def build() -> LogitCache:
        ids, logits = run(kept)
        return LogitCache(ids, logits, key=key, label_names=label_names)

    table = open_or_build(folder, key, build)
    kept.remove()
    return table


@contextlib.contextmanager
def rows_bar(label: str, shown: bool = True) -> Iterator[Progress | None]:
    """A progress bar with the time that is left, on the standard error; of what is over at once, none."""
    if not shown:
        yield None
        return
    from tqdm.auto import tqdm

    interactive = sys.stderr.isatty()
    # In a log file every refresh is a line.
    interval, width = (0.3, None) if interactive else (15.0, 120)
    options = {'mininterval': interval, 'maxinterval': interval, 'ncols': width, 'dynamic_ncols': interactive}
    with tqdm(desc=label, unit='row', unit_scale=True, file=sys.stderr, delay=_SOON, **options) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield progress
