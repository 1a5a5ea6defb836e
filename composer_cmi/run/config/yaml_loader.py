"""YAML as a user means it: ``1e-5`` is a number, ``no`` is a word, a key that stands twice is an error."""

from __future__ import annotations

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from composer_cmi.errors import ConfigError

__all__ = ['parse_value', 'read_yaml']


class _Loader(yaml.SafeLoader):
    """PyYAML reads YAML 1.1; these are the scalars of YAML 1.2's core schema, as OmegaConf reads them."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable) and key in seen:
                line = key_node.start_mark.line + 1
                raise yaml.constructor.ConstructorError(problem=f'the key {key!r} stands twice (line {line})')
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((':bool', ':float', ':timestamp'))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    'tag:yaml.org,2002:bool', re.compile(r'^(?:true|True|TRUE|false|False|FALSE)$'), list('tTfF')
)
_Loader.add_implicit_resolver(
    'tag:yaml.org,2002:float',
    re.compile(r'^[-+]?(?:(?:\d+\.\d*|\.\d+)(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+|\.(?:inf|Inf|INF))$|^\.(?:nan|NaN|NAN)$'),
    list('-+.0123456789'),
)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping that a YAML file holds.

    Raises:
        ConfigError: if the file is missing, empty, does not parse, or holds something else than a mapping.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f'There is no file {str(path)!r}.')
    try:
        data = yaml.load(path.read_text(encoding='utf-8-sig'), Loader=_Loader)
    except UnicodeDecodeError as error:
        raise ConfigError(f'{path} is not UTF-8 text (byte {error.start}).') from error
    except yaml.YAMLError as error:
        raise ConfigError(f'{path} is not valid YAML: {_reason(error)}.') from error
    if data is None:
        raise ConfigError(f'{path} is empty: at least task, run_name and model.name_or_path are needed.')
    if not isinstance(data, dict):
        raise ConfigError(f'{path} holds a {type(data).__name__} where key: value lines are needed.')
    return data


def parse_value(text: str) -> Any:
    """A value given on the command line, read by the same rules as in a file."""
    try:
        return yaml.load(text, Loader=_Loader) if text.strip() else None
    except yaml.YAMLError as error:
        raise ConfigError(f'The value {text!r} is not valid YAML: {_reason(error)}.') from error


def _reason(error: yaml.YAMLError) -> str:
    problem = str(getattr(error, 'problem', None) or error).split('\n')[0]
    mark = getattr(error, 'problem_mark', None)
    return f'line {mark.line + 1}, column {mark.column + 1}: {problem}' if mark else problem
