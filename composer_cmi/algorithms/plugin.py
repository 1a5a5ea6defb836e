"""What CMI and distillation share: events by name, one life per Trainer, a state that says what it was trained for."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch.distributed
from composer.core import Algorithm, Callback, Event, State
from composer.loggers import Logger
from torch.distributed import all_gather_object

__all__ = ['PluginAlgorithm', 'require_same_on_all_ranks']

SCHEMA_VERSION = 1


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
        name, version = type(self).__name__, state.get('schema_version')
        if not isinstance(version, int) or version > SCHEMA_VERSION:
            raise ValueError(
                f"The checkpoint's {name} has schema version {version}, this composer-cmi reads up to "
                f'{SCHEMA_VERSION}: upgrade composer-cmi.'
            )
        now = self.objective
        differing = [
            f'{key}={state[key]!r}, this run asks for {value!r}'
            for key, value in now.items()
            if key in state and state[key] != value
        ]
        if differing:
            raise ValueError(
                f"The checkpoint's {name} has {'; '.join(differing)}: use the same to resume, or begin anew with "
                'load_weights_only=True.'
            )
        if unknown := [key for key in now if key not in state]:
            warnings.warn(
                f"The checkpoint's {name} was saved by an older composer-cmi, which did not note {', '.join(unknown)}: "
                'see to it that they are the same as then.'
            )


class _Release(Callback):
    """Composer tells its callbacks, not its algorithms, when a Trainer is closed or dies."""

    def __init__(self, release: Callable[[], None]):
        self.release = release

    def close(self, state: State, logger: Logger) -> None:
        self.release()


def require_same_on_all_ranks(name: str, facts: Mapping[str, Any]) -> None:
    """Compare plain values over the ranks, once; does nothing in a single process.

    Ranks with different objectives would train on, each on its own, and stop at a resume.

    Raises:
        ValueError: On every rank, with the first value that differs.
    """
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return
    gathered: list[Any] = [None] * torch.distributed.get_world_size()
    all_gather_object(gathered, dict(facts))
    for key, first in gathered[0].items():
        for rank, other in enumerate(gathered):
            if other.get(key) != first:
                raise ValueError(
                    f'{name} has another {key} on rank {rank} ({other.get(key)}) than on rank 0 ({first}): give all '
                    'ranks the same, a live module from the same seed or file.'
                )
