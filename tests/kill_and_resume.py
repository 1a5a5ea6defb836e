"""Kills a run with SIGKILL at ten moments, resumes each, and compares what it ends with bit by bit: prints 10/10.

    python tests/kill_and_resume.py [--ranks 1 2] [--moments 10]

The moments are drawn from a fixed seed: a batch, and how long after its beginning, so that some kills fall into a step
and some into the writing of a checkpoint. The ranks are forked from this process, which has imported everything: real
processes and real kills, without the twenty seconds of a start.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import socket
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import NoReturn

import torch
from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist, get_device

import runs
import toys

CASE = 'distillation, regularization'
LAST = runs.EPOCHS * runs.BATCHES
STEP_SECONDS = 0.05  # a batch is held up for so long, in slices, that a kill has something to hit


class Clock(Callback):
    """Says which batch begins, and makes it last."""

    def __init__(self, folder: Path):
        self.folder = folder

    def batch_start(self, state: State, logger: Logger) -> None:
        (self.folder / f'began{dist.get_global_rank()}').write_text(str(state.timestamp.batch.value))

    def after_loss(self, state: State, logger: Logger) -> None:
        time.sleep(STEP_SECONDS / 4)


def train(folder: Path) -> None:
    """One attempt: to the end, from the latest checkpoint if there is one."""
    torch.set_num_threads(1)
    dist.initialize_dist(get_device('cpu'), timeout=60)
    run = runs.trainer(
        runs.CASES[CASE](), folder, toys.mlp(dropout=0.2), autoresume=True, run_name='killed', callbacks=[Clock(folder)]
    )
    (folder / f'resumed{dist.get_global_rank()}').write_text(str(run.state.timestamp.batch.value))
    if run.state.timestamp.batch < LAST:
        run.fit()
    result = runs.snapshot(run)
    result.pop('logged')  # in memory only: of this attempt
    if dist.get_global_rank() == 0:
        torch.save(result, folder / 'aside.pt')
        os.replace(folder / 'aside.pt', folder / 'result.pt')
    run.close()


def start(folder: Path, ranks: int) -> list[int]:
    """Fork the ranks of one attempt; their process ids."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    pids = []
    for rank in range(ranks):
        pid = os.fork()
        if not pid:
            be_a_rank(folder, rank, ranks, port)
        pids.append(pid)
    return pids


def be_a_rank(folder: Path, rank: int, ranks: int, port: int) -> NoReturn:
    """What Composer's launcher does for a rank, then the attempt."""
    code = 1
    try:
        names = ('RANK', 'LOCAL_RANK', 'NODE_RANK', 'WORLD_SIZE', 'LOCAL_WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT')
        os.environ.update(zip(names, map(str, (rank, rank, 0, ranks, ranks, '127.0.0.1', port)), strict=True))
        log = os.open(folder / 'log', os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        train(folder)
        code = 0
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


def attempt(folder: Path, ranks: int, batch: int | None, delay: float) -> bool:
    """Run; kill all ranks `delay` seconds after `batch` begins (None: never). Whether they were killed before the end."""
    began = [folder / f'began{rank}' for rank in range(ranks)]
    for file in began:
        file.unlink(missing_ok=True)
    running, failed = set(start(folder, ranks)), False
    while running:
        now = max((int(f.read_text() or -1) for f in began if f.exists()), default=-1)
        if batch is not None and now >= batch:
            time.sleep(delay)
            for pid in running:
                os.kill(pid, signal.SIGKILL)
            batch = None
        for pid in tuple(running):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                running.remove(pid)
                failed |= os.waitstatus_to_exitcode(status) not in (0, -signal.SIGKILL)
        if failed:
            for pid in running:
                os.kill(pid, signal.SIGKILL)
            raise SystemExit(f'an attempt failed:\n{(folder / "log").read_text()[-3000:]}')
        time.sleep(0.001)
    return not (folder / 'result.pt').exists()


def check(ranks: int, moments: int, root: Path) -> int:
    """The number of killed and resumed runs that ended like the uninterrupted one."""
    rng = random.Random(17 + ranks)
    whole = root / f'whole{ranks}'
    whole.mkdir()
    attempt(whole, ranks, None, 0)
    expected, right = torch.load(whole / 'result.pt'), 0
    for moment in range(moments):
        batch, delay = rng.randrange(1, LAST), rng.uniform(0, 1.5 * STEP_SECONDS)
        folder = root / f'killed{ranks}-{moment}'
        folder.mkdir()
        killed = attempt(folder, ranks, batch, delay)
        attempt(folder, ranks, None, 0)
        resumed = int((folder / 'resumed0').read_text())
        different = runs.differences(expected, torch.load(folder / 'result.pt'))
        right += killed and not different
        print(
            f'{ranks} rank(s), kill {moment + 1:2}: {1000 * delay:3.0f} ms into batch {batch:2}, resumed after batch '
            f'{resumed:2}: {"bit-identical" if not different else f"DIFFERENT: {different[0][:200]}"}',
            flush=True,
        )
    print(f'{ranks} rank(s): {right}/{moments}', flush=True)
    return right


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--ranks', type=int, nargs='+', default=[1, 2])
    parser.add_argument('--moments', type=int, default=10)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as root:
        right = sum(check(ranks, arguments.moments, Path(root)) for ranks in arguments.ranks)
    raise SystemExit(right != arguments.moments * len(arguments.ranks))
