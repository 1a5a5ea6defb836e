"""What each term adds to a step of plain cross-entropy: seconds, operators, waits for the device, bytes, operations.

    python benchmarks/overhead.py [--shapes tiny minilm base] [--batches 8 32 128] [--ranks 1 2] [--device cuda]

One Trainer holds the model and its optimizer; the kinds take turns in it, `--steps` steps each, in an order that
rotates, over the same rows: one batch of the middle length of an epoch. `plain` is cross-entropy, `measure` the
algorithm at weight 0, `no commit` the term without what happens once a batch (the all-reduce, the new centroids, the
log); the others are what the library has, `--kinds` names some. The first step of a turn is not counted. A step is from
after the dataloader to after BATCH_END; ratios are paired within a repeat, their median and quartiles over repeats.
Where a machine does other things too, trust the columns that it cannot change, of one step: operators and host syncs
(torch's profiler), and on one rank bytes and FLOPs. The guard of the CMI term reads the device once in 20 steps; the
counted step is none of those.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from composer import Trainer
from composer.core import Algorithm, Callback, Event, State
from composer.loggers import Logger
from composer.models import HuggingFaceModel
from composer.utils import dist, get_device
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

from composer_cmi.algorithms import CMIMaximization, CMIRegularization, KnowledgeDistillation
from composer_cmi.algorithms.controls import NormPenalty, RDrop, SupervisedContrast
from composer_cmi.data.batches import TrainSampler, train_dataloader
from composer_cmi.data.encoding import EncodedSplit, tokenize
from composer_cmi.data.splits import Split, take
from composer_cmi.data.task_data import load_task_data
from composer_cmi.run.config.schema import DataConfig
from composer_cmi.run.models import embedded_minilm, silence_transformers
from composer_cmi.teachers.logit_cache import CacheKey, LogitCache
from counting import Calls, Work
from measuring import cores, facts, spread, table, turns, write

LENGTHS = {'headlines': 32, 'articles': 128}
SHAPES = {  # width, layers, heads, of a BERT
    'tiny': (128, 2, 2),
    'student': (384, 3, 12),  # of MiniLM's
    'minilm': (384, 6, 12),
    'base': (768, 12, 12),
}
WARM_UP = 3
_GUARD = 20  # steps


class WithoutCommit(CMIRegularization):
    """Commits its warm-up batches only, so that there are centroids to compute with."""

    committed = 0

    def _end_batch(self, state: State, logger: Logger) -> None:
        self.committed += 1
        if self.committed <= WARM_UP:
            super()._end_batch(state, logger)


def kinds(teacher: torch.nn.Module, ids: torch.Tensor, classes: int) -> dict[str, list[Algorithm]]:
    """Every term of the library, by name; a cache holds random logits, whose time is that of others."""

    def cached(loss: Any) -> KnowledgeDistillation:
        table = LogitCache(ids, torch.randn(len(ids), classes), key=CacheKey('random', 'rows'))
        return KnowledgeDistillation(cache=table, loss=loss, assume_same_labels=True)

    now: dict[str, Any] = {'start': '0ba'}
    return {
        'plain': [],
        'measure': [CMIRegularization(0.0, **now)],
        'term': [CMIRegularization(**now)],
        'no commit': [WithoutCommit(**now)],
        'relative': [CMIRegularization(form='relative', **now)],
        'normalized': [CMIRegularization(form='normalized', **now)],
        'contrastive': [CMIRegularization(0.3, form='contrastive', **now)],
        'separation': [CMIRegularization(separation=0.005, **now)],
        'centered': [CMIRegularization(space='centered', **now)],
        'centered contrastive': [CMIRegularization(0.3, space='centered', form='contrastive', **now)],
        'logits': [CMIRegularization(space='logits', **now)],
        'temperatures': [CMIRegularization(temperature=[1.0, 2.0, 4.0], **now)],
        'fixed': [CMIRegularization(centroids='fixed', **now)],
        'maximization': [CMIMaximization(**now)],
        'norm penalty': [NormPenalty()],
        'supervised contrast': [SupervisedContrast()],
        'r-drop': [RDrop()],
        'cached kl': [cached('kl')],
        'cached standardized': [cached('standardized')],
        'cached dist': [cached('dist')],
        'online kl': [KnowledgeDistillation(teacher, assume_same_labels=True)],
    }


KINDS = [*kinds(torch.nn.Identity(), torch.arange(2), 2)]


class Arms(Algorithm):
    """Shows the bare model to every kind; the one whose turn it is stands in `state.algorithms`."""

    def __init__(self, kinds: dict[str, list[Algorithm]]):
        self.kinds = kinds

    def match(self, event: Event, state: State) -> bool:
        return event == Event.INIT

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        for algorithms in self.kinds.values():
            state.algorithms = [*algorithms]
            for algorithm in algorithms:
                algorithm.apply(event, state, logger)
        state.algorithms = []


class Stopwatch(Callback):
    """Seconds and processor seconds of each step, without the dataloader; or one step under `counter`."""

    def __init__(self, device: str):
        self.synchronize = torch.cuda.synchronize if device == 'cuda' else lambda: None
        self.steps: list[tuple[float, float]] = []
        self.counter: Any = None
        self._inside: AbstractContextManager[None] | None = None

    def after_dataloader(self, state: State, logger: Logger) -> None:
        self.synchronize()
        guarded = (int(state.timestamp.batch) + 1) % _GUARD == 0
        if self.counter is not None and self.steps and not guarded:
            self._inside, self.counter = self.counter.counted(), None
            self._inside.__enter__()
        self.begin = time.perf_counter(), time.process_time()

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        self.synchronize()
        self.steps.append((time.perf_counter() - self.begin[0], time.process_time() - self.begin[1]))
        if self._inside is not None:
            self._inside.__exit__(None, None, None)
            self._inside = None


def one_batch(split: Split, tokenizer: Any, max_length: int, batch: int) -> EncodedSplit:
    """The rows of the batch of middle length among those of an epoch."""
    with tempfile.TemporaryDirectory() as folder:
        lengths = tokenize(split, tokenizer, max_length=max_length, cache_dir=folder).lengths
        batches = [*TrainSampler(lengths, batch, 17, num_replicas=1, rank=0).global_batches()]
        middle = sorted(batches, key=lambda rows: lengths[rows].max())[len(batches) // 2]
        return tokenize(take(split, np.asarray(middle)), tokenizer, max_length=max_length, cache_dir=folder)


def make_trainer(shape: str, text: str, batch: int, device: str, only: list[str]) -> tuple[Trainer, Arms]:
    """A BERT of that shape with random weights on text of real lengths, and its arms."""
    data = load_task_data(f'bbc_{text}', DataConfig(max_length=LENGTHS[text]))
    tokenizer = AutoTokenizer.from_pretrained(embedded_minilm(data.label_names))
    rows = one_batch(data.train, tokenizer, LENGTHS[text], batch)
    width, layers, heads = SHAPES[shape]
    torch.manual_seed(17)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        num_labels=len(data.label_names),
    )
    model = BertForSequenceClassification(config)
    ids = torch.as_tensor(rows.example_ids).sort().values
    every = kinds(copy.deepcopy(model), ids, len(data.label_names))
    arms = Arms({name: every[name] for name in dict.fromkeys(['plain', *only])})
    wrapped = HuggingFaceModel(model, tokenizer, use_logits=True)
    trainer = Trainer(
        model=wrapped,
        train_dataloader=train_dataloader(rows, tokenizer, batch_size=batch, seed=17),
        optimizers=torch.optim.AdamW(wrapped.parameters(), lr=1e-5, fused=True),
        max_duration='1ba',
        algorithms=[arms],
        callbacks=[Stopwatch(device)],
        device='gpu' if device == 'cuda' else 'cpu',
        precision='amp_bf16' if device == 'cuda' else 'fp32',
        progress_bar=False,
        log_to_console=False,
        seed=17,
    )
    return trainer, arms


def turn(trainer: Trainer, algorithms: list[Algorithm], steps: int, counter: Any = None) -> tuple[float, float]:
    """Seconds and processor seconds a step, of `steps` more steps behind one that is not counted."""
    watch = next(callback for callback in trainer.state.callbacks if isinstance(callback, Stopwatch))
    watch.steps.clear()
    watch.counter = counter
    trainer.state.algorithms = [*algorithms]
    trainer.fit(duration=f'{steps + 1}ba')
    wall, processor = zip(*watch.steps[1:], strict=True)
    return sum(wall) / steps, sum(processor) / steps


def measure(shape: str, text: str, batch: int, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One row a turn of each kind, on this process's ranks."""
    trainer, arms = make_trainer(shape, text, batch, arguments.device, arguments.kinds)
    counted: dict[str, dict[str, Any]] = {}
    for kind, algorithms in arms.kinds.items():
        turn(trainer, algorithms, WARM_UP)
        calls, work = Calls(), Work()
        turn(trainer, algorithms, 2, calls)
        counted[kind] = {'operators': calls.operators, 'host_syncs': calls.syncs}
        if dist.get_world_size() == 1:
            turn(trainer, algorithms, 2, work)
            counted[kind] |= {'bytes': work.bytes, 'flops': work.flops}
    where = {'shape': shape, 'text': text, 'batch': batch, 'ranks': dist.get_world_size()}
    rows = []
    for repeat in range(arguments.repeats):
        for kind in turns(arms.kinds, repeat):
            wall, processor = turn(trainer, arms.kinds[kind], arguments.steps)
            seconds = {'seconds_per_step': f'{wall:.5f}', 'processor_seconds_per_step': f'{processor:.5f}'}
            rows.append({**where, 'kind': kind, 'repeat': repeat, **seconds, **counted[kind]})
    trainer.close()
    return [{**row, **facts(arguments.device, torch.get_num_threads())} for row in rows]


def summary(rows: list[dict[str, Any]]) -> str:
    """A line for each kind; what is beyond plain, in absolute numbers or per cent."""

    def seconds(kind: str, column: str) -> list[float]:
        own = sorted((row['repeat'], float(row[column])) for row in rows if row['kind'] == kind)
        return [value for _, value in own]

    first = {row['kind']: row for row in rows}
    plain, lines = first['plain'], []
    for kind, row in first.items():
        ratios = [
            [own / base for own, base in zip(seconds(kind, column), seconds('plain', column), strict=True)]
            for column in ('seconds_per_step', 'processor_seconds_per_step')
        ]
        line = [
            kind,
            f'{statistics.median(seconds(kind, "seconds_per_step")):.4f}',
            *(spread(r, '.3f') for r in ratios),
        ]
        line += [str(row['operators']), f'{row["operators"] - plain["operators"]:+}']
        line.append(f'{row["host_syncs"] - plain["host_syncs"]:+}')
        if 'bytes' in row:
            line += [f'{row[name] / max(plain[name], 1) - 1:+.2%}' for name in ('bytes', 'flops')]
        lines.append(line)
    header = ['kind', 's/step', 'over plain', 'processor', 'operators', 'beyond plain', 'host syncs', 'bytes', 'FLOPs']
    return table(header[: len(lines[0])], lines)


def main() -> None:
    """Start a process group for each number of ranks, or be one of its ranks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--ranks', type=int, nargs='+', default=[1, 2])
    parser.add_argument('--shapes', nargs='+', choices=[*SHAPES], default=['tiny', 'minilm', 'base'])
    parser.add_argument('--batches', type=int, nargs='+', default=[8, 32, 128], help='rows of all ranks together')
    parser.add_argument('--text', nargs='+', choices=[*LENGTHS], default=['headlines'])
    parser.add_argument('--kinds', nargs='+', choices=KINDS, default=KINDS, metavar='KIND', help=', '.join(KINDS))
    parser.add_argument('--repeats', type=int, default=7)
    parser.add_argument('--steps', type=int, default=4)
    parser.add_argument('--threads', type=int, help='of each rank; by default its share of the cores')
    parser.add_argument('--device', default='cpu', choices=('cpu', 'cuda'))
    parser.add_argument('--out', type=Path, default=Path(__file__).with_suffix('.csv'))
    arguments = parser.parse_args()
    if 'WORLD_SIZE' not in os.environ:
        arguments.out.unlink(missing_ok=True)
        for ranks in arguments.ranks:
            launcher = [sys.executable, '-m', 'composer.cli.launcher', '-n', str(ranks), __file__, *sys.argv[1:]]
            subprocess.run(launcher, check=True)
        return
    warnings.simplefilter('ignore')
    silence_transformers()
    dist.initialize_dist(get_device('gpu' if arguments.device == 'cuda' else 'cpu'), timeout=300)
    torch.set_num_threads(arguments.threads or max(1, cores() // dist.get_world_size()))
    for shape in arguments.shapes:
        for text in arguments.text:
            for batch in arguments.batches:
                rows = measure(shape, text, batch, arguments)
                if dist.get_global_rank() == 0:
                    print(
                        f'\n{shape}, {text}, batch {batch}, {dist.get_world_size()} rank(s)\n\n{summary(rows)}',
                        flush=True,
                    )
                    write(arguments.out, rows, more=True)


if __name__ == '__main__':
    main()
