"""What Composer asks of every algorithm of its own, asked of ours: on one rank and on two."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from composer.algorithms import GradientClipping
from composer.core import Algorithm
from composer.utils import dist

import runs
import toys
from composer_cmi.algorithms import CMIMaximization, CMIRegularization, KnowledgeDistillation

LAST = runs.EPOCHS * runs.BATCHES
CLASSES: dict[type[Algorithm], Any] = {
    CMIRegularization: lambda: CMIRegularization(),
    CMIMaximization: lambda: CMIMaximization(),
    KnowledgeDistillation: lambda: runs.distillation(),
}
RANKS = [pytest.param(n, marks=pytest.mark.world_size(n)) for n in (1, 2)]
each_class = pytest.mark.parametrize('cls', CLASSES)
on_ranks = pytest.mark.parametrize('ranks', RANKS)


@each_class
@on_ranks
def test_generic_training(cls, ranks):
    """It trains beside another algorithm, changes weights, and is listed as itself."""
    assert dist.get_world_size() == ranks
    model = toys.mlp()
    before = toys.weights(model)
    trainer = runs.trainer([CLASSES[cls](), GradientClipping('norm', 1.0)], model=model, max_duration='2ba')
    trainer.fit()
    assert trainer.state.timestamp.batch == 2
    assert any(type(algorithm) is cls for algorithm in trainer.state.algorithms)
    assert torch.isfinite(toys.weights(model)).all() and not torch.equal(before, toys.weights(model))
    trainer.close()


@each_class
@on_ranks
@pytest.mark.parametrize('interval', ['1ep', '3ba'])
def test_generic_resumption(cls, ranks, interval, shared_tmp_path):
    """The last checkpoint of a continued run is the one of the uninterrupted run, entry by entry."""
    first, second = shared_tmp_path / 'first', shared_tmp_path / 'second'
    options = {'save_interval': interval, 'seed': 0}
    runs.finish(runs.trainer([CLASSES[cls]()], first, **options))
    start = 4 if interval == '1ep' else 3
    runs.finish(runs.trainer([CLASSES[cls]()], second, load_path=str(first / f'ba{start}-rank0.pt'), **options))
    if dist.get_global_rank() == 0:
        one, other = (torch.load(f / f'ba{LAST}-rank0.pt', weights_only=False) for f in (first, second))
        for checkpoint in (one, other):
            checkpoint['state'].pop('callbacks', None)
            for time in ('timestamp', 'eval_timestamp'):
                clock = checkpoint['state'].get(time, {}).get('Timestamp', {})
                for key in [key for key in clock if key.endswith('wct')]:
                    clock.pop(key)
            checkpoint['state'].pop('run_name')
        assert runs.differences(one['state'], other['state']) == []
        assert runs.differences([r['torch'] for r in one['rng']], [r['torch'] for r in other['rng']]) == []
    dist.barrier()


@each_class
@on_ranks
def test_generic_required_on_load(cls, ranks, shared_tmp_path):
    """It does no surgery, so a checkpoint loads without it; its text is stable, short, and free of addresses."""
    assert not cls.required_on_load()
    one, other = CLASSES[cls](), CLASSES[cls]()
    assert repr(one) == repr(other) and '0x' not in repr(one) and repr(one).startswith(f'{cls.__name__}(')
    assert one.state_dict()['repr'] == repr(one)
    runs.finish(runs.trainer([one], shared_tmp_path, max_duration='2ba'))
    trainer = runs.trainer([], load_path=str(shared_tmp_path / 'ba2-rank0.pt'), load_strict_model_weights=True)
    assert trainer.state.algorithms == []
    trainer.close()


@pytest.mark.parametrize('cls', [CMIRegularization, CMIMaximization])
def test_repr_makes_the_algorithm_again(cls):
    algorithm = cls(0.3, space='logits', start='5ba')
    assert repr(eval(repr(algorithm), {cls.__name__: cls})) == repr(algorithm)


def test_two_of_one_class_are_refused():
    for pair in ([CMIRegularization(), CMIRegularization()], [CMIRegularization(), CMIMaximization()]):
        with pytest.raises(ValueError, match='Only one CMI algorithm'):
            runs.trainer(pair)
    with pytest.raises(ValueError, match='Only one KnowledgeDistillation'):
        runs.trainer([runs.distillation(), runs.distillation()])
