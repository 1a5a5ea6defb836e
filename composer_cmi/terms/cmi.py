"""The CMI term of a batch: its weight in force, its unit CMI_0, its caps, its value."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from composer_cmi import functional as cmi_f
from composer_cmi.centroids import ClassCentroids, Clusters
from composer_cmi.terms.arguments import CMIArguments

__all__ = ['Term']

# A class mean of fewer examples underestimates CMI so much (by 1/n) that it is no unit to divide by.
_MIN_SUPPORT = 4
# With tiny batches and many classes that may never be reached; after so many examples of a class take what there is.
_MAX_WAIT = 32


class Term:
    """What is added to a batch's loss: `weight` times the form asked for, against the reference centroids of a run.

    | form | value, a mean over examples | unit |
    |---|---|---|
    | `'plain'` | `CMI` | nats |
    | `'scaled'` | `CMI / CMI_0` | CMI_0 |
    | `'relative'` | that with the gradient of `CMI / I(X;Z)` | I(X;Z) |
    | `'normalized'` | that with the gradient of `CMI / Gamma` | Gamma |
    | `'contrastive'` | `functional.contrastive_term` | nats |

    Args:
        arguments: `form`, its `tau`, and the caps: the term is off while the running CMI is at or above `max_cmi` nats,
            or `max_growth` times CMI_0; no such cap before CMI_0 is measured. `separation / weight` times Gamma is
            subtracted from `CMI`, whatever that is divided by.
    """

    def __init__(self, arguments: CMIArguments):
        self.form, self.tau = arguments.form, arguments.tau
        self.max_cmi, self.max_growth = arguments.max_cmi, arguments.max_growth
        self.separation = arguments.separation / arguments.weight if arguments.separation else 0.0
        # State: CMI_0 (0 until it is measured), the unit of 'scaled', and in how many steps the term was due without a
        # unit, due above a cap, and added.
        self.initial_cmi = torch.zeros((), dtype=torch.float64)
        self.unit = torch.zeros((), dtype=torch.float64)
        self.steps = torch.zeros(3, dtype=torch.float64)
        self.weight: Tensor | None = None  # in force in this batch, with its sign; None before `start`
        self._hindered: Tensor | None = None

    def start_batch(self, centroids: ClassCentroids, weight: float) -> None:
        """Find the weight in force; nothing waits for the device."""
        reference, running = centroids.reference, centroids.running
        noise = cmi_f.rounding_noise(centroids.shape[1])
        seen = centroids.tables['totals'][:, 1].mean()
        # A reference that is fixed has all the examples that it will ever have.
        settled = (reference.support >= _MIN_SUPPORT) | (seen >= _MAX_WAIT) | centroids.fixed
        measurable = settled & (reference.cmi > noise)
        self.initial_cmi = torch.where((self.initial_cmi == 0) & measurable, reference.cmi, self.initial_cmi)
        # Where features were almost constant at the start, CE alone makes CMI grow a hundredfold: CMI_0 for ever would
        # then turn weight / CMI_0 into a runaway. Over the largest CMI so far the term stays near its weight.
        largest = torch.maximum(torch.maximum(self.unit, self.initial_cmi), running.cmi)
        self.unit = torch.where(self.initial_cmi > 0, largest, self.unit)
        no_unit = torch.zeros_like(measurable)
        if self.form == 'scaled':
            no_unit = self.unit == 0
        elif self.form == 'relative':
            no_unit = reference.mutual_information <= noise
        elif self.form == 'normalized' and reference.separation is not None:
            no_unit = reference.separation <= noise  # 0 with one class
        capped = torch.zeros_like(measurable)
        if self.max_cmi is not None:
            capped = capped | (running.cmi >= self.max_cmi)
        if self.max_growth is not None:
            capped = capped | ((self.initial_cmi > 0) & (running.cmi >= self.max_growth * self.initial_cmi))
        self.weight = torch.where(no_unit | capped, 0.0, torch.full_like(self.unit, weight))
        self._hindered = torch.stack([no_unit, capped & ~no_unit])

    def value(self, log_f: Tensor, labels: Tensor, keep: Tensor, centroids: ClassCentroids) -> Tensor:
        """What a microbatch adds to its loss, 0-d, a mean over all its rows.

        Args:
            log_f: `[N, D]`.
            labels: `[N]` int64.
            keep: `[N]` bool; other rows add 0, and so do rows of a class without a centroid.
            centroids: Frozen while the batch lasts.
        """
        assert self.weight is not None
        table, keep = centroids.reference, keep & centroids.cover(labels)
        factor = self.weight
        # Where there is no unit the weight is 0; divided by 1 then, since 0 / 0 gives NaN gradients even in the branch
        # of a `where` that is not taken.
        if self.form == 'scaled':
            factor = factor / torch.where(self.unit > 0, self.unit, 1.0)
        # A mean over all rows, ignored ones too: a mean over the kept ones would depend on the microbatch split.
        return factor.to(log_f.dtype) * self._rows(log_f, labels, keep, table).mean()

    def _rows(self, log_f: Tensor, labels: Tensor, keep: Tensor, table: Clusters) -> Tensor:
        log_centroids = table.log_centroids.to(log_f.dtype)
        if self.form == 'contrastive':
            assert self.tau is not None
            return cmi_f.contrastive_term(log_f, labels, log_centroids, self.tau, table.known, keep)
        rows = cmi_f.cmi_term(log_f, labels, log_centroids, keep)
        if self.form == 'relative':
            whole = torch.where(keep, cmi_f.divergence(log_f, table.log_marginal.to(log_f.dtype)), 0.0)
            return self._quotient(rows, table.cmi, whole, table.mutual_information)
        if table.log_means is None or table.separation is None:
            return rows
        prior, log_means = table.prior.to(log_f.dtype), table.log_means.to(log_f.dtype)
        apart = cmi_f.separation_term(log_f, labels, log_means, prior, keep)
        if self.form == 'normalized':
            return self._quotient(rows, table.cmi, apart, table.separation)
        return rows - self.separation * apart

    def _quotient(self, of_a: Tensor, a: Tensor, of_b: Tensor, b: Tensor) -> Tensor:
        """Rows with the gradient of `A / B`, from rows with that of A and of B: `dA / B - A dB / B^2`."""
        assert self.weight is not None
        b = torch.where(self.weight != 0, b, 1.0)
        return of_a / b.to(of_a.dtype) - (a / b**2).to(of_a.dtype) * of_b

    def end_batch(self, added: Tensor) -> None:
        """Count the batch, given what was added to its loss, and forget its weight."""
        if self._hindered is not None:
            self.steps = self.steps + torch.cat([self._hindered, (added != 0).reshape(1)])
        self.weight = self._hindered = None

    def why_never_added(self) -> str | None:
        """After training: why the term was never added though it was due, or None if it was; waits for the device."""
        no_unit, capped, added = (int(count) for count in self.steps.tolist())
        if added:
            return None
        return (
            f'it had no unit in {no_unit} steps (CMI_0 needs about {_MIN_SUPPORT} examples of a class and more CMI '
            f'than rounding), was above its cap in {capped}, and in the others no row had a class with a centroid, or '
            'the rows of each class were alike'
        )

    def to(self, device: torch.device) -> None:
        """Move the state."""
        self.load_state_dict({name: value.to(device) for name, value in self.state_dict().items()})

    def state_dict(self) -> dict[str, Any]:
        """0-d tensors and `steps` `[3]`, on their device."""
        return {'initial_cmi': self.initial_cmi, 'unit': self.unit, 'steps': self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave; version 1 did not count steps."""
        self.initial_cmi, self.unit = state['initial_cmi'], state['unit']
        self.steps = state.get('steps', self.steps)
