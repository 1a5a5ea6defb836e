"""The JSON schema of a run's YAML file, our algorithms' arguments included: for editors and the reference page."""

from __future__ import annotations

import inspect
import re
import sys
from typing import Any

from pydantic import ConfigDict, Field, create_model
from pydantic.json_schema import GenerateJsonSchema

from composer_cmi import registry
from composer_cmi.run.config.schema import RunConfig

__all__ = ['DRAFT', 'run_json_schema']

DRAFT = 'https://json-schema.org/draft/2020-12/schema'


class _Open(GenerateJsonSchema):
    """What only Python can give, such as a live module, has no place in a file and is left out."""

    def handle_invalid_for_json_schema(self, schema: Any, error_info: str) -> dict[str, Any]:
        return {'not': {}}


def run_json_schema() -> dict[str, Any]:
    """The schema of a run's file as a dictionary that `json.dumps` takes.

    Our own algorithms are listed with their arguments; Composer's and plugins' are allowed with any.
    """
    schema = RunConfig.model_json_schema()
    properties = schema['properties']
    known = {name: _arguments(name) for name in registry.known_algorithms() if _is_ours(name)}
    # As a file writes it: nothing is a class's defaults, and false takes out what the base file puts in.
    switch = [{'type': 'null'}, {'const': False}]
    properties['algorithms']['properties'] = {
        name: {'anyOf': [arguments, *switch], 'description': arguments['description']}
        for name, arguments in known.items()
    }
    for section in ('algorithms', 'callbacks', 'loggers'):
        properties[section]['additionalProperties'] = {'anyOf': [{'type': 'object'}, *switch]}
    properties['arms'].pop('anyOf', None)
    properties['arms'] |= {'type': ['object', 'null'], 'additionalProperties': {'type': ['object', 'null']}}
    duration = schema['$defs']['TrainConfig']['properties']['max_duration']
    duration['type'] = ['string', 'integer']
    return {'$schema': DRAFT, **schema}


def _is_ours(name: str) -> bool:
    return registry.get_algorithm(name).__module__.startswith('composer_cmi.')


def _arguments(name: str) -> dict[str, Any]:
    algorithm = registry.get_algorithm(name)
    told = _told(inspect.getdoc(algorithm) or '')
    fields: dict[str, Any] = {
        argument: (
            _type(given.annotation, vars(sys.modules[algorithm.__module__])),
            Field(... if given.default is given.empty else given.default, description=told.get(argument)),
        )
        for argument, given in inspect.signature(algorithm).parameters.items()
    }
    config = ConfigDict(arbitrary_types_allowed=True, extra='forbid')
    schema = create_model(name, __config__=config, **fields).model_json_schema(schema_generator=_Open)
    for argument in schema['properties'].values():
        if 'anyOf' in argument:
            argument['anyOf'] = [each for each in argument['anyOf'] if each != {'not': {}}]
    return {**schema, 'description': registry.describe(algorithm)}


def _type(annotation: Any, names: dict[str, Any]) -> Any:
    """What an annotation stands for; anything where it cannot be said outside of a type checker."""
    try:
        return eval(annotation, names) if isinstance(annotation, str) else annotation
    except (TypeError, NameError):
        return Any


def _told(docstring: str) -> dict[str, str]:
    """What a Google docstring says of each argument."""
    section = re.search(r'^Args:\n(.*?)(?=^\S|\Z)', docstring, re.DOTALL | re.MULTILINE)
    entries = re.findall(r'^ {4}(\w+): (.*?)(?=^ {4}\w|\Z)', section[1] if section else '', re.DOTALL | re.MULTILINE)
    return {name: ' '.join(text.split()) for name, text in entries}
