"""The sweep: tuning, skipping, failing, waiting for a teacher. Runs are cheap but real processes."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from composer_cmi.errors import ConfigError
from composer_cmi.run.config import load_config
from composer_cmi.study.config import load_study
from composer_cmi.study.execution.plan import Cell, plan_tuning
from composer_cmi.study.execution.progress import clock, time_left
from composer_cmi.study.execution.sweep import Summary, sweep
from composer_cmi.study.execution.tuning import choose
from composer_cmi.study.findings.report import report
from composer_cmi.study.findings.study import load_runs
from sweep_tools import TUNED, TWO_ARMS, events, quiet_sweep, write_study


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


def test_time_left():
    cells = [Cell('s', arm, seed, f'{arm}{seed}', ()) for arm in ('a', 'b') for seed in range(4)]
    assert time_left(cells, {}, 2) is None
    # a takes 10 s, b is unknown and takes the mean of all: (4 * 10 + 4 * 10) / 2
    assert time_left(cells, {('s', 'a'): [8.0, 12.0]}, 2) == pytest.approx(40.0)
    assert time_left(cells[:1], {('s', 'a'): [10.0]}, 8) == pytest.approx(10.0)
    assert (clock(62.4), clock(3723)) == ('01:02', '1:02:03')


def test_finished_runs_of_other_settings_are_not_taken_for_these(tmp_path):
    quiet_sweep(write_study(tmp_path, TWO_ARMS))
    changed = {**TWO_ARMS, 'settings': {'few': {'data.train_rows': 50}}}
    with pytest.raises(ConfigError, match=r'holds a finished run with data.train_rows = 100, not 50'):
        quiet_sweep(write_study(tmp_path, changed))


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
