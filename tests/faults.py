"""Does to runs, sweeps and reports what happens to them: prints "survived" or "lost" a line each, and counts them.

    python tests/faults.py [--only WORDS] [--jobs 2] [--list]

Survived means: one sentence without a traceback where the process could still speak, no half file taken for whole, and
then, by the same command (after deleting the file that the sentence named, where one is damaged), predictions equal to
those of an undisturbed run. Everything is real: processes forked from this one, which has the imports behind it, real
signals, RLIMIT_FSIZE and small or read-only file systems (the latter only as root, who may mount them).
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from composer_cmi.run.command import run_file
from composer_cmi.run.outputs.results import load_results
from fault_tools import CODES, SIGNALS, Lost, cut, file_size, flip, may_mount, mounted, spoken, start_fork, strike
from run_tools import make_all, make_model, predictions
from study_faults import struck_report, struck_sweep

DAMAGED = (
    'checkpoint', 'identity.json', 'digests.json', 'before.json', 'history.csv', 'config.yaml', 'results.json', 'tokens',
    'logits',
)  # fmt: skip


class Bench:
    """One YAML file, what an undisturbed run of it finds, and runs of it in folders of their own."""

    def __init__(self, root: Path):
        self.root = root
        teacher = make_model(root / 'teacher', seed=3)
        config = AutoConfig.from_pretrained(teacher)
        config.id2label, config.label2id = {0: 'food', 1: 'weather'}, {'food': 0, 'weather': 1}
        config.save_pretrained(teacher)
        distillation = {'teacher': str(teacher), 'allow_weak_teacher': True}
        self.path = str(make_all(root, algorithms={'knowledge_distillation': distillation, 'cmi_regularization': {}}))
        begin = time.monotonic()
        self.finish(self.folder('whole'))
        self.seconds = time.monotonic() - begin
        self.expected = predictions(self.run_folder(self.folder('whole')))

    def folder(self, name: str) -> Path:
        return self.root / 'cases' / re.sub(r'\W+', '_', name)

    def run_folder(self, folder: Path) -> Path:
        return folder / 'runs' / 'tiny'

    def start(self, folder: Path, before: Callable[[], object] = lambda: None, **environ: str) -> Any:
        arguments = [f'output_dir={folder}/runs', f'data.cache_dir={folder}/tokens']
        arguments.append(f'algorithms.knowledge_distillation.cache={folder}/logits')

        def work() -> int:
            os.environ.update(environ)
            torch.set_num_threads(1)
            before()
            return run_file(self.path, arguments)

        return start_fork(work)

    def finish(self, folder: Path) -> None:
        code, said = self.start(folder)[1]()
        if code:
            raise Lost(f'the next start ended with {code}: {said[-300:]}')

    def same(self, folder: Path) -> None:
        found = self.run_folder(folder)
        if load_results(found) is None or predictions(found) != self.expected:
            raise Lost('it ends with other predictions')
        if left := [*folder.rglob('.*.tmp')]:
            raise Lost(f'{left[0]} is left')


def at_a_moment(bench: Bench, signum: str, share: float) -> Callable[[Path], None]:
    def case(folder: Path) -> None:
        process, wait = bench.start(folder)
        time.sleep(share * bench.seconds)
        os.kill(process, getattr(signal, signum))
        code, said = wait()
        spoken(code, said, (0, *CODES[signum]), '' if code <= 0 else 'the same command goes on')
        bench.finish(folder)
        bench.same(folder)

    return case


def at_a_call(bench: Bench, name: str, number: int, signum: str, when: str) -> Callable[[Path], None]:
    """Sends itself a signal before, in the middle of, or after the n-th call of a function that changes files."""

    def case(folder: Path) -> None:
        code, said = bench.start(folder, before=lambda: strike(name, number, signum, when))[1]()
        if signum == 'SIGKILL' and code == 0:
            raise Lost(f'{name} is not called {number} times')
        spoken(code, said, (0, *CODES[signum]))
        bench.finish(folder)
        bench.same(folder)

    return case


def damaged(bench: Bench, harm: Callable[[Path], None], name: str, finished: bool) -> Callable[[Path], None]:
    def case(folder: Path) -> None:
        run = bench.run_folder(folder)
        if finished:
            bench.finish(folder)
        else:  # stopped after its second checkpoint
            bench.start(folder, before=lambda: strike('symlink', 3, 'SIGKILL', 'before'))[1]()
        places = {'checkpoint': run / 'checkpoints', 'tokens': folder / 'tokens', 'logits': folder / 'logits'}
        place = places.get(name, run / name)
        files = [f for f in place.glob('*') if f.is_file() and not f.is_symlink()] if place.is_dir() else [place]
        if name == 'tokens' or name == 'logits':
            files = [f for f in files if f.suffix == '.safetensors']
            (run / 'results.json').unlink(missing_ok=True)  # so that they are read again
        for file in files:
            harm(file)
        code, said = bench.start(folder)[1]()
        if code:
            spoken(code, said, (2,), 'damaged')
            named = [file for file in files if str(file) in said]
            if not named or 'elete' not in said:
                raise Lost(f'no file and way out in: {said[-300:]}')
            named[0].unlink()
            bench.finish(folder)
        bench.same(folder)

    return case


def full(bench: Bench, limit: Callable[[Path], Any], number: int) -> Callable[[Path], None]:
    """`limit` gives a context in which the folder's disk is full at some point, and what to do in the process."""

    def case(folder: Path) -> None:
        with limit(folder) as before:
            code, said = bench.start(folder, before=before)[1]()
        if code:
            spoken(code, said, (2,), str(folder) if number else '')
        bench.finish(folder)
        bench.same(folder)

    return case


def one_of_two(bench: Bench, rank: int, signum: str, share: float) -> Callable[[Path], None]:
    def both(folder: Path) -> list[tuple[int, Callable[[], tuple[int, str]]]]:
        with socket.socket() as free:
            free.bind(('127.0.0.1', 0))
            port = str(free.getsockname()[1])
        common = {'WORLD_SIZE': '2', 'LOCAL_WORLD_SIZE': '2', 'NODE_RANK': '0', 'MASTER_ADDR': '127.0.0.1'}
        return [bench.start(folder, RANK=r, LOCAL_RANK=r, MASTER_PORT=port, **common) for r in ('0', '1')]

    def case(folder: Path) -> None:
        ranks = both(folder)
        time.sleep(share * 2 * bench.seconds)
        os.kill(ranks[rank][0], getattr(signal, signum))
        code, said = ranks[1 - rank][1]()
        ranks[rank][1]()
        spoken(code, said, (0, 1, 2, -15), f'rank {rank}' if code == 1 else '')
        for code, said in [wait() for _, wait in both(folder)]:
            spoken(code, said, (0,))
        found = [
            [row['prediction'] for row in rows] for rows in (predictions(bench.run_folder(folder)), bench.expected)
        ]
        if found[0] != found[1]:  # two ranks add in another order: their logits differ in the last digits
            raise Lost('it ends with other predictions')

    return case


def cases(bench: Bench) -> dict[str, Callable[[Path], None]]:
    rng = random.Random(17)
    found: dict[str, Callable[[Path], None]] = {}
    for signum in SIGNALS:
        for number in range(6):
            share = (number + rng.random()) / 6
            found[f'{signum} at {share:.2f} of a run'] = at_a_moment(bench, signum, share)
    # Tokens, logits, lists of digests, each file of the run folder, the export, the results, the picture.
    for number in range(1, 27):
        when, signum = ('before', 'after')[number % 2], SIGNALS[number % 3]
        found[f'{signum} {when} rename {number}'] = at_a_call(bench, 'replace', number, signum, when)
    for number in (1, 2, 3):
        for name, when in (('save', 'half'), ('save', 'after'), ('symlink', 'before'), ('symlink', 'after')):
            found[f'SIGKILL {when} {name} {number} of a checkpoint'] = at_a_call(bench, name, number, 'SIGKILL', when)
    for name in DAMAGED:
        for harm in (flip, cut):
            for state in ('finished', 'interrupted'):
                if (name, state) != ('results.json', 'interrupted'):
                    title = f'{harm.__name__} {name} of a run that is {state}'
                    found[title] = damaged(bench, harm, name, state == 'finished')
    for size in (100, 1_000, 5_000, 15_000, 25_000, 60_000, 120_000):
        found[f'no file above {size} bytes'] = full(bench, lambda f, s=size: file_size(f, s), 0)
    if may_mount():
        for size in (4, 16, 48, 64, 96, 160, 256, 384, 512):
            found[f'a disk of {size} KiB'] = full(bench, lambda f, s=size: mounted(f, f'size={s}k'), 1)
        found['a read-only folder'] = full(bench, lambda f: mounted(f, 'ro'), 1)
    else:
        print('small and read-only file systems: left out, mounting is not allowed here', flush=True)
    for number, signum in enumerate((*SIGNALS, *SIGNALS)):
        title = f'{signum} to rank {number % 2} of two, {number}'
        found[title] = one_of_two(bench, number % 2, signum, rng.random())
    for number, signum in enumerate((*SIGNALS, *SIGNALS)):
        found[f'{signum} to a sweep, {number}'] = struck_sweep(signum, rng.random())
    for number, signum in enumerate((*SIGNALS, *SIGNALS), 1):
        found[f'{signum} to a report at file {number}'] = struck_report(number, signum)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else '')
    parser.add_argument('--only', default='', help='cases whose name holds these words')
    parser.add_argument('--jobs', type=int, default=2)
    parser.add_argument('--list', action='store_true')
    arguments = parser.parse_args()
    os.environ['TOKENIZERS_PARALLELISM'] = 'false'
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as root:
        bench = Bench(Path(root))
        chosen = {name: case for name, case in cases(bench).items() if arguments.only in name}
        if arguments.list:
            print(*chosen, sep='\n')
            return 0
        workers = [start_worker(bench, [*chosen.items()][part :: arguments.jobs]) for part in range(arguments.jobs)]
        lost = sum(os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]) for worker in workers)
    print(f'{len(chosen)} faults: {len(chosen) - lost} survived, {lost} lost')
    return lost


def start_worker(bench: Bench, mine: list[tuple[str, Callable[[Path], None]]]) -> int:
    """Work on some of the cases in a process of its own, whose exit code is the number of those lost."""
    worker = os.fork()
    if worker:
        return worker
    lost = 0
    for name, case in mine:
        folder = bench.folder(name)
        try:
            case(folder)
            print(f'survived  {name}', flush=True)
            shutil.rmtree(folder, ignore_errors=True)
        except Exception as error:
            lost += 1
            print(f'lost      {name}: {type(error).__name__}: {" ".join(str(error).split())}', flush=True)
    sys.stdout.flush()
    os._exit(lost)


if __name__ == '__main__':
    raise SystemExit(bool(main()))
