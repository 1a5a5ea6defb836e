from __future__ import annotations

from pathlib import Path

import pytest

from composer_cmi.run.config import ConfigError, arm_configs, deep_merge, load_config
from composer_cmi.run.config.yaml_loader import parse_value
from run_tools import make_yaml


def write(tmp_path, text):
    path = tmp_path / 'run.yaml'
    path.write_text(text)
    return path


MINIMAL = 'task: rte\nrun_name: x\nmodel: {name_or_path: some/model}\n'


@pytest.mark.parametrize(
    ('text', 'value'),
    [
        ('1e-5', 1e-5),
        ('2E4', 2e4),
        ('-1.5e+3', -1500.0),
        ('.5', 0.5),
        ('3', 3),
        ('3.', 3.0),
        ('3ep', '3ep'),
        ('1e', '1e'),
        ('no', 'no'),
        ('on', 'on'),
        ('true', True),
        ('null', None),
        ('', None),
        ('[a, 1e-3]', ['a', 1e-3]),
        ('{a: 1}', {'a': 1}),
        ('2024-01-01', '2024-01-01'),
    ],
)
def test_scalars_mean_what_they_look_like(text, value):
    parsed = parse_value(text)
    assert parsed == value
    assert type(parsed) is type(value)


def test_overrides_reach_nested_keys_and_defaults_are_filled_in(tmp_path):
    config = load_config(
        write(tmp_path, MINIMAL),
        [
            'optimizer.lr=1e-4',
            'train.max_duration=2',
            'algorithms.cmi_regularization.weight=0.5',
            'data.labels=[no, on]',
        ],
    )
    assert config.optimizer.lr == 1e-4
    assert config.train.max_duration == '2ep'
    assert config.algorithms == {'cmi_regularization': {'weight': 0.5}}
    assert config.data.labels == ['no', 'on']
    assert (config.seed, config.train.batch_size, config.scheduler.warmup) == (17, 32, '0.1dur')


def test_a_name_alone_takes_an_algorithms_defaults_and_false_takes_it_out(tmp_path):
    text = (
        MINIMAL + 'algorithms: {cmi_regularization: , gradient_clipping: {clipping_type: norm, clipping_threshold: 1}}'
    )
    assert load_config(write(tmp_path, text)).algorithms['cmi_regularization'] == {}
    assert list(load_config(tmp_path / 'run.yaml', ['algorithms.cmi_regularization=false']).algorithms) == [
        'gradient_clipping'
    ]


def test_task_and_seed_are_filled_into_the_run_name(tmp_path):
    text = MINIMAL.replace('run_name: x', 'run_name: glue/{task}/seed{seed}')
    assert load_config(write(tmp_path, text), ['task=mrpc']).run_name == 'glue/mrpc/seed17'


def test_deep_merge_replaces_everything_but_mappings():
    assert deep_merge({'a': {'b': 1, 'c': [1, 2]}, 'd': 1}, {'a': {'c': [3]}, 'd': {'e': 1}}) == {
        'a': {'b': 1, 'c': [3]},
        'd': {'e': 1},
    }


ARMS = """
task: rte
run_name: chain
model: {name_or_path: some/model}
algorithms: {cmi_regularization: {weight: 0.3}}
arms:
  teacher:
  tuned:
    model.name_or_path: arm:teacher
    algorithms: {cmi_regularization: false, gradient_clipping: {clipping_type: norm, clipping_threshold: 1}}
  other: {algorithms.cmi_regularization.weight: 0, train: {max_duration: 1ep}}
"""


def test_arms_are_merged_over_the_file_and_refer_to_earlier_folders(tmp_path):
    arms = arm_configs(load_config(write(tmp_path, ARMS)))
    assert [arm.run_name for arm in arms.values()] == ['chain/teacher', 'chain/tuned', 'chain/other']
    assert arms['teacher'].algorithms == {'cmi_regularization': {'weight': 0.3}}
    assert arms['tuned'].model.name_or_path == 'runs/chain/teacher'
    assert list(arms['tuned'].algorithms) == ['gradient_clipping']
    assert arms['other'].algorithms == {'cmi_regularization': {'weight': 0}}
    assert (arms['other'].train.max_duration, arms['tuned'].train.max_duration) == ('1ep', '3ep')
    assert len({arm.seed for arm in arms.values()}) == 1
    assert all(arm.arms is None for arm in arms.values())


@pytest.mark.parametrize(
    'same',
    [
        'teacher: {}',
        'teacher: {seed: 17}',
        'teacher: {algorithms.cmi_regularization.weight: 0.3}',
        'teacher: {algorithms: {cmi_regularization: {form: scaled}}}',
        'teacher: {train: {batch_size: 32}, optimizer.name: adamw}',
        'teacher: {data.label_noise: 0}',
        'other: {algorithms.cmi_regularization: {weight: 0, start: 0.3dur}, train.max_duration: 1ep}',
    ],
)
def test_two_arms_that_are_the_same_run_are_refused(tmp_path, same):
    name, _, changes = same.partition(': ')
    with pytest.raises(ConfigError, match=f'the arms {name} and again are the same run') as caught:
        load_config(write(tmp_path, f'{ARMS}  again: {changes}\n'))
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
    'changes',
    [
        '{seed: 18}',
        '{train.num_workers: 2}',
        '{algorithms.cmi_regularization: false}',
        '{model.name_or_path: arm:other}',
    ],
)
def test_arms_that_differ_in_anything_are_run(tmp_path, changes):
    """Workers or a measure of weight 0 change no weight, and the table has times."""
    assert 'again' in arm_configs(load_config(write(tmp_path, f'{ARMS}  again: {changes}\n')))


@pytest.mark.parametrize(
    ('overrides', 'sentence'),
    [
        (['trian.max_duration=3ep'], r"unknown key 'trian'\. Did you mean 'train'\?"),
        (
            ['train.batch_sise=3'],
            r"unknown key 'train.batch_sise'\. Did you mean 'batch_size'\? Known here: batch_size, ",
        ),
        (['train.batch_size=many'], r"train.batch_size: input should be a valid integer.* \(given: 'many'\)"),
        (['train.batch_size=0'], r'train.batch_size: input should be greater than or equal to 1 \(given: 0\)'),
        (['train.max_duration=3epochs'], r"train.max_duration: '3epochs' must be a Composer time such as '3ep'"),
        (['train.max_duration=0ep'], r"train.max_duration: '0ep' would train nothing"),
        (['train.max_duration=3tok'], r"train.max_duration: '3tok' must be counted in 'ep', 'ba', 'sp'"),
        (
            ['train.precision=fp8'],
            r"train.precision: input should be 'fp32', 'amp_fp16' or 'amp_bf16' \(given: 'fp8'\)",
        ),
        (['optimizer.lr=fast'], r"optimizer.lr: input should be a valid number.* \(given: 'fast'\)"),
        (['optimizer.lr=-1'], r'optimizer.lr: input should be greater than 0 \(given: -1\)'),
        (['data.label_noise=1.5'], r'data.label_noise: input should be less than 1'),
        (['model=bert'], r"model: input should be a valid dictionary.* \(given: 'bert'\)"),
        (['run_name=/etc/x'], r"run_name: '/etc/x' must be a name below output_dir"),
        (['run_name=../x'], r"run_name: '../x' must be a name below output_dir"),
        (['task=rt'], r"Unknown task 'rt'\. Did you mean 'rte'\?"),
        (['task=stsb'], r'STS-B'),
        (['algorithms.cmi_regularisation.weight=1'], r"Unknown algorithm .* Did you mean 'cmi_regularization'\?"),
        (
            ['algorithms.cmi_regularization.wieght=1'],
            r"'algorithms.cmi_regularization.wieght'\. Did you mean 'weight'\?",
        ),
        (['algorithms.cmi_regularization=3'], r'algorithms.cmi_regularization: input should be a valid dictionary'),
        (['algorithms.gradient_clipping={}'], r"the key 'algorithms.gradient_clipping.clipping_type' is missing"),
        (['loggers.tensorbord={}'], r"Unknown logger 'tensorbord'\. Did you mean 'tensorboard'\?"),
        (['code_paths=[nowhere.py]'], r"code_paths: there is no Python file 'nowhere.py'"),
        (
            ['arms.a.model.name_or_path=arm:b'],
            r"arms.a: 'arm:b' names no arm that comes before this one \(those are: none\)",
        ),
        (['arms.a.run_name=b'], r"arms.a: 'run_name' belongs to the whole file"),
        (['arms.a.train.batch_sise=1'], r"arms.a: unknown key 'train.batch_sise'"),
        (['lr'], r"'lr' is not an override: write key.sub=value"),
        (['a=[1'], r"The value '\[1' is not valid YAML"),
    ],
)
def test_what_cannot_be_run_is_refused_in_one_sentence(tmp_path, overrides, sentence):
    with pytest.raises(ConfigError, match=sentence) as caught:
        load_config(write(tmp_path, MINIMAL), overrides)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
    ('text', 'sentence'),
    [
        ('', r'is empty'),
        ('# only a comment\n', r'is empty'),
        ('- a\n- b\n', r'holds a list where key: value lines are needed'),
        ('task: [rte\n', r'is not valid YAML: line \d+, column \d+:'),
        ('task: rte\n\tx: 1\n', r'is not valid YAML: line 2'),
        (MINIMAL + 'task: mrpc\n', r"the key 'task' stands twice \(line 4\)"),
        ('run_name: x\nmodel: {name_or_path: y}\n', r"the key 'task' is missing"),
        ('task: rte\nrun_name: x\nmodel: {}\n', r"the key 'model.name_or_path' is missing"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused(tmp_path, text, sentence):
    with pytest.raises(ConfigError, match=sentence) as caught:
        load_config(write(tmp_path, text))
    assert '\n' not in str(caught.value)


def test_missing_and_undecodable_files_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"There is no file '.*none.yaml'"):
        load_config(tmp_path / 'none.yaml')
    (tmp_path / 'latin.yaml').write_bytes(b'task: caf\xe9\n')
    with pytest.raises(ConfigError, match=r'is not UTF-8 text \(byte 9\)'):
        load_config(tmp_path / 'latin.yaml')


def test_the_resolved_configuration_loads_to_itself(tmp_path):
    import yaml

    config = load_config(make_yaml(tmp_path))
    again = write(tmp_path, yaml.safe_dump(config.resolved()))
    assert load_config(again) == config


@pytest.mark.parametrize(
    'path', sorted((Path(__file__).parents[1] / 'yamls').glob('*.yaml')), ids=lambda path: path.stem
)
def test_the_shipped_files_are_valid(path):
    arms = arm_configs(load_config(path))
    assert len({arm.run_name for arm in arms.values()}) == len(arms)
    assert len({arm.seed for arm in arms.values()}) == 1
