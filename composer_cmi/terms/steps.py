"""The CMI term through the steps of a training, whatever trains: what a microbatch adds, what a step leaves behind."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from composer_cmi import functional as cmi_f
from composer_cmi.centroids import ClassCentroids
from composer_cmi.features import FeatureReader
from composer_cmi.terms.arguments import CMIArguments
from composer_cmi.terms.cmi import Term
from composer_cmi.terms.guard import Guard
from composer_cmi.terms.schedule import Schedule

__all__ = ['CMISteps']


class CMISteps:
    """The CMI term of one training; its host tells it of the events.

    A training goes `begin`, its steps, `end`. A step goes `begin_step`, then for each pass over its rows
    `centroids.begin`, `clear` before a forward and `add` after it, `centroids.finish`, and at last `end_step`.

    Args:
        name: Of the Composer class, for messages.
        arguments: The term's.
        schedule: When it counts.
    """

    def __init__(self, name: str, arguments: CMIArguments, schedule: Schedule):
        self.name, self.arguments, self.schedule = name, arguments, schedule
        separation = arguments.separation > 0 or arguments.form == 'normalized'
        self.centroids = ClassCentroids(arguments.centroids, arguments.decay, separation=separation)
        self.term = Term(arguments)
        self.guard = Guard()
        self._centered = arguments.space == 'centered'
        assert arguments.temperature is not None  # they see to it themselves
        self._temperature = arguments.temperature
        self._reader: FeatureReader | None = None

    @property
    def objective(self) -> dict[str, Any]:
        """All arguments, as plain values."""
        fields = dataclasses.fields(self.arguments)
        return {**{field.name: getattr(self.arguments, field.name) for field in fields}, **self.schedule.texts}

    def find(self, model: nn.Module) -> int | None:
        """Find the features in the bare model; the number of its classes, where that is seen.

        Raises:
            ValueError: They cannot be found; the message lists the candidates.
        """
        a = self.arguments
        if a.space == 'logits':
            return None
        self._reader = FeatureReader(model, module=a.feature_module, position=a.feature_position)
        return self._reader.num_classes

    def allocate(self, num_classes: int, device: torch.device) -> None:
        """Make room for the tables, or move what a checkpoint brought; ValueError if that has another shape."""
        width = num_classes if self._reader is None else self._reader.dim
        dim = width * len(self._temperature) if isinstance(self._temperature, list) else width
        self.centroids.allocate(num_classes, dim, device, width if self._centered else 0)
        self.term.to(device)

    def attach(self, model: nn.Module, always: bool = False) -> None:
        """Read features from the model, by now perhaps wrapped; `always` not only where it trains."""
        if self._reader is not None:
            self._reader.attach(model, always)

    def release(self) -> None:
        """Let go of the model and of the tensors of a batch; an exception may have left them."""
        if self._reader is not None:
            self._reader.detach()
        self.term.weight = None
        self.centroids.clear()

    def begin(self, end: float) -> None:
        """Before the first step: say it now where the term is due when the training, at `end`, is over."""
        if self.arguments.weight and self.schedule.missed(end):
            warnings.warn(
                f'{self.name}: the term will not be added to the loss: it is due ({self.schedule}) when the training '
                f'ends at {end:.15g}{self.schedule.unit}; start earlier (weight=0 measures without adding).',
                stacklevel=2,
            )

    def begin_step(self, progress: float, fix: Callable[[], None]) -> None:
        """Before a step.

        Args:
            progress: How far the term is switched on, 0 to 1.
            fix: Calls `fix`, where the centroids are fixed ones and it is time.
        """
        self.centroids.clear()
        self.term.weight = None
        weight = self.arguments.weight * progress
        if weight and self.arguments.centroids == 'fixed' and not self.centroids.fixed:
            fix()
        if weight and self.centroids.ready:
            self.term.start_batch(self.centroids, self.arguments.sign * weight)

    def fix(self, batches: Iterable[tuple[Any, Tensor, Tensor]]) -> None:
        """Take the centroids of the model as it stands (arXiv 2401.08732), which is attached with `always`.

        Args:
            batches: Of this rank's share of all training rows: a batch, its logits `[N, C]`, its labels `[N]`.
        """
        self.centroids.begin()
        with torch.no_grad():
            for batch, logits, labels in batches:
                self.add(batch, logits, labels)
        self.centroids.fix()

    def clear(self) -> None:
        """Before a forward."""
        if self._reader is not None:
            self._reader.clear()

    def add(self, batch: Any, logits: Tensor, labels: Tensor, rows: int | None = None) -> Tensor | None:
        """What a microbatch adds to its loss; the centroids take it in at the end of the step.

        Args:
            batch: What the model was given.
            logits: `[N, C]`, as the model gave them.
            labels: `[N]` int64; outside `0..C-1` is ignored.
            rows: How many count, from the first on; all by default.

        Returns:
            0-d, a mean over these rows; None before `start`.
        """
        x = logits if self._reader is None else self._reader.read(batch, logits)
        self.clear()
        # Or a checkpoint's do not fit: says so.
        if self._reader is None and self.centroids.shape[0] != logits.shape[-1]:
            self.allocate(logits.shape[-1], x.device)
        if rows is not None:
            x, logits, labels = x[:rows], logits[:rows], labels[:rows]
        with torch.autocast(x.device.type, enabled=False):
            finite = torch.isfinite(x).all(-1)
            x = torch.where(finite[:, None], x, 0.0)
            directions = cmi_f.centered(x, self.centroids.mean) if self._centered else x
            log_f = cmi_f.log_distribution(directions, self._temperature)
            added = None
            if self.term.weight is not None:
                added = self.term.value(log_f, labels, finite, self.centroids)
            correct = logits.argmax(-1) == labels
            self.centroids.add(log_f.detach(), labels, correct, finite, added, x.detach() if self._centered else None)
        return added

    def end_step(self) -> dict[str, Any]:
        """After a step: one all-reduce, one commit; what to log of it. Nothing waits for the device."""
        if not self.centroids.ready:
            return {}
        batch, added = self.centroids.commit()
        running, weight = self.centroids.running, self.term.weight
        self.term.end_batch(added)
        self.guard.watch(self.centroids)
        apart = {} if running.separation is None else {'cmi/separation': running.separation}
        return {
            'cmi/cmi': running.cmi,
            'cmi/mutual_information': running.mutual_information,
            'cmi/relative_cmi': running.relative_cmi,
            **apart,
            'cmi/weight': 0.0 if weight is None else weight.abs(),
            'cmi/loss': added,
            'cmi/train_accuracy': self.centroids.accuracy(batch),
            'cmi/skipped_rows': self.centroids.skipped,
        }

    def check(self) -> None:
        """Let the guard speak; waits for the device."""
        due = self.arguments.weight and self.schedule.on and self.centroids.ready
        if due and (trouble := self.guard.speak(self.centroids)):
            warnings.warn(
                f'{self.name}: {trouble}; start later ({self.schedule} now) or lower the weight '
                f'({self.arguments.weight} now).',
                stacklevel=2,
            )

    def end(self, when: str) -> None:
        """After training, `when` it ended: say what was asked for and not done, and let go of the model."""
        self.check()
        why = self.term.why_never_added() if self.schedule.on else 'training ended before it was due'
        if self.arguments.weight and why is not None:
            warnings.warn(
                f'{self.name}: the term was never added to the loss until {when} ({self.schedule}): {why}.',
                stacklevel=2,
            )
        self.release()

    def state_dict(self) -> dict[str, Any]:
        """Beside the objective: plain types and CPU tensors, equal on all ranks."""
        values = {**self.term.state_dict(), **self.guard.state_dict()}
        return {
            'centroids': self.centroids.state_dict(),
            'schedule': self.schedule.state_dict(),
            **{k: v.detach().cpu().clone() if isinstance(v, Tensor) else v for k, v in values.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave; ValueError for another number of classes or width."""
        self.centroids.load_state_dict(state['centroids'])
        self.term.load_state_dict({name: state[name].clone() for name in self.term.state_dict() if name in state})
        self.guard.load_state_dict(state)
        if 'schedule' in state:
            self.schedule.load_state_dict(state['schedule'])
