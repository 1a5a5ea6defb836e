"""Distillation as a whole process and as training alone: ours, cached and online, and what people would run instead.

    python benchmarks/distillation.py [--device cuda] [--peers-python PATH]

MiniLM-L6, tuned here on the same rows, teaches its own layers 0, 2 and 4 on 1,600 TREC questions, 100 steps of 32, the
same rows, weights of the losses, optimizer, threads and precision. Each contender is a process of its own as somebody
would start it, in turns; a first round is not counted, and takes as long. See `distillers.py` for the others; txtai and
torchdistill where `--peers-python` has them, otherwise they are skipped, and it is said. Of ours:

    ours-cached   reads the logits that an earlier run has stored
    ours-filling  the same with an empty cache, which the teacher fills before the first step
    ours-online   asks the teacher in every step
    ours-alone    the student without a teacher

A student's step over that of plain cross-entropy is in `overhead.py --shapes student --kinds "cached kl" "online kl"`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from contest import Command, contest, ours, parser, prepare, program, summary
from distillers import DISTILLERS
from job import Job
from measuring import run, write

OURS = ('ours-cached', 'ours-filling', 'ours-online', 'ours-alone')
PEERS = ('txtai', 'torchdistill')


def commands(job: Job, python: str) -> dict[str, Command]:
    """All contenders by name."""

    def distil(**cache: Any) -> dict[str, Any]:
        common = {'teacher': job.teacher, 'alpha': job.alpha, 'temperature': job.temperature}
        return {'knowledge_distillation': {**common, 'allow_weak_teacher': True, **cache}}

    return {
        'ours-cached': ours('ours-cached', job, distil(cache=f'{job.folder}/logits')),
        'ours-filling': ours('ours-filling', job, distil(cache=f'{job.folder}/logits-{{repeat}}')),
        'ours-online': ours('ours-online', job, distil()),
        'ours-alone': ours('ours-alone', job, {}),
        **{
            name: program(name, 'distillers.py', job, python if name in PEERS else sys.executable)
            for name in DISTILLERS
        },
    }


def missing(names: list[str], python: str) -> list[str]:
    """Those of `PEERS` that this interpreter does not have."""

    def there(name: str) -> bool:
        look = f'import importlib.util, sys; sys.exit(importlib.util.find_spec({name!r}) is None)'
        return subprocess.run([python, '-c', look], check=False).returncode == 0

    return [name for name in names if name in PEERS and not there(name)]


def main() -> None:
    options: argparse.ArgumentParser = parser(__doc__, __file__)
    names = [*OURS, *DISTILLERS]
    options.add_argument('--steps', type=int, default=100)
    options.add_argument('--lr', type=float, default=2e-4)
    options.add_argument('--teacher-steps', type=int, default=150)
    options.add_argument('--keep-layers', type=int, nargs='+', default=[0, 2, 4])
    options.add_argument('--peers-python', default=sys.executable, help='an interpreter with txtai and torchdistill')
    options.add_argument('--contenders', nargs='+', choices=names, default=names)
    arguments = options.parse_args()
    for name in (skipped := missing(arguments.contenders, arguments.peers_python)):
        print(f'{name}: {arguments.peers_python} has no such package; skipped')
    with tempfile.TemporaryDirectory() as folder:
        teacher = prepare(Path(folder, 'teacher'), arguments, steps=arguments.teacher_steps, lr=arguments.lr)
        trained = f'{folder}/trained'
        ended = run([*program('plain', 'contenders.py', teacher)(0), trained], arguments.threads)
        if ended.code:
            raise SystemExit(f'The teacher could not be trained:\n{ended.output}')
        layers = {'keep_layers': arguments.keep_layers, 'teacher': trained}
        job = prepare(Path(folder, 'student'), arguments, steps=arguments.steps, lr=arguments.lr, **layers)
        every = commands(job, arguments.peers_python)
        if 'ours-cached' in arguments.contenders:  # somebody has filled it
            run(every['ours-cached'](-2), arguments.threads)
        chosen = {name: every[name] for name in arguments.contenders if name not in skipped}
        rows = contest(job, chosen, arguments)
    write(arguments.out, rows, more=arguments.more)
    print(f'\n{summary(rows, arguments.contenders[0])}')


if __name__ == '__main__':
    main()
