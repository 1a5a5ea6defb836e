"""The mathematics: distributions of features, their class clusters, and the information in them.

Everything is pure, works in log space and counts information in nats. `x` stands for features `h_s` (`[N, D]`) or for
logits (`[N, C]`): the formulas are the same in both spaces. Per-example values are at least float32; sums over
examples are float64, because CMI is a difference of entropies a thousand times larger than itself.

Sources: Sivakaran & Yang, arXiv 2502.11258 (feature clusters, I(X;Z|Y) as a fine-tuning loss); Yang et al.,
arXiv 2309.09123 (CMI, separation and NCMI of output clusters); Hinton et al., arXiv 1503.02531 (distillation).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    'ClassStatistics',
    'centroids',
    'class_statistics',
    'cmi_term',
    'conditional_mutual_information',
    'distillation_divergence',
    'divergence',
    'log_distribution',
    'mutual_information',
    'normalized_cmi',
    'relative_cmi',
    'rounding_noise',
    'separation',
    'sum_by_class',
]


def log_distribution(x: Tensor, temperature: float = 1.0) -> Tensor:
    """Log of `f_x = softmax(x / temperature)` over the last dimension, in at least float32 (arXiv 2502.11258, FPDC).

    Args:
        x: features or logits, `[N, D]`, any floating dtype.
        temperature: positive; above 1 flattens the distribution.

    Returns:
        `log f`, `[N, D]`, float32 (float64 for float64).
    """
    x = x if x.dtype == torch.float64 else x.float()
    return F.log_softmax(x / temperature, dim=-1)


def divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Kullback-Leibler divergence `D(p || q)` of each row of log-probabilities `[N, D]`, `log_q` finite: `[N]`, nats.

    Stays in log space: `F.kl_div` on probabilities has NaN gradients once one underflows.
    """
    return (log_p.exp() * (log_p - log_q)).sum(dim=-1)


def distillation_divergence(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """`tau^2 * D(softmax(t / tau) || softmax(s / tau))` of each row (arXiv 1503.02531).

    The factor keeps the gradient's scale independent of `tau`; it applies always, also at `tau = 1`.

    Args:
        student_logits: `[N, C]`.
        teacher_logits: `[N, C]`; no gradient flows into them.
        temperature: positive `tau`.

    Returns:
        `[N]`, nats times `tau^2`.
    """
    log_teacher = log_distribution(teacher_logits.detach(), temperature)
    return temperature**2 * divergence(log_teacher, log_distribution(student_logits, temperature))


def cmi_term(log_f: Tensor, labels: Tensor, log_centroids: Tensor, keep: Tensor | None = None) -> Tensor:
    """`D(f_n || Q_{y_n})` of each row against frozen class centroids `Q` (arXiv 2502.11258; arXiv 2309.09123).

    Its mean over examples is `CMI + sum_y P(y) D(g_y || Q_y)`: CMI itself when `Q` holds the class means.

    Args:
        log_f: `[N, D]` from `log_distribution`.
        labels: `[N]` int64; rows outside `0..C-1` give 0.
        log_centroids: `[C, D]`, no gradient.
        keep: optional `[N]` bool; other rows give 0.

    Returns:
        `[N]`, nats.
    """
    labels = labels.long()  # an index of another integer type would be a mask
    in_range = (labels >= 0) & (labels < len(log_centroids))
    keep = in_range if keep is None else keep & in_range
    # Rows that do not count are taken out before as well: NaN in the branch not taken would give NaN gradients.
    log_f = torch.where(keep[:, None], log_f, 0.0)
    rows = divergence(log_f, log_centroids[torch.where(in_range, labels, 0)])
    return torch.where(keep, rows, 0.0)


class ClassStatistics(NamedTuple):
    """What CMI needs to know of a set of examples; two sets are merged by adding field by field.

    Attributes:
        counts: `[C]` float64, examples of each class.
        sums: `[C, D]` float64, sum of `f_x` over each class.
        negentropies: `[C]` float64, sum of `-H(f_x)` over each class, nats.
    """

    counts: Tensor
    sums: Tensor
    negentropies: Tensor


def sum_by_class(values: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Sum the rows of each class in float64; rows with a label outside `0..num_classes-1` are left out.

    Args:
        values: `[N, K]`, finite in every row that counts.
        labels: `[N]` int64.
        num_classes: `C`.

    Returns:
        `[C, K]` float64.
    """
    # One spare row takes what is ignored: no boolean indexing, hence no host sync.
    spare = torch.where((labels >= 0) & (labels < num_classes), labels.long(), num_classes)
    table = values.new_zeros(num_classes + 1, values.shape[-1], dtype=torch.float64)
    return table.index_add_(0, spare, values.double())[:num_classes]


def class_statistics(log_f: Tensor, labels: Tensor, num_classes: int) -> ClassStatistics:
    """Sufficient statistics of CMI for a batch of `log_f` `[N, D]`; labels outside `0..num_classes-1` are ignored."""
    f = log_f.exp()
    columns = torch.cat([f, (f * log_f).sum(-1, keepdim=True), torch.ones_like(f[:, :1])], dim=1)
    table = sum_by_class(columns, labels, num_classes)
    return ClassStatistics(table[:, -1], table[:, :-2], table[:, -2])


def centroids(stats: ClassStatistics) -> Tensor:
    """Class means `g_y` of `f_x`, `[C, D]` float64; a class without examples has a row of zeros."""
    return stats.sums / stats.counts.clamp(min=torch.finfo(torch.float64).tiny)[:, None]


def _entropy(p: Tensor) -> Tensor:
    p = torch.where(p > 0, p, 1.0)  # 0 log 0 = 0, and so is its gradient here; xlogy's is infinite
    return -(p * p.log()).sum(-1)


def _mean(stats: ClassStatistics, total: Tensor) -> Tensor:
    return total / stats.counts.sum().clamp(min=torch.finfo(torch.float64).tiny)


def rounding_noise(dim: int) -> float:
    """The CMI or I(X;Z), in nats, below which a value from float32 rows is rounding.

    Both are differences of entropies of up to `ln D`, each right to a few units of float32's last place: of rows that
    are all alike, 3 to 4,096 wide, up to 1.4 of them were measured. Four are taken.
    """
    return 4 * torch.finfo(torch.float32).eps * math.log(max(dim, 2))


def conditional_mutual_information(stats: ClassStatistics) -> Tensor:
    """`I(X;Z|Y) = (1/N) sum_n D(f_n || g_{y_n})`: how dispersed the class clusters are (arXiv 2502.11258).

    Returns:
        0-d float64, nats, at least 0; 0 without examples.
    """
    # Rounding of the float32 per-example values may leave -1e-8 where all examples of a class are alike.
    return _mean(stats, stats.negentropies.sum() + (stats.counts * _entropy(centroids(stats))).sum()).clamp(min=0)


def mutual_information(stats: ClassStatistics) -> Tensor:
    """`I(X;Z) = (1/N) sum_n D(f_n || q)`, `q` the mean over all examples; equals `I(Y;Z) + I(X;Z|Y)`.

    Returns:
        0-d float64, nats, at least 0.
    """
    q = _mean(stats, stats.sums.sum(0))
    return (_mean(stats, stats.negentropies.sum()) + _entropy(q)).clamp(min=0)


def relative_cmi(stats: ClassStatistics) -> Tensor:
    """`rho = I(X;Z|Y) / I(X;Z)` in [0, 1]: the share of the features' information that is not about the label.

    Returns:
        0-d float64; 0 where there is no information at all.
    """
    cmi, mi = conditional_mutual_information(stats), mutual_information(stats)
    ratio = (cmi / torch.where(mi > 0, mi, torch.ones_like(mi))).clamp(0, 1)
    return torch.where(mi > 0, ratio, torch.zeros_like(mi))


def separation(stats: ClassStatistics, log_sums: Tensor) -> Tensor:
    """`Gamma = E[1{Y != V} H(f_X, f_U)]`, `(U, V)` an independent copy of `(X, Y)` (arXiv 2309.09123, eq. 16).

    Args:
        stats: of the examples.
        log_sums: `[C, D]` float64, sum of `log f_x` over each class.

    Returns:
        0-d float64, nats.
    """
    cross = -stats.sums @ log_sums.T
    return (cross.sum() - cross.diagonal().sum()) / stats.counts.sum().clamp(min=1) ** 2


def normalized_cmi(stats: ClassStatistics, log_sums: Tensor) -> Tensor:
    """`NCMI = I(X;Z|Y) / Gamma` (arXiv 2309.09123): small for tight clusters that lie far apart.

    Returns:
        0-d float64; 0 where the separation is 0 (fewer than two classes seen).
    """
    gamma = separation(stats, log_sums)
    ratio = conditional_mutual_information(stats) / torch.where(gamma > 0, gamma, torch.ones_like(gamma))
    return torch.where(gamma > 0, ratio, torch.zeros_like(gamma))
