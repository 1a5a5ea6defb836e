"""CMI, I(X;Z), rho and NCMI over an evaluation set, as torchmetrics: exact for any batch size and number of ranks."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

from composer_cmi import functional as cmi_f

__all__ = ['ConditionalMutualInformation', 'MutualInformation', 'NormalizedCMI', 'RelativeCMI']


class ConditionalMutualInformation(Metric):
    """`I(X;Z|Y)` of the examples seen, in nats (arXiv 2502.11258).

    Args:
        num_classes: number of classes `C`.
        dim: width `D` of what is fed to `update`; the default, `C`, is right for logits, so that the metric can be
            handed to a Composer `HuggingFaceModel` or `Evaluator` as it is.
        temperature: `f_x = softmax(x / temperature)`.

    Raises:
        ValueError: on `update` with another width or with labels that are not one class per row.
    """

    full_state_update = False
    higher_is_better = None
    is_differentiable = False

    counts: Tensor
    sums: Tensor
    negentropies: Tensor

    def __init__(self, num_classes: int, dim: int | None = None, temperature: float = 1.0, **kwargs):
        super().__init__(**kwargs)
        self.num_classes, self.dim, self.temperature = num_classes, dim or num_classes, temperature
        self._add_sum('counts', num_classes)
        self._add_sum('sums', num_classes, self.dim)
        self._add_sum('negentropies', num_classes)

    def _add_sum(self, name: str, *shape: int) -> None:
        self.add_state(name, torch.zeros(*shape, dtype=torch.float64), dist_reduce_fx='sum')

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add `preds` (`[N, D]` features or logits) with classes `target` (`[N]`; -100 is skipped)."""
        if preds.ndim != 2 or preds.shape[1] != self.dim or target.shape != preds.shape[:1]:
            raise ValueError(
                f'{type(self).__name__} wants [N, {self.dim}] inputs and [N] labels, '
                f'got {list(preds.shape)} and {list(target.shape)}.'
            )
        self._accumulate(cmi_f.log_distribution(preds.double(), self.temperature), target)

    def _accumulate(self, log_f: Tensor, target: Tensor) -> None:
        stats = cmi_f.class_statistics(log_f, target, self.num_classes)
        self.counts += stats.counts
        self.sums += stats.sums
        self.negentropies += stats.negentropies

    @property
    def statistics(self) -> cmi_f.ClassStatistics:
        """The merged sufficient statistics."""
        return cmi_f.ClassStatistics(self.counts, self.sums, self.negentropies)

    def compute(self) -> Tensor:
        """The value over everything seen, 0-d float64."""
        return cmi_f.conditional_mutual_information(self.statistics)


class MutualInformation(ConditionalMutualInformation):
    """`I(X;Z)` of the examples seen, in nats; same arguments."""

    def compute(self) -> Tensor:
        """The value over everything seen, 0-d float64."""
        return cmi_f.mutual_information(self.statistics)


class RelativeCMI(ConditionalMutualInformation):
    """`rho = I(X;Z|Y) / I(X;Z)`, in [0, 1], comparable between models; same arguments."""

    def compute(self) -> Tensor:
        """The value over everything seen, 0-d float64."""
        return cmi_f.relative_cmi(self.statistics)


class NormalizedCMI(ConditionalMutualInformation):
    """`NCMI = I(X;Z|Y) / Gamma` (arXiv 2309.09123); same arguments."""

    log_sums: Tensor

    def __init__(self, num_classes: int, dim: int | None = None, temperature: float = 1.0, **kwargs):
        super().__init__(num_classes, dim, temperature, **kwargs)
        self._add_sum('log_sums', num_classes, self.dim)

    def _accumulate(self, log_f: Tensor, target: Tensor) -> None:
        super()._accumulate(log_f, target)
        self.log_sums += cmi_f.sum_by_class(log_f, target, self.num_classes)

    def compute(self) -> Tensor:
        """The value over everything seen, 0-d float64."""
        return cmi_f.normalized_cmi(self.statistics, self.log_sums)
