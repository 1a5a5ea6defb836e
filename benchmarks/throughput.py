"""The main job as a whole process and as training alone: ours, and what people would run instead.

    python benchmarks/throughput.py [--device cuda] [--contenders ours plain trainer]

MiniLM-L6 on 1,600 TREC questions in 6 classes, 50 steps of 32, dev scored, model saved; the same rows, optimizer,
schedule, threads and precision (fp32, on a GPU bf16). Each contender is a process of its own as somebody would start
it, in turns; a first round is not counted, and takes as long. See `contenders.py` for the others; of ours:

    ours           a run with the CMI term from 30 % on
    ours-alone     the same without it
    ours-compile   with `train.compile`
    ours-bf16      with `train.precision: amp_bf16`, where a run allows it
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from contenders import CONTENDERS
from contest import Command, contest, ours, parser, prepare, program, summary
from job import Job
from measuring import write

OURS = ('ours', 'ours-alone', 'ours-compile', 'ours-bf16')


def commands(job: Job) -> dict[str, Command]:
    """All contenders by name."""
    term = {'cmi_regularization': {}}
    return {
        'ours': ours('ours', job, term),
        'ours-alone': ours('ours-alone', job, {}),
        'ours-compile': ours('ours-compile', job, term, compile=True),
        'ours-bf16': ours('ours-bf16', job, term, precision='amp_bf16'),
        **{name: program(name, 'contenders.py', job) for name in CONTENDERS},
    }


def main() -> None:
    options: argparse.ArgumentParser = parser(__doc__, __file__)
    names = [*OURS, *CONTENDERS]
    options.add_argument('--steps', type=int, default=50)
    options.add_argument('--lr', type=float, default=2e-4)
    options.add_argument('--contenders', nargs='+', choices=names, default=names)
    arguments = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        job = prepare(Path(folder), arguments, steps=arguments.steps, lr=arguments.lr)
        every = commands(job)
        rows = contest(job, {name: every[name] for name in arguments.contenders}, arguments)
    for row in rows:
        if row['contender'] == 'ours-bf16' and not row['failed']:
            row['precision'] = 'bf16'
    write(arguments.out, rows, more=arguments.more)
    print(f'\n{summary(rows, arguments.contenders[0])}')


if __name__ == '__main__':
    main()
