"""The term alone against classes, width, batch and ranks: time and bytes beside the floor 4 D (2 B + C).

    python benchmarks/scaling.py [--forms scaled contrastive centered separation] [--ranks 1 2] [--device cuda]

No model: a linear head on random features, of which the term reads, adds its value, gives the features their gradient
and moves the centroids, as in a step. One size grows at a time, the others stay at `--classes`, `--width` and `--batch`
rows of each rank. The floor is what nobody can leave out in float32: B features read, B gradients written, C centroids
read. `bytes` are what all operators read and write, each input counted whole. The exponent of a growth is the slope of
log y over log x through the last three sizes: below them what is constant hides it. 1 is linear; what is written beside
it stands at the largest size.
"""

from __future__ import annotations

import argparse
import math
import os
import socket
import statistics
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed
import torch.multiprocessing
from torch import nn

from composer_cmi.run.parts.memory import keep_freed_memory
from composer_cmi.terms.arguments import CMIArguments, RegularizationArguments
from composer_cmi.terms.schedule import Schedule
from composer_cmi.terms.steps import CMISteps
from counting import Calls, Work
from measuring import cores, facts, quartiles, table, turns, write

FORMS: dict[str, dict[str, Any]] = {
    'measure': {'weight': 0.0},
    'scaled': {},
    'contrastive': {'form': 'contrastive'},
    'centered': {'space': 'centered'},
    'centered contrastive': {'space': 'centered', 'form': 'contrastive'},
    'separation': {'separation': 0.005},
    'normalized': {'form': 'normalized'},
    'temperatures': {'temperature': [1.0, 2.0, 4.0]},
}
SIZES = {
    'classes': (2, 10, 100, 1000, 3000, 10_000),
    'width': (128, 256, 768, 2048, 4096, 8192),
    'batch': (8, 32, 128, 512, 2048),
}
WARM_UP = 3


class Head(nn.Module):
    """What a classifier ends with."""

    def __init__(self, width: int, classes: int):
        super().__init__()
        self.num_classes = classes
        self.classifier = nn.Linear(width, classes)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.classifier(features)


class Step:
    """One form at one size, and what a step does of it."""

    def __init__(self, form: str, size: dict[str, int], device: torch.device):
        arguments: CMIArguments = RegularizationArguments(start='0', **FORMS[form])
        self.steps = CMISteps('scaling', arguments, Schedule('0', '0'))
        generator = torch.Generator().manual_seed(17)
        classes, shape = size['classes'], (size['batch'], size['width'])
        self.features = torch.randn(*shape, generator=generator).to(device).requires_grad_()
        self.labels = torch.randint(classes, shape[:1], generator=generator).to(device)
        model = Head(size['width'], classes).to(device)
        self.steps.find(model)
        self.steps.allocate(classes, device)
        self.steps.attach(model)
        self.logits = model(self.features)
        self.calls = self.steps._reader._box.calls if self.steps._reader is not None else []

    def __call__(self) -> None:
        assert self.steps._reader is not None
        self.steps._reader._box.calls = self.calls  # of the one forward, which is not measured
        self.steps.begin_step(1.0, lambda: None)
        self.steps.centroids.begin()
        added = self.steps.add({}, self.logits, self.labels)
        if added is not None:
            torch.autograd.grad(added, self.features)
        self.steps.centroids.finish()
        self.steps.end_step()


def seconds(step: Step, number: int, device: torch.device) -> float:
    synchronize = torch.cuda.synchronize if device.type == 'cuda' else lambda: None
    synchronize()
    begun = time.perf_counter()
    for _ in range(number):
        step()
    synchronize()
    return (time.perf_counter() - begun) / number


def measure(arguments: argparse.Namespace, device: torch.device, ranks: int) -> list[dict[str, Any]]:
    """A row for each repeat of each form and size; the sizes of one growth take turns."""
    usual = {'classes': arguments.classes, 'width': arguments.width, 'batch': arguments.batch}
    rows = []
    for form in arguments.forms:
        for grown in arguments.grow:
            steps, counted = {}, {}
            for value in [each for each in SIZES[grown] if each <= arguments.largest]:
                size = {**usual, grown: value}
                steps[value] = Step(form, size, device)
                seconds(steps[value], WARM_UP, device)
                calls, work = Calls(), Work()
                with calls.counted():
                    steps[value]()
                if ranks == 1:
                    with work.counted():
                        steps[value]()
                floor = 4 * size['width'] * (2 * size['batch'] + size['classes'])
                counts = {'operators': calls.operators, 'host_syncs': calls.syncs, 'bytes': work.bytes, 'floor': floor}
                counted[value] = {'form': form, 'grown': grown, **size, 'ranks': ranks, **counts}
            for repeat in range(arguments.repeats):
                for value in turns(steps, repeat):
                    took = seconds(steps[value], arguments.steps, device)
                    rows.append({**counted[value], 'repeat': repeat, 'seconds': f'{took:.6f}'})
    return [{**row, **facts(device.type, torch.get_num_threads())} for row in rows]


def exponent(sizes: list[int], values: list[float]) -> float:
    """The slope of log `values` over log `sizes` through the last three; NaN for a single size."""
    x, y = [math.log(size) for size in sizes[-3:]], [math.log(max(value, 1e-12)) for value in values[-3:]]
    if len(x) < 2:
        return math.nan
    return statistics.linear_regression(x, y).slope


def summary(rows: list[dict[str, Any]]) -> str:
    """A line for each form and growth."""
    lines = []
    for form, grown, ranks in dict.fromkeys((row['form'], row['grown'], row['ranks']) for row in rows):
        own = [row for row in rows if (row['form'], row['grown'], row['ranks']) == (form, grown, ranks)]
        last = {row[grown]: row for row in own}
        sizes = sorted(last)
        took = [quartiles([float(row['seconds']) for row in own if row[grown] == size]) for size in sizes]
        line = [form, grown, f'{sizes[0]:,} .. {sizes[-1]:,}', str(ranks)]
        line += [f'{exponent(sizes, [each[1] for each in took]):.2f}']
        line += [f'{took[-1][1] * 1e3:.2f} ({took[-1][0] * 1e3:.2f} .. {took[-1][2] * 1e3:.2f})']
        moved, floor = [last[size]['bytes'] for size in sizes], last[sizes[-1]]['floor']
        line += [f'{exponent(sizes, moved):.2f}', f'{moved[-1] / floor:.1f}'] if moved[-1] else ['-', '-']
        line += [str(last[sizes[-1]]['operators']), str(last[sizes[-1]]['host_syncs'])]
        lines.append(line)
    header = ['form', 'grown', 'from .. to', 'ranks', 'exponent of time', 'ms (quartiles)']
    header += ['exponent of bytes', 'bytes over floor', 'operators', 'host syncs']
    return table(header, lines)


def rank(number: int, ranks: int, port: int, arguments: argparse.Namespace) -> None:
    """Be one of the ranks; the first writes."""
    cuda = arguments.device == 'cuda'
    keep_freed_memory()  # as a run does
    torch.set_num_threads(arguments.threads or max(1, cores() // ranks))
    device = torch.device('cuda', number) if cuda else torch.device('cpu')
    if ranks > 1:
        os.environ |= {'MASTER_ADDR': 'localhost', 'MASTER_PORT': str(port)}
        torch.distributed.init_process_group('nccl' if cuda else 'gloo', rank=number, world_size=ranks)
    rows = measure(arguments, device, ranks)
    if number == 0:
        print(f'\n{summary(rows)}', flush=True)
        write(arguments.out, rows, more=True)
    if ranks > 1:
        torch.distributed.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--forms', nargs='+', choices=[*FORMS], default=[*FORMS], metavar='FORM', help=', '.join(FORMS))
    parser.add_argument('--grow', nargs='+', choices=[*SIZES], default=[*SIZES])
    parser.add_argument('--largest', type=int, default=10_000, help='leave greater sizes out')
    parser.add_argument('--classes', type=int, default=100)
    parser.add_argument('--width', type=int, default=768)
    parser.add_argument('--batch', type=int, default=32, help='rows of each rank')
    parser.add_argument('--ranks', type=int, nargs='+', default=[1, 2])
    parser.add_argument('--repeats', type=int, default=9)
    parser.add_argument('--steps', type=int, default=5)
    parser.add_argument('--threads', type=int, help='of each rank; by default its share of the cores')
    parser.add_argument('--device', default='cpu', choices=('cpu', 'cuda'))
    parser.add_argument('--out', type=Path, default=Path(__file__).with_suffix('.csv'))
    arguments = parser.parse_args()
    arguments.out.unlink(missing_ok=True)
    for ranks in arguments.ranks:
        with socket.socket() as free:
            free.bind(('localhost', 0))
            port = free.getsockname()[1]
        if ranks == 1:
            rank(0, 1, port, arguments)
        else:
            torch.multiprocessing.spawn(rank, (ranks, port, arguments), nprocs=ranks)


if __name__ == '__main__':
    main()
