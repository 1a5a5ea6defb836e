"""Small studies, and sweeps of them by runs that are cheap but real processes and leave a trace."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from composer_cmi.run.config import load_config
from composer_cmi.study.execution.sweep import Summary, sweep

CHEAP = (sys.executable, '-S', '-E', str(Path(__file__).with_name('cheap_run.py')))
BASE = {'task': 'bbc_headlines', 'run_name': 'base', 'model': {'name_or_path': 'embedded:minilm'}}
TWO_ARMS: dict[str, Any] = {
    'name': 'small',
    'base': 'base.yaml',
    'seeds': 3,
    'settings': {'few': {'data.train_rows': 100}, 'many': {'data.train_rows': 300}},
    'arms': {'mincmi': {'algorithms.cmi_regularization': {}}},
}
TUNED: dict[str, Any] = {
    **TWO_ARMS,
    'arms': {
        'ce_tuned': {'tune': {'optimizer.lr': [1e-3, 3e-3, 2e-3]}},
        'mincmi': {'algorithms.cmi_regularization': {}},
        'mincmi_too': {'set': {'algorithms.cmi_regularization': {}}, 'tuned_as': 'ce_tuned'},
    },
}


def write_study(folder: Path, study: dict[str, Any], seconds: float = 0.0, base: dict[str, Any] | None = None) -> Path:
    """A study file, its base, and what the cheap run reads beside them."""
    (folder / 'base.yaml').write_text(yaml.safe_dump(base or BASE))
    (folder / 'seconds').write_text(str(seconds))
    (folder / 'trace').touch()
    (folder / 'resolved.json').write_text(json.dumps(load_config(folder / 'base.yaml').resolved()))
    path = folder / 'study.yaml'
    path.write_text(yaml.safe_dump({'output_dir': str(folder / 'out'), **study}, sort_keys=False))
    return path


def quiet_sweep(path: Path, **options: Any) -> tuple[Summary, str]:
    console = Console(file=(path.parent / 'printed').open('w'), width=200)
    summary = sweep(path, runner=CHEAP, console=console, **options)
    console.file.close()
    return summary, (path.parent / 'printed').read_text()


def events(folder: Path) -> Counter[tuple[str, str]]:
    """How often each run was started and ended."""
    lines = [line.split() for line in (folder / 'trace').read_text().splitlines()]
    return Counter((event, run) for event, _, run in lines)
