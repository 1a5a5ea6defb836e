"""Optimizers and schedulers by Composer's names, and compiling: their effect, and what is refused."""

from __future__ import annotations

import shutil

import pytest
import torch
from composer import optim
from composer.core import Time, Timestamp

from composer_cmi.errors import ConfigError
from composer_cmi.run.command import run_file
from composer_cmi.run.config.schema import OptimizerConfig
from composer_cmi.run.outputs.history import read_history
from composer_cmi.run.parts.by_name import SCHEDULERS
from composer_cmi.run.setup import build_optimizer, build_scheduler
from config_tools import loaded, refused
from run_tools import make_all, predictions

REQUIRED = {
    'step': {'step_size': '2ba'},
    'multi_step': {'milestones': ['4ba', '0.8dur']},
    'exponential': {'gamma': 0.5},
    'polynomial': {'power': 2.0},
    'cosine_annealing_warm_restarts': {'t_0': '5ba'},
}


def model() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4), torch.nn.Linear(4, 2))


@pytest.mark.parametrize(
    ('name', 'cls', 'arguments'),
    [
        ('decoupled_adamw', optim.DecoupledAdamW, {'weight_decay': 1e-5, 'betas': [0.8, 0.9]}),
        ('decoupled_sgdw', optim.DecoupledSGDW, {'weight_decay': 1e-5, 'momentum': 0.9}),
    ],
)
def test_an_optimizer_of_composers_takes_its_arguments_and_does_not_decay_biases(name, cls, arguments):
    optimizer = build_optimizer(model(), OptimizerConfig(name=name, lr=0.1, arguments=arguments))  # pyright: ignore
    assert type(optimizer) is cls
    decayed, plain = optimizer.param_groups
    assert (decayed['weight_decay'], plain['weight_decay'], decayed['lr']) == (1e-5, 0.0, 0.1)
    for key in arguments.keys() - {'weight_decay'}:
        given = arguments[key]  # today's torch makes a tuple of a list
        assert decayed[key] == (type(decayed[key])(given) if isinstance(given, list) else given)


def factors(name: str, warmup: int, **arguments) -> list[float]:
    scheduler = build_scheduler(warmup, 10, name, arguments)

    class State:
        max_duration = Time.from_timestring('10ba')
        timestamp = Timestamp()
        dataloader_len = 5

    found = []
    for step in range(11):
        State.timestamp = Timestamp(batch=step)
        found.append(float(scheduler(State)))  # type: ignore
    return found


@pytest.mark.parametrize('name', SCHEDULERS)
def test_every_scheduler_of_composers_is_built_and_warms_up_where_its_name_says_so(name):
    arguments = REQUIRED.get(name.removesuffix('_with_warmup'), {})
    found = factors(name, 2 if name.endswith('_with_warmup') else 0, **arguments)
    assert found[:3] == pytest.approx([0, 0.5, 1]) if name.endswith('_with_warmup') else found[0] == pytest.approx(1)
    assert factors(name, 0, **arguments)[0] == pytest.approx(1)  # no warm-up is none, for each of them


def test_arguments_reach_the_scheduler():
    assert factors('cosine_annealing_with_warmup', 2, alpha_f=0.25)[-1] == pytest.approx(0.25)
    assert factors('constant_with_warmup', 2) == pytest.approx([0, 0.5] + [1] * 9)
    assert factors('multi_step', 0, milestones=['4ba', '0.8dur'], gamma=0.1)[3::4] == pytest.approx([1, 0.1])


def test_the_defaults_are_what_they_were(tmp_path):
    config = loaded(tmp_path)
    assert (config.optimizer.name, config.scheduler.name, config.train.compile) == (
        'adamw',
        'linear_with_warmup',
        False,
    )
    assert type(build_optimizer(model(), config.optimizer)) is torch.optim.AdamW


@pytest.mark.parametrize(
    ('overrides', 'sentence'),
    [
        (['optimizer.name=adafactor'], "optimizer.name: input should be 'adamw', 'decoupled_adamw' or"),
        (['optimizer.arguments={momentum: 0.9}'], 'arguments are of the other optimizers (given: momentum)'),
        (
            ['optimizer.name=decoupled_sgdw', 'optimizer.eps=1e-8'],
            'eps is of adamw; write arguments.eps for decoupled_',
        ),
        (
            ['optimizer.name=decoupled_sgdw', 'optimizer.arguments={momentun: 0.9}'],
            "unknown key 'optimizer.arguments.momentun'. Did you mean 'momentum'?",
        ),
        (
            ['optimizer.name=decoupled_sgdw', 'optimizer.arguments={nesterov: 1}'],
            'optimizer.arguments.nesterov: must be true or false (given: 1).',
        ),
        (['scheduler.name=cosine'], "scheduler.name: Unknown scheduler 'cosine'."),
        (['scheduler.name=constant'], 'scheduler.warmup: constant has no warm-up: say warmup: 0ba'),
        (['scheduler.name=step', 'scheduler.warmup=0ba'], "the key 'scheduler.arguments.step_size' is missing"),
        (['scheduler.arguments={alpha_f: low}'], 'scheduler.arguments.alpha_f: must be a number'),
        (['scheduler.arguments={t_warmup: 3ba}'], "unknown key 'scheduler.arguments.t_warmup'"),
        (['train.compile={mod: default}'], "unknown key 'train.compile.mod'. Did you mean 'mode'?"),
        (['train.compile={fullgraph: 1}'], 'train.compile.fullgraph: must be true or false (given: 1).'),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(tmp_path, overrides, sentence):
    assert sentence in refused(tmp_path, *overrides)


def test_decoupled_weight_decay_that_is_out_of_range_is_refused():
    config = OptimizerConfig(name='decoupled_adamw', arguments={'betas': [2, 0.9]})  # pyright: ignore
    with pytest.raises(ConfigError, match=r'optimizer\.arguments: '):
        build_optimizer(model(), config)


def test_a_run_follows_another_optimizer_and_schedule(tmp_path):
    path = str(make_all(tmp_path, callbacks={'lr_monitor': {}}))
    overrides = ['optimizer.name=decoupled_sgdw', 'scheduler.name=constant_with_warmup', 'scheduler.warmup=2ba']
    assert run_file(path, [*overrides, 'optimizer.arguments={momentum: 0.9}']) == 0
    rows = read_history(tmp_path / 'runs' / 'tiny' / 'history.csv')
    rates = [row['lr-DecoupledSGDW/group0'] for row in rows if 'lr-DecoupledSGDW/group0' in row]
    assert rates == pytest.approx([0, 0.0005] + [0.001] * 7)


@pytest.mark.slow
def test_a_compiled_run_ends_where_a_plain_one_does(tmp_path):
    """With the term, whose hooks have to be seen by compiled code; inductor needs a compiler, this backend does not."""
    path = str(make_all(tmp_path, algorithms={'cmi_regularization': {'start': '0ba'}}))
    if shutil.which('g++') is None:
        pytest.skip('torch.compile imports its compiler')
    assert run_file(path, ['run_name=plain']) == 0
    assert run_file(path, ['run_name=compiled', 'train.compile={backend: aot_eager}']) == 0
    one, two = (predictions(tmp_path / 'runs' / name) for name in ('plain', 'compiled'))
    assert [float(row['logit_0']) for row in one] == pytest.approx([float(row['logit_0']) for row in two], abs=1e-5)
    cmi = [
        [row['cmi/loss'] for row in read_history(tmp_path / 'runs' / name / 'history.csv') if 'cmi/loss' in row]
        for name in ('plain', 'compiled')
    ]
    assert len(cmi[0]) == 9 and cmi[1] == pytest.approx(cmi[0], rel=1e-3, abs=1e-12)
