"""The mathematics: distributions of features, their class clusters, and the information in them.

Everything is pure, works in log space and counts information in nats. `x` stands for features `h_s` (`[N, D]`) or for
logits (`[N, C]`): the formulas are the same in both spaces. Per-example values are at least float32; sums over
examples are float64, because CMI is a difference of entropies a thousand times larger than itself.

Sources: Sivakaran & Yang, arXiv 2502.11258 (feature clusters, I(X;Z|Y) as a fine-tuning loss); Yang et al.,
arXiv 2309.09123 (CMI, separation and NCMI of output clusters); arXiv 2601.02543 (NCMI of centred, normalised features);
arXiv 2507.00012 (several temperatures); Snell et al., arXiv 1703.05175 (prototypes); Hinton et al., arXiv 1503.02531
(distillation).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    'ClassStatistics',
    'centered',
    'centroids',
    'class_statistics',
    'cmi_term',
    'conditional_mutual_information',
    'contrastive_term',
    'distillation_divergence',
    'divergence',
    'log_distribution',
    'mutual_information',
    'normalized_cmi',
    'relative',
    'relative_cmi',
    'rounding_noise',
    'separation',
    'separation_term',
    'sum_by_class',
]


def centered(x: Tensor, mean: Tensor) -> Tensor:
    """`(x - mean) / |x - mean|` of each row: only the direction from the mean is left (arXiv 2601.02543).

    A row nearer to the mean than the square root of its rounding has no direction; it is left near 0.

    Args:
        x: features, `[N, D]`, any floating dtype.
        mean: `[D]`, no gradient.
    """
    x = x if x.dtype == torch.float64 else x.float()
    away = x - mean.to(x.dtype)
    square = (away**2).sum(-1, keepdim=True)
    floor = torch.finfo(torch.float32).eps * (mean**2).sum().to(x.dtype) + 1e-12
    return away / torch.where(square > floor, square, floor).sqrt()


def log_distribution(x: Tensor, temperature: float | Sequence[float] = 1.0) -> Tensor:
    """Log of `f_x = softmax(x / temperature)` over the last dimension, in at least float32 (arXiv 2502.11258, FPDC).

    Of several temperatures (arXiv 2507.00012) it is the distribution of (which of them, `Z` at it), all equally likely:
    divergences, CMI and I(X;Z) are then the means of those at each temperature.

    Args:
        x: features or logits, `[N, D]`, any floating dtype.
        temperature: positive; above 1 flattens the distribution. Or `K` of them.

    Returns:
        `log f`, `[N, D]` or `[N, K D]`, float32 (float64 for float64).
    """
    x = x if x.dtype == torch.float64 else x.float()
    if isinstance(temperature, Sequence):
        return torch.cat([F.log_softmax(x / t, dim=-1) for t in temperature], -1) - math.log(len(temperature))
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
    keep, labels = _kept(labels, len(log_centroids), keep)
    # Rows that do not count are taken out before as well: NaN in the branch not taken would give NaN gradients.
    log_f = torch.where(keep[:, None], log_f, 0.0)
    rows = divergence(log_f, log_centroids[labels])
    return torch.where(keep, rows, 0.0)


def separation_term(
    log_f: Tensor, labels: Tensor, log_means: Tensor, prior: Tensor, keep: Tensor | None = None
) -> Tensor:
    """`sum over c != y_n of P(c) H(f_n, exp L_c)` of each row, `[N]`, nats (arXiv 2309.09123); see `cmi_term`.

    Its mean over examples is `separation` when `L` holds the class means of `log f` and `P` their shares. The gradient
    goes through `f_n` alone, as in the published code.

    Args:
        log_f: `[N, D]`.
        labels: `[N]`.
        log_means: `L`, `[C, D]`, no gradient.
        prior: `P`, `[C]`.
        keep: `[N]`.
    """
    keep, labels = _kept(labels, len(log_means), keep)
    f = torch.where(keep[:, None], log_f, 0.0).exp()
    others = (prior[:, None] * log_means).sum(0) - prior[labels, None] * log_means[labels]
    return torch.where(keep, -(f * others).sum(-1), 0.0)


def contrastive_term(
    log_f: Tensor,
    labels: Tensor,
    log_centroids: Tensor,
    tau: float,
    known: Tensor | None = None,
    keep: Tensor | None = None,
) -> Tensor:
    """`-log softmax_c(-D(f_n || Q_c) / tau)[y_n]` of each row, `[N]`, nats (prototypes, arXiv 1703.05175).

    With `tau = 1/n` it is minus the log-posterior of the class after `n` symbols `Z` drawn from `f_n`, all classes
    equally likely before. For large `tau` it is `(d_y - mean_c d_c) / tau + ln C`.

    Args:
        log_f: `[N, D]`.
        labels: `[N]`.
        log_centroids: `Q`, `[C, D]`, no gradient.
        tau: positive.
        known: optional `[C]` bool, the classes that take part; rows of the others give 0.
        keep: `[N]`.
    """
    if known is None:
        known = torch.ones_like(log_centroids[:, 0], dtype=torch.bool)
    keep, labels = _kept(labels, len(log_centroids), keep)
    keep = keep & known[labels]
    f = torch.where(keep[:, None], log_f, 0.0).exp()
    # `sum f log f` is the same for every class and falls out of the softmax, and so does any one table row: without the
    # mean row the products are as small as the divergences, and no precision of a matrix product is lost on it.
    share = known.to(log_f.dtype) / known.sum().clamp(min=1)
    against = f @ (log_centroids - share @ log_centroids).T / tau
    log_posterior = F.log_softmax(torch.where(known, against, torch.finfo(against.dtype).min), -1)
    rows = -log_posterior.gather(1, torch.where(keep, labels, known.int().argmax())[:, None])[:, 0]
    return torch.where(keep, rows, 0.0)


def _kept(labels: Tensor, num_classes: int, keep: Tensor | None) -> tuple[Tensor, Tensor]:
    """Which rows count, and labels that may be an index."""
    labels = labels.long()  # an index of another integer type would be a mask
    in_range = (labels >= 0) & (labels < num_classes)
    return in_range if keep is None else keep & in_range, torch.where(in_range, labels, 0)


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
    """`rho = I(X;Z|Y) / I(X;Z)`, 0-d in [0, 1]: the share of the features' information that is not about the label."""
    return relative(conditional_mutual_information(stats), mutual_information(stats))


def relative(cmi: Tensor, mi: Tensor) -> Tensor:
    """`relative_cmi` of both, 0-d float64; 0 where there is no information at all."""
    ratio = (cmi / torch.where(mi > 0, mi, torch.ones_like(mi))).clamp(0, 1)
    return torch.where(mi > 0, ratio, torch.zeros_like(mi))


def separation(stats: ClassStatistics, log_sums: Tensor) -> Tensor:
    """`Gamma = E[1{Y != V} H(f_X, f_U)]`, `(U, V)` an independent copy of `(X, Y)` (arXiv 2309.09123, eq. 16).

    Args:
        stats: of the examples.
        log_sums: `[C, D]` float64, sum of `log f_x` over each class.
    """
    # Not `sums @ log_sums.T`, which is classes x classes; and 0 exactly where there is one class.
    return -(stats.sums * (log_sums.sum(0) - log_sums)).sum() / stats.counts.sum().clamp(min=1) ** 2


def normalized_cmi(stats: ClassStatistics, log_sums: Tensor) -> Tensor:
    """`NCMI = I(X;Z|Y) / Gamma` (arXiv 2309.09123): small for tight clusters that lie far apart.

    0 where the separation is 0 (fewer than two classes seen).
    """
    gamma = separation(stats, log_sums)
    ratio = conditional_mutual_information(stats) / torch.where(gamma > 0, gamma, torch.ones_like(gamma))
    return torch.where(gamma > 0, ratio, torch.zeros_like(gamma))
