"""Numbers out of range, times that cannot be counted, YAML's traps: one sentence each, before anything is loaded."""

from __future__ import annotations

import re

import pytest
import torch

from composer_cmi.run.config import ConfigError, arm_configs, load_config
from composer_cmi.study.config import load_study
from config_tools import MINIMAL, loaded, refused


@pytest.mark.parametrize(
    ('override', 'words'),
    [
        ('train.max_duration=1.5ep', r"train.max_duration: '1.5ep' must be a whole number .* '150ba'"),
        ('train.max_duration=0.3', r'train.max_duration: .* \(given: 0.3\)'),
        ('train.max_duration=-1ep', r'neither negative'),
        ('train.batch_size="32"', r"train.batch_size: .*integer \(given: '32'\)"),
        ('train.batch_size=1000000000000', r'train.batch_size: .*less than or equal to 1048576'),
        ('train.batch_size=true', r'train.batch_size: .*integer \(given: True\)'),
        ('train.microbatch_size=x', r"train.microbatch_size: .*integer or 'auto' \(given: 'x'\)"),
        ('data.max_length=1000000000', r'data.max_length: .*less than or equal to'),
        ('seed=4294967296', r'seed: .*less than 4294967296'),
        ('seed=-1', r'seed: .*greater than or equal to 0'),
        ('data.seed=4294967296', r'data.seed'),
        ('optimizer.lr=.nan', r'optimizer.lr: .*finite'),
        ('optimizer.lr=-.inf', r'optimizer.lr: .*finite'),
        ('optimizer.eps=.inf', r'optimizer.eps: .*finite'),
        ('optimizer.weight_decay=1e30', r'optimizer.weight_decay: .*1e\+15'),
        ('optimizer.betas=[]', r'optimizer.betas'),
        ('scheduler.warmup=3sec', r"scheduler.warmup: '3sec' must be counted in 'ep', 'ba', 'sp', 'dur'"),
        ('scheduler.warmup=1.5dur', r"'1dur', the whole"),
        ('train.eval_interval=1iter', r'must be counted in'),
        ('train.eval_interval=3', r'train.eval_interval: .*string \(given: 3\)'),
        ('checkpoint.save_interval=0ba', r'would save nothing'),
        ('checkpoint.save_interval=1tok', r'must be counted in'),
        ('checkpoint.save_sharded=true', r'checkpoint.save_sharded belongs to fsdp, which is not given'),
        ('data.labels=["", b]', r'data.labels.0: .*at least 1 character'),
        ('data.path=""', r'data.path: .*at least 1 character'),
        ('data.label_column="a\\0b"', r"data.label_column: 'a\\x00b' holds the character"),
        ('data.label_column="\\ud800"', r'data.label_column: .*holds the character'),
        ('data.group_by_length=no', r"data.group_by_length: .*boolean \(given: 'no'\)"),
        ('arms={}', r'arms: .*at least 1 item'),
        ('model.keep_layers=[]', r'model.keep_layers: .*at least 1 item'),
        ('train.device=gpu', r"train.device: there is no 'gpu' on this machine"),
        ('arms.a.train.device=gpu', r"arm a: train.device: there is no 'gpu'"),
        ('fsdp.shard=1', r"unknown key 'fsdp.shard'"),
        ('fsdp.activation_checkpointing=no', r'fsdp.activation_checkpointing: must be true or false'),
        ('peft.rank=8', r"unknown key 'peft.rank'"),
        ('peft.lora_alpha=much', r"peft.lora_alpha: must be a whole number \(given: 'much'\)"),
    ],
)
def test_promise_20_values_are_refused_in_one_sentence(tmp_path, monkeypatch, override, words):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)  # as it is here; on a GPU there is one
    assert re.search(words, refused(tmp_path, override))


BOMB = 'a: &a [x, x, x, x, x, x, x, x, x, x]\n' + ''.join(
    f'{b}: &{b} [{", ".join([f"*{a}"] * 10)}]\n' for a, b in zip('abcdefgh', 'bcdefghi', strict=True)
)


@pytest.mark.parametrize(
    ('text', 'words'),
    [
        (BOMB, 'values with its aliases written out'),
        ('a: &a [*a]\n', 'values with its aliases written out'),
        ('a: ' + '[' * 5000 + ']' * 5000, 'levels below one another'),
        ('a: ' + '{b: ' * 60 + '1' + '}' * 60, 'levels below one another'),
        (MINIMAL + 'seed: ' + '9' * 5000, 'Exceeds the limit'),
        (MINIMAL + 'seed: !!int x\n', 'invalid literal'),
        (MINIMAL + 'seed: !mine 3\n', r'the tag .*line 4'),
        (MINIMAL + 'seed: !!python/object/apply:os.system [ls]\n', r'the tag .*line 4'),
        (MINIMAL + 'seed: !!binary aGk=\n', r'the tag .*line 4'),
        (MINIMAL + '? [a]\n: 1\n', 'is no text'),
        (MINIMAL + '1: x\n', r'the key 1 is no text.*line 4'),
        (MINIMAL + 'arms:\n  true: {}\n', r'the key True is no text.*line 5'),
        (MINIMAL + 'data:\n\tpath: x\n', 'cannot start any token'),
        (MINIMAL + '---\n' + MINIMAL, 'another document'),
        (MINIMAL + 'data: [a]\n', r"data: .*dictionary.*\(given: \['a'\]\)"),
        (MINIMAL + 'train: {batch_size: 8, batch_size: 9}\n', "'batch_size' stands twice"),
    ],
)
def test_promise_20_yaml_has_no_traps(tmp_path, text, words):
    assert re.search(words, refused(tmp_path, text=text))


def test_promise_20_what_yaml_means_by_numbers_and_merges(tmp_path):
    text = MINIMAL.replace('run_name: x', 'run_name: 1:30') + 'seed: 017\n'
    assert (loaded(tmp_path, text=text).run_name, loaded(tmp_path, text=text).seed) == ('1:30', 17)
    text = MINIMAL + 'arms:\n  a: &a {seed: 1, train: {batch_size: 4}}\n  b: {<<: *a, seed: 2}\n'
    arms = arm_configs(loaded(tmp_path, text=text))
    assert (arms['b'].seed, arms['b'].train.batch_size) == (2, 4)


def test_promise_20_unreadable_places_are_one_sentence(tmp_path):
    for path in (tmp_path, tmp_path / ('x' * 300), 'a\0b', tmp_path / 'run.yaml' / 'below'):
        with pytest.raises(ConfigError) as caught:
            load_config(path)
        assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
    ('text', 'words'),
    [
        ('seeds: 1000000000', r'seeds: 1000000000 seeds'),
        ('seeds: "3"', r'seeds: '),
        ('seeds: [4294967296]', r'seeds.0: .*less than 4294967296'),
        ('seeds: 1\ngain: .inf', r'gain: .*finite'),
        ('seeds: 1\nsettings: {}', r'settings: .*at least 1 item'),
        ('seeds: 1\noutput_dir: "a{task}{x}"', r'output_dir: .*braces'),
        ('seeds: 1\nkeep_models: no', r'keep_models: .*boolean'),
        ('seeds: 1\ntuning: {seed: 1}', r"unknown key 'tuning.seed'. Did you mean 'seeds'"),
        (
            'seeds: 1\narms: {a: {grid: {x: [%s], y: [%s]}}}' % (('1, ' * 200,) * 2),
            r'arms.a.grid has 40,000 combinations',
        ),
    ],
)
def test_promise_20_a_study_is_checked_as_strictly(tmp_path, text, words):
    arms = '' if 'arms' in text else 'arms: {}\n'
    assert re.search(words, refused(tmp_path, text=f'name: s\nbase: run.yaml\n{arms}{text}\n', load=load_study))
