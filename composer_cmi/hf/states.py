"""The terms' states beside the Trainer's own in a checkpoint."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from composer_cmi.teachers.matching import NOT_NOTED_BEFORE
from composer_cmi.teachers.steps import DistillationSteps
from composer_cmi.terms.objective import SCHEMA_VERSION, check_objective
from composer_cmi.terms.steps import CMISteps

__all__ = ['restore', 'save']

_FILE = 'composer_cmi.pt'
_ANEW = 'without resume_from_checkpoint'
Term = CMISteps | DistillationSteps


def save(folder: str, terms: Sequence[Term]) -> None:
    """Write the terms' objectives and states, aside first."""
    states = {
        term.name: {
            'schema_version': SCHEMA_VERSION,
            **term.objective,
            **term.state_dict(),
        }
        for term in terms
    }
    path = Path(folder, _FILE)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f'{_FILE}.tmp')
    torch.save(states, aside)
    os.replace(aside, path)


def restore(folder: str, terms: Sequence[Term], step: int) -> None:
    """Give the terms what `save` wrote; warns of a state that no term takes, and of a term that finds none.

    Raises:
        ValueError: The state is that of another objective.
    """
    path, saved = Path(folder, _FILE), {}
    if path.is_file():
        saved = torch.load(path, map_location='cpu', weights_only=True)
    for name in saved.keys() - {term.name for term in terms}:
        warnings.warn(
            f'The checkpoint was trained with {name}, which this run does not list: its state is dropped, and '
            'training goes on with another objective.'
        )
    for term in terms:
        state: dict[str, Any] | None = saved.get(term.name)
        if state is None:
            warnings.warn(
                f'{term.name}: training resumes at step {step} from a checkpoint without its state ({path}); it begins '
                'anew, and the run is not a continuation of the saved one.'
            )
        elif isinstance(term, CMISteps):
            objective = {**state, 'centroids': state['centroids']['mode']}
            check_objective(term.name, objective, term.objective, _ANEW)
            term.load_state_dict(state)
        else:
            check_objective(term.name, {**NOT_NOTED_BEFORE, **state}, term.objective, _ANEW)
            term.load_state_dict(state)
