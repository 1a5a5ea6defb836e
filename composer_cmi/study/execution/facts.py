"""What a study folder says of the study file that it was made by: for the report, and for the next sweep."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from composer_cmi.run.config.yaml_loader import read_yaml
from composer_cmi.study.config import StudyConfig
from composer_cmi.study.execution.plan import Cell, expanded_comparisons, names_of_tuned_ce

__all__ = ['changes', 'definition', 'read_facts', 'study_facts']


def definition(study: StudyConfig) -> dict[str, Any]:
    """What decides which runs a study has, as JSON has it."""
    parts = study.model_dump(mode='json', include={'settings', 'arms', 'seeds', 'tuning'})
    return json.loads(json.dumps({**parts, 'base': read_yaml(study.base)}, default=str))


def study_facts(study: StudyConfig, cells: Sequence[Cell]) -> dict[str, Any]:
    """The content of `study.json`: the plan of the reported runs, and the definition that it follows from."""
    return {
        'name': study.name,
        'arms': list(dict.fromkeys(cell.arm for cell in cells)),
        'baselines': ['ce', *(name for name in names_of_tuned_ce(study) if name != 'ce')],
        'comparisons': expanded_comparisons(study, cells),
        'gain': study.gain,
        'runs': [f'{Path(cell.folder).relative_to(study.folder)}' for cell in cells],
        'definition': definition(study),
    }


def read_facts(path: Path) -> dict[str, Any]:
    """`study.json` of an earlier sweep; empty where there is none that can be read, as this sweep writes it anew."""
    try:
        facts = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError, RecursionError):
        return {}
    return facts if isinstance(facts, dict) else {}


def changes(before: Any, now: Mapping[str, Any]) -> str:
    """In words, what differs between two definitions; empty where nothing does, or where there was none."""
    if not isinstance(before, Mapping):
        return ''
    found = []
    for part in ('settings', 'arms'):
        old, new = before.get(part) or {}, now[part]
        for name in dict.fromkeys([*old, *new]):
            if old.get(name) != new.get(name):
                what = 'is new' if name not in old else 'is gone' if name not in new else 'has changed'
                found.append(f'{part}.{name} {what}')
    if before.get('seeds') != now['seeds']:
        found.append(f'seeds were {before.get("seeds")}, are {now["seeds"]}')
    found += [f'{part} has changed' for part in ('tuning', 'base') if before.get(part) != now[part]]
    return ', '.join(found)
