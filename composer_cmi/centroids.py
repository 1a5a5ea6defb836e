"""Per-class centroids that stay fixed within a batch and are the same on every rank.

One float64 table holds, for each class, everything that is known of its cluster: the sum of `f_x`, the sum of `-H(f_x)`
and the counts. Tables add up over microbatches, ranks and batches, and every quantity is a function of a table, so
nothing depends on how a batch was cut.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from composer.utils import dist
from torch import Tensor

from composer_cmi import functional as cmi_f

__all__ = ['CentroidMode', 'ClassCentroids']

CentroidMode = Literal['ema', 'epoch', 'fixed']

# Columns behind the D sums of f_x.
_NEGENTROPY, _CORRECT, _SKIPPED, _COUNT = -4, -3, -2, -1
_EXTRA_COLUMNS = 4
_SCHEMA_VERSION = 1
_TINY = torch.finfo(torch.float32).tiny


class ClassCentroids:
    """Class centroids `g_y` and the running statistics around them.

    A batch goes `begin` -> `add` for each microbatch -> `finish` -> `commit`. Several passes over one batch (SAM's
    second closure, the replay after an out-of-memory error) each `begin` anew; the first that finishes is committed.

    Args:
        mode: `'ema'`: exponential average over the batches in which a class occurs, weighted by its count there, so
            that it is unbiased from the first batch. `'epoch'`: the mean over the last whole epoch (over the current
            one until the first is complete). `'fixed'`: what one pass over the training set gave (`fix`), for good.
        decay: of the exponential average, in [0, 1).

    Raises:
        ValueError: for another mode or a decay outside [0, 1).
    """

    def __init__(self, mode: CentroidMode = 'ema', decay: float = 0.9):
        if mode not in get_args(CentroidMode):
            raise ValueError(f"centroids must be one of {', '.join(get_args(CentroidMode))}, got '{mode}'.")
        if not 0 <= decay < 1:
            raise ValueError(f'decay must lie in [0, 1), got {decay}.')
        self.mode: CentroidMode = mode
        self.decay = decay
        self.shape = (0, 0)  # (classes, dim), known from `allocate` or a checkpoint
        # State: the running average, the reference of 'epoch' and 'fixed', the epoch under way, totals since the start.
        self.tables: dict[str, Tensor] = {}
        self.fixed = False
        self._pending = self._finished = None

    # --- life cycle -------------------------------------------------------------------------------------------------

    def allocate(self, num_classes: int, dim: int, device: torch.device) -> None:
        """Make room for `[C, D]` centroids, or check and move what a checkpoint brought.

        Raises:
            ValueError: if the loaded centroids have another shape.
        """
        if not self.ready:
            self.shape = (num_classes, dim)
            self.tables = {
                name: torch.zeros(num_classes, dim + _EXTRA_COLUMNS, dtype=torch.float64) for name in self._names
            }
            self.tables['totals'] = torch.zeros(num_classes, 2, dtype=torch.float64)
        _check_shapes(self.shape, (num_classes, dim))
        self.tables = {name: table.to(device) for name, table in self.tables.items()}
        self._refresh()

    @property
    def _names(self) -> tuple[str, ...]:
        return ('running',) + {'ema': (), 'epoch': ('reference', 'epoch'), 'fixed': ('reference',)}[self.mode]

    @property
    def ready(self) -> bool:
        """Whether `allocate` or `load_state_dict` has been called."""
        return self.shape != (0, 0)

    # --- one batch --------------------------------------------------------------------------------------------------

    def clear(self) -> None:
        """Forget a batch that was not committed."""
        self._pending = self._finished = None

    def begin(self) -> None:
        """A pass over the batch starts: its sums are zero, whatever an aborted pass left."""
        self._pending = None

    def add(self, log_f: Tensor, labels: Tensor, correct: Tensor, finite: Tensor) -> None:
        """Add one microbatch to the pass under way.

        Args:
            log_f: `[N, D]`, detached.
            labels: `[N]` int64; outside `0..C-1` is ignored.
            correct: `[N]` bool, whether the model's prediction is right.
            finite: `[N]` bool; a row that is not is counted as skipped and nothing else.
        """
        f = log_f.exp()
        columns = torch.cat([f, torch.stack([(f * log_f).sum(-1), correct.to(f.dtype), finite.to(f.dtype)], 1)], 1)
        keep = finite[:, None].to(f.dtype)
        columns = torch.cat([columns[:, :-1] * keep, 1 - keep, keep], 1)
        table = cmi_f.sum_by_class(columns, labels, self.shape[0])
        self._pending = table if self._pending is None else self._pending + table

    def finish(self) -> None:
        """A pass is complete; the first complete one of a batch is what `commit` takes."""
        if self._finished is None:
            self._finished = self._pending
        self._pending = None

    def commit(self) -> Tensor:
        """Merge the batch over all ranks (one all-reduce) and take it into the centroids.

        Returns:
            The batch's own table, `[C, D + 4]` float64, for `statistics`.
        """
        batch = self._finished
        if batch is None:  # this rank saw no row; it must take part in the all-reduce all the same
            batch = torch.zeros_like(self.tables['running'])
        dist.all_reduce(batch, reduce_operation='SUM')
        self.clear()
        seen = batch[:, _COUNT:] > 0
        running = self.tables['running']
        self.tables['running'] = torch.where(seen, self.decay * running + batch, running)
        self.tables['totals'] = self.tables['totals'] + batch[:, [_SKIPPED, _COUNT]]
        if self.mode == 'epoch':
            self.tables['epoch'] = self.tables['epoch'] + batch
        self._refresh()
        return batch

    def end_epoch(self) -> None:
        """In mode `'epoch'`: what was gathered in the epoch becomes the reference."""
        if self.mode == 'epoch' and self.ready:
            epoch = self.tables['epoch']
            self.tables['reference'] = torch.where(epoch[:, _COUNT:] > 0, epoch, self.tables['reference'])
            self.tables['epoch'] = torch.zeros_like(epoch)
            self._refresh()

    def fix(self) -> None:
        """In mode `'fixed'`: the pass under way (one over the training set) becomes the reference for good."""
        table = self._pending if self._pending is not None else torch.zeros_like(self.tables['running'])
        dist.all_reduce(table, reduce_operation='SUM')
        self.tables['reference'] = table
        self.fixed = True
        self.clear()
        self._refresh()

    # --- what follows from the tables -------------------------------------------------------------------------------

    @staticmethod
    def statistics(table: Tensor) -> cmi_f.ClassStatistics:
        """The table as sufficient statistics of CMI."""
        return cmi_f.ClassStatistics(table[:, _COUNT], table[:, :-_EXTRA_COLUMNS], table[:, _NEGENTROPY])

    @staticmethod
    def accuracy(table: Tensor) -> Tensor:
        """Share of right predictions in the table, 0-d."""
        return table[:, _CORRECT].sum() / table[:, _COUNT].sum().clamp(min=1)

    def _table_in_force(self) -> Tensor:
        if self.mode == 'ema':
            return self.tables['running']
        reference = self.tables['reference']
        # Until the first whole epoch, the part of it that has been seen.
        fallback = self.tables['epoch'] if self.mode == 'epoch' else reference
        return torch.where(reference[:, _COUNT:] > 0, reference, fallback)

    def _class_balanced(self, table: Tensor) -> cmi_f.ClassStatistics:
        """Statistics of `table`, each class weighted by its share of all examples seen, so that a rare one keeps it."""
        stats = self.statistics(table)
        prior = torch.where(stats.counts > 0, self.tables['totals'][:, 1], 0)
        scale = prior / stats.counts.clamp(min=_TINY)
        return cmi_f.ClassStatistics(prior, stats.sums * scale[:, None], stats.negentropies * scale)

    def _refresh(self) -> None:
        in_force = self.statistics(self._table_in_force())
        self.known = in_force.counts > 0
        self.log_centroids = cmi_f.centroids(in_force).clamp(min=_TINY).log()
        running = self._class_balanced(self.tables['running'])
        self.cmi = cmi_f.conditional_mutual_information(running)
        self.mutual_information = cmi_f.mutual_information(running)
        self.relative_cmi = cmi_f.relative_cmi(running)
        marginal = running.sums.sum(0) / running.counts.sum().clamp(min=1)
        self.log_marginal = marginal.clamp(min=_TINY).log()
        # Examples behind a centroid, averaged over the classes seen.
        self.support = in_force.counts.sum() / self.known.sum().clamp(min=1)

    def cover(self, labels: Tensor) -> Tensor:
        """`[N]` bool: whether the class of each label has a centroid yet."""
        in_range = (labels >= 0) & (labels < self.shape[0])
        return in_range & self.known[torch.where(in_range, labels, 0)]

    @property
    def prior(self) -> Tensor:
        """`[C]` share of each class among all examples seen."""
        counts = self.tables['totals'][:, 1]
        return counts / counts.sum().clamp(min=1)

    @property
    def examples_per_class(self) -> Tensor:
        """0-d: examples seen since the start, per class."""
        return self.tables['totals'][:, 1].mean()

    @property
    def skipped(self) -> Tensor:
        """0-d: rows left out since the start because their features were not finite."""
        return self.tables['totals'][:, 0].sum()

    # --- checkpoint -------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Plain types and CPU clones only: Composer may load with `weights_only=True`; ranks hold equal copies."""
        return {
            'schema_version': _SCHEMA_VERSION,
            'mode': self.mode,
            'fixed': self.fixed,
            'num_classes': self.shape[0] if self.shape else 0,
            'dim': self.shape[1] if self.shape else 0,
            'tables': {name: table.detach().cpu().clone() for name, table in self.tables.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a saved state.

        Raises:
            ValueError: if it comes from a newer version, another centroid mode, or has another shape.
        """
        if state['schema_version'] > _SCHEMA_VERSION:
            raise ValueError(
                f"The checkpoint's centroids have schema version {state['schema_version']}, this composer-cmi reads "
                f'up to {_SCHEMA_VERSION}; upgrade composer-cmi.'
            )
        if state['mode'] != self.mode:
            raise ValueError(
                f"The checkpoint was made with centroids='{state['mode']}', this run asks for '{self.mode}'; use the "
                'same.'
            )
        saved = (state['num_classes'], state['dim'])
        if saved == (0, 0):
            return
        if self.ready:
            _check_shapes(saved, self.shape)
        self.shape, self.fixed = saved, state['fixed']
        self.tables = {name: table.clone() for name, table in state['tables'].items()}
        self._refresh()


def _check_shapes(saved: tuple[int, int], wanted: tuple[int, int]) -> None:
    if saved != wanted:
        raise ValueError(
            f"The checkpoint's centroids are for {saved[0]} classes of width {saved[1]}, but this run has {wanted[0]} "
            f'classes of width {wanted[1]}; resume with the same model, task and space, or load the weights only.'
        )
