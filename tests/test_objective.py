"""A run goes on with the objective that it began with, on every rank, and an algorithm begins anew in a new Trainer."""

from __future__ import annotations

import inspect
import re
import warnings
from typing import Any

import pytest
import torch
from composer.utils import dist
from torch import Tensor

import runs
import toys
from cmi_tools import fit
from composer_cmi.algorithms import CMIMaximization, CMIRegularization, KnowledgeDistillation

CHANGES: dict[str, Any] = {
    'weight': 0.3,
    'space': 'logits',
    'form': 'plain',
    'start': '0.4dur',
    'ramp': '0.1dur',
    'temperature': 2.0,
    'centroids': 'fixed',
    'decay': 0.8,
    'feature_module': 'module.1',
    'feature_position': 'first',
    'label_key': 'classes',
    'separation': 0.1,
    'tau': 0.2,
    'max_cmi': 1.0,
    'max_growth': 3.0,
}


def test_promise_06_the_list_is_whole():
    """A new argument has to be put into the objective, or into what may change."""
    for cls in (CMIRegularization, CMIMaximization):
        arguments = set(inspect.signature(cls).parameters)
        assert set(cls().objective) == arguments <= set(CHANGES)
    may_change = {'cache', 'assume_same_labels', 'allow_weak_teacher', 'label_key', 'id_key'}
    arguments = set(inspect.signature(KnowledgeDistillation).parameters)
    of_the_teacher = {'teacher', 'teacher_weights', 'average'}  # all in its fingerprint
    assert arguments == may_change | of_the_teacher | set(runs.distillation().objective)


@pytest.mark.parametrize('argument', CHANGES)
def test_promise_06_another_objective_is_refused(argument):
    cls = CMIMaximization if argument.startswith('max_') else CMIRegularization
    base = {'space': 'features', 'form': 'contrastive' if argument == 'tau' else 'scaled', 'decay': 0.9}
    state = cls(**base).state_dict()
    given, now = cls(**base).objective[argument], CHANGES[argument]
    with pytest.raises(ValueError) as error:
        cls(**{**base, argument: now}).load_state_dict(state)
    message = str(error.value)
    assert re.search(f'{cls.__name__} has {argument}={re.escape(repr(given))[:5]}.*, this run asks for ', message)
    assert 'use the same to resume, or begin anew with load_weights_only' in message and message.count('. ') == 0
    cls(**base).load_state_dict(state)


def test_promise_06_all_that_differs_is_named_at_once():
    state = CMIRegularization().state_dict()
    with pytest.raises(ValueError, match=r'temperature=1.0, .* 2.0; decay=0.9, .* 0.5: use the same'):
        CMIRegularization(temperature=2.0, decay=0.5).load_state_dict(state)


@pytest.mark.parametrize(
    ('one', 'other'),
    [
        ({'start': '0.30dur'}, {'start': '0.3dur'}),
        ({'label_key': None}, {'label_key': 'labels'}),
        ({'label_key': 1}, {'label_key': None}),
        ({'weight': 1}, {'weight': 1.0}),
    ],
)
def test_promise_06_the_same_in_other_words_is_the_same(one, other):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        CMIRegularization(**other).load_state_dict(CMIRegularization(**one).state_dict())


def test_promise_06_a_run_resumes_under_its_own_objective_only(tmp_path):
    """Through a checkpoint of Composer's."""
    trainer = runs.trainer([CMIRegularization(1.0)], tmp_path, max_duration='6ba')
    trainer.fit()
    trainer.close()
    path = str(tmp_path / 'ba5-rank0.pt')
    with pytest.raises(ValueError, match='temperature=1.0, this run asks for 3.0'):
        runs.trainer([CMIRegularization(1.0, temperature=3.0)], load_path=path)


@pytest.mark.parametrize(
    ('algorithm', 'missing'),
    [(CMIRegularization(), 'weight, form, start'), (CMIMaximization(), 'max_growth')],
)
def test_promise_06_the_state_of_an_older_version_is_taken_with_a_warning(algorithm, missing):
    fit([algorithm], max_duration='2ba')
    state = algorithm.state_dict()
    old = {key: state[key] for key in ('repr', 'centroids', 'initial_cmi', 'unit', 'peak_information')}
    old |= {'schema_version': 1, 'space': algorithm.space, 'alarms': 1, 'warned': False}
    fresh = type(algorithm)()
    with pytest.warns(UserWarning, match='saved by an older composer-cmi, which did not note') as caught:
        fresh.load_state_dict(old)
    assert all(name in str(caught[0].message) for name in missing.split(', ')) and fresh.guard.alarms == 1
    table = fresh.class_centroids.tables['running']
    assert table.abs().sum() > 0 and torch.equal(table, algorithm.class_centroids.tables['running'])
    with pytest.raises(ValueError, match='has space='):
        type(algorithm)(space={'features': 'logits', 'logits': 'features'}[algorithm.space]).load_state_dict(old)


def test_promise_06_an_older_state_of_distillation():
    old = {'repr': '', 'schema_version': 1, 'fingerprint': 'a' * 64, 'alpha': 0.7, 'temperature': 2.0}
    runs.distillation().load_state_dict(old)
    with pytest.raises(ValueError, match='alpha=0.6, this run asks for 0.7'):
        runs.distillation().load_state_dict({**old, 'alpha': 0.6})


# --- one life a Trainer -----------------------------------------------------------------------------------------------

MAKERS = {
    'regularization': lambda: CMIRegularization(1.0, start='1ba'),
    'fixed': lambda: CMIRegularization(1.0, form='plain', centroids='fixed', start='1ba'),
    'maximization': lambda: CMIMaximization(1.0, start='1ba'),
    'distillation': lambda: runs.distillation(),
}


@pytest.mark.parametrize('make', MAKERS.values(), ids=MAKERS)
def test_promise_07_a_second_trainer_begins_anew(make):
    used, weights = make(), []
    fit([used], toys.mlp(seed=3), toys.points(seed=4), max_duration='7ba')
    for algorithm in (used, make()):
        model = toys.mlp()
        fit([algorithm], model)
        weights.append(toys.weights(model))
        states = [a.state_dict() for a in (used, algorithm)]
    assert torch.equal(*weights) and runs.differences(*states) == []


def test_promise_07_a_second_trainer_of_another_task():
    """Other classes, another width: nothing of the first is compared with it."""
    algorithm = CMIRegularization(1.0, start='1ba')
    fit([algorithm])
    fit([algorithm], toys.tiny_bert(), toys.Sentences(32))
    assert algorithm.class_centroids.shape == (toys.CLASSES, 16)


def test_promise_07_a_state_that_was_loaded_survives():
    first = CMIRegularization(1.0, start='1ba')
    fit([first])
    second = CMIRegularization(1.0, start='1ba')
    second.load_state_dict(first.state_dict())
    trainer = toys.trainer(toys.mlp(), toys.points(), [second])
    assert second.term.initial_cmi == first.term.initial_cmi > 0
    trainer.close()


class Failing(toys.ComposerClassifier):
    """Its loss fails in the third microbatch, when hooks have read and a graph is there."""

    calls = 0

    def loss(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        if self.calls == 3:
            raise RuntimeError('as if out of memory')
        return super().loss(*args, **kwargs)


def held_tensors(value: Any, seen: set[int], depth: int = 4) -> list[Tensor]:
    """Tensors with a graph that can be reached from an object."""
    if isinstance(value, Tensor):
        return [value] if value.grad_fn is not None else []
    if depth == 0 or id(value) in seen or isinstance(value, torch.nn.Module):
        return []
    seen.add(id(value))
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else None
    inner = getattr(value, '__dict__', {}).values() if inner is None else inner
    return [tensor for item in inner for tensor in held_tensors(item, seen, depth - 1)]


@pytest.mark.parametrize('make', MAKERS.values(), ids=MAKERS)
def test_promise_07_after_an_exception_nothing_stays(make):
    """Once the Trainer is closed; it is then that Composer tells."""
    algorithm, model = make(), toys.mlp()
    model.__class__ = Failing
    trainer = toys.trainer(model, toys.points(), [algorithm], device_train_microbatch_size=8)
    with pytest.raises(RuntimeError, match='as if out of memory'):
        trainer.fit()
    trainer.close()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert not held_tensors(algorithm, set())


# --- ranks ------------------------------------------------------------------------------------------------------------


def by_rank(*values: Any) -> Any:
    return values[dist.get_global_rank()]


def four_classes() -> toys.ComposerClassifier:
    return toys.ComposerClassifier(torch.nn.Sequential(torch.nn.Linear(6, 4)), num_classes=4)


@pytest.mark.world_size(2)
@pytest.mark.parametrize(
    ('make', 'words'),
    [
        (
            lambda: KnowledgeDistillation(toys.mlp(seed=by_rank(5, 6)).module, assume_same_labels=True),
            'another teacher on rank 1',
        ),
        (
            lambda: KnowledgeDistillation(toys.mlp(seed=5).module, by_rank(0.4, 0.5), assume_same_labels=True),
            r'another alpha on rank 1 \(0.5\) than on rank 0 \(0.4\)',
        ),
        (lambda: CMIRegularization(start=by_rank('2ba', '3ba')), r'another start on rank 1 \(3ba\)'),
        (lambda: CMIMaximization(max_cmi=by_rank(None, 1.0)), 'another max_cmi'),
    ],
)
def test_promise_24_ranks_with_other_objectives_are_refused_on_every_rank(make, words):
    with pytest.raises(ValueError, match=words) as error:
        toys.trainer(toys.mlp(), toys.points(), [make()])
    assert str(error.value).count('. ') == 0


@pytest.mark.world_size(2)
@pytest.mark.parametrize('space', ['features', 'logits'])
def test_promise_24_ranks_with_other_numbers_of_classes(space):
    with pytest.raises(ValueError, match=r'another number of classes on rank 1 \(4\) than on rank 0 \(3\)'):
        toys.trainer(by_rank(toys.mlp, four_classes)(), toys.points(), [CMIRegularization(space=space)])
