"""The JSON schema of a study's YAML file."""

from __future__ import annotations

from typing import Any

from composer_cmi.run.config.json_schema import DRAFT
from composer_cmi.study.config import StudyConfig

__all__ = ['study_json_schema']


def study_json_schema() -> dict[str, Any]:
    """The schema of a study's file as a dictionary that `json.dumps` takes."""
    schema = StudyConfig.model_json_schema()
    seeds = schema['properties']['seeds']
    listed = {key: seeds.pop(key) for key in ('type', 'items', 'minItems', 'maxItems') if key in seeds}
    seeds['anyOf'] = [{'type': 'integer', 'minimum': 1}, listed]
    for name in ('settings', 'arms'):  # an entry may hold its overrides without `set:`
        schema['properties'][name]['additionalProperties'] = {'type': ['object', 'null']}
    return {'$schema': DRAFT, **schema}
