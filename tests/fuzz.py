"""What a file may hold by mistake, malice or a broken disk: `make fuzz`, or `python tests/fuzz.py --seconds 60`.

First every key of the run's and the study's schema and every argument of every algorithm and logger, changed in each
way of `CHANGES`: refused in one sentence that names the key, or accepted; what is accepted although it was changed is
printed, to be looked at. Then mutated bytes of each kind of file that is read, for so many seconds each.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import re
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import BaseModel

from composer_cmi.arguments import argument_types
from composer_cmi.errors import ConfigError
from composer_cmi.run.config import RunConfig, load_config
from composer_cmi.run.loggers import get_logger, known_loggers
from composer_cmi.run.parts.by_name import (
    OPTIMIZERS,
    SCHEDULERS,
    get_algorithm,
    get_callback,
    has_warmup,
    known_algorithms,
    known_callbacks,
)
from composer_cmi.run.setup import build_algorithms, build_callbacks
from composer_cmi.study.config import Arm, Setting, StudyConfig, load_study
from file_fuzz import FILE_KINDS, fuzz_file

MISSING = object()
CHANGES: dict[str, Any] = {
    'missing': MISSING,
    'null': None,
    'true': True,
    'NaN': float('nan'),
    'infinite': float('inf'),
    'huge': 10**30,
    'huge float': 1e30,
    'negative': -1,
    'string number': '3',
    'word': 'xyzzy',
    'empty': '',
    'NUL': 'a\0b',
    'half a letter': '\ud800',
    'half time': '1.5ep',
    'negative time': '-1ba',
    'brace': 'a{1}b',
    'list': [1, 'a'],
    'empty list': [],
    'mapping': {'xyzzy': 1},
    'empty mapping': {},
}
SLOWEST = 5.0
# Of the arguments that have no default.
REQUIRED = {
    **{'clipping_type': 'norm', 'clipping_threshold': 1.0, 'teacher': 'runs/t', 'max_sequence_length': 64},
    'target_layer_name': 'ResNetBottleneck',
    **{'monitor': 'nll', 'threshold': 0.5},
}
OF_SCHEDULERS = {'step_size': '10ba', 'milestones': ['10ba'], 't_0': '10ba', 'power': 2.0, 'gamma': 0.5}


class Case(NamedTuple):
    """One changed file: the key, the change, and how it is read."""

    key: str
    change: str
    data: dict[str, Any]
    read: Callable[[Path], Any]


def schema_keys(schema: Any, prefix: str = '') -> Iterator[str]:
    """Every key of a schema by its dotted name, sections included."""
    for name, field in schema.model_fields.items():
        yield f'{prefix}{name}'
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from schema_keys(field.annotation, f'{prefix}{name}.')


def changed(base: Mapping[str, Any], key: str, value: Any) -> dict[str, Any]:
    """A copy in which one dotted key has another value, or is not there."""
    first, _, rest = key.partition('.')
    data = dict(base)
    if rest:
        data[first] = changed(data.get(first) or {}, rest, value)
    elif value is MISSING:
        data.pop(first, None)
    else:
        data[first] = value
    return data


def run_cases() -> Iterator[Case]:
    """The run's schema, and the arguments of what it may name: algorithms, loggers, callbacks, optimizers, schedulers."""
    base = {'task': 'custom', 'run_name': 'x', 'model': {'name_or_path': 'm'}}
    for key in schema_keys(RunConfig):
        yield from cases(base, key, read_run)
    for section, known, get in (
        ('algorithms', known_algorithms(), get_algorithm),
        ('loggers', known_loggers(), get_logger),
        ('callbacks', known_callbacks(), get_callback),
    ):
        for name in known:
            types = [key for key in argument_types(get(name)) if not key.endswith('kwargs')]  # neptune takes any
            required = {key: REQUIRED[key] for key in types if key in REQUIRED}
            for argument in types:
                own = {**base, section: {name: required}}
                yield from cases(own, f'{section}.{name}.{argument}', read_run)
    for section, known in (('optimizer', OPTIMIZERS), ('scheduler', SCHEDULERS)):
        for name, entry in known.items():
            types = [key for key in argument_types(entry) if key not in ('params', 'lr', 't_warmup')]
            required = {key: OF_SCHEDULERS[key] for key in types if key in OF_SCHEDULERS}
            warmup = {} if section == 'optimizer' or has_warmup(name) else {'warmup': '0ba'}
            for argument in types:
                own = {**base, section: {'name': name, 'arguments': required, **warmup}}
                yield from cases(own, f'{section}.arguments.{argument}', read_run)


def study_cases() -> Iterator[Case]:
    """The study's schema, with its arms and settings."""
    base = {'name': 's', 'base': 'run.yaml', 'seeds': 2, 'arms': {'a': {'set': {}}}, 'settings': {'b': {'set': {}}}}
    keys = [*schema_keys(StudyConfig), *schema_keys(Arm, 'arms.a.'), *schema_keys(Setting, 'settings.b.')]
    for key in keys:
        yield from cases(base, key, load_study)


def cases(base: Mapping[str, Any], key: str, read: Callable[[Path], Any]) -> Iterator[Case]:
    """Each change of one key, and the key misspelt."""
    for change, value in CHANGES.items():
        yield Case(key, change, changed(base, key, value), read)
    yield Case(key, 'misspelt', changed(changed(base, key, MISSING), f'{key}x', 1), read)


def read_run(path: Path) -> Any:
    """Up to where data would be read."""
    config = load_config(path)
    build_algorithms(config.algorithms)
    build_callbacks(config.callbacks)
    return config


def fuzz_keys(all_cases: Iterator[Case], say: Callable[[str], None] = print) -> Counter[str]:
    """Read every case; prints what went wrong and what was accepted."""
    counts: Counter[str] = Counter()
    accepted: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'file.yaml'
        for case in all_cases:
            path.write_text(yaml.safe_dump(case.data), encoding='utf-8')
            counts['cases'] += 1
            outcome = outcome_of(case, path)
            counts[outcome.split(':')[0]] += 1
            if outcome == 'accepted':
                accepted.setdefault(case.key, []).append(case.change)
            elif outcome != 'refused':
                say(f'{case.key}, {case.change}: {outcome}')
    for key, found in accepted.items():
        say(f'accepted  {key}: {", ".join(found)}')
    return counts


def outcome_of(case: Case, path: Path) -> str:
    """`refused`, `accepted`, or what is wrong."""
    started = time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            case.read(path)
        outcome = 'accepted'
    except ConfigError as error:
        # As a word of its own: `p` is no part of `mapping`; Composer's sentences may put its algorithm's name before it.
        named = re.search(rf'(?<![a-zA-Z0-9]){re.escape(case.key.split(".")[-1])}x?(?!\w)', str(error))
        outcome = 'refused' if named and '\n' not in str(error) else f'unclear: {str(error)[:300]}'
    except Exception as error:
        outcome = f'traceback: {type(error).__name__}: {error}'
    return outcome if time.perf_counter() - started < SLOWEST else f'hang: {outcome}'


def main() -> int:
    """Print the counts; the exit code says whether anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--seconds', type=float, default=60.0, help='for each kind of file')
    seconds = parser.parse_args().seconds
    logging.disable()  # what Composer says about algorithms that are made
    counts: Counter[str] = Counter()
    for name, found in (('run', run_cases()), ('study', study_cases())):
        part = fuzz_keys(found)
        print(f'{name}: {dict(part)}')
        counts += part
    for kind in FILE_KINDS:
        part = fuzz_file(kind, seconds)
        print(f'{kind}: {dict(part)}')
        counts += part
    wrong = sum(counts[name] for name in ('traceback', 'hang', 'unclear'))
    print(f'all: {dict(counts)}; {wrong} wrong')
    return 1 if wrong else 0


if __name__ == '__main__':
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
