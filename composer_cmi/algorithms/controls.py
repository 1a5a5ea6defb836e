"""What a user would try instead of CMI, under the same protocol: norm penalties, supervised contrast, R-Drop."""

from __future__ import annotations

import warnings
from dataclasses import KW_ONLY, dataclass, fields
from typing import Any, Literal

import torch
import torch.nn.functional as F
from composer.core import Event, State, get_precision_context
from composer.loggers import Logger
from composer.utils import dist
from torch import Tensor, nn

from composer_cmi.algorithms.loss import add_to_loss, get_total, replace_total
from composer_cmi.algorithms.plugin import PluginAlgorithm, move_to_end, refuse_mixtures
from composer_cmi.batch import class_labels, class_logits
from composer_cmi.features import FeatureReader
from composer_cmi.functional import divergence, log_distribution
from composer_cmi.registry import register_algorithm
from composer_cmi.terms.ranges import Share, Temperature, Weight

__all__ = ['NormPenalty', 'RDrop', 'SupervisedContrast', 'supervised_contrast', 'symmetric_divergence']


def supervised_contrast(features: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Supervised contrastive loss of each row against the other rows (Gunel et al., arXiv 2011.01403, equation 3).

    Args:
        features: `[N, D]`; compared by their cosine.
        labels: `[N]` int64; rows below 0 are nobody's, and contrast with nothing.
        temperature: positive.

    Returns:
        `[N]`, nats; 0 for rows without another row of their class.
    """
    unit = F.normalize(features.to(torch.promote_types(features.dtype, torch.float32)), dim=-1)
    known = labels >= 0
    others = known[:, None] & known[None, :] & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    # A row without any other would be a row of -inf, whose gradient is NaN: it keeps its zeros and counts for nothing.
    alone = ~others.any(-1, keepdim=True)
    similarity = (unit @ unit.T / temperature).masked_fill(~others & ~alone, -torch.inf)
    log_share = torch.log_softmax(similarity, -1)
    positive = others & (labels[:, None] == labels[None, :])
    count = positive.sum(-1)
    return -torch.where(positive, log_share, 0.0).sum(-1) / count.clamp(min=1)


def symmetric_divergence(logits: Tensor, again: Tensor) -> Tensor:
    """`(KL(p || q) + KL(q || p)) / 2` of each row's two predictions `[N, C]`, `[N]` (R-Drop, arXiv 2106.14448)."""
    one, two = log_distribution(logits), log_distribution(again)
    return (divergence(one, two) + divergence(two, one)) / 2


class _Control(PluginAlgorithm):
    """One more term of the loss, without state."""

    handlers = {
        Event.INIT: '_find',
        Event.FIT_START: '_attach',
        Event.BATCH_START: '_begin_batch',
        Event.BEFORE_TRAIN_BATCH: '_begin_pass',
        Event.AFTER_LOSS: '_add',
        Event.AFTER_TRAIN_BATCH: '_log',
        Event.FIT_END: '_end',
    }
    _sums: Tensor | None = None  # of the term over rows, and the rows, since the pass began
    _logged = False
    _reader: FeatureReader | None = None
    feature_module: str | None = None

    def begin_anew(self) -> None:
        self.release()

    def release(self) -> None:
        self._sums = None
        if self._reader is not None:
            self._reader.detach()

    def __repr__(self) -> str:
        return f'{type(self).__name__}({", ".join(f"{key}={value!r}" for key, value in self.objective.items())})'

    @property
    def objective(self) -> dict[str, Any]:
        """All arguments, as plain values."""
        return {field.name: getattr(self, field.name) for field in fields(self)}  # pyright: ignore[reportArgumentType]

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the same objective; ValueError for another one."""
        self.check_objective(state)
        self._used = False

    def _find(self, state: State, logger: Logger) -> None:
        self._reader = FeatureReader(state.model, module=self.feature_module)

    def _attach(self, state: State, logger: Logger) -> None:
        if self._reader is not None:
            self._reader.attach(state.model)

    def _end(self, state: State, logger: Logger) -> None:
        self.release()

    def _features(self, state: State) -> Tensor:
        logits = class_logits(state.outputs)
        if self._reader is None:
            return logits
        features = self._reader.read(state.batch, logits)
        self._reader.clear()
        return features

    def _begin_batch(self, state: State, logger: Logger) -> None:
        # SAM passes a batch twice, the second time at other weights: the first pass is what is logged.
        self._logged = False

    def _begin_pass(self, state: State, logger: Logger) -> None:
        self._sums = None

    def _keep(self, state: State, value: Tensor) -> None:
        """Note what a microbatch adds, a mean over its rows, for the log of the step."""
        value = value.detach().float()
        rows = torch.full_like(value, len(class_logits(state.outputs)))
        sums = torch.stack([value * rows, rows])
        self._sums = sums if self._sums is None else self._sums + sums

    def _log(self, state: State, logger: Logger) -> None:
        if self._sums is not None and not self._logged:
            self._logged = True
            # A tensor: whether to wait for the device is the logger's choice.
            metrics: dict[str, Any] = {f'{type(self).__name__.lower()}/loss': self._sums[0] / self._sums[1]}
            logger.log_metrics(metrics)


@register_algorithm('norm_penalty')
@dataclass(repr=False, eq=False)
class NormPenalty(_Control):
    """`loss + weight * mean_n |x_n|^2 / D`: what is left of CMI-min if all that it does is to keep features small.

    A mean over rows: exact for any microbatch size and number of ranks.

    Args:
        weight: At least 0.
        space: `'features'`: h_s, the input of the last linear layer; `'logits'`.
        feature_module: Name of the module whose output is h_s; found automatically by default.

    Raises:
        ValueError: For values out of range, or when the features cannot be found in the model.
    """

    weight: Weight = 0.01
    _: KW_ONLY
    space: Literal['features', 'logits'] = 'features'
    feature_module: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.weight < float('inf') or self.space not in ('features', 'logits'):
            raise ValueError(f"weight must be at least 0, space 'features' or 'logits', got {self!r}.")

    def _find(self, state: State, logger: Logger) -> None:
        if self.space == 'features':
            super()._find(state, logger)

    def _add(self, state: State, logger: Logger) -> None:
        features = self._features(state)
        term = self.weight * features.to(torch.promote_types(features.dtype, torch.float32)).square().mean()
        state.loss = add_to_loss(state.loss, term)
        self._keep(state, term)


@register_algorithm('supervised_contrast')
@dataclass(repr=False, eq=False)
class SupervisedContrast(_Control):
    """`(1 - share) * loss + share * SCL`: rows of a class drawn together, of others apart (arXiv 2011.01403).

    The rows of one forward pass are compared with each other, so the result **depends on the microbatch size and the
    number of ranks**, and a warning says so where a batch is cut.

    Args:
        share: Of the contrastive loss, 0 to 1.
        temperature: Positive.
        feature_module: Name of the module whose output is h_s; found automatically by default.
        label_key: Where the labels are in a batch; `'labels'` in a mapping, else 1.

    Raises:
        ValueError: For values out of range, or when the features cannot be found in the model.
    """

    share: Share = 0.3
    temperature: Temperature = 0.1
    _: KW_ONLY
    feature_module: str | None = None
    label_key: str | int | None = None

    handlers = {**_Control.handlers, Event.BEFORE_FORWARD: '_read_labels'}
    _passes = 0
    _told = False

    def __post_init__(self) -> None:
        self.begin_anew()
        if not 0 <= self.share <= 1 or not self.temperature > 0:
            raise ValueError(f'share must lie between 0 and 1 and temperature above 0, got {self!r}.')

    def release(self) -> None:
        super().release()
        self._labels: Tensor | None = None

    def _find(self, state: State, logger: Logger) -> None:
        refuse_mixtures(self, state, 'a mixture of two examples has no class that it is drawn to')
        super()._find(state, logger)

    def _begin_pass(self, state: State, logger: Logger) -> None:
        super()._begin_pass(state, logger)
        self._passes = 0

    def _read_labels(self, state: State, logger: Logger) -> None:
        # Here and not later: LabelSmoothing makes them dense before the loss.
        self._labels = class_labels(state.batch, self.label_key)

    def _add(self, state: State, logger: Logger) -> None:
        if self._labels is None:
            raise RuntimeError('SupervisedContrast saw a loss without a forward pass before it.')
        self._passes += 1
        if not self._told and (self._passes > 1 or dist.get_world_size() > 1):
            self._told = True
            warnings.warn(
                'SupervisedContrast compares the rows of one forward pass on one rank with each other: the result '
                'depends on the microbatch size and the number of ranks.'
            )
        term = supervised_contrast(self._features(state), self._labels, self.temperature).mean()
        self._labels = None
        total = get_total(state.loss)
        state.loss = replace_total(state.loss, (1 - self.share) * total + self.share * term.to(total.dtype))
        self._keep(state, term)


@register_algorithm('r_drop')
@dataclass(repr=False, eq=False)
class RDrop(_Control):
    """Two passes with two draws of dropout: `(CE_1 + CE_2) / 2 + weight * symmetric KL` (arXiv 2106.14448).

    It doubles the cost of a step. Cross-entropy of the second pass is the model's own loss. Without dropout in the
    model it has no effect, and says so.

    Args:
        weight: At least 0, where there is no second pass.

    Raises:
        ValueError: For values out of range.
    """

    weight: Weight = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.weight < float('inf'):
            raise ValueError(f'weight must be at least 0, got {self.weight}.')

    def _find(self, state: State, logger: Logger) -> None:
        self._bare: Any = state.model  # before DDP wraps it
        if self.weight == 0:
            return
        for other in state.algorithms:
            if getattr(other, 'interpolate_loss', False):
                raise ValueError(
                    f'RDrop cannot be combined with {type(other).__name__}(interpolate_loss=True), whose second '
                    'cross-entropy its own second pass does not have: use interpolate_loss=False.'
                )
        move_to_end(self, state)
        drops = [m for m in state.model.modules() if isinstance(m, nn.Dropout) and m.p > 0]
        if not drops:
            warnings.warn('RDrop has no effect: the model has no dropout, so both passes are the same.')

    def _add(self, state: State, logger: Logger) -> None:
        if self.weight == 0:
            return
        with get_precision_context(state.precision, state.precision_config):
            outputs = state.model(state.batch)
            own = get_total(self._bare.loss(outputs, state.batch))
        first = get_total(self._bare.loss(state.outputs, state.batch))
        rows = symmetric_divergence(class_logits(state.outputs), class_logits(outputs))
        term = (own - first) / 2 + self.weight * rows.mean()
        state.loss = add_to_loss(state.loss, term)
        self._keep(state, term)
