"""One job for several programs, each a process of its own: prepared once, run in turns, told in one table."""

from __future__ import annotations

import argparse
import csv
import importlib.util
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from job import Job
from measuring import Ended, cores, facts, run, spread, table, turns

HERE = Path(__file__).parent
TASKS = ('trec', 'bbc_headlines')
Command = Callable[[int], list[str]]
"""Of a repeat."""


def parser(description: str | None, script: str) -> argparse.ArgumentParser:
    """With the options that all contests have."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument('--task', choices=TASKS, default='trec')
    made.add_argument('--rows', type=int, default=1600, help='to train on')
    made.add_argument('--eval-rows', type=int, default=1000)
    made.add_argument('--batch', type=int, default=32)
    made.add_argument('--max-length', type=int, default=128, help='what run_glue pads every row to')
    made.add_argument('--model', help='a Hugging Face folder; by default the embedded MiniLM-L6')
    made.add_argument('--repeats', type=int, default=5)
    made.add_argument('--threads', type=int, default=cores())
    made.add_argument('--device', default='cpu', choices=('cpu', 'cuda'))
    made.add_argument('--out', type=Path, default=Path(script).with_suffix('.csv'))
    made.add_argument('--more', action='store_true', help='add to the CSV that is there')
    return made


def prepare(folder: Path, arguments: argparse.Namespace, *, steps: int, lr: float, **values: Any) -> Job:
    """Write the rows as CSV files, and choose the batches of each step as our runs choose them."""
    from transformers import AutoTokenizer

    from composer_cmi.data.batches import TrainSampler
    from composer_cmi.data.task_data import load_task_data
    from composer_cmi.run.config.schema import DataConfig
    from composer_cmi.run.models import embedded_minilm

    if arguments.task == 'trec':
        spec = importlib.util.spec_from_file_location('text_tasks', HERE.parent / 'studies' / 'text_tasks.py')
        assert spec is not None and spec.loader is not None
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    data = load_task_data(arguments.task, DataConfig(train_rows=arguments.rows, eval_rows=arguments.eval_rows))
    folder.mkdir(parents=True, exist_ok=True)
    for split, part in (('train', data.train), ('dev', data.eval_splits['dev'])):
        with (folder / f'{split}.csv').open('w', newline='', encoding='utf-8') as file:
            writer = csv.writer(file)
            writer.writerow(['text', 'label'])
            labels = [data.label_names[label] for label in part.labels]
            writer.writerows(zip(part.texts[0], labels, strict=True))
    model = arguments.model or str(embedded_minilm(data.label_names))
    names = [*data.label_names]
    columns: dict[str, Any] = {'text_columns': ['text'], 'label_column': 'label', 'labels': names}
    own = load_task_data('custom', DataConfig(path=str(folder), **columns)).train  # its ids are the rows of the file
    tokenizer = AutoTokenizer.from_pretrained(model)
    ids = tokenizer([*own.texts[0]], truncation=True, max_length=arguments.max_length)['input_ids']
    lengths = np.array([len(each) for each in ids])
    sampler = TrainSampler(lengths, arguments.batch, 17, num_replicas=1, rank=0)
    batches: list[list[int]] = []
    while len(batches) < steps:
        sampler.set_epoch(len(batches) // sampler.num_batches)
        batches += own.example_ids[sampler.global_batches()].tolist()
    job = Job(
        folder=str(folder),
        out=str(folder / 'stamps.json'),
        model=model,
        label_names=names,
        batches=batches[:steps],
        batch_size=arguments.batch,
        lr=lr,
        max_length=arguments.max_length,
        seed=17,
        device=arguments.device,
        precision='bf16' if arguments.device == 'cuda' else 'fp32',
        **values,
    )
    job.write(folder / 'job.json')
    return job


def program(name: str, script: str, job: Job, python: str = sys.executable) -> Command:
    """A contender of one of our files."""
    return lambda repeat: [python, str(HERE / script), name, f'{job.folder}/job.json']


def ours(name: str, job: Job, algorithms: Mapping[str, Any], **train: Any) -> Command:
    """`python -m composer_cmi FILE.yaml`, in a run folder of its own each time."""
    settings = {
        'task': 'custom',
        'output_dir': f'{job.folder}/runs',
        'seed': job.seed,
        'model': {'name_or_path': job.model, **({'keep_layers': job.keep_layers} if job.keep_layers else {})},
        'data': {'path': job.folder, 'text_columns': ['text'], 'label_column': 'label', 'labels': job.label_names,
                 'max_length': job.max_length, 'metrics': ['accuracy']},
        'train': {'max_duration': f'{job.steps}ba', 'batch_size': job.batch_size, 'eval_interval': '0ba',
                  'progress_bar': False, 'device': 'gpu' if job.device == 'cuda' else 'cpu', **train},
        'optimizer': {'lr': job.lr},
        'algorithms': {**algorithms},
    }  # fmt: skip

    def command(repeat: int) -> list[str]:
        path = Path(job.folder, f'{name}.yaml')
        written = json.dumps({**settings, 'run_name': f'{name}-{repeat}'}).replace('{repeat}', str(repeat))
        path.write_text(yaml.safe_dump(json.loads(written)), encoding='utf-8')
        return [sys.executable, '-m', 'composer_cmi', str(path)]

    return command


def told(job: Job, command: list[str], ended: Ended) -> dict[str, Any]:
    """What a contender says of itself; of a run, what stands in its results."""
    if Path(job.out).is_file():
        return json.loads(Path(job.out).read_text(encoding='utf-8'))
    name = yaml.safe_load(Path(command[-1]).read_text(encoding='utf-8'))['run_name']
    results = json.loads(Path(job.folder, 'runs', name, 'results.json').read_text(encoding='utf-8'))
    timing, accuracy = results['timing'], results['scores']['dev']['accuracy']
    begun = ended.begun + timing['before_seconds']
    return {'begun': begun, 'ended': begun + timing['train_seconds'], 'accuracy': accuracy}


def row(name: str, repeat: int, job: Job, command: list[str], ended: Ended) -> dict[str, Any]:
    """One measurement; of a contender that failed, what it said last."""
    own: dict[str, Any] = {'contender': name, 'repeat': repeat, 'steps': job.steps, 'batch': job.batch_size}
    if ended.code:
        said = [line.strip() for line in ended.output.splitlines() if line.strip()]
        return {**own, 'failed': (said or ['nothing'])[-1][:300]}
    stamps = told(job, command, ended)
    training = stamps['ended'] - stamps['begun']
    return {
        **own,
        'precision': job.precision,
        'seconds_before': f'{stamps["begun"] - ended.begun:.3f}',
        'seconds_training': f'{training:.3f}',
        'seconds_after': f'{ended.ended - stamps["ended"]:.3f}',
        'seconds_whole': f'{ended.seconds:.3f}',
        'examples_per_second': f'{job.steps * job.batch_size / training:.1f}',
        'processor_seconds': f'{ended.processor_seconds:.2f}',
        'peak_mib': f'{ended.peak_mib:.0f}',
        'device_peak_mib': stamps.get('device_peak_mib', ''),
        'accuracy': f'{stamps["accuracy"]:.4f}',
        'failed': '',
    }


def contest(job: Job, contenders: Mapping[str, Command], arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Run each contender in turns; one that fails is told, and left out from then on."""
    rows, left = [], dict(contenders)
    for repeat in range(-1, arguments.repeats):  # -1 is for nothing: files are read and compiled
        for name in turns(contenders, repeat):
            if name not in left or (repeat < 0 and arguments.repeats < 2):
                continue
            Path(job.out).unlink(missing_ok=True)
            command = left[name](repeat)
            ended = run(command, arguments.threads)
            found = row(name, repeat, job, command, ended)
            took = f'{ended.seconds:.1f} s' if not found['failed'] else f'failed: {found["failed"]}'
            print(f'{name}, {"warm-up" if repeat < 0 else f"repeat {repeat + 1}"}: {took}', flush=True)
            if found['failed']:
                del left[name]
            if repeat >= 0 or found['failed']:
                rows.append({**found, **facts(arguments.device, arguments.threads)})
    return rows


def summary(rows: Sequence[Mapping[str, Any]], base: str) -> str:
    """A line for each contender; ratios are paired with `base` within a repeat."""
    lines = []
    for name in dict.fromkeys(row['contender'] for row in rows):
        own = {row['repeat']: row for row in rows if row['contender'] == name and not row['failed']}
        other = {row['repeat']: row for row in rows if row['contender'] == base and not row['failed']}
        if not own:
            lines.append([name, *['-'] * 8])
            continue

        def ratio(column: str, own: Any = own, other: Any = other) -> list[float]:
            return [float(own[i][column]) / float(other[i][column]) for i in own if i in other]

        def values(column: str, own: Any = own) -> list[float]:
            return [float(row[column]) for row in own.values()]

        columns = ('seconds_training', 'seconds_whole', 'seconds_before', 'seconds_after')
        training, whole, before, after = (spread(values(column), '.1f') for column in columns)
        lines.append([
            name, training, spread(ratio('seconds_training')), spread(values('examples_per_second'), '.0f'), whole,
            spread(ratio('seconds_whole')), f'{before}; {after}', spread(values('peak_mib'), '.0f'),
            spread(values('accuracy'), '.3f'),
        ])  # fmt: skip
    header = ['contender', 'training, s', f'over {base}', 'examples/s', 'whole process, s', f'over {base}']
    return table([*header, 'before; after training, s', 'peak, MiB', 'accuracy'], lines)
