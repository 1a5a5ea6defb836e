"""Step time of the CMI term over plain cross-entropy: MiniLM-L6, batch 32, real text lengths.

    python benchmarks/overhead.py [--ranks 1 2] [--text headlines articles] [--device cuda]

The trainers live in one process and take turns, `--steps` steps each, in an order that rotates, over the same batches:

    plain      cross-entropy
    measure    with the algorithm at weight 0, which measures and logs
    term       with the term in the loss from the first batch
    no commit  as `term`, without what happens once a batch: the all-reduce, the new centroids, the log

and one of each other form of the term (`--kinds` names some; `plain` is always there).

A step is from after the dataloader to after BATCH_END. Ratios are paired within a repeat; their median and spread are
over repeats. On a machine that does other things too, processor seconds say more than seconds: they are a column.
"""

from __future__ import annotations

import argparse
import copy
import csv
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import composer
import torch
import transformers
from composer import Trainer
from composer.core import Algorithm, Callback, State
from composer.loggers import Logger
from composer.models import HuggingFaceModel
from composer.utils import dist, get_device

from composer_cmi.algorithms import CMIRegularization
from composer_cmi.data.task_data import load_task_data, tokenize, train_dataloader
from composer_cmi.run.config.schema import DataConfig, ModelConfig
from composer_cmi.run.models import build_model, silence_transformers

LENGTHS = {'headlines': 32, 'articles': 128}
WARM_UP = 4


class WithoutCommit(CMIRegularization):
    """Commits the warm-up batches only, so that there are centroids to compute with."""

    def _end_batch(self, state: State, logger: Logger) -> None:
        if state.timestamp.batch < WARM_UP:
            super()._end_batch(state, logger)


KINDS: dict[str, list[Algorithm]] = {
    'plain': [],
    'measure': [CMIRegularization(0.0, start='0ba')],
    'term': [CMIRegularization(start='0ba')],
    'no commit': [WithoutCommit(start='0ba')],
    'separation': [CMIRegularization(separation=0.005, start='0ba')],
    'normalized': [CMIRegularization(form='normalized', start='0ba')],
    'centered': [CMIRegularization(space='centered', start='0ba')],
    'contrastive': [CMIRegularization(0.3, space='centered', form='contrastive', start='0ba')],
    'temperatures': [CMIRegularization(space='logits', temperature=[1.0, 2.0, 4.0], start='0ba')],
}


class Stopwatch(Callback):
    """Seconds and processor seconds of each step, without the dataloader."""

    def __init__(self, device: str):
        self.synchronize = torch.cuda.synchronize if device == 'cuda' else lambda: None
        self.steps: list[tuple[float, float]] = []

    def after_dataloader(self, state: State, logger: Logger) -> None:
        self.synchronize()
        self.begin = time.perf_counter(), time.process_time()

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        self.synchronize()
        self.steps.append((time.perf_counter() - self.begin[0], time.process_time() - self.begin[1]))


def make_trainer(model: torch.nn.Module, tokenizer, rows, algorithms: list[Algorithm], device: str) -> Trainer:
    wrapped = HuggingFaceModel(copy.deepcopy(model), tokenizer, use_logits=True)
    return Trainer(
        model=wrapped,
        train_dataloader=train_dataloader(rows, tokenizer, batch_size=32, seed=17),
        optimizers=torch.optim.AdamW(wrapped.parameters(), lr=1e-5, fused=True),
        max_duration='1ba',
        algorithms=algorithms,
        callbacks=[Stopwatch(device)],
        device='gpu' if device == 'cuda' else 'cpu',
        precision='amp_bf16' if device == 'cuda' else 'fp32',
        progress_bar=False,
        log_to_console=False,
        seed=17,
    )


def step_times(trainer: Trainer, steps: int) -> tuple[float, float]:
    """Seconds and processor seconds a step, of `steps` more steps behind one that is not counted."""
    watch = next(callback for callback in trainer.state.callbacks if isinstance(callback, Stopwatch))
    watch.steps.clear()
    trainer.fit(duration=f'{steps + 1}ba')
    wall, processor = zip(*watch.steps[1:], strict=True)
    return sum(wall) / steps, sum(processor) / steps


def measure(text: str, arguments: argparse.Namespace) -> None:
    """Measure one kind of text on this process's ranks; rank 0 writes."""
    data = load_task_data(f'bbc_{text}', DataConfig(max_length=LENGTHS[text]))
    torch.manual_seed(17)
    model, tokenizer = build_model(ModelConfig(name_or_path='embedded:minilm'), data.label_names)
    with tempfile.TemporaryDirectory() as folder:
        rows = tokenize(data.train, tokenizer, max_length=LENGTHS[text], cache_dir=folder)
    kinds = ['plain', *(kind for kind in arguments.kinds if kind != 'plain')]
    trainers = {kind: make_trainer(model, tokenizer, rows, KINDS[kind], arguments.device) for kind in kinds}
    for trainer in trainers.values():
        step_times(trainer, WARM_UP)
    times: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds}
    for repeat in range(arguments.repeats):
        for kind in kinds[repeat % len(kinds) :] + kinds[: repeat % len(kinds)]:
            times[kind].append(step_times(trainers[kind], arguments.steps))
    for trainer in trainers.values():
        trainer.close()
    if dist.get_global_rank() == 0:
        write(text, times, arguments)


def spread(values: list[float]) -> dict[str, str]:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4)
    return {'median': f'{middle:.4f}', 'q1': f'{low:.4f}', 'q3': f'{high:.4f}'}


def write(text: str, times: dict[str, list[tuple[float, float]]], arguments: argparse.Namespace) -> None:
    """Append a row for each kind and print it."""
    cuda = arguments.device == 'cuda'
    machine = torch.cuda.get_device_name() if cuda else f'{platform.machine()}, {os.cpu_count()} cores'
    lines = []
    for kind, own in times.items():
        seconds, processor = (
            spread([mine[i] / plain[i] for mine, plain in zip(own, times['plain'], strict=True)]) for i in (0, 1)
        )
        lines.append(
            {
                'kind': kind,
                'text': text,
                'ranks': dist.get_world_size(),
                'threads': torch.get_num_threads(),
                'seconds_per_step': f'{statistics.median(wall for wall, _ in own):.4f}',
                **{f'ratio_{name}': value for name, value in seconds.items()},
                'processor_seconds_per_step': f'{statistics.median(cpu for _, cpu in own):.4f}',
                **{f'processor_ratio_{name}': value for name, value in processor.items()},
                'repeats': arguments.repeats,
                'steps': arguments.steps,
                'load_average': f'{os.getloadavg()[0]:.1f}',
                'device': arguments.device,
                'machine': machine,
                'torch': torch.__version__,
                'composer': composer.__version__,
                'transformers': transformers.__version__,
            }
        )
        shown = ('kind', 'text', 'ranks', 'seconds_per_step', 'ratio_median', 'processor_ratio_median', 'load_average')
        print(', '.join(f'{key} {lines[-1][key]}' for key in shown), flush=True)
    new = not arguments.out.exists()
    with arguments.out.open('a', newline='') as file:
        writer = csv.DictWriter(file, lines[0])
        if new:
            writer.writeheader()
        writer.writerows(lines)


def drop_measured_anew(arguments: argparse.Namespace) -> None:
    """Of the rows of earlier calls, keep those that this call does not measure again."""
    if not arguments.out.exists():
        return
    with arguments.out.open(newline='') as file:
        reader = csv.DictReader(file)
        rows = [
            row
            for row in reader
            if row['text'] not in arguments.text
            or int(row['ranks']) not in arguments.ranks
            or row['device'] != arguments.device
            or row['kind'] not in {'plain', *arguments.kinds}
        ]
        header = reader.fieldnames or ()
    aside = arguments.out.with_suffix('.tmp')
    with aside.open('w', newline='') as file:
        writer = csv.DictWriter(file, header)
        writer.writeheader()
        writer.writerows(rows)
    aside.replace(arguments.out)


def main() -> None:
    """Start a process group for each number of ranks, or be one of its ranks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--ranks', type=int, nargs='+', default=[1, 2])
    parser.add_argument('--text', nargs='+', choices=[*LENGTHS], default=[*LENGTHS])
    parser.add_argument('--kinds', nargs='+', choices=[*KINDS], default=[*KINDS])
    parser.add_argument('--repeats', type=int, default=9)
    parser.add_argument('--steps', type=int, default=6)
    parser.add_argument('--threads', type=int, help='of each rank; by default its share of the cores')
    parser.add_argument('--device', default='cpu', choices=('cpu', 'cuda'))
    parser.add_argument('--out', type=Path, default=Path('benchmarks/overhead.csv'))
    arguments = parser.parse_args()
    if arguments.repeats < 7:
        parser.error('--repeats must be at least 7')
    if 'WORLD_SIZE' in os.environ:
        warnings.simplefilter('ignore')
        silence_transformers()
        dist.initialize_dist(get_device('gpu' if arguments.device == 'cuda' else 'cpu'), timeout=300)
        torch.set_num_threads(arguments.threads or max(1, (os.cpu_count() or 1) // dist.get_world_size()))
        for text in arguments.text:
            measure(text, arguments)
        return
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    drop_measured_anew(arguments)
    for ranks in arguments.ranks:
        launcher = [sys.executable, '-m', 'composer.cli.launcher', '-n', str(ranks), __file__, *sys.argv[1:]]
        subprocess.run(launcher, check=True)


if __name__ == '__main__':
    main()
