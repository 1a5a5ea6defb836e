"""A report on any folder: unlike runs are settings of their own, broken ones are named, nothing ends in a traceback."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from composer_cmi.errors import ConfigError
from composer_cmi.run.outputs.files import write_json, write_text
from composer_cmi.study.findings.analysis import compare
from composer_cmi.study.findings.report import report
from composer_cmi.study.findings.study import SCORE, load_runs
from report_tools import CE, CLEARLY_BETTER, write_arm, write_run, write_scored_run

UNLIKE = {
    'data': {'data_fingerprint': 'ffff0000ffff0000'},
    'task': {'task': 'other'},
    'metric': {'metric': 'macro_f1', 'scores': {'dev': {'macro_f1': 0.7, 'nll': 0.5, 'ece': 0.05}}},
    'splits': {'scores': {'held_out': {'accuracy': 0.7, 'nll': 0.5, 'ece': 0.05}}, 'num_examples': {'held_out': 300}},
    'rows': {'num_examples': {'train': 300, 'dev': 999}},
}


@pytest.mark.parametrize('difference', UNLIKE)
def test_promise_20b_unlike_runs_are_settings_of_their_own(tmp_path, difference):
    write_arm(tmp_path, 'mine', 'ce', CE)
    write_arm(tmp_path, 'mine', 'mincmi', CLEARLY_BETTER)
    write_run(tmp_path, 'mine', 'mincmi_there', 0, 0.9, **UNLIKE[difference])
    study = load_runs(tmp_path)
    names = {run.setting for run in study.runs}
    assert len(names) == 2 and all(name.startswith('mine (') for name in names)
    (alone,) = [run for run in study.runs if run.arm == 'mincmi_there']
    assert not [each for each in compare(study)[SCORE] if each.table.startswith(alone.setting)]
    text = report(tmp_path)['markdown'].read_text()
    assert 'mine: its runs are not alike, and are settings of their own: ' in text
    assert 'mincmi against ce: gain on' in text


def test_promise_20b_other_numbers_of_classes_are_other_settings(tmp_path):
    for arm, classes in (('two', 2), ('three', 3)):
        labels = np.arange(120) % classes
        write_scored_run(
            tmp_path, 's', arm, 0, labels, np.eye(classes)[labels], data_fingerprint=f'0000000{arm}', task='custom'
        )
    names = {run.setting for run in load_runs(tmp_path).runs}
    assert len(names) == 2 and all('classes, data 00000' in name for name in names)
    assert report(tmp_path)['html'].is_file()


def test_arms_of_a_plan_may_train_on_other_data_but_not_on_changed_ones(tmp_path):
    runs = tmp_path / 'runs'
    for seed in range(2):
        write_run(runs, 's', 'ce', seed, 0.8, config={'data': {'train_rows': 100}})
        more = {'config': {'data': {'train_rows': 200}}, 'data_fingerprint': 'more'}
        write_run(runs, 's', 'more_rows', seed, 0.8, **more)
    plan = {'name': 'p', 'arms': ['ce', 'more_rows'], 'baselines': ['ce']}
    plan['runs'] = [f'runs/s/{arm}/seed{seed}' for arm in plan['arms'] for seed in range(2)]
    write_json(tmp_path / 'study.json', plan)
    assert {run.setting for run in load_runs(tmp_path).runs} == {'s'}
    write_run(runs, 's', 'ce', 1, 0.8, config={'data': {'train_rows': 100}}, data_fingerprint='changed')
    assert len({run.setting for run in load_runs(tmp_path).runs}) == 3


def test_runs_that_are_not_in_the_plan_are_left_out_and_counted(tmp_path):
    write_arm(tmp_path / 'runs', 's', 'ce', CE)
    write_arm(tmp_path / 'runs', 'old_setting', 'ce', CE)
    plan = {'name': 'p', 'arms': ['ce'], 'baselines': ['ce'], 'runs': [f'runs/s/ce/seed{seed}' for seed in range(8)]}
    write_json(tmp_path / 'study.json', plan)
    study = load_runs(tmp_path)
    assert {run.setting for run in study.runs} == {'s'} and 'LEFT OUT: 8 finished runs' in study.remarks[0]


BROKEN = {
    'cut': lambda text: text[: len(text) // 2],
    'empty': lambda text: '',
    'a list': lambda text: '[]',
    'too deep': lambda text: '[' * 100_000,
    'no information': lambda text: json.dumps({**json.loads(text), 'cmi': {}}),
    'no such score': lambda text: json.dumps({**json.loads(text), 'metric': 'f1'}),
    'no scores': lambda text: json.dumps({**json.loads(text), 'scores': {}}),
    'another version': lambda text: json.dumps({**json.loads(text), 'schema_version': 99}),
}


@pytest.mark.parametrize('how', BROKEN)
def test_promise_20b_a_broken_run_is_named_and_left_out(tmp_path, how):
    write_arm(tmp_path, 's', 'ce', CE)
    write_arm(tmp_path, 's', 'mincmi', CLEARLY_BETTER)
    path = tmp_path / 's/mincmi/seed3/results.json'
    path.write_text(BROKEN[how](path.read_text()))
    study = load_runs(tmp_path)
    assert len(study.runs) == 15
    (remark,) = study.remarks
    assert remark.startswith('LEFT OUT') and str(path) in remark and '\n' not in remark
    assert compare(study)[SCORE][0].seeds == [0, 1, 2, 4, 5, 6, 7]


def test_promise_20b_nothing_but_broken_runs_is_one_sentence(tmp_path):
    write_run(tmp_path, 's', 'ce', 0, 0.5)
    (tmp_path / 's/ce/seed0/results.json').write_bytes(b'\xff\x00')
    with pytest.raises(ConfigError, match=r'no finished run .*LEFT OUT.*seed0'):
        report(tmp_path)


def _scored(root: Path, seeds: int = 6) -> None:
    labels = np.random.default_rng(9).integers(0, 3, 120)
    for seed in range(seeds):
        for arm, strength in (('ce', 1.0), ('mincmi', 1.6)):
            draw = np.random.default_rng(seed + 100 * len(arm))
            write_scored_run(root, 's', arm, seed, labels, strength * np.eye(3)[labels] + draw.normal(0, 1, (120, 3)))


def _cut(path: Path) -> None:
    path.write_text(''.join(path.read_text().splitlines(keepends=True)[:-5]))


def _alter_label(path: Path) -> None:
    lines = path.read_text().splitlines()
    one = lines[5].split(',')
    lines[5] = ','.join([one[0], str((int(one[1]) + 1) % 3), *one[2:]])
    path.write_text('\n'.join(lines) + '\n')


def _alter_logits(path: Path) -> None:
    lines = path.read_text().splitlines()
    lines[5] = ','.join([*lines[5].split(',')[:3], '30', '-5', '-5'])
    path.write_text('\n'.join(lines) + '\n')


@pytest.mark.parametrize('change', [_cut, _alter_label, _alter_logits, lambda path: path.write_text('x')])
def test_promise_16b_changed_predictions_are_not_used_and_the_verdict_says_so(tmp_path, change):
    _scored(tmp_path)
    whole = compare(load_runs(tmp_path))[SCORE][0]
    assert whole.rests_on == 'seeds and rows' and whole.crossed is not None
    assert whole.crossed.mean == pytest.approx(whole.difference.mean, abs=1e-3)
    path = tmp_path / 's/mincmi/seed2/predictions_dev.csv'
    change(path)
    study = load_runs(tmp_path)
    (remark,) = study.remarks
    assert remark.startswith('PREDICTIONS NOT USED') and str(path) in remark
    found = compare(study)
    assert found[SCORE][0].rests_on == 'seeds alone' and found['scaled_nll'] == []
    text = report(tmp_path)['markdown'].read_text()
    assert 'PREDICTIONS NOT USED' in text and 'VERDICTS ON SEEDS ALONE: 2 of 2' in text


def test_promise_16b_other_rows_than_the_other_runs_have_are_not_used(tmp_path):
    _scored(tmp_path)
    labels = np.random.default_rng(10).integers(0, 3, 120)
    write_scored_run(tmp_path, 's', 'mincmi', 2, labels, np.eye(3)[labels])
    (remark,) = load_runs(tmp_path).remarks
    assert 'has other rows or labels than other runs' in remark and 'mincmi/seed2' in remark


def test_promise_23_no_picture_leaves_the_reports_folder(tmp_path):
    root = tmp_path / 'deep' / 'runs'
    for arm, task in (('ce', 'a/../../../../x'), ('mincmi', 'a/../../../../x')):
        folder = write_run(root, 'ignored', arm, 0, 0.5, task=task)
        folder.rename(root / arm)  # no study's path: the task is the setting
        history = 'step,cmi/cmi,cmi/mutual_information,cmi/relative_cmi\n1,0.1,0.2,0.5\n2,0.1,0.2,0.5\n'
        write_text(root / arm / 'history.csv', history)
    before = {path for path in tmp_path.rglob('*') if path.is_file()}
    report(root, root / 'report')
    made = {path for path in tmp_path.rglob('*') if path.is_file()} - before
    assert any('training_' in path.name for path in made)
    assert all((root / 'report') in path.parents and '..' not in path.name.split('_') for path in made)


def test_promise_20b_broken_files_for_pictures_cost_the_picture_alone(tmp_path):
    _scored(tmp_path)
    for arm in ('ce', 'mincmi'):
        (tmp_path / f's/{arm}/seed0/features_dev.npz').write_bytes(b'PK\x03\x04 no archive')
        (tmp_path / f's/{arm}/seed0/history.csv').write_bytes(b'step,cmi/cmi\n1\n')
    text = report(tmp_path)['markdown'].read_text()
    assert 'NO PICTURE clusters_s_dev' in text and '<summary>Paired differences in score' in text


@pytest.mark.parametrize('name', ['study.json', 'tuning.json'])
@pytest.mark.parametrize('content', [b'{', b'\xff', b'3', b'[1]'])
def test_promise_20b_broken_files_of_a_sweep_are_named(tmp_path, name, content):
    write_run(tmp_path, 's', 'ce', 0, 0.5)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=f'{name} is not .*start the sweep again'):
        report(tmp_path)


def test_promise_20b_a_place_that_cannot_be_written_is_one_sentence(tmp_path):
    write_run(tmp_path, 's', 'ce', 0, 0.5)
    (tmp_path / 'file').touch()
    with pytest.raises(ConfigError, match='The report cannot be written to .*file/report'):
        report(tmp_path, tmp_path / 'file' / 'report')
    assert os.listdir(tmp_path / 's/ce') == ['seed0']
