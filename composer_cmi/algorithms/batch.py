"""What the algorithms read from Composer's state: the time."""

from __future__ import annotations

from composer.core import State, Time, TimeUnit

__all__ = ['progress']


def progress(state: State, start: Time, ramp: Time) -> float:
    """How far the term is switched on: 0 before `start`, rising over `ramp`, then 1."""
    if start.unit == TimeUnit.DURATION:
        elapsed = state.get_elapsed_duration()
        now = 0.0 if elapsed is None else elapsed.value
    else:
        now = state.timestamp.get(start.unit).value
    if now < start.value:
        return 0.0
    return min(1.0, (now - start.value) / ramp.value) if ramp.value else 1.0
