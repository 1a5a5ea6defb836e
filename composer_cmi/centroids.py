"""Per-class centroids that stay fixed within a batch and are the same on every rank.

One float64 table holds, for each class, everything that is known of its cluster: the sum of `f_x`, the sum of `-H(f_x)`
and the counts; for the separation also the sum of `log f_x`. Tables add up over microbatches, ranks and batches, and
every quantity is a function of a table, so nothing depends on how a batch was cut.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.distributed as dist
from torch import Tensor

from composer_cmi import functional as cmi_f

__all__ = ['CentroidMode', 'ClassCentroids', 'Clusters']

CentroidMode = Literal['ema', 'fixed']

# Columns behind the D sums of f_x, in front of which stand those of log f_x, if any.
_NEGENTROPY, _CORRECT, _SKIPPED, _COUNT = -4, -3, -2, -1
_EXTRA_COLUMNS = 4
_SCHEMA_VERSION = 1
_TINY = torch.finfo(torch.float32).tiny


class Clusters(NamedTuple):
    """What follows from one table; all but `support` in nats or log, float64."""

    known: Tensor  # [C] bool, whether the class has been seen
    prior: Tensor  # [C], share of each class
    log_centroids: Tensor  # [C, D], log of the class means of f_x
    log_marginal: Tensor  # [D], log of the mean over all classes
    support: Tensor  # 0-d, examples behind a centroid, averaged over the classes seen
    cmi: Tensor  # 0-d, I(X;Z|Y)
    mutual_information: Tensor  # 0-d, I(X;Z)
    relative_cmi: Tensor  # 0-d, their ratio
    log_means: Tensor | None  # [C, D], class means of log f_x, where they are kept, and with them:
    separation: Tensor | None  # 0-d, Gamma


class ClassCentroids:
    """Two tables of class clusters: `reference` is what the term is measured against, `running` what the model does.

    In mode `'ema'` they are one. A batch goes `begin` -> `add` for each microbatch -> `finish` -> `commit`. Several
    passes over one batch (SAM's second closure, the replay after an out-of-memory error) each `begin` anew; the first
    that finishes is committed.

    Args:
        mode: `'ema'`: exponential average over the batches in which a class occurs, weighted by its count there, so
            that it is unbiased from the first batch. `'fixed'`: what one pass over the training set gave (`fix`), for
            good.
        decay: of the exponential average, in [0, 1).
        separation: keep the class means of `log f_x` too.

    Raises:
        ValueError: for another mode or a decay outside [0, 1).
    """

    running: Clusters
    reference: Clusters

    def __init__(self, mode: CentroidMode = 'ema', decay: float = 0.9, *, separation: bool = False):
        if mode not in get_args(CentroidMode):
            raise ValueError(f"centroids must be one of {', '.join(get_args(CentroidMode))}, got '{mode}'.")
        if not 0 <= decay < 1:
            raise ValueError(f'decay must lie in [0, 1), got {decay}.')
        self.mode: CentroidMode = mode
        self.decay, self._separation = decay, separation
        self.shape = (0, 0)  # (classes, dim), known from `allocate` or a checkpoint
        # State: the running average, in mode 'fixed' the reference, [C, 2] rows skipped and seen since the start, and
        # `[W + 1]` the running sum of features and their number, where these are centred.
        self.tables: dict[str, Tensor] = {}
        self.fixed = False
        self._pending = self._finished = None

    def allocate(self, num_classes: int, dim: int, device: torch.device, features: int = 0) -> None:
        """Make room for `[C, D]` centroids, or move what a checkpoint brought; ValueError if that has another shape.

        `features` is the width `W` of what `f_x` is made of, where its mean is kept.
        """
        if not self.ready:
            self.shape = (num_classes, dim)
            columns = (2 if self._separation else 1) * dim + _EXTRA_COLUMNS
            shapes = {'running': (num_classes, columns), 'totals': (num_classes, 2)}
            shapes |= {'reference': shapes['running']} if self.mode == 'fixed' else {}
            shapes |= {'features': (features + 1,)} if features else {}
            self.tables = {name: torch.zeros(*shape, dtype=torch.float64) for name, shape in shapes.items()}
        _check_shapes(self.shape, (num_classes, dim))
        self.tables = {name: table.to(device) for name, table in self.tables.items()}
        self._refresh()

    @property
    def ready(self) -> bool:
        """Whether `allocate` or `load_state_dict` has been called."""
        return self.shape != (0, 0)

    def clear(self) -> None:
        """Forget a batch that was not committed."""
        self._pending = self._finished = None

    def begin(self) -> None:
        """A pass over the batch starts: its sums are zero, whatever an aborted pass left."""
        self._pending = None

    def add(
        self,
        log_f: Tensor,
        labels: Tensor,
        correct: Tensor,
        finite: Tensor,
        term: Tensor | None = None,
        x: Tensor | None = None,
    ) -> None:
        """Add one microbatch to the pass under way.

        Args:
            log_f: `[N, D]`, detached.
            labels: `[N]` int64; outside `0..C-1` is ignored.
            correct: `[N]` bool, whether the model's prediction is right.
            finite: `[N]` bool; a row that is not is counted as skipped and nothing else.
            term: 0-d, what was added to the microbatch's loss, a mean over its `N` rows.
            x: `[N, W]`, the features, where their mean is kept; finite.
        """
        f = log_f.exp()
        columns = torch.cat([f, torch.stack([(f * log_f).sum(-1), correct.to(f.dtype), finite.to(f.dtype)], 1)], 1)
        columns = torch.cat([log_f, columns], 1) if self._separation else columns
        keep = finite[:, None].to(f.dtype)
        columns = torch.cat([columns[:, :-1] * keep, 1 - keep, keep], 1)
        table = cmi_f.sum_by_class(columns, labels, self.shape[0]).flatten()
        term = table.new_zeros(1) if term is None else term.detach().double().reshape(1) * len(labels)
        features = table.new_zeros(0)
        if x is not None and 'features' in self.tables:
            counts = (finite & (labels >= 0) & (labels < self.shape[0])).double()
            features = torch.cat([counts @ x.detach().double(), counts.sum().reshape(1)])
        sums = torch.cat([table, features, term, table.new_ones(1) * len(labels)])
        self._pending = sums if self._pending is None else self._pending + sums

    def finish(self) -> None:
        """A pass is complete; the first complete one of a batch is what `commit` takes."""
        if self._finished is None:
            self._finished = self._pending
        self._pending = None

    def commit(self) -> tuple[Tensor, Tensor]:
        """Merge the batch over all ranks (one all-reduce); its table, and what was added to its loss."""
        batch, features, term = self._over_ranks(self._finished)
        running, seen = self.tables['running'], batch[:, _COUNT:] > 0
        if len(features):
            before = self.tables['features']
            seen = seen & (before[-1] > 0)  # distributions around no mean are none
            self.tables['features'] = torch.where(features[-1] > 0, self.decay * before + features, before)
        self.tables['running'] = torch.where(seen, self.decay * running + batch, running)
        self.tables['totals'] = self.tables['totals'] + batch[:, _SKIPPED:]
        self._refresh_running()
        return batch, term

    def fix(self) -> None:
        """In mode `'fixed'`: the pass under way (one over the training set) becomes the reference for good."""
        self.tables['reference'], _, _ = self._over_ranks(self._pending)
        self.fixed = True
        self._refresh()

    def _over_ranks(self, sums: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        table = self.tables['running']
        width = len(self.tables.get('features', ()))
        if sums is None:  # this rank saw no row; it must take part in the all-reduce all the same
            sums = table.new_zeros(table.numel() + width + 2)
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(sums)
        self.clear()
        flat, features, (term, rows) = sums.split([table.numel(), width, 2])
        return flat.view_as(table), features, term / rows.clamp(min=1)

    def statistics(self, table: Tensor) -> cmi_f.ClassStatistics:
        """The table as sufficient statistics of CMI."""
        sums = table[:, -self.shape[1] - _EXTRA_COLUMNS : -_EXTRA_COLUMNS]
        return cmi_f.ClassStatistics(table[:, _COUNT], sums, table[:, _NEGENTROPY])

    @staticmethod
    def accuracy(table: Tensor) -> Tensor:
        """Share of right predictions in the table, 0-d."""
        return table[:, _CORRECT].sum() / table[:, _COUNT].sum().clamp(min=1)

    def _refresh(self) -> None:
        if self.mode == 'fixed':
            self.reference = self._clusters('reference')
        self._refresh_running()

    def _refresh_running(self) -> None:
        # Each class weighs what its share of all examples seen is, so that a rare one keeps it in the average.
        self.running = self._clusters('running', self.tables['totals'][:, 1])
        if self.mode == 'ema':
            self.reference = self.running

    def _clusters(self, name: str, weights: Tensor | None = None) -> Clusters:
        table = self.tables[name]
        logs = table[:, : self.shape[1]] if self._separation else None
        return _clusters(self.statistics(table), logs, weights)

    def cover(self, labels: Tensor) -> Tensor:
        """`[N]` bool: whether the class of each label has a centroid in the reference yet."""
        in_range = (labels >= 0) & (labels < self.shape[0])
        return in_range & self.reference.known[torch.where(in_range, labels, 0)]

    @property
    def mean(self) -> Tensor:
        """`[W]`, the running mean of the features, frozen while a batch lasts."""
        table = self.tables['features']
        return table[:-1] / table[-1].clamp(min=_TINY)

    @property
    def prior(self) -> Tensor:
        """`[C]` share of each class among all examples seen."""
        counts = self.tables['totals'][:, 1]
        return counts / counts.sum().clamp(min=1)

    @property
    def skipped(self) -> Tensor:
        """0-d: rows left out since the start because their features were not finite."""
        return self.tables['totals'][:, 0].sum()

    def state_dict(self) -> dict[str, Any]:
        """Plain types and CPU clones only: Composer may load with `weights_only=True`; ranks hold equal copies."""
        return {
            'schema_version': _SCHEMA_VERSION,
            'mode': self.mode,
            'fixed': self.fixed,
            'num_classes': self.shape[0],
            'dim': self.shape[1],
            'tables': {name: table.detach().cpu().clone() for name, table in self.tables.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a saved state; ValueError for a newer version, another mode or another shape."""
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


def _clusters(stats: cmi_f.ClassStatistics, logs: Tensor | None, weights: Tensor | None) -> Clusters:
    known = stats.counts > 0
    means = cmi_f.centroids(stats)
    support = stats.counts.sum() / known.sum().clamp(min=1)
    if weights is not None:
        weights = torch.where(known, weights, 0)
        scale = weights / stats.counts.clamp(min=_TINY)
        stats = cmi_f.ClassStatistics(weights, stats.sums * scale[:, None], stats.negentropies * scale)
        logs = None if logs is None else logs * scale[:, None]
    whole = stats.counts.sum().clamp(min=1)
    cmi, information = cmi_f.conditional_mutual_information(stats), cmi_f.mutual_information(stats)
    return Clusters(
        known,
        stats.counts / whole,
        means.clamp(min=_TINY).log(),
        (stats.sums.sum(0) / whole).clamp(min=_TINY).log(),
        support,
        cmi,
        information,
        cmi_f.relative(cmi, information),
        None if logs is None else logs / stats.counts.clamp(min=_TINY)[:, None],
        None if logs is None else cmi_f.separation(stats, logs),
    )


def _check_shapes(saved: tuple[int, int], wanted: tuple[int, int]) -> None:
    if saved != wanted:
        raise ValueError(
            f"The checkpoint's centroids are for {saved[0]} classes of width {saved[1]}, but this run has {wanted[0]} "
            f'classes of width {wanted[1]}; resume with the same model, task and space, or load the weights only.'
        )
