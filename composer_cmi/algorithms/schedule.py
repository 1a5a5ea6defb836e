"""When a term counts: from which step on, and how it rises."""

from __future__ import annotations

import math
import warnings
from typing import Any

from composer.core import State, Time, Timestamp, TimeUnit

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


class Schedule:
    """0 before `start`, then rising linearly over `ramp`, then 1.

    What a share of the training is in steps is settled when a `fit` begins. A term that is on stays on: a later `fit`
    with a longer duration, or a resumed run, keeps the step at which it was switched on.

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
        self.on = False
        self._start = self._ramp = 0.0
        self._unit = TimeUnit.BATCH

    def __str__(self) -> str:
        steps = f'{self._start:g}{self._unit.value}'
        given = self.start.to_timestring()
        return f'start={given!r}' + ('' if given == steps else f' ({steps})')

    def settle(self, state: State) -> None:
        """FIT_START: turn shares and epochs into steps."""
        if self.on and state.timestamp.get(self._unit).value >= self._start:
            return
        (self._start, self._unit), (self._ramp, _) = in_steps(self.start, state), in_steps(self.ramp, state)
        if self._unit in (TimeUnit.EPOCH, TimeUnit.ITERATION) and (self._start or self._ramp):
            warnings.warn(
                f"start='{self.start.to_timestring()}' and ramp='{self.ramp.to_timestring()}' are counted in whole "
                f'{self._unit.name.lower()}s, as no length of the dataloader tells their steps; batches (ba) are exact.'
            )

    def progress(self, now: Timestamp) -> float:
        """How far the term is switched on, 0 to 1."""
        passed = now.get(self._unit).value - self._start
        progress = 0.0 if passed < 0 else min(1.0, passed / self._ramp) if self._ramp else 1.0
        self.on = self.on or progress > 0
        return progress

    def state_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {'on': self.on, 'start': self._start, 'ramp': self._ramp, 'unit': self._unit.value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self.on, self._start, self._ramp = state['on'], state['start'], state['ramp']
        self._unit = TimeUnit(state['unit'])


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
