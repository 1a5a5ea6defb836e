"""When a term counts, in optimizer steps of a `transformers.Trainer`; the strings are Composer's."""

from __future__ import annotations

import math
import re
from typing import Any

__all__ = ['Start']


class Start:
    """0 before `start`, then rising linearly over `ramp`, then 1.

    A term that is on stays on: a resumed run with a longer duration keeps the step at which it was switched on.

    Args:
        start: A share of the training (`'0.3dur'`), epochs (`'1ep'`) or optimizer steps (`'100ba'`).
        ramp: The same, in the unit of `start`; 0 for none.

    Raises:
        ValueError: For what is no such time, or two units.
    """

    def __init__(self, start: str, ramp: str):
        (self._value, unit), (self._rise, ramp_unit) = _parse('start', start), _parse('ramp', ramp)
        if self._rise and unit != ramp_unit:
            raise ValueError(f"start and ramp must be in the same unit, got '{start}' and '{ramp}'.")
        self._unit, self.on = unit, False
        self._start = self._ramp = 0
        # As Composer writes them, so that '0.30dur' is no other objective than '0.3dur'.
        self.texts = {'start': f'{self._value:g}{unit}', 'ramp': f'{self._rise:g}{ramp_unit}'}

    def __str__(self) -> str:
        steps, given = f'{self._start}ba', self.texts['start']
        return f'start={given!r}' + ('' if given == steps else f' ({steps})')

    def settle(self, done: int, *, max_steps: int, steps_per_epoch: int) -> None:
        """Turn shares and epochs into steps, rounded down, after `done` steps."""
        if self.on and done >= self._start:
            return
        length = {'dur': max_steps, 'ep': steps_per_epoch, 'ba': 1}[self._unit]
        # 0.29 * 100 is 28.999999999999996.
        self._start, self._ramp = (math.floor(round(value * length, 6)) for value in (self._value, self._rise))

    def progress(self, done: int) -> float:
        """How far the term is switched on after `done` steps, 0 to 1."""
        passed = done - self._start
        progress = 0.0 if passed < 0 else min(1.0, passed / self._ramp) if self._ramp else 1.0
        self.on = self.on or progress > 0
        return progress

    def state_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {'on': self.on, 'start': self._start, 'ramp': self._ramp}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self.on, self._start, self._ramp = state['on'], state['start'], state['ramp']


def _parse(name: str, text: str) -> tuple[float, str]:
    found = re.fullmatch(r'(\d+(?:\.\d*)?|\.\d+)(dur|ep|ba)', text.strip()) if isinstance(text, str) else None
    if found is None:
        raise ValueError(
            f"{name} must be a time such as '0.3dur' (share of the training), '1ep' or '100ba' (optimizer steps), got "
            f'{text!r}.'
        )
    return float(found[1]), found[2]
