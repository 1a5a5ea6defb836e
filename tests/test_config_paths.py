"""Paths of a configuration: ~ is home, {task} and {seed} are filled in, nothing else is."""

from __future__ import annotations

from pathlib import Path

import pytest

from composer_cmi.run.config import ConfigError, arm_configs, load_config
from composer_cmi.run.config.loading import build_config
from composer_cmi.study.config import load_study
from config_tools import MINIMAL, loaded, refused

PATHS = ['output_dir', 'model.name_or_path', 'data.path', 'data.unlabelled', 'data.cache_dir']
PATHS += ['algorithms.knowledge_distillation.teacher', 'algorithms.knowledge_distillation.cache']
PATHS += ['loggers.file.filename', 'loggers.tensorboard.log_dir']
TEACHER = 'algorithms: {knowledge_distillation: {teacher: t}}\n'


def value_of(config, key):
    value = config.model_dump()
    for part in key.split('.'):
        value = value[part]
    return value


@pytest.mark.parametrize('key', PATHS)
def test_promise_19_a_tilde_is_home_in_every_path(tmp_path, monkeypatch, key):
    monkeypatch.setenv('HOME', str(tmp_path))
    config = loaded(tmp_path, f'{key}=~/there/$HOME', text=MINIMAL + TEACHER)
    assert value_of(config, key) == f'{tmp_path}/there/$HOME'
    if not key.startswith('loggers'):
        assert 'no such home folder' in refused(tmp_path, f'{key}=~nobody_of_this_name/x', text=MINIMAL + TEACHER)


def test_promise_19_code_paths_lists_of_teachers_and_studies_know_home(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    (tmp_path / 'mine.py').write_text('')
    teachers = 'algorithms.knowledge_distillation.teacher=[~/a, b]'
    config = loaded(tmp_path, 'code_paths=[~/mine.py]', teachers)
    assert config.code_paths == [f'{tmp_path}/mine.py']
    assert config.algorithms['knowledge_distillation']['teacher'] == [f'{tmp_path}/a', 'b']
    (tmp_path / 'study.yaml').write_text('{name: s, base: ~/run.yaml, output_dir: ~/out, seeds: 1, arms: {}}')
    study = load_study('~/study.yaml')
    assert (study.base, study.output_dir) == (f'{tmp_path}/run.yaml', f'{tmp_path}/out')


@pytest.mark.parametrize('key', [*PATHS, 'run_name'])
def test_promise_20b_task_and_seed_are_filled_into_every_path_and_nothing_else_is(tmp_path, key):
    text = MINIMAL + TEACHER
    config = loaded(tmp_path, f'{key}=a/{{task}}/s{{seed}}', 'seed=5', text=text)
    assert value_of(config, key) == 'a/rte/s5'
    if 'log_dir' not in key:
        for braces in ('out{1}', 'a{', 'b}', '{Task}'):
            sentence = refused(tmp_path, f"{key}='{braces}'", text=text)
            assert key in sentence and 'task' in sentence and 'braces' in sentence


def test_promise_20b_an_arm_fills_in_its_own_seed_and_task(tmp_path):
    text = """
task: rte
run_name: '{task}_arms'
output_dir: 'out{seed}'
model: {name_or_path: 'm/{task}{seed}'}
algorithms: {knowledge_distillation: {teacher: 'runs/{task}/seed{seed}'}}
arms:
  first:
  second: {seed: 3, task: mrpc, data.path: 'd/{seed}'}
"""
    arms = arm_configs(loaded(tmp_path, text=text))
    assert [arm.algorithms['knowledge_distillation']['teacher'] for arm in arms.values()] == [
        'runs/rte/seed17',
        'runs/mrpc/seed3',
    ]
    assert [arm.model.name_or_path for arm in arms.values()] == ['m/rte17', 'm/mrpc3']
    assert arms['second'].data.path == 'd/3'
    assert {str(arm.folder.parent) for arm in arms.values()} == {'out17/rte_arms'}


def test_promise_20b_the_shipped_distillation_names_the_teacher_of_its_task():
    file = Path(__file__).parents[1] / 'yamls' / 'distilbert_glue_kd.yaml'
    teacher = load_config(file.with_name('bert_glue_maxcmi_teacher.yaml'), ['task=mrpc', 'seed=4']).folder
    config = load_config(file, ['task=mrpc', 'seed=4'])
    assert config.algorithms['knowledge_distillation']['teacher'] == str(teacher)


@pytest.mark.parametrize('name', ['a/b', '..', '.hidden', 'x{1}', 'a' * 300, '', 'a\0b', '~', 'a\nb'])
def test_promise_18_an_arm_is_one_folder_of_that_name(tmp_path, name):
    data = {'task': 'rte', 'run_name': 'x', 'model': {'name_or_path': 'm'}, 'arms': {name: {}}}
    with pytest.raises(ConfigError, match='arms'):
        build_config(data)
    data['arms'] = {'$x [red] <b>|`': {}}
    assert list(arm_configs(build_config(data))) == ['$x [red] <b>|`']
