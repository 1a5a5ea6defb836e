"""When a term counts, in optimizer steps of a `transformers.Trainer`; the strings are Composer's."""

from __future__ import annotations

import math
import re

from composer_cmi.terms.schedule import Schedule

__all__ = ['Start']


class Start(Schedule):
    """When a term counts.

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
        self._given = unit
        super().__init__(f'{self._value:g}{unit}', f'{self._rise:g}{ramp_unit}')

    def settle(self, done: int, *, max_steps: int, steps_per_epoch: int) -> None:
        """Turn shares and epochs into steps, rounded down, after `done` steps."""
        if not self.settled(done):
            length = {'dur': max_steps, 'ep': steps_per_epoch, 'ba': 1}[self._given]
            # 0.29 * 100 is 28.999999999999996.
            self._start, self._ramp = (math.floor(round(value * length, 6)) for value in (self._value, self._rise))


def _parse(name: str, text: str) -> tuple[float, str]:
    found = re.fullmatch(r'(\d+(?:\.\d*)?|\.\d+)(dur|ep|ba)', text.strip()) if isinstance(text, str) else None
    if found is None:
        raise ValueError(
            f"{name} must be a time such as '0.3dur' (share of the training), '1ep' or '100ba' (optimizer steps), got "
            f'{text!r}.'
        )
    return float(found[1]), found[2]
