"""What `calibrate` does to probabilities on six real sets: NLL, ECE and Brier score without and with the temperature.

python benchmarks/calibration.py --seeds 17 18 --out benchmarks/calibration.csv

MiniLM-L6 on 600 training rows of each set, 8 epochs, half of them kept for the temperature; scored on up to 1,000 rows
of the other half of train, which is more than the smaller sets' dev has: ECE of few rows is not small even where
probabilities are right, and `perfect` says how large it then is. Differences are paired over rows, the seeds averaged
first, with a bootstrap interval over rows; `own` is the ECE by the temperature that is best for the scored rows
themselves: what no fit on other rows could much improve upon. The exported model is read by `transformers.pipeline`
over 200 of those rows: its probabilities are the run's.
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

from composer_cmi.data.splits import Split, take
from composer_cmi.run.calibrate.temperature import best_temperature
from composer_cmi.run.config import build_config
from composer_cmi.run.outputs.results import RunResults
from composer_cmi.run.scoring import CalibrationError
from composer_cmi.run.train import load_data, train_run

ROOT = Path(__file__).parents[1]
SETS = ('bbc_headlines', 'bbc_articles', 'trec', 'film_snippets', 'privacy_qa', 'cola')
SHARE, SPLIT = 0.5, 'held_out'
SCORES = ('accuracy', 'nll', 'ece', 'brier')
COLUMNS = ('set', 'seed', 'trained_on', 'temperature', 'fitted_on', *SCORES)


def train(task: str, seed: int, folder: str, glue: str) -> tuple[RunResults, Split, Path]:
    """One run; its results, the rows that are scored in the order of their ids, and its folder."""
    config = build_config(
        {
            'task': task,
            'run_name': f'{task}/{seed}',
            'output_dir': folder,
            'seed': seed,
            'code_paths': [str(ROOT / 'studies' / file) for file in ('text_tasks.py', 'pair_tasks.py')],
            'model': {'name_or_path': 'embedded:minilm'},
            'data': {
                'train_rows': 600,
                'eval_rows': 1000,
                'validation_fraction': 0.5,
                'max_length': 64 if task == 'privacy_qa' else 32,  # two texts
                'path': glue if task == 'cola' else None,
            },
            'train': {'max_duration': '8ep', 'eval_interval': '0ba', 'progress_bar': False},
            'optimizer': {'lr': 1e-4},
            'checkpoint': {'save_interval': '100ep'},
            'calibrate': SHARE,
        }
    )
    data = load_data(config)
    results, scored = train_run(config, data), data.eval_splits[SPLIT]
    return results, take(scored, scored.example_ids.argsort()), config.folder


def probabilities(folder: Path) -> np.ndarray:
    """`[N, C]` of the run's own predictions, in the order of the ids."""
    with (folder / f'predictions_{SPLIT}.csv').open() as file:
        rows = list(csv.DictReader(file))
    columns = sorted((name for name in rows[0] if name.startswith('logit_')), key=lambda name: int(name[6:]))
    logits = torch.tensor([[float(row[name]) for name in columns] for row in rows])
    return logits.double().softmax(-1).numpy()


def perfect_ece(p: np.ndarray) -> float:
    """What the ECE of these probabilities would be on so many rows if all of them were right, points: mean of 200."""
    rng = np.random.default_rng(0)
    return float(np.mean([ece(np.log(p), (p.cumsum(1) < rng.random((len(p), 1))).sum(1)) for _ in range(200)]))


def ece(logits: np.ndarray, labels: np.ndarray) -> float:
    """Points."""
    metric = CalibrationError()
    metric.update(torch.from_numpy(logits), torch.from_numpy(labels))
    return 100 * float(metric.compute())


def by_pipeline(folder: Path, scored: Split) -> np.ndarray:
    """`[200, C]` of the exported model, as somebody uses it."""
    classify: Any = pipeline('text-classification', model=str(folder / 'model'), device='cpu')
    names = [name for _, name in sorted(classify.model.config.id2label.items())]
    rows = [dict(zip(('text', 'text_pair'), map(str, row), strict=False)) for row in zip(*scored.texts, strict=True)]
    answers = [classify(row, top_k=None, truncation=True) for row in rows[:200]]
    found = [{one['label']: one['score'] for one in answer} for answer in answers]
    return np.array([[answer[name] for name in names] for answer in found])


def losses(p: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """NLL of each row, nats."""
    return -np.log(p[np.arange(len(labels)), labels])


def interval(differences: np.ndarray) -> tuple[float, float]:
    """95 % of the mean over resampled rows."""
    rng = np.random.default_rng(0)
    means = [rng.choice(differences, len(differences)).mean() for _ in range(4000)]
    return float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))


def measure(task: str, seeds: list[int], folder: str, glue: str) -> tuple[list[dict], list[str]]:
    """Two lines a seed for the CSV, without the temperature and with it, and one for the table."""
    lines: list[dict] = []
    gained, perfect, own, off = [], [], [], 0.0
    for seed in seeds:
        results, scored, place = train(task, seed, folder, glue)
        found, labels = results.calibration, scored.labels
        assert found is not None
        after = probabilities(place)
        for when, temperature in (('before', 1.0), ('after', found.temperature)):
            scores = {'accuracy': (after.argmax(1) == labels).mean(), **found.splits[SPLIT][when].model_dump()}
            first = (task, seed, results.num_examples['train'], round(temperature, 4), found.rows)
            lines.append(dict(zip(COLUMNS, (*first, *(round(scores[name], 5) for name in SCORES)), strict=True)))
        perfect.append(perfect_ece(after))
        own.append(ece(np.log(after) / best_temperature(np.log(after), labels, unknown=1), labels))
        raw = after**found.temperature
        gained.append(losses(after, labels) - losses(raw / raw.sum(1, keepdims=True), labels))
        off = max(off, float(np.abs(by_pipeline(place, scored) - after[:200]).max()))
    before, after = ({name: np.mean([line[name] for line in lines[k::2]]) for name in SCORES} for k in (0, 1))
    difference = np.mean(gained, axis=0)
    low, high = interval(difference)
    told = [f'{before["nll"]:.4f} -> {after["nll"]:.4f}', f'{difference.mean():+.4f} [{low:+.4f}, {high:+.4f}]']
    told += [f'{100 * before["ece"]:.1f} -> {100 * after["ece"]:.1f}', f'{np.mean(perfect):.1f}', f'{np.mean(own):.1f}']
    told += [f'{before["brier"]:.4f} -> {after["brier"]:.4f}']
    return lines, [task, *told, f'{after["accuracy"]:.4f}', f'{off:.1e}']


HEADER = ('set', 'NLL', 'difference', 'ECE, points', 'perfect', 'own', 'Brier score', 'accuracy', 'pipeline off by')


def main() -> None:
    """Train, print the table, write the CSV."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--seeds', type=int, nargs='+', default=[17, 18])
    parser.add_argument('--sets', nargs='+', default=SETS)
    parser.add_argument('--glue', default='../shared/data/glue', help="folder of GLUE's own files, for CoLA")
    parser.add_argument('--out', type=Path, default=Path('benchmarks/calibration.csv'))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    table = Table(*HEADER, title='Without -> with a temperature; NLL in nats, 95 % over rows', title_justify='left')
    everything: list[dict] = []
    with tempfile.TemporaryDirectory() as folder:
        for task in arguments.sets:
            lines, told = measure(task, arguments.seeds, folder, arguments.glue)
            everything += lines
            table.add_row(*told)
            print(*told, sep=' | ', flush=True)
            with arguments.out.open('w', newline='') as file:
                writer = csv.DictWriter(file, COLUMNS)
                writer.writeheader()
                writer.writerows(everything)
    Console(width=200).print(table)


if __name__ == '__main__':
    main()
