"""Run folders with known scores for tests of reports; nothing is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from composer_cmi.run.outputs.files import write_json, write_text
from composer_cmi.run.outputs.results import Information, RunResults, Timing

CE = [0.81, 0.80, 0.82, 0.79, 0.81, 0.80, 0.83, 0.80]
CLEARLY_BETTER = [0.83, 0.82, 0.83, 0.81, 0.82, 0.82, 0.85, 0.81]
NO_BETTER = [0.82, 0.79, 0.83, 0.78, 0.80, 0.81, 0.83, 0.80]
WORSE = [score - 0.02 - 0.001 * (i % 3) for i, score in enumerate(CE)]


def write_run(
    root: Path,
    setting: str,
    arm: str,
    seed: int,
    score: float,
    *,
    rows: int = 1000,
    task: str = 'custom',
    **changes: Any,
) -> Path:
    """A finished run folder with the given accuracy; the CMI falls with the weight."""
    folder = root / setting / arm / f'seed{seed}'
    weight = changes.pop('weight', None)
    algorithms = {} if weight is None else {'cmi_regularization': {'weight': weight}}
    cmi = 0.01 / (1 + (weight or 0.0))
    information = Information(cmi=cmi, mutual_information=0.03, relative_cmi=cmi / 0.03)
    values: dict[str, Any] = {
        'run_name': f'{setting}/{arm}/seed{seed}',
        'task': task,
        'seed': seed,
        'metric': 'accuracy',
        'scores': {'dev': {'accuracy': score, 'nll': 1.2 - score, 'ece': 0.05}},
        'cmi': {when: {'features': information, 'logits': information} for when in ('before', 'after')},
        'timing': Timing(train_seconds=10.0, steps=50, seconds_per_step=0.2 + (weight or 0) / 50, total_seconds=20.0),
        'num_examples': {'train': 300, 'dev': rows},
        'majority': {'dev': 0.5634},
        'data_fingerprint': 'abc',
        'versions': {'torch': '2.7.0'},
        'git': {},
        'config': {'algorithms': algorithms},
    }
    write_json(folder / 'results.json', RunResults(**{**values, **changes}).model_dump(mode='json'))
    return folder


def write_arm(root: Path, setting: str, arm: str, scores: list[float], **changes: Any) -> None:
    for seed, score in enumerate(scores):
        write_run(root, setting, arm, seed, score, **changes)


def write_predictions(folder: Path, labels: np.ndarray, logits: np.ndarray, split: str = 'dev') -> None:
    """A predictions file as a run writes it; a label below 0 is empty."""
    columns = ','.join(f'logit_{c}' for c in range(logits.shape[1]))
    rows = zip(labels.tolist(), logits.argmax(1).tolist(), logits.tolist(), strict=True)
    lines = [
        f'{i},{"" if label < 0 else label},{answer},{",".join(f"{x:.9g}" for x in values)}'
        for i, (label, answer, values) in enumerate(rows)
    ]
    write_text(
        folder / f'predictions_{split}.csv', '\n'.join([f'example_id,label,prediction,{columns}', *lines]) + '\n'
    )


def write_scored_run(
    root: Path, setting: str, arm: str, seed: int, labels: np.ndarray, logits: np.ndarray, **changes: Any
) -> Path:
    """A run whose scores are those of its predictions."""
    known = labels >= 0
    losses = np.logaddexp.reduce(logits, axis=1) - logits[np.arange(len(labels)), np.maximum(labels, 0)]
    accuracy = float((logits.argmax(1) == labels)[known].mean())
    scores = {'dev': {'accuracy': accuracy, 'nll': float(losses[known].mean()), 'ece': 0.05}}
    folder = write_run(root, setting, arm, seed, accuracy, **{'rows': len(labels), 'scores': scores, **changes})
    write_predictions(folder, labels, logits)
    return folder
