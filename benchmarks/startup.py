"""What passes before and after the work: seconds until the command line answers, of imports, and around a training.

    python benchmarks/startup.py [--repeats 7] [--device cuda]

Every command is a process of its own, user and system time together; the commands take turns, and a first round is not
counted. `before the first step` and `after the last step` are seconds of a run of a tiny BERT on a few BBC headlines,
three steps: reading, model, Trainer; then scores, export, predictions, pictures and the end of the process. The
processor seconds of that process stand in the line `a run`. Exit code 1 where a bound of the project is broken; it is
one of processor seconds.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from measuring import cores, facts, run, spread, table, turns, write

COMMANDS = {
    'python': ['-c', 'pass'],
    'composer-cmi --help': ['-m', 'composer_cmi.cli', '--help'],
    'import torch': ['-c', 'import torch'],
    'import torch, composer_cmi': ['-c', 'import torch, composer_cmi'],
    'import composer_cmi.algorithms': ['-c', 'import composer_cmi.algorithms'],
}
RUN = 'a run'
HELP_LIMIT, IMPORT_LIMIT = 1.0, 0.3


def make_run(folder: Path, device: str) -> Any:
    """The command of a run with the smallest model, of a run folder of its own in each repeat."""
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    from composer_cmi.run.models import embedded_minilm
    from contest import ours
    from job import Job

    tokenizer = AutoTokenizer.from_pretrained(embedded_minilm(()))
    BertForSequenceClassification(
        BertConfig(
            vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
        )
    ).save_pretrained(folder / 'model')
    tokenizer.save_pretrained(folder / 'model')
    rows = [f'{word} {other},{other}' for word in ('how', 'when', 'where', 'why') for other in ('good', 'bad')]
    for split in ('train', 'dev'):
        (folder / f'{split}.csv').write_text('\n'.join(['text,label', *(f'{split} {row}' for row in rows)]) + '\n')
    job = Job(
        folder=str(folder), out=str(folder / 'stamps.json'), model=str(folder / 'model'), label_names=['bad', 'good'],
        batches=[[]] * 3, batch_size=8, lr=1e-4, max_length=32, seed=17, device=device, precision='',
    )  # fmt: skip
    return job, ours('run', job, {'cmi_regularization': {'start': '0ba'}})


def measure(arguments: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """A row for each repeat of each command."""
    from contest import told

    job, command_of = make_run(folder, arguments.device)
    rows: list[dict[str, Any]] = []
    for repeat in range(-1, arguments.repeats):
        for what in turns([*COMMANDS, RUN], repeat):
            command = command_of(repeat) if what == RUN else [sys.executable, *COMMANDS[what]]
            ended = run(command)
            if ended.code:
                raise SystemExit(f'{command} failed:\n{ended.output}')
            found = {'seconds': ended.seconds, 'processor_seconds': ended.processor_seconds}
            rows.append({'what': what, 'repeat': repeat, **found})
            if what == RUN:
                stamps = told(job, command, ended)
                for part, seconds in (
                    ('before the first step', stamps['begun'] - ended.begun),
                    ('after the last step', ended.ended - stamps['ended']),
                ):
                    rows.append({'what': part, 'repeat': repeat, 'seconds': seconds})
    counted = [row for row in rows if row['repeat'] >= 0]
    return [{**row, **facts(arguments.device, cores())} for row in counted]


def summary(rows: list[dict[str, Any]]) -> str:
    """A line for each command."""
    lines = []
    for what in dict.fromkeys(row['what'] for row in rows):
        own = [row for row in rows if row['what'] == what]
        processor = [row['processor_seconds'] for row in own if 'processor_seconds' in row]
        lines.append([what, spread(processor), spread([row['seconds'] for row in own])])
    return table(['what', 'processor seconds', 'seconds'], lines)


def bounds(rows: list[dict[str, Any]]) -> dict[str, tuple[float, float]]:
    """Medians of processor seconds, and what they may be."""

    def median(what: str) -> float:
        return statistics.median(row['processor_seconds'] for row in rows if row['what'] == what)

    return {
        'composer-cmi --help': (median('composer-cmi --help'), HELP_LIMIT),
        'composer_cmi beyond torch': (median('import torch, composer_cmi') - median('import torch'), IMPORT_LIMIT),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--repeats', type=int, default=7)
    parser.add_argument('--device', default='cpu', choices=('cpu', 'cuda'))
    parser.add_argument('--out', type=Path, default=Path(__file__).with_suffix('.csv'))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(arguments, Path(folder))
    write(arguments.out, [{k: f'{v:.3f}' if isinstance(v, float) else v for k, v in row.items()} for row in rows])
    print(summary(rows))
    for name, (value, limit) in bounds(rows).items():
        print(f'{name}: {value:.2f} s, at most {limit} s: {"kept" if value < limit else "BROKEN"}')
    return int(any(value >= limit for value, limit in bounds(rows).values()))


if __name__ == '__main__':
    raise SystemExit(main())
