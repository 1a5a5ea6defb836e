"""A continued run is bit for bit the uninterrupted one, or says in one sentence why it is not."""

from __future__ import annotations

import functools
import io
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from composer.models import ComposerClassifier
from torch import Tensor, nn

import runs
import toys
from composer_cmi.algorithms import CMIMaximization, CMIRegularization, KnowledgeDistillation
from composer_cmi.algorithms.resume import dropped_states, warn_about_dropped_states

LAST = runs.EPOCHS * runs.BATCHES
ONE_OF_EACH = ('regularization', 'maximization', 'distillation')


@pytest.fixture(scope='module')
def whole(tmp_path_factory) -> dict[str, tuple[dict[str, Any], Path]]:
    """By case: what the uninterrupted run left, and the folder with a checkpoint of each of its batches."""
    results = {}
    torch.set_num_threads(1)
    for case, make in runs.CASES.items():
        folder = tmp_path_factory.mktemp('whole')
        results[case] = runs.finish(runs.trainer(make(), folder)), folder
    return results


# --- bit for bit ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('case', runs.CASES)
def test_any_batch_boundary(whole, case):
    expected, folder = whole[case]
    assert expected['batch'] == LAST
    for batch in range(1, LAST):  # 4, 8: end of an epoch; the others: in the midst of one
        continued = runs.finish(runs.trainer(runs.CASES[case](), load_path=str(folder / f'ba{batch}-rank0.pt')))
        assert runs.differences(runs.after(expected, batch), continued) == [], f'resumed after batch {batch}'


def test_the_comparison_sees_a_difference(whole):
    """Another seed of the dropout, a state that is dropped: the comparison above has to notice."""
    expected, folder = whole['regularization']
    path = str(folder / 'ba6-rank0.pt')
    for options in ({'load_ignore_keys': ['state/algorithms']}, {'load_ignore_keys': ['rng']}):
        continued = runs.finish(runs.trainer(runs.CASES['regularization'](), load_path=path, **options))
        assert runs.differences(runs.after(expected, 6), continued)
    assert runs.differences({'a': torch.zeros(2)}, {'a': torch.zeros(3)}) and runs.differences({'a': 1}, {'b': 1})


@pytest.mark.parametrize('case', ONE_OF_EACH)
def test_autoresume_after_a_stop_in_mid_epoch(whole, case, tmp_path):
    options: dict[str, Any] = {'autoresume': True, 'run_name': 'again', 'save_num_checkpoints_to_keep': 1}
    stopped = runs.trainer(runs.CASES[case](), tmp_path, callbacks=[runs.Stop(6)], **options)
    with pytest.raises(KeyboardInterrupt):
        stopped.fit()
    stopped.close()
    continued = runs.trainer(runs.CASES[case](), tmp_path, **options)
    assert continued.state.timestamp.batch == 6
    assert runs.differences(runs.after(whole[case][0], 6), runs.finish(continued)) == []


@pytest.mark.parametrize('case', ['regularization, fixed', 'maximization', 'distillation'])
def test_two_calls_of_fit_are_one(case):
    """Without dropout: Composer itself draws other random numbers in a second call."""
    once = runs.finish(runs.trainer(runs.CASES[case](), model=toys.mlp()))
    trainer = runs.trainer(runs.CASES[case](), model=toys.mlp())
    trainer.fit(duration='1ep')
    trainer.fit(duration=f'{runs.EPOCHS - 1}ep')
    assert runs.differences(once, runs.snapshot(trainer)) == []
    trainer.close()


def test_a_language_model_distilled_from_a_cache(tmp_path):
    """Stored logits, unlabelled rows, and the CMI term beside it."""

    def trainer(folder: Path | None = None, **kwargs: Any):
        teacher = toys.tiny_bert(seed=9).model
        kd = KnowledgeDistillation(teacher, cache=tmp_path / 'logits', assume_same_labels=True)
        data = toys.Sentences(16 * runs.BATCHES, unlabelled=12)
        options = {'train_dataloader': toys.loader(data, shuffle=True), **kwargs}
        return runs.trainer([kd, CMIRegularization(1.0)], folder, toys.tiny_bert(dropout=0.2), **options)

    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        expected = runs.finish(trainer(tmp_path / 'whole'))
        for batch in (2, 4, 7):
            continued = runs.finish(trainer(load_path=str(tmp_path / 'whole' / f'ba{batch}-rank0.pt')))
            assert runs.differences(runs.after(expected, batch), continued) == []


# --- what is saved ----------------------------------------------------------------------------------------------------


def plain(value: Any) -> bool:
    if isinstance(value, dict):
        return type(value) is dict and all(type(k) is str and plain(v) for k, v in value.items())
    if isinstance(value, list):
        return all(plain(item) for item in value)
    if isinstance(value, Tensor):
        return type(value) is Tensor and value.device.type == 'cpu' and not value.requires_grad
    return type(value) in (str, int, float, bool, type(None))


@pytest.mark.parametrize('case', runs.CASES)
def test_state_is_plain_and_loads_with_weights_only(whole, case):
    checkpoint = torch.load(whole[case][1] / f'ba{LAST}-rank0.pt', weights_only=False)
    for name, state in checkpoint['state']['algorithms']:
        assert plain(state), name
        assert state['schema_version'] == 1
        file = io.BytesIO()
        torch.save({name: state}, file)
        file.seek(0)
        assert runs.differences(torch.load(file, weights_only=True), {name: state}) == []


def test_a_saved_state_does_not_follow_the_run():
    algorithm = CMIRegularization(1.0)
    trainer = runs.trainer([algorithm])
    trainer.fit(duration='1ep')
    saved = algorithm.state_dict()
    kept = {name: table.clone() for name, table in saved['centroids']['tables'].items()}
    trainer.fit(duration='1ep')
    trainer.close()
    assert runs.differences(kept, saved['centroids']['tables']) == []
    assert runs.differences(kept, algorithm.state_dict()['centroids']['tables'])


def test_state_does_not_hold_the_teacher(whole):
    checkpoint = torch.load(whole['distillation'][1] / 'ba3-rank0.pt', weights_only=False)
    assert set(checkpoint['state']['model']) == set(toys.mlp().state_dict())
    (_, state), *_ = checkpoint['state']['algorithms']
    assert not any(isinstance(value, Tensor) for value in state.values())


# --- what is refused --------------------------------------------------------------------------------------------------


def wider(classes: int = toys.CLASSES, width: int = toys.HIDDEN) -> ComposerClassifier:
    """The toy model with another head or another width, whose weights the checkpoint cannot fill either."""
    module = nn.Sequential(nn.Linear(toys.INPUTS, width), nn.Tanh(), nn.Dropout(0.2), nn.Linear(width, classes))
    return ComposerClassifier(module, num_classes=classes)


@pytest.mark.parametrize(
    ('case', 'algorithm', 'model', 'words'),
    [
        (
            'regularization',
            lambda: CMIRegularization(1.0),
            lambda: wider(classes=4),
            'for 3 classes of width 8, but .* 4 ',
        ),
        ('regularization', lambda: CMIRegularization(1.0), lambda: wider(width=9), 'classes of width 8, .* width 9'),
        ('regularization', lambda: CMIRegularization(space='logits'), wider, "space='features', this run .*'logits'"),
        ('regularization', lambda: CMIRegularization(centroids='fixed'), wider, "centroids='ema', this run asks"),
        ('maximization', lambda: CMIMaximization(space='features'), wider, "space='logits', this run .*'features'"),
        ('distillation', lambda: runs.distillation(), None, 'schema version 9'),
        ('regularization', lambda: CMIRegularization(), None, 'schema version 9'),
    ],
)
def test_a_checkpoint_that_does_not_fit(whole, case, algorithm, model, words):
    """One sentence; the weights are left out of it, where they would not fit either."""

    def change(checkpoint: dict[str, Any]) -> None:
        if model is None:
            for _, state in checkpoint['state']['algorithms']:
                state['schema_version'] = 9
        else:
            for key in ('model', 'optimizers', 'train_metrics'):
                checkpoint['state'].pop(key, None)

    path = str(whole[case][1] / 'ba5-rank0.pt')
    with pytest.raises(ValueError, match=words) as error:
        runs.trainer([algorithm()], model=model() if model else None, load_path=path, load_ignore_keys=change)
    assert str(error.value).count('. ') == 0


def test_logit_centroids_of_another_number_of_classes_are_refused(whole):
    """In logit space the width is known with the first batch; the state must be checked there at the latest."""

    def drop(checkpoint: dict[str, Any]) -> None:
        for key in ('model', 'optimizers', 'train_metrics'):
            checkpoint['state'].pop(key, None)

    path = str(whole['maximization'][1] / 'ba5-rank0.pt')
    with pytest.raises(ValueError, match='for 3 classes of width 3, but this run has 4 classes'):
        runs.finish(
            runs.trainer([CMIMaximization(start='1ba')], model=wider(classes=4), load_path=path, load_ignore_keys=drop)
        )


@pytest.mark.parametrize(
    ('change', 'words'), [({'alpha': 0.1}, 'alpha=0.7, this run asks for 0.1'), ({'temperature': 3.0}, 'temperature=2')]
)
def test_another_objective_of_distillation_is_refused(whole, change, words):
    options = {'alpha': 0.7, 'temperature': 2.0, 'assume_same_labels': True, **change}
    algorithm = KnowledgeDistillation(toys.mlp(seed=5).module, **options)
    with pytest.raises(ValueError, match=words):
        runs.trainer([algorithm], load_path=str(whole['distillation'][1] / 'ba5-rank0.pt'))


def test_another_teacher_is_refused(whole):
    algorithm = KnowledgeDistillation(toys.mlp(seed=6).module, 0.7, 2.0, assume_same_labels=True)
    with pytest.raises(ValueError, match='another teacher'):
        runs.trainer([algorithm], load_path=str(whole['distillation'][1] / 'ba5-rank0.pt'))


# --- what is said -----------------------------------------------------------------------------------------------------


def said(action: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        action()
    return [str(w.message) for w in caught]


@pytest.mark.parametrize('case', ONE_OF_EACH)
def test_a_run_without_the_algorithm_of_its_checkpoint_says_so(whole, case):
    name = type(runs.CASES[case]()[0]).__name__
    path = str(whole[case][1] / 'ba5-rank0.pt')
    messages = said(lambda: runs.trainer([], load_path=path).close())
    assert sum(name in message and 'does not list' in message for message in messages) == 1


@pytest.mark.parametrize('case', ONE_OF_EACH)
def test_weights_only_says_that_the_state_stays_behind(whole, case):
    name = type(runs.CASES[case]()[0]).__name__
    path = str(whole[case][1] / 'ba5-rank0.pt')
    messages = said(lambda: runs.trainer(runs.CASES[case](), load_path=path, load_weights_only=True).close())
    assert sum(name in message and 'load_weights_only' in message for message in messages) == 1


@pytest.mark.parametrize('case', ONE_OF_EACH)
def test_a_checkpoint_without_the_algorithm_is_named(tmp_path, case):
    plain_run = runs.trainer([], tmp_path)
    plain_run.fit(duration='5ba')
    plain_run.close()
    name = type(runs.CASES[case]()[0]).__name__
    path = str(tmp_path / 'ba5-rank0.pt')
    messages = said(lambda: runs.finish(runs.trainer(runs.CASES[case](), load_path=path)))
    assert any(name in message for message in messages)
    if case != 'distillation':  # which has nothing to lose
        assert any('without its centroids' in message for message in messages)


def test_a_matching_resume_says_nothing(whole):
    path = str(whole['distillation, regularization'][1] / 'ba5-rank0.pt')
    messages = said(lambda: runs.trainer(runs.CASES['distillation, regularization'](), load_path=path).close())
    assert not [message for message in messages if 'CMIRegularization' in message or 'Distillation' in message]


def test_the_watch_is_set_up_once():
    from composer.core import State

    before = State.load_state_dict
    warn_about_dropped_states()
    assert State.load_state_dict is before
    saved = {'algorithms': [('SAM', {}), ('CMIMaximization', {})]}
    assert dropped_states(saved, ['SAM']) == ['CMIMaximization']
    assert dropped_states(saved, ['CMIMaximization']) == [] and dropped_states({}, []) == []


@pytest.mark.parametrize('order', ['theirs, ours', 'ours, theirs'])
def test_another_package_may_wrap_before_or_after(order, tmp_path, monkeypatch):
    """Each sees the checkpoint, and the warning comes once."""
    from composer.core import State

    calls = []

    def theirs() -> None:
        inner = State.load_state_dict

        @functools.wraps(inner)
        def load_state_dict(self: State, *args: Any, **kwargs: Any) -> None:
            calls.append(1)
            inner(self, *args, **kwargs)

        State.load_state_dict = load_state_dict

    for name in ('load_state_dict', 'load_model_state'):
        monkeypatch.setattr(State, name, getattr(State, name).__wrapped__)  # as before our import
    for wrap in order.split(', '):
        {'theirs': theirs, 'ours': warn_about_dropped_states.__wrapped__}[wrap]()
    runs.finish(runs.trainer([CMIRegularization()], tmp_path, max_duration='1ba'))
    messages = said(lambda: runs.trainer([], load_path=str(tmp_path / 'ba1-rank0.pt')).close())
    assert sum('does not list' in message for message in messages) == 1 and calls == [1]
