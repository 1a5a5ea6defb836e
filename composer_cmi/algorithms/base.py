"""What CMI-min and CMI-max share: one way through a batch, one state, one term with a sign."""

from __future__ import annotations

import warnings
from typing import Any, Literal, get_args

import torch
from composer.core import Algorithm, Event, State, Time
from composer.core.precision import get_precision_context
from composer.loggers import Logger
from torch import Tensor

from composer_cmi import functional as cmi_f
from composer_cmi.algorithms.batch import progress
from composer_cmi.algorithms.guard import diagnose
from composer_cmi.algorithms.loss import add_to_loss
from composer_cmi.batch import class_labels, class_logits
from composer_cmi.centroids import CentroidMode, ClassCentroids
from composer_cmi.features import FeatureReader

__all__ = ['CMIAlgorithm', 'Form', 'Space']

Space = Literal['features', 'logits']
Form = Literal['scaled', 'plain', 'relative']

_SCHEMA_VERSION = 1
# A class mean of fewer examples underestimates CMI so much (by 1/n) that it is no unit to divide by.
_MIN_SUPPORT = 4
# With tiny batches and many classes that may never be reached; after so many examples of a class take what there is.
_MAX_WAIT = 32
# The guard reads the device once in so many steps; a step that does not read does not wait for the device.
_GUARD_INTERVAL = 20


class CMIAlgorithm(Algorithm):
    """What the two signs of the term share; see the public classes for the arguments."""

    _sign: int

    def __init__(
        self,
        *,
        weight: float,
        space: Space,
        form: Form,
        start: str | Time,
        ramp: str | Time,
        temperature: float,
        centroids: CentroidMode,
        decay: float,
        feature_module: str | None,
        feature_position: Literal['first', 'last'] | None,
        label_key: str | int | None,
        max_cmi: float | None = None,
        max_growth: float | None = None,
    ):
        if weight < 0:
            raise ValueError(f'weight must be at least 0, got {weight}; the sign is chosen by the class.')
        if temperature <= 0:
            raise ValueError(f'temperature must be positive, got {temperature}.')
        for name, value, choices in (('space', space, Space), ('form', form, Form)):
            if value not in get_args(choices):
                raise ValueError(f"{name} must be one of {', '.join(get_args(choices))}, got '{value}'.")
        if max_cmi is not None and max_cmi <= 0:
            raise ValueError(f'max_cmi must be positive (nats), got {max_cmi}.')
        if max_growth is not None and max_growth <= 1:
            raise ValueError(f'max_growth must be above 1 (times the CMI at the start), got {max_growth}.')
        self.weight, self.space, self.form = float(weight), space, form
        self.start, self.ramp = Time.from_input(start), Time.from_input(ramp)
        if self.ramp.value and self.ramp.unit != self.start.unit:
            raise ValueError(f"start and ramp must be in the same unit, got '{self.start}' and '{self.ramp}'.")
        self.temperature = float(temperature)
        self.feature_module, self.feature_position = feature_module, feature_position
        self.label_key, self.max_cmi, self.max_growth = label_key, max_cmi, max_growth
        self.centroids = ClassCentroids(centroids, decay)
        # State beside the centroids: CMI_0 (0 until it is measured), the unit of 'scaled', the largest I(X;Z), whether
        # the guard has spoken.
        self.initial_cmi = torch.zeros((), dtype=torch.float64)
        self.unit = torch.zeros((), dtype=torch.float64)
        self.peak_information = torch.zeros((), dtype=torch.float64)
        self.alarms = 0
        self.warned = False
        self._reader: FeatureReader | None = None
        self._labels: Tensor | None = None
        self._weight_now = 0.0

    def __repr__(self) -> str:
        return (
            f'{type(self).__name__}(weight={self.weight}, space={self.space!r}, form={self.form!r}, '
            f"start='{self.start.to_timestring()}', centroids={self.centroids.mode!r})"
        )

    # --- events -----------------------------------------------------------------------------------------------------

    def match(self, event: Event, state: State) -> bool:
        """Whether `event` is one of those that `apply` handles."""
        return event in _HANDLERS

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Do this event's part of the work; see `_HANDLERS`."""
        getattr(self, _HANDLERS[event])(state, logger)

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
        if self.space == 'features':
            reader = FeatureReader(state.model, module=self.feature_module, position=self.feature_position)
            self._allocate(reader.num_classes, reader.dim, state)
            self._reader = reader

    def _start_fit(self, state: State, logger: Logger) -> None:
        if state.timestamp.batch.value > 0 and not (self.centroids.ready and float(self.centroids.prior.sum()) > 0):
            warnings.warn(
                f'{type(self).__name__}: training resumes at batch {state.timestamp.batch.value} from a checkpoint '
                'without its centroids; they start empty, and the run is not a continuation of the saved one.',
                stacklevel=2,
            )
        if self.centroids.ready:
            self._allocate(*self.centroids.shape, state)
        if self._reader is not None:
            self._reader.attach(state.model)

    def _end_fit(self, state: State, logger: Logger) -> None:
        self._guard()
        if self._reader is not None:
            self._reader.detach()

    def _allocate(self, num_classes: int, dim: int, state: State) -> None:
        device = state.device.tensor_to_device(torch.zeros(())).device
        self.centroids.allocate(num_classes, dim, device)
        self.initial_cmi = self.initial_cmi.to(device)
        self.unit = self.unit.to(device)
        self.peak_information = self.peak_information.to(device)

    def _start_batch(self, state: State, logger: Logger) -> None:
        self.centroids.clear()
        self._weight_now = self.weight * progress(state, self.start, self.ramp)
        if self._weight_now and self.centroids.mode == 'fixed' and not self.centroids.fixed:
            self._fix_centroids(state)
        if not self._weight_now or not self.centroids.ready:
            return
        measurable = (self.centroids.support >= _MIN_SUPPORT) | (self.centroids.examples_per_class >= _MAX_WAIT)
        self.initial_cmi = torch.where((self.initial_cmi == 0) & measurable, self.centroids.cmi, self.initial_cmi)
        # Where features were almost constant at the start, CE alone makes CMI grow a hundredfold: CMI_0 for ever would
        # then turn weight / CMI_0 into a runaway. Over the largest CMI so far the term stays near its weight.
        self.unit = torch.where(self.initial_cmi > 0, torch.maximum(self.unit, self.centroids.cmi), self.unit)

    def _begin_pass(self, state: State, logger: Logger) -> None:
        self.centroids.begin()

    def _read_labels(self, state: State, logger: Logger) -> None:
        # Here and not later: LabelSmoothing makes them dense before the loss.
        if self._reader is not None:
            self._reader.clear()
        self._labels = class_labels(state.batch, self.label_key)

    def _add_term(self, state: State, logger: Logger) -> None:
        if self._labels is None:
            raise RuntimeError(f'{type(self).__name__} saw a loss without a forward pass before it.')
        log_f, keep = self._gather(state, state.outputs, self._labels)
        if self._weight_now:
            state.loss = add_to_loss(state.loss, self._term(log_f, self._labels, keep))

    def _gather(self, state: State, outputs: Any, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Add a microbatch to the pending sums; returns `log f` (`[N, D]`) and which rows are finite (`[N]`)."""
        logits = class_logits(outputs)
        x = logits
        if self._reader is not None:
            x = self._reader.read(state.batch, logits)
            self._reader.clear()
        if not self.centroids.ready or x.shape[-1] != self.centroids.shape[1]:  # or a checkpoint's do not fit: says so
            self._allocate(x.shape[-1], x.shape[-1], state)
        finite = torch.isfinite(x).all(-1)
        log_f = cmi_f.log_distribution(torch.where(finite[:, None], x, 0.0), self.temperature)
        self.centroids.add(log_f.detach(), labels, (logits.argmax(-1) == labels), finite)
        return log_f, finite

    def _term(self, log_f: Tensor, labels: Tensor, keep: Tensor) -> Tensor:
        table = self.centroids
        keep = keep & table.cover(labels)
        rows = cmi_f.cmi_term(log_f, labels, table.log_centroids.to(log_f.dtype), keep)
        if self.form == 'relative':
            a, b = table.cmi.to(log_f.dtype), table.mutual_information.to(log_f.dtype)
            whole = torch.where(keep, cmi_f.divergence(log_f, table.log_marginal.to(log_f.dtype)), 0.0)
            # d(A / B) = dA / B - A dB / B^2
            rows = torch.where(b > 0, rows / b - a / b**2 * whole, 0.0)
        # A mean over all rows, ignored ones too: a mean over the kept ones would depend on the microbatch split.
        return self._factor().to(rows.dtype) * rows.mean()

    def _factor(self) -> Tensor:
        """What the mean over rows is multiplied by: sign, weight, unit and cap; 0-d float64 on the device."""
        factor = torch.full_like(self.initial_cmi, self._sign * self._weight_now)
        if self.form == 'scaled':
            factor = torch.where(self.unit > 0, factor / self.unit, 0.0)
        if self.max_cmi is not None:
            factor = torch.where(self.centroids.cmi < self.max_cmi, factor, 0.0)
        if self.max_growth is not None:
            factor = torch.where(self.centroids.cmi < self.max_growth * self.initial_cmi, factor, 0.0)
        return factor

    def _finish_pass(self, state: State, logger: Logger) -> None:
        self.centroids.finish()

    def _end_batch(self, state: State, logger: Logger) -> None:
        if not self.centroids.ready:
            return
        factor, log_q, known = self._factor(), self.centroids.log_centroids, self.centroids.known
        batch = self.centroids.commit()
        stats = self.centroids.statistics(batch)
        by_class = torch.where(known, stats.negentropies - (stats.sums * log_q).sum(1), 0.0)
        excess = by_class.sum() / stats.counts.sum().clamp(min=1)
        self.peak_information = torch.maximum(self.peak_information, self.centroids.mutual_information)
        self._log(state, logger, factor * excess, self.centroids.accuracy(batch))
        if state.timestamp.batch.value % _GUARD_INTERVAL == 0:
            self._guard()

    def _end_epoch(self, state: State, logger: Logger) -> None:
        self.centroids.end_epoch()

    # --- the rest ---------------------------------------------------------------------------------------------------

    def _log(self, state: State, logger: Logger, term: Tensor, accuracy: Tensor) -> None:
        metrics = {
            'cmi/cmi': self.centroids.cmi,
            'cmi/mutual_information': self.centroids.mutual_information,
            'cmi/relative_cmi': self.centroids.relative_cmi,
            'cmi/weight': self._weight_now,
            'cmi/train_accuracy': accuracy,
            'cmi/skipped_rows': self.centroids.skipped,
        }
        if self.form != 'relative':
            metrics['cmi/loss'] = term
        # Tensors, not floats: whether to wait for the device is the logger's choice. Step: the batch just done.
        logger.log_metrics(metrics, step=state.timestamp.batch.value - 1)

    def _guard(self) -> None:
        """Warn once when the features collapse or the clusters settle on wrong labels."""
        if self.warned or not self._weight_now or not self.centroids.ready:
            return
        trouble = diagnose(self.centroids, self.peak_information)
        self.alarms = self.alarms + 1 if trouble else 0
        # Twice in a row: a young model may predict worse than chance for a moment.
        if self.alarms == 2:
            self.warned = True
            warnings.warn(
                f'{type(self).__name__}: {trouble}; start later (start={self.start.to_timestring()!r} now) or lower '
                f'the weight ({self.weight} now).',
                stacklevel=2,
            )

    @torch.no_grad()
    def _fix_centroids(self, state: State) -> None:
        """One pass over the training set in eval mode (arXiv 2401.08732): the centroids of the model as it stands."""
        if state.train_dataloader is None:
            raise RuntimeError("centroids='fixed' needs a training dataloader in the Trainer.")
        model, was_training, batch_in_hand = state.model, state.model.training, state.batch
        if self._reader is not None:
            self._reader.attach(model, always=True)
        model.eval()
        self.centroids.begin()
        # A run with and one without this pass must draw the same dropout masks.
        with torch.random.fork_rng(devices=[torch.cuda.current_device()] if torch.cuda.is_available() else []):
            for batch in state.train_dataloader:
                state.batch = state.device.batch_to_device(batch)
                labels = class_labels(state.batch, self.label_key)
                with get_precision_context(state.precision, state.precision_config):
                    outputs = model(state.batch)
                self._gather(state, outputs, labels)
        self.centroids.fix()
        state.batch = batch_in_hand
        model.train(was_training)
        if self._reader is not None:
            self._reader.attach(model)

    def state_dict(self) -> dict[str, Any]:
        """Centroids and running values, as plain types and CPU tensors; equal on all ranks."""
        return {
            **super().state_dict(),
            'schema_version': _SCHEMA_VERSION,
            'space': self.space,
            'centroids': self.centroids.state_dict(),
            'initial_cmi': self.initial_cmi.detach().cpu().clone(),
            'unit': self.unit.detach().cpu().clone(),
            'peak_information': self.peak_information.detach().cpu().clone(),
            'alarms': self.alarms,
            'warned': self.warned,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved state.

        Raises:
            ValueError: for a newer schema, another space, centroid mode, number of classes or width.
        """
        if state['schema_version'] > _SCHEMA_VERSION:
            raise ValueError(
                f"The checkpoint's {type(self).__name__} has schema version {state['schema_version']}, this "
                f'composer-cmi reads up to {_SCHEMA_VERSION}; upgrade composer-cmi.'
            )
        if state['space'] != self.space:
            raise ValueError(
                f"The checkpoint's {type(self).__name__} has centroids of space='{state['space']}', this run asks for "
                f"space='{self.space}'; use the same."
            )
        self.centroids.load_state_dict(state['centroids'])
        self.initial_cmi = state['initial_cmi'].clone()
        self.unit = state['unit'].clone()
        self.peak_information = state['peak_information'].clone()
        self.alarms, self.warned = state['alarms'], state['warned']


_HANDLERS = {
    Event.INIT: '_check_partners',
    Event.FIT_START: '_start_fit',
    Event.BATCH_START: '_start_batch',
    Event.BEFORE_TRAIN_BATCH: '_begin_pass',
    Event.BEFORE_FORWARD: '_read_labels',
    Event.AFTER_LOSS: '_add_term',
    Event.AFTER_TRAIN_BATCH: '_finish_pass',
    Event.BATCH_END: '_end_batch',
    Event.EPOCH_END: '_end_epoch',
    Event.FIT_END: '_end_fit',
}
