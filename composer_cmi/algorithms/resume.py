"""Says by name when the state of one of our algorithms in a checkpoint is not restored; Composer drops it in silence.

Composer has no event at which a checkpoint can be seen, and an algorithm that is not in the list sees no event at all.
So the two methods of `State` through which every checkpoint passes are wrapped, when `composer_cmi.algorithms` is
imported; they do what they did before, and look at the names in the checkpoint first. Other packages may wrap them too,
before or after.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from composer.core import State

__all__ = ['dropped_states', 'warn_about_dropped_states']

OURS = ('CMIRegularization', 'CMIMaximization', 'KnowledgeDistillation')
_loading_whole: list[State] = []


def dropped_states(saved: Mapping[str, Any], restored: Iterable[str]) -> list[str]:
    """Those of our algorithms whose state is in a checkpoint and that are not among the restored ones.

    Args:
        saved: a checkpoint's `state`; its `'algorithms'` are pairs of class name and state.
        restored: class names of the algorithms that take their state back.
    """
    saved_names, restored = [*dict(saved.get('algorithms') or ())], [*restored]
    return [name for name in OURS if name in saved_names and name not in restored]


@functools.cache  # once, whoever wraps the methods before or after
def warn_about_dropped_states() -> None:
    """Wrap `State.load_state_dict` and `State.load_model_state`; a second call does nothing."""
    whole, weights = State.load_state_dict, State.load_model_state

    @functools.wraps(whole)
    def load_state_dict(self: State, state: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        for name in dropped_states(state, (type(algorithm).__qualname__ for algorithm in self.algorithms)):
            warnings.warn(
                f'The checkpoint was trained with {name}, which this run does not list: its state is dropped, and '
                'training goes on with another objective.',
                stacklevel=2,
            )
        _loading_whole.append(self)
        try:
            whole(self, state, *args, **kwargs)
        finally:
            _loading_whole.pop()

    @functools.wraps(weights)
    def load_model_state(self: State, state_dict: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        for name in [] if _loading_whole else dropped_states(state_dict, ()):
            warnings.warn(
                f'load_weights_only: the state of {name} in the checkpoint is not restored; where this run lists it, '
                'it begins anew.',
                stacklevel=2,
            )
        weights(self, state_dict, *args, **kwargs)

    State.load_state_dict, State.load_model_state = load_state_dict, load_model_state
