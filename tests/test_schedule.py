"""A term starts and rises in the step that its user named, whatever the units; one that never counted says why."""

from __future__ import annotations

import re
import warnings
from typing import Any

import pytest
import torch
from composer.core import Callback, State, Time, Timestamp
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import toys
from cmi_tools import fit
from composer_cmi.algorithms import CMIMaximization, CMIRegularization, KnowledgeDistillation
from composer_cmi.algorithms.schedule import Schedule

PER_EPOCH, ROWS, TOKENS = 16, 16, 128


@pytest.fixture(scope='module')
def state() -> State:
    """A real state of 16 batches an epoch."""
    trainer = toys.trainer(toys.mlp(), toys.points(PER_EPOCH * ROWS), [])
    trainer.state._iteration_length = '2ep'
    yield trainer.state
    trainer.close()


def settled(state: State, schedule: Schedule, duration: str) -> Schedule:
    state.max_duration = Time.from_timestring(duration)
    schedule.settle(state)
    return schedule


def weights(state: State, schedule: Schedule, duration: str, steps: int) -> list[float]:
    """How far the term is on in each step of a run."""
    settled(state, schedule, duration)
    now, found = Timestamp(), []
    for step in range(1, steps + 1):
        found.append(schedule.progress(now))
        now = now.to_next_batch(samples=ROWS, tokens=TOKENS)
        if step % PER_EPOCH == 0:
            now = now.to_next_epoch()
            if step % (2 * PER_EPOCH) == 0:
                now = now.to_next_iteration()
    return found


@pytest.mark.parametrize(
    ('start', 'duration', 'step'),
    [
        ('0.3dur', '1ep', 4),
        ('0.3dur', '2ep', 9),
        ('0.3dur', '3ep', 14),
        ('0.5dur', '1ep', 8),
        ('0.3dur', '16ba', 4),
        ('0.29dur', '100ba', 29),  # in floating point 28.999999999999996
        ('0.5dur', '256sp', 8),
        ('0.5dur', '2048tok', 8),
        ('0.5dur', '2iter', 32),
        ('1dur', '1ep', None),
        ('0dur', '3ep', 0),
        ('2ep', '3ep', 32),
        ('5ba', '1ep', 5),
        ('40sp', '3ep', 3),
        ('300tok', '16ba', 3),
        ('1iter', '4ep', 32),
    ],
)
def test_promise_01_the_start_is_exact_to_the_step(state, start, duration, step):
    found = weights(state, Schedule(start, f'0{Time.from_timestring(start).unit.value}'), duration, 64)
    total = {'1ep': 16, '16ba': 16, '256sp': 16, '2048tok': 16}.get(duration, 64)
    assert next((i for i, weight in enumerate(found[:total]) if weight), None) == step


@pytest.mark.parametrize(
    ('start', 'ramp', 'duration', 'first', 'length'),
    [
        ('0.25dur', '0.5dur', '2ep', 8, 16),
        ('0dur', '1dur', '1ep', 0, 16),
        ('1ep', '2ep', '4ep', 16, 32),
        ('2ba', '4ba', '1ep', 2, 4),
        ('32sp', '64sp', '1ep', 2, 4),
        ('1iter', '1iter', '4ep', 32, 32),
    ],
)
def test_promise_01_a_ramp_is_smooth(state, start, ramp, duration, first, length):
    found = weights(state, Schedule(start, ramp), duration, 48)
    assert found == pytest.approx([min(1.0, max(0.0, (step - first) / length)) for step in range(48)])


def test_promise_01_a_term_that_is_on_stays_on_in_a_longer_fit(state):
    schedule = settled(state, Schedule('0.5dur', '0dur'), '1ep')
    at_16 = Timestamp(epoch=1, batch=16, sample=256, batch_in_epoch=0)
    assert schedule.progress(Timestamp(batch=8)) == 1
    before, state.timestamp = state.timestamp, at_16
    resumed = Schedule('0.5dur', '0dur')
    resumed.load_state_dict(schedule.state_dict())
    late = Schedule('0.5dur', '0dur')
    assert [settled(state, s, '4ep').progress(at_16) for s in (schedule, resumed, late)] == [1, 1, 0]
    state.timestamp = before
    assert settled(state, schedule, '4ep').progress(Timestamp(batch=31)) == 0, 'time was set back: begins anew'
    assert schedule.progress(Timestamp(batch=32)) == 1


def test_promise_01_epochs_of_a_dataloader_without_length(state):
    class Endless(IterableDataset):
        def __iter__(self):
            x, labels = toys.points(16).tensors
            yield from zip(x, labels, strict=True)

    kept = state.dataloader
    state.set_dataloader(DataLoader(Endless(), batch_size=16), 'train')
    with pytest.warns(UserWarning, match="start='1ep' and ramp='2ep' are counted in whole epochs, as no length"):
        found = weights(state, Schedule('1ep', '2ep'), '64ba', 64)
    assert [found[i] for i in (0, 15, 16, 31, 32, 47, 48)] == [0, 0, 0, 0, 0.5, 0.5, 1]
    state.set_dataloader(kept, 'train')


@pytest.mark.parametrize('value', ['-1ba', 'nandur', 'infdur', '1.5ep', '3', '10sec', 0.3, None, '10 apples'])
@pytest.mark.parametrize('name', ['start', 'ramp'])
def test_promise_01_what_is_no_time_is_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} must be a .*such as '") as error:
        CMIRegularization(**{name: value})
    assert str(error.value).count('. ') == 0


@pytest.mark.parametrize('duration', ['1ep', '2ep', '3ep'])
def test_promise_01_a_run_in_epochs_is_the_run_in_batches(duration):
    """The weights are those of the same run counted in batches, and not those of cross-entropy."""
    found = {}
    batches = f'{4 * int(duration[0])}ba'
    for name, algorithms, length in (
        ('epochs', [CMIRegularization(1.0)], duration),
        ('batches', [CMIRegularization(1.0)], batches),
        ('plain', [], duration),
    ):
        model = toys.mlp()
        fit(algorithms, model, max_duration=length)
        found[name] = toys.weights(model)
    assert torch.equal(found['epochs'], found['batches']) and not torch.equal(found['epochs'], found['plain'])


def test_promise_01_a_second_fit_with_a_duration():
    algorithm = CMIRegularization(1.0, start='0.5dur')
    trainer = toys.trainer(toys.mlp(), toys.points(), [algorithm], max_duration=None)
    seen = []
    original = algorithm.class_centroids.commit
    algorithm.class_centroids.commit = lambda: (seen.append(algorithm.term.weight is not None), original())[1]
    trainer.fit(duration='1ep')
    trainer.fit(duration='3ep')
    trainer.close()
    assert seen == [False] * 2 + [True] * 14


# --- said at the end --------------------------------------------------------------------------------------------------


def said(algorithm: Any, dataset: Any = None, **kwargs: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        fit([algorithm], dataset=dataset, **kwargs)
    return [str(w.message) for w in caught if 'never' in str(w.message)]


def without_labels() -> TensorDataset:
    x, labels = toys.points().tensors
    return TensorDataset(x, torch.full_like(labels, -100))


@pytest.mark.parametrize(
    ('make', 'dataset', 'options', 'words'),
    [
        (
            lambda: CMIRegularization(start='9ba'),
            None,
            {},
            r"batch 8 \(start='9ba'\): training ended before it was due",
        ),
        (lambda: CMIRegularization(start='1dur'), None, {}, r"start='1.0dur' \(8ba\)\): training ended before"),
        (lambda: CMIRegularization(start='0ba'), None, {'batch_size': 1, 'max_duration': '4ba'}, 'no unit in 4 steps'),
        (lambda: CMIMaximization(start='2ba', max_cmi=1e-9), None, {}, 'above its cap in 6'),
        (lambda: CMIRegularization(form='plain', start='0ba'), without_labels, {}, 'no row had a class with a cent'),
        (lambda: CMIRegularization(form='scaled', start='0ba'), without_labels, {}, 'no unit in 8 steps'),
    ],
)
def test_promise_01_a_term_that_was_never_added_says_why(make, dataset, options, words):
    algorithm = make()
    messages = said(algorithm, None if dataset is None else dataset(), **options)
    assert len(messages) == 1 and re.search(words, messages[0]), messages
    assert type(algorithm).__name__ in messages[0] and 'never added to the loss' in messages[0]


@pytest.mark.parametrize(
    ('start', 'duration', 'due'),
    [
        ('9ba', '8ba', True),
        ('8ba', '8ba', True),
        ('7ba', '8ba', False),
        ('1dur', '2ep', True),
        ('0.99dur', '2ep', False),
        ('2ep', '2ep', True),
        ('1ep', '2ep', False),
        ('96sp', '96sp', True),
        ('95sp', '96sp', False),
    ],
)
@pytest.mark.parametrize('weight', [0.0, 1.0])
def test_promise_01_a_term_that_would_come_too_late_is_said_before_the_first_step(start, duration, due, weight):
    algorithm, seen = CMIRegularization(weight, start=start), []

    class FirstStep(Callback):
        def batch_start(self, state: State, logger: Any) -> None:
            seen.append(len([w for w in caught if 'will not be added' in str(w.message)]))

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        fit([algorithm], max_duration=duration, callbacks=[FirstStep()])
    assert set(seen) == {int(due and weight > 0)}


def test_promise_01_a_term_that_was_added_or_not_asked_for_says_nothing():
    assert said(CMIRegularization()) == said(CMIRegularization(0.0)) == said(CMIMaximization(start='7ba')) == []
    teacher = toys.mlp(seed=5).module
    assert said(KnowledgeDistillation(teacher, assume_same_labels=True)) == []


def test_promise_01_a_teacher_that_was_never_asked_says_so():
    algorithm = KnowledgeDistillation(toys.mlp(seed=5).module, assume_same_labels=True)
    empty = TensorDataset(torch.zeros(0, toys.INPUTS), torch.zeros(0, dtype=torch.long))
    loader = DataLoader(empty, batch_size=4)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        trainer = toys.trainer(toys.mlp(), empty, [algorithm], train_dataloader=loader, max_duration='1ep')
        trainer.fit()
        trainer.close()
    assert any('the teacher was never asked' in str(w.message) for w in caught)
