"""What CMI and distillation share: events by name, one life per Trainer, a state that says what it was trained for."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from composer.core import Algorithm, Callback, Event, State
from composer.loggers import Logger

from composer_cmi.terms.objective import SCHEMA_VERSION, check_objective

__all__ = ['PluginAlgorithm', 'move_to_end', 'refuse_mixtures']


class PluginAlgorithm(Algorithm):
    """An algorithm whose `handlers` name the method of each event, and whose `objective` is saved and compared."""

    handlers: ClassVar[Mapping[Event, str]]
    _used = False  # by a Trainer, since it was made or since a state was loaded into it

    def match(self, event: Event, state: State) -> bool:
        """Whether `event` is one of those that `apply` handles."""
        return event in self.handlers

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Do this event's part of the work; see `handlers`."""
        if event == Event.INIT:
            self.release()
            if self._used:  # in an earlier Trainer, whose centroids and teacher are not this one's
                self.begin_anew()
            state.callbacks.append(_Release(self.release))
        if event in (Event.INIT, Event.FIT_START):
            self._used = True
        getattr(self, self.handlers[event])(state, logger)

    @abstractmethod
    def begin_anew(self) -> None:
        """Set all that a run changes to what it is before one."""

    @abstractmethod
    def release(self) -> None:
        """Let go of hooks and of the tensors of a batch; an exception may have left them."""

    @property
    @abstractmethod
    def objective(self) -> dict[str, Any]:
        """Plain values of all that decides what is added to the loss; what is not in here may change at a resume."""

    def state_dict(self) -> dict[str, Any]:
        """Plain types and CPU tensors; equal on all ranks."""
        return {'repr': repr(self), 'schema_version': SCHEMA_VERSION, **self.objective}

    def check_objective(self, state: Mapping[str, Any]) -> None:
        """Refuse the state of a newer version or of another objective.

        Raises:
            ValueError: With every argument that differs, saved and given.
        """
        check_objective(type(self).__name__, state, self.objective, 'with load_weights_only=True')


class _Release(Callback):
    """Composer tells its callbacks, not its algorithms, when a Trainer is closed or dies."""

    def __init__(self, release: Callable[[], None]):
        self.release = release

    def close(self, state: State, logger: Logger) -> None:
        self.release()


def move_to_end(algorithm: Algorithm, state: State) -> None:
    """List an algorithm last: `AFTER_LOSS` runs backwards, so it finds loss and labels as the model left them."""
    if any(other is algorithm for other in state.algorithms) and state.algorithms[-1] is not algorithm:
        state.algorithms = [*(other for other in state.algorithms if other is not algorithm), algorithm]


def refuse_mixtures(algorithm: Algorithm, state: State, why: str) -> None:
    """ValueError where an algorithm of the run makes mixtures of examples, with the reason."""
    for other in state.algorithms:
        if type(other).__name__ in ('MixUp', 'CutMix'):
            raise ValueError(f'{type(algorithm).__name__} cannot be combined with {type(other).__name__}: {why}.')
