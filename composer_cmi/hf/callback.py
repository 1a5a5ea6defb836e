"""What happens once in an optimizer step, at the Trainer's own events."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers.trainer_callback import TrainerCallback

if TYPE_CHECKING:
    from composer_cmi.hf.trainer import CMITrainer

__all__ = ['StepCallback']


class StepCallback(TrainerCallback):
    """Begins and ends the terms' steps; a step is committed before evaluation, log and checkpoint."""

    def __init__(self, trainer: CMITrainer):
        self._trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Terms anew or restored; also where a training starts again after an out-of-memory error."""
        self._trainer._begin_training(kwargs['train_dataloader'])

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Sums are zero, whatever a step that was broken off has left."""
        cmi, distillation = self._trainer._cmi, self._trainer._distillation
        if cmi:
            cmi.begin_step(cmi.schedule.progress(state.global_step), self._trainer._fix_centroids)
        if distillation:
            distillation.begin_pass()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The step is taken into the centroids."""
        cmi, distillation = self._trainer._cmi, self._trainer._distillation
        if cmi:
            cmi.centroids.finish()
            self._trainer._metrics.update(cmi.end_step())
        if distillation:
            self._trainer._metrics.update(distillation.end_pass())
            distillation.end_step()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ids without stored logits are found at the latest here."""
        if self._trainer._distillation:
            self._trainer._distillation.check()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Says what was never added."""
        if self._trainer._cmi:
            self._trainer._cmi.end(f'step {state.global_step}')
        if self._trainer._distillation:
            self._trainer._distillation.release()
