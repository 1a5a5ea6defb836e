"""What `calibrate` does to probabilities on four real sets: NLL, ECE and Brier score without and with the temperature.

python benchmarks/calibration.py --seeds 17 18 --out benchmarks/calibration.csv

MiniLM-L6 on 600 training rows of each set, 8 epochs, a third of them kept for the temperature; scored on dev. Beside
it, for the first seed, the same run that trains on all 600 rows and has no temperature: what the rows cost.
Differences are paired over rows, the seeds averaged first, with a bootstrap interval over rows. The exported model is
read by `transformers.pipeline` over 200 rows of dev: its probabilities are the run's.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from transformers.pipelines import pipeline

from composer_cmi.data.task_data import TaskData
from composer_cmi.run.config import build_config
from composer_cmi.run.outputs.results import RunResults
from composer_cmi.run.train import load_data, train_run

ROOT = Path(__file__).parents[1]
SETS = ('bbc_headlines', 'bbc_articles', 'trec', 'film_snippets')
SHARE = 0.33
COLUMNS = ('set', 'seed', 'trained_on', 'temperature', 'fitted_on', 'accuracy', 'nll', 'ece', 'brier')
SCORES = ('nll', 'ece', 'brier')


def train(task: str, seed: int, calibrate: float | None, folder: str) -> tuple[RunResults, TaskData, Path]:
    """One run; its results, data and folder."""
    config = build_config(
        {
            'task': task,
            'run_name': f'{task}/{seed}/{calibrate}',
            'output_dir': folder,
            'seed': seed,
            'code_paths': [str(ROOT / 'studies/text_tasks.py')],
            'model': {'name_or_path': 'embedded:minilm'},
            'data': {'train_rows': 600, 'max_length': 32},
            'train': {'max_duration': '8ep', 'eval_interval': '0ba', 'progress_bar': False},
            'optimizer': {'lr': 1e-4},
            'checkpoint': {'save_interval': '100ep'},
            'calibrate': calibrate,
        }
    )
    data = load_data(config)
    return train_run(config, data), data, config.folder


def probabilities(folder: Path) -> np.ndarray:
    """`[N, C]` of the run's own predictions of dev, in the order of the ids."""
    with (folder / 'predictions_dev.csv').open() as file:
        rows = list(csv.DictReader(file))
    columns = sorted((name for name in rows[0] if name.startswith('logit_')), key=lambda name: int(name[6:]))
    logits = torch.tensor([[float(row[name]) for name in columns] for row in rows])
    return logits.double().softmax(-1).numpy()


def by_pipeline(folder: Path, data: TaskData) -> np.ndarray:
    """`[200, C]` of the exported model, as somebody uses it."""
    classify: Any = pipeline('text-classification', model=str(folder / 'model'), device='cpu')
    answers = classify(data.eval_splits['dev'].texts[0][:200], top_k=None, truncation=True)
    found = [{one['label']: one['score'] for one in answer} for answer in answers]
    return np.array([[answer[name] for name in data.label_names] for answer in found])


def losses(p: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """NLL of each row, nats."""
    return -np.log(p[np.arange(len(labels)), labels])


def interval(differences: np.ndarray) -> tuple[float, float]:
    """95 % of the mean over resampled rows."""
    rng = np.random.default_rng(0)
    means = [rng.choice(differences, len(differences)).mean() for _ in range(4000)]
    return float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))


def row(task: str, seed: int, kept: int, results: RunResults, scores: dict[str, float], temperature: float) -> dict:
    """One line of the CSV."""
    values = [results.scores['dev']['accuracy'], *(scores[name] for name in SCORES)]
    first = (task, seed, results.num_examples['train'], round(temperature, 4), kept)
    return dict(zip(COLUMNS, (*first, *(round(value, 5) for value in values)), strict=True))


def measure(task: str, seeds: list[int], folder: str) -> tuple[list[dict], dict[str, Any]]:
    """Lines of each seed (without the temperature, with it), one of all rows, and what is paired over rows."""
    lines, gained, cost, off = [], [], np.zeros(1), 0.0
    for seed in seeds:
        results, data, place = train(task, seed, SHARE, folder)
        found, labels = results.calibration, data.eval_splits['dev'].labels
        assert found is not None
        for when, temperature in (('before', 1.0), ('after', found.temperature)):
            scores = found.splits['dev'][when].model_dump()
            lines.append(row(task, seed, found.rows, results, scores, temperature))
        after = probabilities(place)
        raw = after**found.temperature
        gained.append(losses(after, labels) - losses(raw / raw.sum(1, keepdims=True), labels))
        if seed != seeds[0]:
            continue
        off = float(np.abs(by_pipeline(place, data) - after[:200]).max())
        whole, _, place = train(task, seed, None, folder)
        p = probabilities(place)
        brier = float(((p - np.eye(p.shape[1])[labels]) ** 2).sum(1).mean())
        lines.append(row(task, seed, 0, whole, {**whole.scores['dev'], 'brier': brier}, 1.0))
        cost = losses(after, labels) - losses(p, labels)
    return lines, {'gained': np.mean(gained, axis=0), 'cost': cost, 'off': off}


def cells(task: str, lines: list[dict], told: dict[str, Any]) -> list[str]:
    """One line of the table."""

    def of(lines: list[dict]) -> dict[str, float]:
        return {name: float(np.mean([line[name] for line in lines])) for name in COLUMNS[5:]}

    cut = [line for line in lines if line['fitted_on']]
    before, after = of(cut[0::2]), of(cut[1::2])
    whole = of([line for line in lines if not line['fitted_on']])

    def paired(name: str) -> str:
        low, high = interval(told[name])
        return f'{told[name].mean():+.4f} [{low:+.4f}, {high:+.4f}]'

    return [
        task,
        f'{before["nll"]:.4f} -> {after["nll"]:.4f}',
        paired('gained'),
        f'{100 * before["ece"]:.1f} -> {100 * after["ece"]:.1f}',
        f'{before["brier"]:.4f} -> {after["brier"]:.4f}',
        f'{after["accuracy"]:.4f}, {whole["accuracy"]:.4f}',
        paired('cost'),
        f'{told["off"]:.1e}',
    ]


HEADER = ('set', 'NLL', 'difference', 'ECE, points', 'Brier', 'accuracy, of all rows', 'NLL to all rows', 'pipeline')


def main() -> None:
    """Train, print the table, write the CSV."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--seeds', type=int, nargs='+', default=[17, 18])
    parser.add_argument('--sets', nargs='+', default=SETS)
    parser.add_argument('--out', type=Path, default=Path('benchmarks/calibration.csv'))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    table = Table(*HEADER, title='Without -> with a temperature; NLL in nats, 95 % over rows', title_justify='left')
    everything: list[dict] = []
    with tempfile.TemporaryDirectory() as folder:
        for task in arguments.sets:
            lines, told = measure(task, arguments.seeds, folder)
            everything += lines
            table.add_row(*cells(task, lines, told))
            print(*cells(task, lines, told), sep=' | ', flush=True)
            with arguments.out.open('w', newline='') as file:
                writer = csv.DictWriter(file, COLUMNS)
                writer.writeheader()
                writer.writerows(everything)
    Console(width=200).print(table)


if __name__ == '__main__':
    main()
