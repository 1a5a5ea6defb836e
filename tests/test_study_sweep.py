"""The sweep: planning, tuning, skipping, failing, locking, and being killed. Runs are cheap but real processes."""

from __future__ import annotations

import fcntl
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from composer_cmi.run.config import load_config
from composer_cmi.run.errors import ConfigError
from composer_cmi.study.analysis import load_runs
from composer_cmi.study.config import load_study, short_names
from composer_cmi.study.execute import LocalBackend, job_of
from composer_cmi.study.plan import Cell, check_cells, plan_reported, plan_tuning
from composer_cmi.study.progress import clock, time_left
from composer_cmi.study.report import report
from composer_cmi.study.sweep import Summary, choose, sweep

CHEAP = (sys.executable, '-S', '-E', str(Path(__file__).with_name('cheap_run.py')))
BASE = {'task': 'bbc_headlines', 'run_name': 'base', 'model': {'name_or_path': 'embedded:minilm'}}
TWO_ARMS: dict[str, Any] = {
    'name': 'small',
    'base': 'base.yaml',
    'seeds': 3,
    'settings': {'few': {'data.train_rows': 100}, 'many': {'data.train_rows': 300}},
    'arms': {'mincmi': {'algorithms.cmi_regularization': {}}},
}
TUNED: dict[str, Any] = {
    **TWO_ARMS,
    'arms': {
        'ce_tuned': {'tune': {'optimizer.lr': [1e-3, 3e-3, 2e-3]}},
        'mincmi': {'algorithms.cmi_regularization': {}},
        'mincmi_too': {'set': {'algorithms.cmi_regularization': {}}, 'tuned_as': 'ce_tuned'},
    },
}


def write_study(folder: Path, study: dict[str, Any], seconds: float = 0.0, base: dict[str, Any] | None = None) -> Path:
    """A study file, its base, and what the cheap run reads beside them."""
    (folder / 'base.yaml').write_text(yaml.safe_dump(base or BASE))
    (folder / 'seconds').write_text(str(seconds))
    (folder / 'trace').touch()
    (folder / 'resolved.json').write_text(json.dumps(load_config(folder / 'base.yaml').resolved()))
    path = folder / 'study.yaml'
    path.write_text(yaml.safe_dump({'output_dir': str(folder / 'out'), **study}, sort_keys=False))
    return path


def quiet_sweep(path: Path, **options: Any) -> tuple[Summary, str]:
    console = Console(file=(path.parent / 'printed').open('w'), width=200)
    summary = sweep(path, runner=CHEAP, console=console, **options)
    console.file.close()
    return summary, (path.parent / 'printed').read_text()


def events(folder: Path) -> Counter[tuple[str, str]]:
    """How often each run was started and ended."""
    lines = [line.split() for line in (folder / 'trace').read_text().splitlines()]
    return Counter((event, run) for event, _, run in lines)


def test_the_plan_pairs_every_arm_by_seed(tmp_path):
    study = load_study(write_study(tmp_path, TWO_ARMS))
    cells = plan_reported(study, {})
    assert len(cells) == 2 * 2 * 3
    assert list(study.arms) == ['ce', 'mincmi']
    by_pair: dict[tuple[str, int], set[str]] = {}
    for cell in cells:
        config = load_config(study.base, cell.overrides)
        assert config.seed == cell.seed
        assert str(config.folder) == cell.folder
        assert ('cmi_regularization' in config.algorithms) == (cell.arm == 'mincmi')
        others = config.model_copy(update={'algorithms': {}, 'run_name': ''}).model_dump_json()
        by_pair.setdefault((cell.setting, cell.seed), set()).add(others)
    assert [len(settings) for settings in by_pair.values()] == [1] * 6


def test_a_grid_is_an_arm_each_and_a_setting_each(tmp_path):
    grid = {
        'algorithms.cmi_regularization.weight': [0.1, 0.3],
        'algorithms.cmi_regularization.start': ['0dur', '0.3dur'],
    }
    settings = {'s': {'grid': {'data.train_rows': [100, 300]}}}
    study = load_study(write_study(tmp_path, {**TWO_ARMS, 'settings': settings, 'arms': {'mincmi': {'grid': grid}}}))
    cells = plan_reported(study, {})
    check_cells(study, cells)
    assert {cell.setting for cell in cells} == {'s,train_rows=100', 's,train_rows=300'}
    assert len({cell.arm for cell in cells}) == 5
    one = next(cell for cell in cells if cell.arm == 'mincmi,weight=0.3,start=0dur')
    config = load_config(study.base, one.overrides)
    assert config.algorithms == {'cmi_regularization': {'weight': 0.3, 'start': '0dur'}}


def test_short_names_tell_keys_apart():
    assert short_names(['optimizer.lr', 'model.name']) == {'optimizer.lr': 'lr', 'model.name': 'name'}
    assert short_names(['a.x.lr', 'a.y.lr']) == {'a.x.lr': 'x.lr', 'a.y.lr': 'y.lr'}


def test_tuning_reads_a_slice_of_train_only(tmp_path):
    study = load_study(write_study(tmp_path, TUNED))
    cells = plan_tuning(study)
    assert len(cells) == 3 * 2 * 2  # candidates x settings x tuning seeds
    for cell in cells:
        config = load_config(study.base, cell.overrides)
        assert config.data.validation_fraction == 0.2
        assert config.seed in (1000, 1001)
    for cell in plan_reported(study, {(name, 'ce_tuned'): {'optimizer.lr': 1e-3} for name in ('few', 'many')}):
        assert load_config(study.base, cell.overrides).data.validation_fraction is None


def test_sweep_then_again(tmp_path):
    path = write_study(tmp_path, TWO_ARMS)
    summary, printed = quiet_sweep(path, jobs=2)
    assert summary == Summary(0, 12, {})
    assert '[12/12]' in printed
    assert 'time left about' in printed
    assert not (tmp_path / 'out/small/runs/few/ce/seed0/model').exists()  # weights are not kept
    summary, _ = quiet_sweep(path, jobs=2)
    assert summary == Summary(12, 0, {})
    assert set(events(tmp_path).values()) == {1}


def test_more_seeds_add_runs_and_repeat_none(tmp_path):
    path = write_study(tmp_path, TWO_ARMS)
    quiet_sweep(path, jobs=2)
    summary, _ = quiet_sweep(path, jobs=2, overrides=['seeds=4'])
    assert summary == Summary(12, 4, {})
    assert set(events(tmp_path).values()) == {1}


def test_the_tuned_value_is_used_and_everything_tried_is_kept(tmp_path):
    path = write_study(tmp_path, TUNED)
    summary, _ = quiet_sweep(path, jobs=2)
    assert summary == Summary(0, 12 + 24, {})
    chosen = load_study(path)
    values, rows = choose(chosen, plan_tuning(chosen))
    assert values == {(setting, 'ce_tuned'): {'optimizer.lr': 3e-3} for setting in ('few', 'many')}
    assert json.loads((tmp_path / 'out/small/tuning.json').read_text()) == rows
    assert [row['chosen'] for row in rows] == [False, True, False] * 2
    study = load_runs(tmp_path / 'out/small')
    rates = {run.arm: run.results.config['optimizer']['lr'] for run in study.runs}
    assert rates['ce_tuned'] == rates['mincmi_too'] == 3e-3
    assert rates['ce'] == rates['mincmi'] == load_config(chosen.base).optimizer.lr
    assert [pair for pair in study.comparisons if pair[0] == 'ce_tuned'] == [('ce_tuned', 'ce')]
    assert ('mincmi_too', 'ce_tuned') in study.comparisons
    assert 'optimizer.lr=0.003 | chosen' in report(tmp_path / 'out/small')['markdown'].read_text()


def test_a_failed_run_is_reported_and_stops_nobody(tmp_path):
    arms = {'bad': {'optimizer.lr': 0.666}, 'good': {'optimizer.lr': 0.01}}
    path = write_study(tmp_path, {**TWO_ARMS, 'arms': arms, 'seeds': 2})
    summary, printed = quiet_sweep(path)
    assert summary.done == 8
    assert len(summary.failed) == 4
    assert set(summary.failed.values()) == {'exit code 1: composer-cmi: this learning rate is cursed.'}
    assert 'FAILED (exit code 1' in printed
    assert 'NOT FINISHED: 4 planned runs' in report(tmp_path / 'out/small')['markdown'].read_text()
    quiet_sweep(path)
    assert events(tmp_path)['start', 'runs/few/bad/seed0'] == 2  # tried again
    assert events(tmp_path)['start', 'runs/few/good/seed0'] == 1


def test_a_student_waits_for_its_teacher(tmp_path):
    arms = {'student': {'model.name_or_path': 'arm:teacher'}, 'teacher': {'optimizer.lr': 0.01}}
    path = write_study(tmp_path, {**TWO_ARMS, 'arms': arms, 'seeds': 2})
    summary, _ = quiet_sweep(path, jobs=4)
    assert summary == Summary(0, 12, {})
    order = [line.split()[2] for line in (tmp_path / 'trace').read_text().splitlines() if line.startswith('start')]
    for setting in ('few', 'many'):
        for seed in (0, 1):
            student, master = (order.index(f'runs/{setting}/{arm}/seed{seed}') for arm in ('student', 'teacher'))
            assert master < student
    arms['teacher'] = {'optimizer.lr': 0.666}
    summary, _ = quiet_sweep(write_study(tmp_path, {**TWO_ARMS, 'name': 'other', 'arms': arms, 'seeds': 1}))
    assert Counter(summary.failed.values())['a run that it needs has failed'] == 2


def test_a_run_that_another_process_is_at_is_waited_for(tmp_path):
    path = write_study(tmp_path, {**TWO_ARMS, 'seeds': 1, 'settings': {'few': {}}})
    folder = tmp_path / 'out/small/runs/few/ce/seed0'
    folder.parent.mkdir(parents=True)
    code = f'import fcntl, time\nf = open({f"{folder}.lock"!r}, "w")\nfcntl.flock(f, fcntl.LOCK_EX)\n'
    code += 'print("held", flush=True)\ntime.sleep(60)'
    holder = subprocess.Popen([sys.executable, '-S', '-c', code], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    holder.stdout.readline()
    seen: list[Counter[tuple[str, str]]] = []

    def let_go() -> None:
        _wait_for(lambda: ('end', 'runs/few/mincmi/seed0') in events(tmp_path), 60)
        time.sleep(0.5)
        seen.append(events(tmp_path))
        holder.kill()
        holder.wait()

    thread = threading.Thread(target=let_go)
    thread.start()
    try:
        summary, _ = quiet_sweep(path)
    finally:
        thread.join()
        holder.kill()
    assert summary == Summary(0, 2, {})
    assert ('start', 'runs/few/ce/seed0') not in seen[0]
    assert set(events(tmp_path).values()) == {1}


@pytest.mark.parametrize('kills', [1, pytest.param(8, marks=pytest.mark.slow)])
def test_a_killed_sweep_loses_nothing_and_does_nothing_twice(tmp_path, kills):
    """The sweep is killed at random moments, on every second one its runs too; then it is started again."""
    path = write_study(tmp_path, TUNED, seconds=0.3)
    code = f'import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n'
    code += (
        f'from test_study_sweep import quiet_sweep; from pathlib import Path; quiet_sweep(Path({str(path)!r}), jobs=3)'
    )
    generator = random.Random(kills)
    survived_by_runs = False
    for kill in range(kills):
        begun = sum(events(tmp_path).values())
        process = subprocess.Popen([sys.executable, '-c', code])
        wanted = begun + generator.randint(1, 56 // kills)  # of 72 starts and ends
        _wait_for(lambda wanted=wanted: sum(events(tmp_path).values()) >= wanted, 120)
        time.sleep(generator.random() * 0.5)
        process.send_signal(signal.SIGKILL)
        process.wait()
        survived_by_runs |= kill % 2 == 0
        if kill % 2:
            _kill_open_runs(tmp_path)
    summary, _ = quiet_sweep(path, jobs=3)
    assert not summary.failed
    counted = events(tmp_path)
    planned = {run for event, run in counted if event == 'start'}
    assert len(planned) == 36
    assert {run for event, run in counted if event == 'end'} == planned
    assert max(count for (event, _), count in counted.items() if event == 'end') == 1
    assert survived_by_runs
    undisturbed = tmp_path / 'undisturbed'
    undisturbed.mkdir()
    quiet_sweep(write_study(undisturbed, TUNED), jobs=3)
    tables = [report(folder / 'out/small')['comparisons'].read_text() for folder in (tmp_path, undisturbed)]
    assert tables[0] == tables[1]


def _kill_open_runs(folder: Path) -> None:
    lines = [line.split() for line in (folder / 'trace').read_text().splitlines()]
    ended = {pid for event, pid, _ in lines if event == 'end'}
    for pid in {pid for event, pid, _ in lines if event == 'start'} - ended:
        command = Path(f'/proc/{pid}/cmdline')
        if command.exists() and b'cheap_run.py' in command.read_bytes():
            os.kill(int(pid), signal.SIGKILL)


def _wait_for(condition: Any, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, 'waited in vain'
        time.sleep(0.02)


def test_the_lock_is_held_by_the_run_itself(tmp_path):
    study = load_study(write_study(tmp_path, TWO_ARMS, seconds=30))
    cell = plan_reported(study, {})[0]
    backend = LocalBackend(1)
    backend.submit(job_of(cell, study.base, 1, CHEAP))
    try:
        with Path(f'{cell.folder}.lock').open('w') as lock, pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # this process has closed its own descriptor of it
        assert backend.free() == 0
        assert backend.poll() == []
    finally:
        backend.stop()
    with Path(f'{cell.folder}.lock').open('w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_time_left():
    cells = [Cell('s', arm, seed, f'{arm}{seed}', ()) for arm in ('a', 'b') for seed in range(4)]
    assert time_left(cells, {}, 2) is None
    # a takes 10 s, b is unknown and takes the mean of all: (4 * 10 + 4 * 10) / 2
    assert time_left(cells, {('s', 'a'): [8.0, 12.0]}, 2) == pytest.approx(40.0)
    assert time_left(cells[:1], {('s', 'a'): [10.0]}, 8) == pytest.approx(10.0)
    assert (clock(62.4), clock(3723)) == ('01:02', '1:02:03')


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'seeds': []}, 'seeds'),
        ({'seeds': [1, 1]}, 'stands twice'),
        ({'sedes': 3}, "unknown key 'sedes'.*seeds"),
        ({'arms': {'x': {'sets': {}, 'grid': {}}}}, "unknown key 'arms.x.sets'"),
        ({'arms': {'x': {'seed': 3}}}, "arms.x sets 'seed'.*paired"),
        ({'arms': {'x/y': {}}}, "'x/y' becomes a folder"),
        ({'arms': {'x': {'optimizer.lrr': 1}}}, 'optimizer.lrr'),
        ({'arms': {'x': {'algorithms.cmi_regularisation': {}}}}, 'cmi_regulari'),
        ({'arms': {'ce': {'algorithms.cmi_regularization': {}}}}, "'ce' must be plain cross-entropy"),
        ({'arms': {'x': {'grid': {'optimizer.lr': [1]}, 'tune': {'optimizer.lr': [1]}}}}, 'one of grid, tune'),
        ({'arms': {'x': {'tuned_as': 'y'}}}, "names 'y'"),
        ({'arms': {'x': {'model.name_or_path': 'arm:z'}}}, "'arm:z' names no arm"),
        ({'arms': {'x': {}}, 'comparisons': [['x', 'z']]}, "no arm 'z'"),
        ({'arms': {'x': {'tune': {'optimizer.lr': [1e-3]}}}, 'seeds': [1000]}, 'among the reported seeds'),
        (
            {'arms': {'x': {'tune': {'optimizer.lr': [1e-3]}}, 'y': {'tune': {'optimizer.lr': [1e-3, 1e-4]}}}},
            'same number of tries',
        ),
        (
            {'arms': {'x': {'set': {'algorithms.cmi_regularization': {}}, 'tune': {'optimizer.lr': [1e-3]}}}},
            'Only x would be tuned: tune a plain cross-entropy arm',
        ),
        ({'base': 'absent.yaml'}, "no file '.*absent.yaml'"),
    ],
)
def test_a_study_that_cannot_be_run_is_refused_in_a_sentence(tmp_path, changes, message):
    path = write_study(tmp_path, {**TWO_ARMS, **changes})
    with pytest.raises(ConfigError, match=message) as caught:
        quiet_sweep(path)
    assert '\n' not in str(caught.value)
    assert not events(tmp_path)


def test_a_base_with_cmi_or_arms_is_refused(tmp_path):
    path = write_study(tmp_path, TWO_ARMS, base={**BASE, 'algorithms': {'cmi_regularization': {}}})
    with pytest.raises(ConfigError, match="'ce' must be plain"):
        quiet_sweep(path)
    path = write_study(tmp_path, TWO_ARMS, base={**BASE, 'arms': {'a': {}}})
    with pytest.raises(ConfigError, match='has arms of its own'):
        quiet_sweep(path)
    with pytest.raises(ConfigError, match='jobs must be at least 1'):
        quiet_sweep(write_study(tmp_path, TWO_ARMS), jobs=0)


def test_tuning_on_reported_rows_is_refused(tmp_path):
    rows = [f'film number {i}\t{["pos", "neg"][i % 2]}' for i in range(60)]
    for name in ('train', 'dev'):  # the dev file repeats the training file: a slice of train is reported rows
        (tmp_path / f'{name}.tsv').write_text('\n'.join(['text\tlabel', *rows]) + '\n')
    settings = {'leaky': {'task': 'custom', 'data.path': str(tmp_path)}}
    path = write_study(tmp_path, {**TUNED, 'settings': settings})
    with pytest.raises(ConfigError, match=r'settings.leaky: \d+ of the \d+ rows that tuning is scored on are reported'):
        quiet_sweep(path)
    assert not events(tmp_path)


def test_finished_runs_of_other_settings_are_not_taken_for_these(tmp_path):
    quiet_sweep(write_study(tmp_path, TWO_ARMS))
    changed = {**TWO_ARMS, 'settings': {'few': {'data.train_rows': 50}}}
    with pytest.raises(ConfigError, match=r'holds a finished run with data.train_rows = 100, not 50'):
        quiet_sweep(write_study(tmp_path, changed))


def test_ray_schedules_the_same_runs_on_two_workers(tmp_path):
    pytest.importorskip('ray', reason='the extra `ray` is not installed')
    import ray  # pyright: ignore[reportMissingImports]
    from ray.cluster_utils import Cluster  # pyright: ignore[reportMissingImports]

    cluster = Cluster(initialize_head=True, head_node_args={'num_cpus': 0})
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1)
        ray.init(address=cluster.address, log_to_driver=False)
        path = write_study(tmp_path, {**TWO_ARMS, 'seeds': 2}, seconds=0.3)
        summary, _ = quiet_sweep(path, jobs=4, backend='ray')
        assert summary == Summary(0, 8, {})
        assert set(events(tmp_path).values()) == {1}
        summary, _ = quiet_sweep(path, jobs=4, backend='ray')
        assert summary == Summary(8, 0, {})
    finally:
        ray.shutdown()
        cluster.shutdown()


def test_without_ray_its_backend_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'ray', None)
    with pytest.raises(ConfigError, match=r"pip install 'composer-cmi\[ray\]'"):
        quiet_sweep(write_study(tmp_path, TWO_ARMS), backend='ray')


@pytest.mark.slow
def test_real_runs_of_a_tiny_model(tmp_path):
    """`composer-cmi run` on a randomly initialised BERT: two arms, two seeds, sweep, again, report."""
    pytest.importorskip('transformers')
    model = _tiny_bert(tmp_path / 'tiny')
    rows = [f'{["good", "bad"][i % 2]} film {i}\t{["pos", "neg"][i % 2]}' for i in range(40)]
    for name in ('train', 'dev'):
        (tmp_path / f'{name}.tsv').write_text('\n'.join(['text\tlabel', *rows]) + '\n')
    base = {
        'task': 'custom',
        'run_name': 'base',
        'model': {'name_or_path': str(model)},
        'data': {'path': str(tmp_path), 'text_columns': ['text'], 'label_column': 'label', 'max_length': 16},
        'train': {'max_duration': '2ep', 'batch_size': 8, 'eval_interval': '0ba'},
        'checkpoint': {'save_interval': '2ep'},
    }
    path = write_study(tmp_path, {**TWO_ARMS, 'seeds': 2, 'settings': {'all': {}}}, base=base)
    summary = sweep(path, jobs=2)
    assert summary == Summary(0, 4, {}), [log.read_text()[-2000:] for log in tmp_path.rglob('*.log')]
    assert sweep(path, jobs=2) == Summary(4, 0, {})
    study = load_runs(tmp_path / 'out/small')
    assert sorted((run.arm, run.seed) for run in study.runs) == [('ce', 0), ('ce', 1), ('mincmi', 0), ('mincmi', 1)]
    # The CE arm and the CMI arm of one seed start from the same weights and the same held-out information.
    for seed in (0, 1):
        before = [study.of('all', arm)[seed].results.cmi['before'] for arm in ('ce', 'mincmi')]
        assert before[0] == before[1]
    report(tmp_path / 'out/small')


def _tiny_bert(folder: Path) -> Path:
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    words = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', 'good', 'bad', 'film', *map(str, range(40))]
    folder.mkdir()
    (folder / 'vocab.txt').write_text('\n'.join(words))
    BertTokenizerFast(str(folder / 'vocab.txt')).save_pretrained(folder)
    sizes = {'hidden_size': 16, 'num_hidden_layers': 1, 'num_attention_heads': 2, 'intermediate_size': 32}
    BertForSequenceClassification(BertConfig(vocab_size=len(words), **sizes)).save_pretrained(folder)
    return folder
