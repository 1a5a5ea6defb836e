"""Whether a saved state, and every rank, means the same objective."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch.distributed
from torch.distributed import all_gather_object, broadcast_object_list

__all__ = ['SCHEMA_VERSION', 'check_objective', 'from_first_rank', 'require_same_on_all_ranks']

SCHEMA_VERSION = 1


def check_objective(name: str, state: Mapping[str, Any], now: Mapping[str, Any], anew: str) -> None:
    """Refuse the state of a newer version or of another objective; warns of what an older version did not note.

    Args:
        name: Of the class.
        state: What was saved: `schema_version` and the objective of then.
        now: Plain values of all that decides what is added to the loss.
        anew: How to begin anew, for the message.

    Raises:
        ValueError: With every argument that differs, saved and given.
    """
    version = state.get('schema_version')
    if not isinstance(version, int) or version > SCHEMA_VERSION:
        raise ValueError(
            f"The checkpoint's {name} has schema version {version}, this composer-cmi reads up to "
            f'{SCHEMA_VERSION}: upgrade composer-cmi.'
        )
    differing = [
        f'{key}={state[key]!r}, this run asks for {value!r}'
        for key, value in now.items()
        if key in state and state[key] != value
    ]
    if differing:
        raise ValueError(
            f"The checkpoint's {name} has {'; '.join(differing)}: use the same to resume, or begin anew {anew}."
        )
    if unknown := [key for key in now if key not in state]:
        warnings.warn(
            f"The checkpoint's {name} was saved by an older composer-cmi, which did not note {', '.join(unknown)}: "
            'see to it that they are the same as then.'
        )


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


def from_first_rank(value: Any) -> Any:
    """A plain value as rank 0 has it; every rank calls it."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return value
    values = [value]
    broadcast_object_list(values)
    return values[0]
