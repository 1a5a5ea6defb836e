"""How a row's features lie to the classes: cosines to frozen class means, in a teacher and in a student."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from composer_cmi.functional import sum_by_class

__all__ = ['ClassRelation', 'class_cosines', 'relation_term']

_DECAY = 0.9  # of the class means, a batch, as in the CMI term


def class_cosines(features: Tensor, means: Tensor, known: Tensor) -> Tensor:
    """The cosine between a row and each class, both seen from the middle of the known classes.

    Args:
        features: `[N, D]`.
        means: `[C, D]`, no gradient.
        known: `[C]` bool; the others' cosines are 0, and so is that of a lone class, which is the middle itself.

    Returns:
        `[N, C]`, from -1 to 1, whatever the scale and width of the features.
    """
    means = means.to(features.dtype)
    share = known.to(features.dtype) / known.sum().clamp(min=1)
    middle = share @ torch.where(known[:, None], means, 0.0)
    away = torch.where(known[:, None], means - middle, 0.0)
    return F.normalize(features - middle, dim=-1) @ F.normalize(away, dim=-1).T


def relation_term(student: Tensor, teacher: Tensor, known: Tensor) -> Tensor:
    """RKD's Huber distance (arXiv 1904.05068, equation 4) between a row's cosines in student and teacher.

    RKD compares the angles of triplets of rows; here the other corners are class means. Frozen in a batch, they make of
    it a mean over rows, which does not depend on how a batch is cut: an adaptation, not the published loss.

    Args:
        student: `[N, C]` of `class_cosines`.
        teacher: `[N, C]`; no gradient flows into them.
        known: `[C]` bool, the classes that count.

    Returns:
        `[N]`, from 0 to 1.5, the mean over the known classes; 0 while none is.
    """
    rows = F.smooth_l1_loss(student, teacher.detach(), reduction='none')
    return (rows * known).sum(-1) / known.sum().clamp(min=1)


class ClassRelation:
    """The class means of both networks' features, and the term against them.

    One table `[C, S + T + 1]` float64 of sums and counts, an exponential average over the batches in which a class
    occurs; it adds up over microbatches and ranks. A batch goes `begin` -> `rows` for each microbatch -> `finish` ->
    `commit`; of several passes over one batch the first that finishes counts.
    """

    def __init__(self) -> None:
        self._table: Tensor | None = None
        self.clear()

    def clear(self) -> None:
        """Forget a batch that was not committed."""
        self._pending = self._finished = None

    def begin(self) -> None:
        """A pass over the batch starts."""
        self._pending = None

    def rows(self, student: Tensor, teacher: Tensor, labels: Tensor, num_classes: int) -> Tensor:
        """The term of each row of a microbatch, `[N]`; its features go into the class means at the end of the batch.

        Args:
            student: `[N, S]`.
            teacher: `[N, T]`, no gradient.
            labels: `[N]` int64; rows outside `0..C-1` are compared with the classes, and belong to none.
            num_classes: `C`.

        Raises:
            ValueError: A checkpoint's class means are of other widths.
        """
        with torch.autocast(student.device.type, enabled=False):
            student, teacher = (each.to(torch.promote_types(each.dtype, torch.float32)) for each in (student, teacher))
            shape = num_classes, student.shape[1] + teacher.shape[1] + 1
            if self._table is None:
                self._table = torch.zeros(*shape, dtype=torch.float64, device=student.device)
            if self._table.shape != shape:
                raise ValueError(
                    f"The checkpoint's relation table has shape {list(self._table.shape)}, teacher and student of this "
                    f'run need {list(shape)}: resume with the same models.'
                )
            self._table = table = self._table.to(student.device)
            both = torch.cat([student.detach().double(), teacher.double(), torch.ones_like(teacher[:, :1])], 1)
            sums = sum_by_class(both, torch.where(torch.isfinite(both).all(-1), labels, -1), num_classes)
            self._pending = sums if self._pending is None else self._pending + sums
            known = table[:, -1] > 0
            means = table[:, :-1] / table[:, -1:].clamp(min=torch.finfo(torch.float32).tiny)
            ours, theirs = means.split([student.shape[1], teacher.shape[1]], 1)
            return relation_term(class_cosines(student, ours, known), class_cosines(teacher, theirs, known), known)

    def finish(self) -> None:
        """A pass is complete."""
        if self._finished is None:
            self._finished = self._pending
        self._pending = None

    def commit(self) -> None:
        """Take the batch into the class means: one all-reduce."""
        if self._table is not None:
            batch = torch.zeros_like(self._table) if self._finished is None else self._finished
            if dist.is_available() and dist.is_initialized():
                dist.all_reduce(batch)
            self._table = torch.where(batch[:, -1:] > 0, _DECAY * self._table + batch, self._table)
        self.clear()

    def state_dict(self) -> dict[str, Any]:
        """Plain types and CPU tensors; equal on all ranks."""
        return {} if self._table is None else {'relation_table': self._table.detach().cpu().clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave; nothing where it gave nothing."""
        if 'relation_table' in state:
            self._table = state['relation_table'].clone()
