"""What CMI-min and CMI-max share: one way through a batch, one state, one term with a sign."""

import inspect
import warnings
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from composer.core import Event, State
from composer.loggers import Logger
from torch import Tensor

from composer_cmi import functional as cmi_f
from composer_cmi.algorithms.fixed import outputs_of_all_rows, require_rows
from composer_cmi.algorithms.loss import add_to_loss
from composer_cmi.algorithms.plugin import PluginAlgorithm
from composer_cmi.algorithms.schedule import Schedule
from composer_cmi.batch import class_labels, class_logits
from composer_cmi.centroids import ClassCentroids
from composer_cmi.features import FeatureReader
from composer_cmi.teachers.compatibility import num_labels_of
from composer_cmi.terms.arguments import RegularizationArguments
from composer_cmi.terms.cmi import Term
from composer_cmi.terms.guard import Guard
from composer_cmi.terms.objective import require_same_on_all_ranks

__all__ = ['CMIAlgorithm']

# The guard reads the device once in so many steps; a step that does not read does not wait for the device.
_GUARD_INTERVAL = 20


@dataclass(repr=False, eq=False)
class CMIAlgorithm(RegularizationArguments, PluginAlgorithm):
    """What the two signs of the term share; see the public classes for the arguments.

    A dataclass, so that a subclass states its arguments and defaults once and `inspect.signature` shows them.
    """

    _: KW_ONLY
    label_key: str | int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.begin_anew()

    def begin_anew(self) -> None:
        """Set all that a run changes to what it is before one."""
        self.schedule = Schedule(self.start, self.ramp)
        self.class_centroids = ClassCentroids(self.centroids, self.decay)
        self.term = Term(self.form, self.max_cmi, self.max_growth)
        self.guard = Guard()
        self._reader: FeatureReader | None = None
        self._labels: Tensor | None = None

    def release(self) -> None:
        """Remove the hooks and drop the tensors of the batch."""
        if self._reader is not None:
            self._reader.detach()
        self._labels = self.term.weight = None
        self.class_centroids.clear()

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(weight={self.weight}, space={self.space!r}, form={self.form!r}, '
            f"start='{self.schedule.start.to_timestring()}', centroids={self.centroids!r})"
        )

    @property
    def objective(self) -> dict[str, Any]:
        """All arguments, as plain values; `label_key` only where it is not the default."""
        return {
            **{name: getattr(self, name) for name in inspect.signature(type(self)).parameters},
            'start': self.schedule.start.to_timestring(),
            'ramp': self.schedule.ramp.to_timestring(),
            'label_key': None if self.label_key in ('labels', 1) else self.label_key,
        }

    # --- events -----------------------------------------------------------------------------------------------------

    handlers = {
        Event.INIT: '_check_partners',
        Event.FIT_START: '_start_fit',
        Event.BATCH_START: '_start_batch',
        Event.BEFORE_TRAIN_BATCH: '_begin_pass',
        Event.BEFORE_FORWARD: '_read_labels',
        Event.AFTER_LOSS: '_add_term',
        Event.AFTER_TRAIN_BATCH: '_finish_pass',
        Event.BATCH_END: '_end_batch',
        Event.FIT_END: '_end_fit',
    }

    def _check_partners(self, state: State, logger: Logger) -> None:
        if sum(isinstance(algorithm, CMIAlgorithm) for algorithm in state.algorithms) > 1:
            raise ValueError(
                'Only one CMI algorithm can be used in a run: Composer restores the state of algorithms by class name.'
            )
        for algorithm in state.algorithms:
            if type(algorithm).__name__ in ('MixUp', 'CutMix'):
                raise ValueError(
                    f'{type(self).__name__} cannot be combined with {type(algorithm).__name__}: a mixture of two '
                    'examples has no class whose cluster it belongs to.'
                )
        classes = num_labels_of(state.model)
        if self.space == 'features':
            reader = FeatureReader(state.model, module=self.feature_module, position=self.feature_position)
            self._allocate(reader.num_classes, reader.dim, state)
            self._reader, classes = reader, reader.num_classes
        require_same_on_all_ranks(type(self).__name__, {**self.objective, 'number of classes': classes})

    def _start_fit(self, state: State, logger: Logger) -> None:
        if state.timestamp.batch.value > 0 and not (
            self.class_centroids.ready and float(self.class_centroids.prior.sum()) > 0
        ):
            warnings.warn(
                f'{type(self).__name__}: training resumes at batch {state.timestamp.batch.value} from a checkpoint '
                'without its centroids; they start empty, and the run is not a continuation of the saved one.',
                stacklevel=2,
            )
        self.release()
        self.schedule.settle(state)
        if self.class_centroids.ready:
            self._allocate(*self.class_centroids.shape, state)
        if self.centroids == 'fixed' and self.weight and not self.class_centroids.fixed:
            require_rows(state.train_dataloader)
        if self._reader is not None:
            self._reader.attach(state.model)

    def _end_fit(self, state: State, logger: Logger) -> None:
        self._check_guard()
        why = self.term.why_never_added() if self.schedule.on else 'training ended before it was due'
        if self.weight and why is not None:
            warnings.warn(
                f'{type(self).__name__}: the term was never added to the loss until batch '
                f'{state.timestamp.batch.value} ({self.schedule}): {why}.',
                stacklevel=2,
            )
        self.release()

    def _allocate(self, num_classes: int, dim: int, state: State) -> None:
        device = state.device.tensor_to_device(torch.zeros(())).device
        self.class_centroids.allocate(num_classes, dim, device)
        self.term.to(device)

    def _start_batch(self, state: State, logger: Logger) -> None:
        self.class_centroids.clear()
        self.term.weight = None
        weight = self.weight * self.schedule.progress(state.timestamp)
        if weight and self.centroids == 'fixed' and not self.class_centroids.fixed:
            self._fix_centroids(state)
        if weight and self.class_centroids.ready:
            self.term.start_batch(self.class_centroids, self.sign * weight)

    def _begin_pass(self, state: State, logger: Logger) -> None:
        self.class_centroids.begin()

    def _read_labels(self, state: State, logger: Logger) -> None:
        # Here and not later: LabelSmoothing makes them dense before the loss.
        if self._reader is not None:
            self._reader.clear()
        self._labels = class_labels(state.batch, self.label_key)

    def _add_term(self, state: State, logger: Logger) -> None:
        if self._labels is None:
            raise RuntimeError(f'{type(self).__name__} saw a loss without a forward pass before it.')
        labels, added = self._labels, None
        log_f, correct, finite = self._read(state, state.outputs, labels)
        if self.term.weight is not None:
            added = self.term.value(log_f, labels, finite, self.class_centroids)
            state.loss = add_to_loss(state.loss, added)
        self.class_centroids.add(log_f.detach(), labels, correct, finite, added)
        self._labels = None

    def _read(self, state: State, outputs: Any, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of a microbatch: `log f` (`[N, D]`), which predictions are right and which rows finite (`[N]`)."""
        logits = x = class_logits(outputs)
        if self._reader is not None:
            x = self._reader.read(state.batch, logits)
            self._reader.clear()
        if (
            not self.class_centroids.ready or x.shape[-1] != self.class_centroids.shape[1]
        ):  # or a checkpoint's do not fit: says so
            self._allocate(x.shape[-1], x.shape[-1], state)
        finite = torch.isfinite(x).all(-1)
        log_f = cmi_f.log_distribution(torch.where(finite[:, None], x, 0.0), self.temperature)
        return log_f, logits.argmax(-1) == labels, finite

    def _finish_pass(self, state: State, logger: Logger) -> None:
        self.class_centroids.finish()

    def _end_batch(self, state: State, logger: Logger) -> None:
        if not self.class_centroids.ready:
            return
        batch, added = self.class_centroids.commit()
        running = self.class_centroids.running
        metrics = {
            'cmi/cmi': running.cmi,
            'cmi/mutual_information': running.mutual_information,
            'cmi/relative_cmi': running.relative_cmi,
            'cmi/weight': 0.0 if self.term.weight is None else self.term.weight.abs(),
            'cmi/loss': added,
            'cmi/train_accuracy': self.class_centroids.accuracy(batch),
            'cmi/skipped_rows': self.class_centroids.skipped,
        }
        # Tensors, not floats: whether to wait for the device is the logger's choice. Step: the batch just done.
        logger.log_metrics(metrics, step=state.timestamp.batch.value - 1)
        self.term.end_batch(added)
        self.guard.watch(self.class_centroids)
        if state.timestamp.batch.value % _GUARD_INTERVAL == 0:
            self._check_guard()

    # --- the rest ---------------------------------------------------------------------------------------------------

    def _check_guard(self) -> None:
        due = self.weight and self.schedule.on and self.class_centroids.ready
        if due and (trouble := self.guard.speak(self.class_centroids)):
            warnings.warn(
                f'{type(self).__name__}: {trouble}; start later ({self.schedule} now) or lower the weight '
                f'({self.weight} now).',
                stacklevel=2,
            )

    def _fix_centroids(self, state: State) -> None:
        """The centroids of the model as it stands, of all training rows (arXiv 2401.08732)."""
        if self._reader is not None:
            self._reader.attach(state.model, always=True)
        self.class_centroids.begin()
        for outputs, counts in outputs_of_all_rows(state):
            labels = torch.where(counts, class_labels(state.batch, self.label_key), -100)
            log_f, correct, finite = self._read(state, outputs, labels)
            self.class_centroids.add(log_f, labels, correct, finite)
        self.class_centroids.fix()
        if self._reader is not None:
            self._reader.attach(state.model)

    def state_dict(self) -> dict[str, Any]:
        """Centroids and running values, as plain types and CPU tensors; equal on all ranks."""
        tensors = {**self.term.state_dict(), 'peak_information': self.guard.peak_information}
        return {
            **super().state_dict(),
            'centroids': self.class_centroids.state_dict(),
            'schedule': self.schedule.state_dict(),
            'alarms': self.guard.alarms,
            'warned': self.guard.warned,
            **{name: tensor.detach().cpu().clone() for name, tensor in tensors.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved state.

        Raises:
            ValueError: for a newer schema, another objective, number of classes or width.
        """
        self.check_objective({**state, 'centroids': state['centroids']['mode']})
        self.class_centroids.load_state_dict(state['centroids'])
        self.term.load_state_dict({name: state[name].clone() for name in self.term.state_dict() if name in state})
        self.guard = Guard(state['peak_information'].clone(), state['alarms'], state['warned'])
        if 'schedule' in state:
            self.schedule.load_state_dict(state['schedule'])
        self._used = False
