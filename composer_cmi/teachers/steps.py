"""A teacher through the steps of a training, whatever trains the student."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn

from composer_cmi.teachers.logit_cache import LogitCache
from composer_cmi.teachers.losses import LOSSES
from composer_cmi.teachers.matching import DistillationArguments, example_ids, match_teacher, stored_logits
from composer_cmi.terms.objective import require_same_on_all_ranks

__all__ = ['DistillationSteps']


class DistillationSteps:
    """The distillation of one training; its host tells it of the events.

    Args:
        arguments: What was asked for.
        student: The bare model.
        tokenizer: The student's, or None.

    Raises:
        ValueError: Teacher and student do not fit, or differ between the ranks.
    """

    name = 'KnowledgeDistillation'

    def __init__(self, arguments: DistillationArguments, student: nn.Module, tokenizer: Any):
        self.arguments = arguments
        self._found = match_teacher(arguments, student, tokenizer)
        self.fingerprint = self._found.fingerprint
        self.table: LogitCache | None = None
        self._columns: Tensor | None = None  # of the teacher's classes, in the student's order
        self._passes = 0  # over parts of this step's rows
        self._told = False
        self._sums: Tensor | None = None  # of the divergence, of agreeing rows, of rows: since the pass began

    @property
    def objective(self) -> dict[str, Any]:
        """What decides the loss."""
        a = self.arguments
        return {'alpha': a.alpha, 'temperature': a.temperature, 'loss': a.loss, 'teacher': self.fingerprint}

    def require_same_on_all_ranks(self) -> None:
        """ValueError where another rank has another objective or order of the classes."""
        require_same_on_all_ranks(self.name, {**self.objective, 'order of classes': self._found.order})

    def begin(
        self,
        rows: Any,
        collate: Any,
        device: torch.device,
        precision: str,
        context: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        """A training begins: fill or open the cache, or place the teacher; arguments as of `matching.stored_logits`."""
        order, teacher = self._found.order, self._found.teacher
        self._columns = None if order is None else torch.tensor(order, device=device)
        if self.arguments.cache is not None:
            options = {'precision': precision, 'context': context}
            self.table = stored_logits(self.arguments, self._found, rows, collate, device, **options)
        elif teacher is not None:
            teacher.to(device)

    def begin_pass(self) -> None:
        """Before a pass over the rows of a step; one that is repeated is not counted twice."""
        self._sums, self._passes = None, 0

    def ask(self, batch: Any, context: AbstractContextManager[Any], ids: Tensor | None = None) -> Tensor | None:
        """The teacher's logits `[N, C]` in the student's order; before the student's forward takes up memory.

        Args:
            batch: What the student is given.
            context: To run the teacher in.
            ids: Of the rows, `[N]`, where the batch does not hold them.

        Returns:
            None where the teacher has no weight.
        """
        if self.arguments.alpha == 0:
            return None
        if self.table is not None:
            key = self.arguments.id_key
            return self.table.lookup(example_ids(batch if ids is None else {key: ids}, key))
        assert self._found.teacher is not None
        with context:
            logits = self._found.teacher.logits(batch)
        return logits if self._columns is None else logits.index_select(1, self._columns)

    def divergence(self, student: Tensor, teacher: Tensor) -> Tensor:
        """What `loss` names of each row, times `tau^2`, `[N]`; ValueError for other shapes of the logits."""
        if student.shape != teacher.shape:
            raise ValueError(
                f"The teacher's logits have shape {list(teacher.shape)}, the student's {list(student.shape)}: both "
                'must be [rows, classes] of the same classes.'
            )
        teacher = teacher.to(student.device)
        self._warn_of_parts()
        divergence = LOSSES[self.arguments.loss](student, teacher, self.arguments.temperature)
        with torch.no_grad():
            agreeing = (student.argmax(-1) == teacher.argmax(-1)).float().sum()
            sums = torch.stack([divergence.float().sum(), agreeing, torch.full_like(agreeing, len(student))])
            self._sums = sums if self._sums is None else self._sums + sums
        return divergence

    def _warn_of_parts(self) -> None:
        self._passes += 1
        ranks = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
        if self.arguments.loss == 'dist' and not self._told and (self._passes > 1 or ranks > 1):
            self._told = True
            warnings.warn(
                "KnowledgeDistillation(loss='dist') compares the rows of one forward pass on one rank with each other: "
                'the result depends on the microbatch size and the number of ranks.'
            )

    def end_pass(self) -> dict[str, Tensor]:
        """What to log of the pass, of this rank's rows; nothing waits for the device."""
        if self._sums is None:
            return {}
        divergence, agreeing, rows = self._sums
        return {'distillation/loss': divergence / rows, 'distillation/agreement': agreeing / rows}

    def check(self) -> None:
        """Raise if a lookup on a GPU met an unknown id; waits for the device."""
        if self.table is not None:
            self.table.check()
