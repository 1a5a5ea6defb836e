"""What looks on during training: a progress bar with the loss and the CMI beside it, and a check for divergence."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from typing import Any, TextIO

import torch
from composer.core import Callback, State
from composer.loggers import Logger, LoggerDestination
from composer.utils import dist
from torch import Tensor
from tqdm.auto import tqdm

from composer_cmi.errors import ConfigError

__all__ = ['DivergenceCheck', 'ProgressBar']

_NEVER = torch.iinfo(torch.int64).max
_EVERY = 100  # steps between two looks, beside those at each epoch's end and before each checkpoint


class ProgressBar(LoggerDestination):
    """Composer's own bar shows losses only, starts anew at every epoch, and prints its settings first.

    Args:
        label: What stands in front, e.g. the name of the run.
        shown: Short names of the metrics to show, by their logged names; those not logged are left out.
        stream: Where to; only global rank 0 writes.
    """

    def __init__(self, label: str, shown: dict[str, str], stream: TextIO | None = None) -> None:
        self.label = label
        self.shown = shown
        self.stream = sys.stderr if stream is None else stream
        self.values: dict[str, Any] = {}
        # In a log file every refresh is a line.
        self._interval = 0.3 if self.stream.isatty() else 15.0
        self._bar: tqdm | None = None
        self._drawn = 0.0
        self._pending = 0

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        self.values.update({self.shown[name]: value for name, value in metrics.items() if name in self.shown})

    def fit_start(self, state: State, logger: Logger) -> None:
        if dist.get_global_rank() == 0 and state.max_duration is not None:
            interactive = self.stream.isatty()
            self._bar = tqdm(
                total=state.max_duration.value,
                initial=int(state.timestamp.batch),
                desc=self.label,
                unit='step',
                file=self.stream,
                dynamic_ncols=interactive,
                ncols=None if interactive else 120,
                mininterval=0,
                miniters=1,
            )
            self._drawn = time.monotonic()

    def batch_end(self, state: State, logger: Logger) -> None:
        self._pending += 1
        if time.monotonic() - self._drawn > self._interval:
            self._draw()

    def fit_end(self, state: State, logger: Logger) -> None:
        self._draw()
        self.close(state, logger)

    def close(self, state: State, logger: Logger) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _draw(self) -> None:
        if self._bar is not None:
            # Tensors are read only here: reading them makes the device wait.
            self._bar.set_postfix({name: _short(value) for name, value in self.values.items()}, refresh=False)
            self._bar.update(self._pending)
        self._drawn, self._pending = time.monotonic(), 0


def _short(value: Any) -> str:
    number = float(value)
    return f'{number:.2e}' if 0 < abs(number) < 1e-2 else f'{number:.3f}'


class DivergenceCheck(Callback):
    """Keeps the first step whose loss is not finite on the device, and looks at it now and then, all ranks together.

    Under ``amp_fp16`` it should not be used: the gradient scaler skips steps that overflow.
    """

    def __init__(self) -> None:
        self._first: Tensor | None = None

    def after_loss(self, state: State, logger: Logger) -> None:
        for loss in _tensors(state.loss):
            if self._first is None:
                self._first = torch.full((), _NEVER, dtype=torch.int64, device=loss.device)
            step = torch.full_like(self._first, int(state.timestamp.batch))
            bad = ~loss.detach().isfinite().all()
            self._first = torch.where(bad, torch.minimum(self._first, step), self._first)

    def batch_end(self, state: State, logger: Logger) -> None:
        if int(state.timestamp.batch) % _EVERY == 0:
            self.check()

    def epoch_end(self, state: State, logger: Logger) -> None:
        self.check()

    def fit_end(self, state: State, logger: Logger) -> None:
        self.check()

    def check(self) -> None:
        """Look; all ranks call it at the same step.

        Raises:
            ConfigError: if a loss was not finite.
        """
        if self._first is None:
            return
        first = self._first.clone()
        dist.all_reduce(first, reduce_operation='MIN')
        if (step := int(first)) != _NEVER:
            raise ConfigError(
                f'Training has diverged at step {step}: the loss is not finite. Choose a smaller optimizer.lr or '
                'weight of a term, and another run_name, or delete the folder.'
            )


def _tensors(loss: Any) -> Iterable[Tensor]:
    if isinstance(loss, Tensor):
        return [loss]
    return [value for value in (loss.values() if isinstance(loss, dict) else loss) if isinstance(value, Tensor)]
