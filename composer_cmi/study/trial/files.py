"""The ordinary files of a trial: a base run, a study, the recommended run; each can be edited and run by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from composer_cmi.errors import ConfigError
from composer_cmi.run.outputs.files import write_text
from composer_cmi.study.config import StudyConfig
from composer_cmi.study.trial.look import Look
from composer_cmi.study.trial.plan import AVERAGED, BATCH, CONTROL, TUNING_SEEDS, UNEQUAL, Plan, rates

__all__ = [
    'ASKED',
    'BASE',
    'FINAL',
    'PLAN',
    'STUDY',
    'base_run',
    'recommended_run',
    'study_file',
    'take_up',
    'write_yaml',
]

ASKED, BASE, STUDY, FINAL = 'try.json', 'base.yaml', 'study.yaml', 'recommended.yaml'
PLAN = 'plan.json'
SETTING = 'data'
_BEFORE_A_PLAN = {ASKED, BASE, PLAN, 'data.jsonl', 'pace', 'tokens'}


def take_up(out: Path, asked: Mapping[str, Any]) -> bool:
    """Whether a trial of the same question is in a folder already, to be gone on with.

    Raises:
        ConfigError: the folder holds something else.
    """
    path = out / ASKED
    if not (out / STUDY).is_file():
        # A trial that was stopped before it had a plan has nothing to lose.
        if out.is_dir() and (other := sorted({each.name for each in out.iterdir()} - _BEFORE_A_PLAN)):
            raise ConfigError(f'{out} holds {other[0]!r} and no trial: name another folder with --out.')
        return False
    try:
        before = json.loads(path.read_text(encoding='utf-8'))
    except (ValueError, OSError) as error:
        raise ConfigError(f'{path} cannot be read ({error}): delete {out} to start again.') from error
    if not isinstance(before, dict):
        raise ConfigError(f'{path} is not what a trial writes: delete {out} to start again.')
    changed = [key for key in asked if before.get(key) != asked[key]]
    if changed:
        told = ', '.join(f'{key} {before.get(key)!r} and not {asked[key]!r}' for key in changed)
        raise ConfigError(f'{out} holds a trial with {told}: name another folder with --out, or delete it.')
    return True


def base_run(out: Path, model: str, data: Mapping[str, Any], look: Look, steps: int) -> dict[str, Any]:
    """Plain cross-entropy on the user's data for so many steps, as a run file."""
    metrics = ['macro_f1', 'accuracy'] if look.imbalance >= UNEQUAL else ['accuracy', 'macro_f1']
    return {
        'task': 'custom',
        'run_name': 'base',
        'output_dir': str(out / 'runs'),
        'model': {'name_or_path': model},
        'data': {**data, 'max_length': look.max_length, 'metrics': metrics, 'cache_dir': str(out / 'tokens')},
        'train': {
            'max_duration': f'{steps}ba',
            'batch_size': BATCH,
            'eval_interval': '0ba',  # the last step counts, for every recipe
        },
        'optimizer': {'lr': rates(look.width)[0]},
        'checkpoint': {'save_interval': '1000ba'},
    }


def study_file(out: Path, plan: Plan) -> dict[str, Any]:
    """The study of a plan."""
    averaged = any(recipe.name.startswith('average') for recipe in plan.recipes)
    others = [recipe.name for recipe in plan.recipes if recipe.name not in ('ce', CONTROL)]
    return {
        'name': 'study',
        'base': BASE,
        'output_dir': str(out),
        'seeds': plan.seeds,
        'settings': {SETTING: {}},
        'arms': {recipe.name: recipe.arm for recipe in plan.recipes},
        'tuning': {'seeds': list(TUNING_SEEDS)},
        'comparisons': [[name, CONTROL] for name in others] + [[CONTROL, 'ce']],
        'keep_models': [CONTROL] if averaged else False,
    }


def recommended_run(
    out: Path, base: Mapping[str, Any], study: StudyConfig, arm: str, tuned: Mapping[str, Any]
) -> dict[str, Any]:
    """The run file of one recipe, with the values that were chosen for it and a seed that was never scored.

    Args:
        out: the trial's folder.
        base: its base run.
        study: its study.
        arm: the recipe.
        tuned: what was chosen for it.
    """
    run = json.loads(json.dumps({**base, 'run_name': 'recommended', 'seed': max(study.seeds) + 1}))
    for key, value in {**study.settings[SETTING].set, **study.arms[arm].set, **tuned}.items():
        section = run
        *parents, last = key.split('.')
        for parent in parents:
            section = section.setdefault(parent, {})
        section[last] = _members(value, study, out)
    run['train']['eval_interval'] = '1ep'
    return run


def _members(value: Any, study: StudyConfig, out: Path) -> Any:
    if isinstance(value, Mapping):
        return {key: _members(inner, study, out) for key, inner in value.items()}
    if value == f'arm:{CONTROL}@{AVERAGED}':
        return [f'{out}/{study.name}/runs/{SETTING}/{CONTROL}/seed{seed}' for seed in study.seeds[:AVERAGED]]
    return value


def write_yaml(path: Path, content: Mapping[str, Any], title: str) -> str:
    """Write a YAML file with a comment above it; gives its text."""
    text = f'# {title}\n' + yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True, width=100)
    write_text(path, text)
    return text
