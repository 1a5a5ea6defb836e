"""When a term counts, in whatever its host counts time."""

from __future__ import annotations

from typing import Any

__all__ = ['Schedule']


class Schedule:
    """0 before `start`, then rising linearly over `ramp`, then 1.

    A term that is on stays on: a resumed run with a longer duration keeps the step at which it was switched on.

    Args:
        start: As the host writes such a time, so that '0.30dur' is no other objective than '0.3dur'.
        ramp: The same.
    """

    def __init__(self, start: str, ramp: str):
        self.texts = {'start': start, 'ramp': ramp}
        self.on = False
        self._start: float = 0
        self._ramp: float = 0
        self.unit = 'ba'

    def __str__(self) -> str:
        given, steps = self.texts['start'], f'{self._start:.15g}{self.unit}'
        return f'start={given!r}' + ('' if given == steps else f' ({steps})')

    def settled(self, now: float) -> bool:
        """Whether the term has been switched on before `now`: its steps are kept."""
        return self.on and now >= self._start

    def missed(self, end: float) -> bool:
        """Whether a training that ends at `end`, in the unit of the steps, is over before the term is switched on."""
        return not self.on and self._start >= end

    def progress(self, now: float) -> float:
        """How far the term is switched on, 0 to 1."""
        passed = now - self._start
        progress = 0.0 if passed < 0 else min(1.0, passed / self._ramp) if self._ramp else 1.0
        self.on = self.on or progress > 0
        return progress

    def state_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {'on': self.on, 'start': self._start, 'ramp': self._ramp}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self.on, self._start, self._ramp = state['on'], state['start'], state['ramp']
