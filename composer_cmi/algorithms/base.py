"""What CMI-min and CMI-max share: the term through Composer's events, one state, one sign."""

import warnings
from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from composer.core import Event, State
from composer.loggers import Logger
from torch import Tensor

from composer_cmi.algorithms.fixed import outputs_of_all_rows, require_rows
from composer_cmi.algorithms.loss import add_to_loss
from composer_cmi.algorithms.plugin import PluginAlgorithm, refuse_mixtures
from composer_cmi.algorithms.schedule import Schedule
from composer_cmi.batch import class_labels, class_logits
from composer_cmi.teachers.compatibility import num_labels_of
from composer_cmi.terms.arguments import CMIArguments
from composer_cmi.terms.objective import require_same_on_all_ranks
from composer_cmi.terms.steps import CMISteps

__all__ = ['CMIAlgorithm']

# The guard reads the device once in so many steps; a step that does not read does not wait for the device.
_GUARD_INTERVAL = 20


@dataclass(repr=False, eq=False)
class CMIAlgorithm(CMIArguments, PluginAlgorithm):
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
        self._steps = steps = CMISteps(type(self).__name__, self, self.schedule)
        self.class_centroids, self.term, self.guard = steps.centroids, steps.term, steps.guard
        self._labels: Tensor | None = None

    def release(self) -> None:
        """Remove the hooks and drop the tensors of the batch."""
        self._steps.release()
        self._labels = None

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(weight={self.weight}, space={self.space!r}, form={self.form!r}, '
            f"start='{self.schedule.start.to_timestring()}', centroids={self.centroids!r})"
        )

    @property
    def objective(self) -> dict[str, Any]:
        """All arguments, as plain values; `label_key` only where it is not the default."""
        return {**self._steps.objective, 'label_key': None if self.label_key in ('labels', 1) else self.label_key}

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
        refuse_mixtures(self, state, 'a mixture of two examples has no class whose cluster it belongs to')
        classes = self._steps.find(state.model)
        if classes is not None:
            self._steps.allocate(classes, _device(state))
        facts = {**self.objective, 'number of classes': classes or num_labels_of(state.model)}
        require_same_on_all_ranks(type(self).__name__, facts)

    def _start_fit(self, state: State, logger: Logger) -> None:
        centroids = self.class_centroids
        if state.timestamp.batch.value > 0 and not (centroids.ready and float(centroids.prior.sum()) > 0):
            warnings.warn(
                f'{type(self).__name__}: training resumes at batch {state.timestamp.batch.value} from a checkpoint '
                'without its centroids; they start empty, and the run is not a continuation of the saved one.',
                stacklevel=2,
            )
        self.release()
        self.schedule.settle(state)
        if centroids.ready:
            self._steps.allocate(centroids.shape[0], _device(state))
        if self.centroids == 'fixed' and self.weight and not centroids.fixed:
            require_rows(state.train_dataloader)
        self._steps.attach(state.model)
        self._steps.begin(self.schedule.end(state))

    def _end_fit(self, state: State, logger: Logger) -> None:
        self._steps.end(f'batch {state.timestamp.batch.value}')
        self.release()

    def _start_batch(self, state: State, logger: Logger) -> None:
        self._steps.begin_step(self.schedule.progress(state.timestamp), lambda: self._fix_centroids(state))

    def _begin_pass(self, state: State, logger: Logger) -> None:
        self.class_centroids.begin()

    def _read_labels(self, state: State, logger: Logger) -> None:
        # Here and not later: LabelSmoothing makes them dense before the loss.
        self._steps.clear()
        self._labels = class_labels(state.batch, self.label_key)

    def _add_term(self, state: State, logger: Logger) -> None:
        if self._labels is None:
            raise RuntimeError(f'{type(self).__name__} saw a loss without a forward pass before it.')
        added = self._steps.add(state.batch, class_logits(state.outputs), self._labels)
        if added is not None:
            state.loss = add_to_loss(state.loss, added)
        self._labels = None

    def _finish_pass(self, state: State, logger: Logger) -> None:
        self.class_centroids.finish()

    def _end_batch(self, state: State, logger: Logger) -> None:
        if metrics := self._steps.end_step():
            # Tensors, not floats: whether to wait for the device is the logger's choice. Step: the batch just done.
            logger.log_metrics(metrics, step=state.timestamp.batch.value - 1)
        if state.timestamp.batch.value % _GUARD_INTERVAL == 0:
            self._check_guard()

    def _check_guard(self) -> None:
        self._steps.check()

    # --- the rest ---------------------------------------------------------------------------------------------------

    def _fix_centroids(self, state: State) -> None:
        def batches() -> Iterator[tuple[Any, Tensor, Tensor]]:
            for outputs, counts in outputs_of_all_rows(state):
                labels = torch.where(counts, class_labels(state.batch, self.label_key), -100)
                yield state.batch, class_logits(outputs), labels

        self._steps.attach(state.model, always=True)
        self._steps.fix(batches())
        self._steps.attach(state.model)

    def state_dict(self) -> dict[str, Any]:
        """Centroids and running values, as plain types and CPU tensors; equal on all ranks."""
        return {**super().state_dict(), **self._steps.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved state.

        Raises:
            ValueError: for a newer schema, another objective, number of classes or width.
        """
        self.check_objective({**state, 'centroids': state['centroids']['mode']})
        self._steps.load_state_dict(state)
        self._used = False


def _device(state: State) -> torch.device:
    return state.device.tensor_to_device(torch.zeros(())).device
