"""Step time of distillation over plain training of the same student, cached and online, and the time to fill a cache.

    python benchmarks/distillation.py --repeats 7 --steps 20 --out benchmarks/distillation.csv

Three trainers (plain, cached, online) live in one process and take turns, each `--steps` steps a repeat, in an order
that rotates: what else the machine does falls on all alike. Ratios are paired within a repeat; median and spread over
repeats. Teacher: the embedded MiniLM-L6 with a random head (its time is that of a trained one). Student: its layers
0, 2, 4. The load average is a column: on a busy machine the spread says how little a ratio means.
"""

from __future__ import annotations

import argparse
import copy
import csv
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

import composer
import torch
import transformers
from composer import Trainer
from composer.models import HuggingFaceModel

from composer_cmi.algorithms import KnowledgeDistillation
from composer_cmi.data.batches import Collator
from composer_cmi.data.task_data import load_task_data, tokenize, train_dataloader
from composer_cmi.run.config.schema import DataConfig, ModelConfig
from composer_cmi.run.models import build_model, silence_transformers
from composer_cmi.teachers.forward import inputs_fingerprint, run_teacher
from composer_cmi.teachers.logit_cache import CacheKey, LogitCache
from composer_cmi.teachers.teacher import load_teacher

KINDS = ('plain', 'cached', 'online')


def make_trainer(student, tokenizer, rows, algorithms, device: str) -> Trainer:
    model = HuggingFaceModel(copy.deepcopy(student), tokenizer, use_logits=True)
    return Trainer(
        model=model,
        train_dataloader=train_dataloader(rows, tokenizer, batch_size=32, seed=17),
        optimizers=torch.optim.AdamW(model.parameters(), lr=2e-4, fused=True),
        max_duration='1ba',
        algorithms=algorithms,
        device=device,
        precision='fp32' if device == 'cpu' else 'amp_bf16',
        progress_bar=False,
        log_to_console=False,
        seed=17,
    )


def timed(trainer: Trainer, steps: int, device: str) -> float:
    """Seconds a step of `steps` more steps."""
    synchronize = torch.cuda.synchronize if device == 'gpu' else lambda: None
    synchronize()
    started = time.perf_counter()
    trainer.fit(duration=f'{steps}ba')
    synchronize()
    return (time.perf_counter() - started) / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--repeats', type=int, default=7)
    parser.add_argument('--steps', type=int, default=20)
    parser.add_argument('--device', default='cpu', choices=('cpu', 'gpu'))
    parser.add_argument('--out', type=Path, default=Path('benchmarks/distillation.csv'))
    arguments = parser.parse_args()
    torch.set_num_threads(1 if arguments.device == 'cpu' else torch.get_num_threads())
    silence_transformers()
    data = load_task_data('bbc_headlines', DataConfig(max_length=32))
    torch.manual_seed(17)
    teacher_model, tokenizer = build_model(ModelConfig(name_or_path='embedded:minilm'), data.label_names)
    student, _ = build_model(ModelConfig(name_or_path='embedded:minilm', keep_layers=[0, 2, 4]), data.label_names)
    with tempfile.TemporaryDirectory() as folder:
        rows = tokenize(data.train, tokenizer, max_length=32, cache_dir=folder)

    started = time.perf_counter()
    teacher = load_teacher(teacher_model)
    if arguments.device == 'gpu':
        teacher.to('cuda')
    ids, logits = run_teacher(teacher, rows, Collator(tokenizer))
    key = CacheKey(teacher.fingerprint, inputs_fingerprint(rows, Collator(tokenizer)))
    cache = LogitCache(ids, logits, key=key, label_names=teacher.label_names)
    build_seconds = time.perf_counter() - started

    algorithms = {
        'plain': [],
        'cached': [KnowledgeDistillation(cache=cache)],
        'online': [KnowledgeDistillation(teacher)],
    }
    trainers = {kind: make_trainer(student, tokenizer, rows, algorithms[kind], arguments.device) for kind in KINDS}
    for trainer in trainers.values():
        timed(trainer, 3, arguments.device)
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for repeat in range(arguments.repeats):
        for kind in KINDS[repeat % 3 :] + KINDS[: repeat % 3]:
            seconds[kind].append(timed(trainers[kind], arguments.steps, arguments.device))
    write(arguments, seconds, build_seconds, len(rows))


def write(arguments: argparse.Namespace, seconds: dict[str, list[float]], build_seconds: float, rows: int) -> None:
    machine = (
        torch.cuda.get_device_name() if arguments.device == 'gpu' else f'{platform.machine()}, {os.cpu_count()} cores'
    )
    lines = []
    for kind in KINDS:
        ratios = [own / plain for own, plain in zip(seconds[kind], seconds['plain'], strict=True)]
        lines.append(
            {
                'kind': kind,
                'median_seconds_per_step': f'{statistics.median(seconds[kind]):.5f}',
                'median_ratio_to_plain': f'{statistics.median(ratios):.4f}',
                'min_ratio': f'{min(ratios):.4f}',
                'max_ratio': f'{max(ratios):.4f}',
                'repeats': arguments.repeats,
                'steps': arguments.steps,
                'cache_build_seconds': f'{build_seconds:.2f}',
                'cache_rows': rows,
                'load_average': f'{os.getloadavg()[0]:.1f}',
                'machine': machine,
                'torch': torch.__version__,
                'composer': composer.__version__,
                'transformers': transformers.__version__,
            }
        )
        print(', '.join(f'{key} {value}' for key, value in lines[-1].items()))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    with arguments.out.open('w', newline='') as file:
        writer = csv.DictWriter(file, lines[0])
        writer.writeheader()
        writer.writerows(lines)


if __name__ == '__main__':
    main()
