"""The speed scripts do what their tables say: the smallest setting of each, and nothing about how long it took."""

from __future__ import annotations

import argparse
import csv
import importlib
import json
import re
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from composer_cmi.data import batches
from composer_cmi.data.task_data import load_task_data
from composer_cmi.run.config import load_config
from composer_cmi.run.train import train_run
from run_tools import make_model

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / 'benchmarks'))

import contenders  # noqa: E402
import contest  # noqa: E402
import distillation  # noqa: E402
import distillers  # noqa: E402
import measuring  # noqa: E402
import overhead  # noqa: E402
import scaling  # noqa: E402
import startup  # noqa: E402
import throughput  # noqa: E402

SCRIPTS = ('throughput', 'distillation', 'overhead', 'scaling', 'startup')


@pytest.fixture
def job(tmp_path):
    """Two steps of a tiny BERT on headlines, which is its own teacher."""
    model = str(make_model(tmp_path / 'tiny'))
    options = ['--task', 'bbc_headlines', '--rows', '16', '--eval-rows', '8', '--batch', '8', '--model', model]
    arguments = contest.parser('', 'x.py').parse_args([*options, '--max-length', '16', '--repeats', '1'])
    teacher = contest.prepare(tmp_path / 'teacher', arguments, steps=1, lr=1e-3)
    contenders.CONTENDERS['plain'](teacher, str(tmp_path / 'trained'))
    layers = {'keep_layers': [1], 'teacher': str(tmp_path / 'trained')}
    return contest.prepare(tmp_path / 'job', arguments, steps=3, lr=1e-3, **layers)


@pytest.mark.parametrize('name', SCRIPTS)
def test_every_script_says_what_it_measures_and_takes_a_device(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', [f'{name}.py', '--help'])
    with pytest.raises(SystemExit, match='0'):
        importlib.import_module(name).main()
    shown = capsys.readouterr().out
    assert f'benchmarks/{name}.py' in shown and '--device {cpu,cuda}' in shown and '--repeats' in shown


def test_all_contenders_train_on_the_same_batches_and_those_without_a_sampler_of_their_own_give_the_same_model(
    job, tmp_path
):
    found = {}
    for module in (contenders.CONTENDERS, distillers.DISTILLERS):
        for name, work in module.items():
            if name in distillation.PEERS and find_spec(name) is None:
                continue
            folder = tmp_path / f'{name}{len(found)}'
            Path(job.out).unlink(missing_ok=True)
            work(job, str(folder))
            stamps = json.loads(Path(job.out).read_text())
            assert 0 < stamps['begun'] < stamps['ended'] and 0 <= stamps['accuracy'] <= 1, name
            found[name if module is contenders.CONTENDERS else f'distils {name}'] = folder
    weights = {name: load_file(folder / 'model.safetensors') for name, folder in found.items()}
    for one, other in (('plain', 'composer'), ('distils plain-live', 'distils plain-cached')):
        for key, value in weights[one].items():
            torch.testing.assert_close(weights[other][key], value, atol=1e-6, rtol=1e-5)
    assert (weights['plain']['classifier.weight'] - weights['distils plain-live']['classifier.weight']).abs().max() > 0


def test_a_run_of_ours_takes_the_batches_of_the_plain_loop_and_notes_when_it_trained(job, tmp_path, monkeypatch):
    seen: list[list[int]] = []
    original = batches.Collator.__call__

    def collate(self, rows):
        seen.append([int(row['example_id']) for row in rows])
        return original(self, rows)

    monkeypatch.setattr(batches.Collator, '__call__', collate)
    monkeypatch.syspath_prepend(str(ROOT / 'benchmarks'))
    distil = {'teacher': job.teacher, 'cache': f'{job.folder}/logits-{{repeat}}', 'allow_weak_teacher': True}
    command = contest.ours('ours', job, {'knowledge_distillation': distil})(4)
    config = load_config(command[-1])
    train = load_task_data(config.task, config.data).train
    train_run(config)
    assert Path(job.folder, 'logits-4').is_dir()
    text_of = dict(zip(train.example_ids.tolist(), train.texts[0], strict=True))
    texts, _ = job.rows('train')
    wanted = [[texts[i] for i in numbers] for numbers in job.batches]
    steps = [[text_of.get(i) for i in ids] for ids in seen]
    assert [step for step in steps if step in wanted][-job.steps :] == wanted
    ended = measuring.Ended(0, 0.0, 1e12, 1.0, 1.0, '')
    row = contest.row('ours', 0, job, command, ended)
    assert float(row['seconds_training']) > 0 and 0 <= float(row['accuracy']) <= 1 and not row['failed']


def test_a_contest_runs_in_turns_and_says_what_failed(job, tmp_path, capsys):
    write = f'import json; json.dump({{"begun": 1, "ended": 3, "accuracy": 0.5}}, open({job.out!r}, "w"))'
    contestants = {
        'good': lambda repeat: [sys.executable, '-c', write],
        'bad': lambda repeat: [sys.executable, '-c', 'raise SystemExit("no such thing")'],
    }
    arguments = argparse.Namespace(repeats=2, threads=1, device='cpu')
    rows = contest.contest(job, contestants, arguments)
    assert [(row['contender'], row['repeat'], row['failed']) for row in rows] == [
        ('bad', -1, 'no such thing'),
        ('good', 0, ''),
        ('good', 1, ''),
    ]
    assert rows[1]['seconds_training'] == '2.000' and rows[1]['examples_per_second'] == '12.0'
    assert 'bad, warm-up: failed: no such thing' in capsys.readouterr().out
    shown = contest.summary(rows, 'good')
    assert '| good | 2.0 (2.0 .. 2.0) | 1.00 (1.00 .. 1.00) | 12 (12 .. 12) |' in shown and '| bad | - |' in shown
    measuring.write(tmp_path / 'rows.csv', rows)
    measuring.write(tmp_path / 'rows.csv', rows[:1], more=True)
    with (tmp_path / 'rows.csv').open(newline='') as file:
        read = [*csv.DictReader(file)]
    assert len(read) == 4 and all(row['command'] and row['torch'] and row['threads'] == '1' for row in read)


def test_a_peer_that_is_not_there_is_named():
    assert distillation.missing(['txtai', 'trainer'], '/bin/true') == []
    assert distillation.missing(['txtai', 'trainer', 'torchdistill'], '/bin/false') == ['txtai', 'torchdistill']
    job_names = {*throughput.OURS, *contenders.CONTENDERS}
    assert {'ours-compile', 'ours-bf16', 'trainer', 'trainer-dynamic', 'plain', 'composer'} <= job_names


def test_the_term_has_no_loop_over_classes_no_host_sync_and_bytes_that_are_linear(monkeypatch):
    sizes = {'classes': (500, 2000), 'width': (512, 2048), 'batch': (128, 512)}
    monkeypatch.setattr(scaling, 'SIZES', sizes)
    arguments = argparse.Namespace(
        forms=[*scaling.FORMS], grow=[*sizes], largest=10_000, classes=5, width=64, batch=8, repeats=1, steps=1
    )
    monkeypatch.setattr(scaling, 'WARM_UP', 1)
    rows = scaling.measure(arguments, torch.device('cpu'), ranks=1)
    assert len(rows) == len(scaling.FORMS) * 6
    for form in scaling.FORMS:
        for grown, values in sizes.items():
            own = [row for row in rows if (row['form'], row['grown']) == (form, grown)]
            own.sort(key=lambda row: row[grown])
            assert len({row['operators'] for row in own}) == 1 and not any(row['host_syncs'] for row in own), form
            assert all(row['bytes'] >= row['floor'] for row in own if form != 'measure'), form
            assert scaling.exponent([*values], [row['bytes'] for row in own]) <= 1.1, (form, grown)
    assert scaling.exponent([1, 10, 100], [7.0, 70.0, 700.0]) == pytest.approx(1)
    assert '| contrastive | classes | 500 .. 2,000 | 1 |' in scaling.summary(rows)


@pytest.mark.filterwarnings('ignore:.*(resumes at batch|was never added):UserWarning')
def test_no_term_of_the_library_reads_the_device_in_a_step(monkeypatch):
    monkeypatch.setitem(overhead.SHAPES, 'tiny', (16, 1, 2))
    monkeypatch.setattr(overhead, 'WARM_UP', 1)
    arguments = argparse.Namespace(device='cpu', kinds=overhead.KINDS, repeats=1, steps=1)
    rows = overhead.measure('tiny', 'headlines', 32, arguments)
    counted = {row['kind']: row for row in rows}
    assert [*counted] == overhead.KINDS
    syncs = {kind: row['host_syncs'] - counted['plain']['host_syncs'] for kind, row in counted.items()}
    # On a CPU an unknown id is refused at once, which reads one value there and waits for nothing. A second forward, of
    # the teacher or for R-Drop, reads what transformers reads in each: whether the attention mask is all ones.
    cached, forwards = {kind for kind in syncs if kind.startswith('cached')}, {'r-drop', 'online kl'}
    assert {kind for kind, number in syncs.items() if number} <= cached | forwards
    assert all(syncs[kind] <= counted['plain']['host_syncs'] for kind in forwards)
    assert all(row['operators'] > counted['plain']['operators'] for kind, row in counted.items() if kind != 'plain')
    assert all(row['bytes'] > 0 and row['flops'] > 0 for row in rows)
    assert '| contrastive |' in overhead.summary(rows)


def test_a_run_is_timed_before_and_after_its_steps(tmp_path):
    job, command = startup.make_run(tmp_path, 'cpu')
    called = command(0)
    began = time.time()
    results = train_run(load_config(called[-1]), began=began)
    ended = measuring.Ended(0, began, time.time(), 1.0, 1.0, '')
    row = contest.row('ours', 0, job, called, ended)
    before, training, after = (float(row[f'seconds_{part}']) for part in ('before', 'training', 'after'))
    assert before > 0 and after > 0 and training == pytest.approx(results.timing.train_seconds, abs=1e-3)
    assert before + training + after == pytest.approx(float(row['seconds_whole']), abs=2e-3)


def test_the_gpu_script_fits_into_nine_minutes_and_says_that_there_is_no_gpu():
    text = (ROOT / 'benchmarks' / 'gpu.sh').read_text()
    shares = re.findall(r'^share (\d+) (\w+)', text, re.MULTILINE)
    assert {name for _, name in shares} == {*SCRIPTS} and sum(int(seconds) for seconds, _ in shares) <= 520
    if not torch.cuda.is_available():
        environment = {'PATH': '/usr/bin:/bin', 'PYTHON': '/bin/false', 'OUT': '/nonexistent/never'}
        done = subprocess.run(
            ['sh', str(ROOT / 'benchmarks' / 'gpu.sh')], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 1 and 'no CUDA device' in done.stderr
