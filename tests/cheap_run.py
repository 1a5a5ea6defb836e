"""Stands in for `composer-cmi run` in tests of the sweep: a real process that takes `base.yaml key=value ...`, lasts as
long as the file `seconds` beside the base says, and writes results.json last. It notes each start and end beside it.
"""

import json
import os
import sys
import time
from pathlib import Path


def main() -> None:
    base = Path(sys.argv[1])
    values = {key: json.loads(value) for key, value in (argument.split('=', 1) for argument in sys.argv[2:])}
    folder = Path(values['output_dir']) / values['run_name']
    note(base, 'start', values['run_name'])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'model').mkdir(exist_ok=True)
    time.sleep(float((base.parent / 'seconds').read_text()))
    lr = values.get('optimizer.lr', 1e-3)
    if lr == 0.666:
        sys.exit('composer-cmi: this learning rate is cursed.')
    teacher = values.get('model.name_or_path')
    if teacher is not None and not (Path(teacher) / 'model').is_dir():
        sys.exit('composer-cmi: there is no teacher.')
    score = 0.8 + values['seed'] % 7 / 100 + lr
    information = {
        space: {'cmi': 0.01, 'mutual_information': 0.03, 'relative_cmi': 0.33} for space in ('features', 'logits')
    }
    split = 'held_out' if 'data.validation_fraction' in values else 'dev'
    results = {
        'run_name': values['run_name'],
        'task': 'custom',
        'seed': values['seed'],
        'metric': 'accuracy',
        'scores': {split: {'accuracy': score, 'nll': 1 - score, 'ece': 0.1}},
        'cmi': {'after': information},
        'timing': {'train_seconds': 1, 'steps': 1, 'seconds_per_step': 1, 'total_seconds': 1},
        'num_examples': {'train': 300, split: 1000},
        'majority': {split: 0.5},
        'data_fingerprint': 'x',
        'versions': {},
        'git': {},
        'config': resolved(base, values),
    }
    aside = folder / f'.{os.getpid()}'
    aside.write_text(json.dumps(results))
    # Noted before the rename: an end without results would show as a run done twice.
    note(base, 'end', values['run_name'])
    os.replace(aside, folder / 'results.json')


def resolved(base: Path, values: dict) -> dict:
    """The base's resolved settings, as the test has put them beside it, with the overrides in their places."""
    config = json.loads((base.parent / 'resolved.json').read_text())
    for key, value in values.items():
        *parents, last = key.split('.')
        section = config
        for parent in parents:
            section = section.setdefault(parent, {})
        section[last] = value
    return config


def note(base: Path, event: str, run: str) -> None:
    with (base.parent / 'trace').open('a') as trace:
        trace.write(f'{event} {os.getpid()} {run}\n')


if __name__ == '__main__':
    main()
