"""When a term counts: from which step on, and how it rises."""

from __future__ import annotations

import math
import warnings
from typing import Any

from composer.core import State, Time, Timestamp, TimeUnit

from composer_cmi.terms import schedule

__all__ = ['Schedule', 'in_steps']


def in_steps(time: Time, state: State) -> tuple[float, TimeUnit]:
    """A time in a unit that moves with every step, as Composer's schedulers convert it (`_convert_time`).

    A share of the training (`'dur'`) becomes a share of `max_duration`; epochs become batches, which the length of the
    dataloader tells; samples and tokens are counted in every step already. Without a length whole epochs are counted.

    Args:
        time: Any of Composer's but wall-clock time.
        state: In a `fit`: its `max_duration` and dataloader are set.

    Returns:
        The value, rounded down to a whole number, and its unit.
    """
    value, unit = float(time.value), time.unit
    if unit == TimeUnit.DURATION:
        assert state.max_duration is not None  # `fit` sees to it
        value, unit = value * state.max_duration.value, state.max_duration.unit
    iteration = state._iteration_length
    if unit == TimeUnit.ITERATION and iteration is not None and iteration.unit == TimeUnit.EPOCH:
        value, unit = value * iteration.value, TimeUnit.EPOCH
    if unit == TimeUnit.EPOCH and state.dataloader_len is not None:
        value, unit = value * int(state.dataloader_len), TimeUnit.BATCH
    # 0.29 * 100 is 28.999999999999996. A share of a few epochs or iterations is compared with whole ones as it is.
    coarse = unit in (TimeUnit.EPOCH, TimeUnit.ITERATION)
    return value if coarse else math.floor(round(value, 6)), unit


class Schedule(schedule.Schedule):
    """When a term counts, in Composer's times; what a share of the training is in steps is settled when a `fit` begins.

    Args:
        start: Composer time or time string.
        ramp: The same, in the unit of `start`; 0 for none.

    Raises:
        ValueError: For what is no time, is negative, is counted in seconds, or two units.
    """

    def __init__(self, start: str | Time, ramp: str | Time):
        self.start, self.ramp = _time('start', start), _time('ramp', ramp)
        if self.ramp.value and self.ramp.unit != self.start.unit:
            raise ValueError(f"start and ramp must be in the same unit, got '{self.start}' and '{self.ramp}'.")
        super().__init__(self.start.to_timestring(), self.ramp.to_timestring())

    def settle(self, state: State) -> None:
        """FIT_START: turn shares and epochs into steps."""
        if self.settled(self._count(state.timestamp)):
            return
        (self._start, unit), (self._ramp, _) = in_steps(self.start, state), in_steps(self.ramp, state)
        self.unit = unit.value
        if unit in (TimeUnit.EPOCH, TimeUnit.ITERATION) and (self._start or self._ramp):
            warnings.warn(
                f"start='{self.start.to_timestring()}' and ramp='{self.ramp.to_timestring()}' are counted in whole "
                f'{unit.name.lower()}s, as no length of the dataloader tells their steps; batches (ba) are exact.'
            )

    def end(self, state: State) -> float:
        """Where a `fit` ends, in the unit of the settled steps; infinite where its duration is in another."""
        if state.max_duration is None:
            return math.inf
        value, unit = in_steps(state.max_duration, state)
        return value if unit.value == self.unit else math.inf

    def progress(self, now: Any) -> float:
        """How far the term is switched on, 0 to 1, at a `Timestamp`."""
        return super().progress(self._count(now))

    def _count(self, now: Timestamp) -> int:
        return now.get(self.unit).value

    def state_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {**super().state_dict(), 'unit': self.unit}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        super().load_state_dict(state)
        self.unit = state['unit']


def _time(name: str, value: str | Time) -> Time:
    try:
        time = value if isinstance(value, Time) else Time.from_timestring(value)
        good = 0 <= time.value < math.inf and time.unit != TimeUnit.SECOND
    except (ValueError, TypeError, AttributeError, OverflowError):
        good = False
    if not good:
        raise ValueError(
            f"{name} must be a time of at least 0 such as '0.3dur', '1ep' or '100ba' (no wall-clock time, with which "
            f'no run can be repeated), got {value!r}.'
        )
    return time
