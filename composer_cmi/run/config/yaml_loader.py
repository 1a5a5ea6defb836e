"""YAML as a user means it: ``1e-5`` is a number, ``no`` is a word, a key that stands twice is an error."""

from __future__ import annotations

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from composer_cmi.errors import ConfigError

__all__ = ['parse_value', 'read_yaml']


_MOST_BYTES = 1_000_000
_MOST_VALUES = 100_000  # with every alias written out
_DEEPEST = 50
_TAGS = {f'tag:yaml.org,2002:{name}' for name in ('null', 'bool', 'int', 'float', 'str', 'seq', 'map', 'merge')}
_MERGE = 'tag:yaml.org,2002:merge'


class _Loader(yaml.SafeLoader):
    """PyYAML reads YAML 1.1; these are the scalars of YAML 1.2's core schema, as OmegaConf reads them."""

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None:
            _measure(node, {}, 0)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == _MERGE:
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise _refusal(key_node, f'the key {_shown(key)} is no text: put it into quotes')
            if key in seen:
                raise _refusal(key_node, f'the key {_shown(key)} stands twice')
            seen.add(key)
        return super().construct_mapping(node, deep)

    def construct_int(self, node: yaml.ScalarNode) -> int:
        # '017' is 17, as YAML 1.2 has it; Python reads at most 4,300 digits.
        text = self.construct_scalar(node)
        base = {'0x': 16, '0o': 8}.get(text[:2], 10)
        return int(text[2:] if base != 10 else text, base)


def _refusal(node: yaml.Node, problem: str) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(problem=f'{problem} (line {node.start_mark.line + 1})')


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f'{text[:57]}...'


def _measure(node: yaml.Node, sizes: dict[int, int], depth: int) -> int:
    """How many values a node stands for: a few aliases of aliases are a billion, an alias of itself has no end."""
    if node.tag not in _TAGS:
        raise _refusal(node, f'the tag {_shown(node.tag)} means nothing here: write the plain value')
    if depth > _DEEPEST:
        raise _refusal(node, f'more than {_DEEPEST} levels below one another')
    if id(node) not in sizes:
        sizes[id(node)] = _MOST_VALUES + 1  # until it is counted: it must not hold itself
        below = node.value if isinstance(node, yaml.CollectionNode) else []
        parts = [part for each in below for part in (each if isinstance(each, tuple) else (each,))]
        sizes[id(node)] = 1 + sum(_measure(part, sizes, depth + 1) for part in parts)
    if sizes[id(node)] > _MOST_VALUES:
        raise _refusal(node, f'more than {_MOST_VALUES:,} values with its aliases written out')
    return sizes[id(node)]


_REPLACED = (':bool', ':float', ':int', ':timestamp')
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(_REPLACED)]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    'tag:yaml.org,2002:bool', re.compile(r'^(?:true|True|TRUE|false|False|FALSE)$'), list('tTfF')
)
_Loader.add_implicit_resolver(
    'tag:yaml.org,2002:int', re.compile(r'^(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$'), list('-+0123456789')
)
_Loader.add_constructor('tag:yaml.org,2002:int', _Loader.construct_int)
_Loader.add_implicit_resolver(
    'tag:yaml.org,2002:float',
    re.compile(
        r'^[-+]?(?:(?:\d+\.\d*|\.\d+)(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+|\.(?:inf|Inf|INF))$|^\.(?:nan|NaN|NAN)$',
        re.ASCII,
    ),
    list('-+.0123456789'),
)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping that a YAML file holds.

    Raises:
        ConfigError: if the file is missing, empty, does not parse, or holds something else than a mapping.
    """
    path = Path(path)
    try:
        if not path.is_file():
            raise ConfigError(f'There is no file {str(path)!r}.')
        if path.stat().st_size > _MOST_BYTES:
            raise ConfigError(f'{path} is no configuration: it has more than {_MOST_BYTES:,} bytes.')
        text = path.read_text(encoding='utf-8-sig')
    except ConfigError:
        raise
    except UnicodeDecodeError as error:
        raise ConfigError(f'{path} is not UTF-8 text (byte {error.start}).') from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise ConfigError(f'{str(path)!r} cannot be read: {getattr(error, "strerror", None) or error}.') from error
    data = _parse(text, f'{path} is not valid YAML')
    if data is None:
        raise ConfigError(f'{path} is empty: at least task, run_name and model.name_or_path are needed.')
    if not isinstance(data, dict):
        raise ConfigError(f'{path} holds a {type(data).__name__} where key: value lines are needed.')
    return data


def parse_value(text: str) -> Any:
    """A value given on the command line, read by the same rules as in a file."""
    return _parse(text, f'The value {_shown(text)} is not valid YAML') if text.strip() else None


def _parse(text: str, wrong: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except RecursionError as error:
        raise ConfigError(f'{wrong}: more than {_DEEPEST} levels below one another.') from error
    except yaml.YAMLError as error:
        raise ConfigError(f'{wrong}: {_reason(error)}.') from error
    except ValueError as error:  # `!!int x`, or a number of thousands of digits
        raise ConfigError(f'{wrong}: {" ".join(str(error).split())}.') from error


def _reason(error: yaml.YAMLError) -> str:
    problem = str(getattr(error, 'problem', None) or error).split('\n')[0]
    mark = getattr(error, 'problem_mark', None)
    return f'line {mark.line + 1}, column {mark.column + 1}: {problem}' if mark else problem
