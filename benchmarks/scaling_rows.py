"""Rows by the million: seconds and memory of reading, tokenising, caching, set-up, evaluation, prediction and export.

    python benchmarks/scaling_rows.py [--rows 10000 100000 1000000] [--ranks 1 2] [--device cuda]

Short texts without labels, a handful with, a BERT of random weights (2 layers, width 32), each size in processes of its
own. Of each stage: seconds, processor seconds with all threads, and by how many bytes a row the memory rose above what
the process held before its first stage. `own` is anonymous memory, `machine` has the pages of mapped files too,
which the system takes back when it wants room (PSS: of a page that several map, each counts its share). Of several
ranks the highest of each are added up, which is more than they ever held at once. The exponent of a growth is the slope
of log y over log x through all sizes of 10,000 rows and more: 1 is linear.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

WORDS = ('arrived', 'late', 'but', 'it', 'works', 'broke', 'on', 'the', 'second', 'day', 'never', 'again', 'fine')
STAGES = ('reading', 'tokenising', 'caching', 'set-up', 'evaluation', 'prediction', 'export')
PER_MILLION = ('s', 'CPU s', 'own MB', 'machine MB')
HEADER = ('stage', 'ranks', *(f'{what} / 1e6 rows' for what in PER_MILLION), 'exponent of CPU s')


def memory(process: int | str = 'self') -> tuple[int, int]:
    """Anonymous and proportional memory now, bytes; OSError or KeyError of a process that has ended."""
    text = Path(f'/proc/{process}/smaps_rollup').read_text(encoding='utf-8')
    sizes = {name: int(size) for name, size in re.findall(r'^(\w+): +(\d+) kB', text, re.MULTILINE)}
    return sizes['Anonymous'] * 1024, sizes['Pss'] * 1024


class Memory:
    """The highest anonymous and proportional memory of this process, looked at 20 times a second."""

    def __init__(self) -> None:
        self.highest = [0, 0]
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            self.look()
            time.sleep(0.05)

    def look(self) -> tuple[int, int]:
        now = memory()
        self.highest = [max(pair) for pair in zip(self.highest, now, strict=True)]
        return now


def text_of(i: int) -> str:
    return ' '.join(WORDS[(i * 7 + k) % len(WORDS)] for k in range(5 + i % 11)) + f' {i}'


def make_files(folder: Path, rows: int) -> None:
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    with (folder / 'more.txt').open('w') as file:
        file.writelines(f'{text_of(i)}\n' for i in range(rows))
    for name, count in (('train', 200), ('dev', 100)):
        lines = (f'{name} {text_of(i)},{"ab"[i % 2]}\n' for i in range(count))
        (folder / f'{name}.csv').write_text('text,label\n' + ''.join(lines))
    digits = [f'{"##" * inside}{digit}' for inside in (0, 1) for digit in range(10)]
    vocabulary = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', *WORDS, *digits]
    (folder / 'vocab.txt').write_text('\n'.join(vocabulary))
    tokenizer = BertTokenizerFast(str(folder / 'vocab.txt'), model_max_length=32)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        label2id={'a': 0, 'b': 1},
        id2label={0: 'a', 1: 'b'},
    )
    BertForSequenceClassification(config).save_pretrained(folder / 'model')
    tokenizer.save_pretrained(folder / 'model')


class Enough(Exception):
    """The last stage is over."""


def measure(folder: Path, rows: int, device_name: str, last: str) -> None:
    """Be one rank: go through the stages, and write what each took.

    Raises:
        Enough: After the last stage.
    """
    from composer.core import Precision
    from composer.models import HuggingFaceModel
    from composer.utils import dist
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from composer_cmi.data.batches import Collator, eval_dataloader, train_dataloader
    from composer_cmi.data.encoding import tokenize
    from composer_cmi.data.rows.machine import shared, taking_turns
    from composer_cmi.data.task_data import concatenate, load_task_data
    from composer_cmi.exchange.predict import predict
    from composer_cmi.features import FeatureReader
    from composer_cmi.run.evaluate import evaluate
    from composer_cmi.run.outputs.export import sample_of
    from composer_cmi.run.outputs.files import write_predictions
    from composer_cmi.run.ranks import start_device
    from composer_cmi.teachers.forward import inputs_fingerprint, open_or_pass, run_teacher
    from composer_cmi.teachers.logit_cache import CacheKey, LogitCache
    from composer_cmi.teachers.teacher import load_teacher

    device = start_device(device_name)
    rank, found, memory = dist.get_global_rank(), {}, Memory()
    source = folder / 'model'
    teacher, tokenizer = load_teacher(str(source)), AutoTokenizer.from_pretrained(source)
    model = HuggingFaceModel(AutoModelForSequenceClassification.from_pretrained(source), tokenizer, use_logits=True)
    device.module_to_device(model)
    teacher.to(next(model.parameters()).device)
    collate, section = Collator(tokenizer), SimpleNamespace(path=str(folder), unlabelled=str(folder / 'more.txt'))
    begun_with = memory.look()

    @contextmanager
    def stage(name: str) -> Iterator[None]:
        dist.barrier()
        memory.highest = [0, 0]
        wall, used = time.perf_counter(), time.process_time()
        yield
        memory.look()
        risen = [high - before for high, before in zip(memory.highest, begun_with, strict=True)]
        found[name] = [time.perf_counter() - wall, time.process_time() - used, *risen]
        (folder / f'found{rank}.json').write_text(json.dumps(found))
        if name == last:
            raise Enough

    def encode(split: Any) -> Any:
        return tokenize(split, tokenizer, max_length=32, cache_dir=folder / 'tokens')

    with stage('reading'):
        data = shared(lambda: load_task_data('custom', section))
    assert data.unlabelled is not None and len(data.unlabelled) == rows
    with stage('tokenising'):
        encoded = encode(concatenate(data.train, data.unlabelled))
    with stage('caching'), taking_turns():
        key = CacheKey(teacher.fingerprint, inputs_fingerprint(encoded, collate))

        def run(kept: Any) -> Any:
            return run_teacher(teacher, encoded, collate, batch_size=128, kept=kept)

        table: LogitCache | None = open_or_pass(folder / 'logits', key, run, batch_size=128, label_names=('a', 'b'))
    del encoded, table
    with stage('set-up'):
        encoded = encode(concatenate(data.train, data.unlabelled))
        table = LogitCache.open(folder / 'logits' / f'{key.digest()}.safetensors', key)
        loader = train_dataloader(encoded, tokenizer, batch_size=32, seed=0)
        batch = next(iter(loader.dataloader))
        table.lookup(batch['example_id'])
    with stage('evaluation'):
        answered = evaluate(
            model,
            FeatureReader(model),
            eval_dataloader(encoded, tokenizer, batch_size=128),
            device=device,
            precision=Precision.FP32,
        )
    if rank == 0:
        with stage_of_one(stage, 'prediction', dist):
            predict(source, folder / 'more.txt', folder / 'out.csv', batch_size=128)
        with stage_of_one(stage, 'export', dist):
            sample_of(concatenate(data.train, data.unlabelled), answered)
            write_predictions(folder / 'predictions.csv', answered)
    dist.barrier()


@contextmanager
def stage_of_one(stage: Callable[[str], Any], name: str, dist: Any) -> Iterator[None]:
    """A stage that rank 0 goes through alone."""
    barrier, dist.barrier = dist.barrier, lambda: None
    try:
        with stage(name):
            yield
    finally:
        dist.barrier = barrier


def exponent(sizes: list[int], values: list[float]) -> float:
    """The slope of log y over log x; NaN with fewer than two sizes or with values that are not positive."""
    if len(sizes) < 2 or min(values) <= 0:
        return math.nan
    x, y = [math.log(size) for size in sizes], [math.log(value) for value in values]
    middle_x, middle_y = sum(x) / len(x), sum(y) / len(y)
    above = sum((a - middle_x) * (b - middle_y) for a, b in zip(x, y, strict=True))
    return above / sum((a - middle_x) ** 2 for a in x)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rows', type=int, nargs='+', default=[10_000, 100_000, 1_000_000])
    parser.add_argument('--ranks', type=int, nargs='+', default=[1])
    parser.add_argument('--last', choices=STAGES, default=STAGES[-1], help='the last stage to go through')
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--out', type=Path, default=Path(__file__).with_suffix('.csv'))
    parser.add_argument('--measure', type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure is not None:
        with contextlib.suppress(Enough):
            measure(options.measure, options.rows[0], options.device, options.last)
        return
    from measuring import facts, table, write  # pyright: ignore[reportMissingImports]

    env = {**os.environ, 'OMP_NUM_THREADS': str(options.threads), 'TQDM_DISABLE': '1'}
    for ranks in options.ranks:
        lines = []
        for rows in options.rows:
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                make_files(folder, rows)
                command = [sys.executable]
                if ranks > 1:
                    command += ['-m', 'composer.cli.launcher', '-n', str(ranks)]
                command += [__file__, '--measure', name, '--rows', str(rows)]
                command += ['--device', options.device, '--last', options.last]
                subprocess.run(command, env=env, check=True)
                found = [json.loads((folder / f'found{rank}.json').read_text()) for rank in range(ranks)]
            for stage in STAGES[: STAGES.index(options.last) + 1]:
                parts = [each[stage] for each in found if stage in each]
                seconds, used, own, machine = (sum(column) for column in zip(*parts, strict=True))
                line = {'stage': stage, 'rows': rows, 'ranks': ranks, 'seconds': round(seconds / len(parts), 3)}
                line |= {'processor_seconds': round(used, 3), 'own_bytes': own, 'machine_bytes': machine}
                lines.append(line)
                print(json.dumps(line), flush=True)
        write(options.out, [{**line, **facts(options.device, options.threads)} for line in lines], more=True)
        print(table(HEADER, shown(lines)))


def shown(lines: list[dict[str, Any]]) -> Iterator[list[str]]:
    """A line a stage: what it takes at the largest size, and how its processor seconds grow."""
    for stage in dict.fromkeys(line['stage'] for line in lines):
        own = [line for line in lines if line['stage'] == stage]
        last, millions = own[-1], own[-1]['rows'] / 1e6
        grown = [line for line in own if line['rows'] >= 10_000]
        slope = exponent([line['rows'] for line in grown], [line['processor_seconds'] for line in grown])
        yield [
            stage,
            str(last['ranks']),
            f'{last["seconds"] / millions:.1f}',
            f'{last["processor_seconds"] / millions:.1f}',
            f'{last["own_bytes"] / 1e6 / millions:.0f}',
            f'{last["machine_bytes"] / 1e6 / millions:.0f}',
            f'{slope:.2f}',
        ]


if __name__ == '__main__':
    main()
