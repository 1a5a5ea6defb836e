"""Callbacks by name, the end of training before its time, and the best evaluation's weights, through kills too."""

from __future__ import annotations

from pathlib import Path

import pytest

from composer_cmi.run.command import run_file
from composer_cmi.run.outputs import export
from composer_cmi.run.outputs.history import read_history
from composer_cmi.run.outputs.results import RunResults, load_results
from run_tools import make_all, predictions

CRASH = """
from pathlib import Path
from composer.core import Algorithm, Event
from composer_cmi.registry import register_algorithm

@register_algorithm('crash_at')
class CrashAt(Algorithm):
    def __init__(self, flag: str, batch: int): self.flag, self.batch = Path(flag), batch
    def match(self, event, state):
        return event == Event.BATCH_END and state.timestamp.batch == self.batch and self.flag.exists()
    def apply(self, event, state, logger):
        self.flag.unlink()
        raise RuntimeError('killed')
"""
# Never better by 10: ends when an epoch more than the first, and the patience of one, have passed.
STOPPED = ['callbacks.early_stopper={monitor: nll, min_delta: 10}', 'train.max_duration=6ep']
# A rate so high that the best evaluation is not the last.
BEST = ['train.keep_best=nll', 'optimizer.lr=0.05', 'train.max_duration=6ep', 'seed=17']


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('callbacks')
    (folder / 'crash.py').write_text(CRASH)
    flag = str(folder / 'flag')
    make_all(
        folder,
        code_paths=[str(folder / 'crash.py')],
        algorithms={'cmi_regularization': {'start': '0.1dur'}, 'crash_at': {'flag': flag, 'batch': 8}},
    )
    return folder


def run(folder: Path, name: str, *overrides: str) -> int:
    return run_file(str(folder / 'run.yaml'), [f'run_name={name}', *overrides])


def results_of(folder: Path, name: str) -> RunResults:
    results = load_results(folder / 'runs' / name)
    assert results is not None
    return results


def same(folder: Path, one: str, other: str) -> None:
    """Bit for bit the same predictions, scores, information and history."""
    first, second = results_of(folder, one), results_of(folder, other)
    assert predictions(folder / 'runs' / one) == predictions(folder / 'runs' / other)
    assert (first.scores, first.cmi, first.selection) == (second.scores, second.cmi, second.selection)
    assert (first.timing.steps, first.notes) == (second.timing.steps, second.notes)
    histories = [read_history(folder / 'runs' / name / 'history.csv') for name in (one, other)]
    for name in ('loss/train/total', 'metrics/dev/NegativeLogLikelihood', 'cmi/loss'):
        series = [[(row['step'], row[name]) for row in history if name in row] for history in histories]
        assert series[0] == series[1] != [], name


@pytest.fixture(scope='module')
def stopped(folder) -> RunResults:
    assert run(folder, 'stopped', *STOPPED) == 0
    return results_of(folder, 'stopped')


@pytest.fixture(scope='module')
def best(folder) -> RunResults:
    assert run(folder, 'best', *BEST) == 0
    return results_of(folder, 'best')


def test_training_ends_early_and_the_run_says_so(folder, stopped):
    assert stopped.timing.steps == 9
    assert len([row for row in read_history(folder / 'runs' / 'stopped' / 'history.csv') if 'cmi/cmi' in row]) == 9
    assert stopped.notes[-1].startswith('Training was ended before its 18 steps: where a callback looked at dev for')
    assert 'Training was ended before its 18 steps' in (folder / 'runs' / 'stopped' / 'model' / 'README.md').read_text()


def test_a_stopped_run_that_is_killed_and_resumed_stops_where_it_would_have(folder, stopped):
    (folder / 'flag').touch()
    assert run(folder, 'stopped_killed', *STOPPED) == 70  # at step 8, after the checkpoint of step 6
    assert run(folder, 'stopped_killed', *STOPPED) == 0
    same(folder, 'stopped', 'stopped_killed')


def test_what_is_killed_after_it_has_stopped_trains_no_further(folder, stopped, monkeypatch):
    def killed(*args, **kwargs):
        raise RuntimeError('killed')

    monkeypatch.setattr('composer_cmi.run.train.export_model', killed)
    assert run(folder, 'stopped_late', *STOPPED) == 70
    monkeypatch.setattr('composer_cmi.run.train.export_model', export.export_model)
    assert run(folder, 'stopped_late', *STOPPED) == 0
    same(folder, 'stopped', 'stopped_late')


def test_a_stopped_run_has_finished_before(folder, stopped, capsys):
    assert run(folder, 'stopped', *STOPPED) == 0
    assert 'finished before' in capsys.readouterr().out
    assert run(folder, 'stopped', 'train.max_duration=6ep') == 2
    assert 'holds a finished run with callbacks.early_stopper.' in capsys.readouterr().err


def test_the_weights_of_the_best_evaluation_are_kept_and_told_to_be_a_selection(folder, best, capsys):
    history = read_history(folder / 'runs' / 'best' / 'history.csv')
    nll = 'metrics/dev/NegativeLogLikelihood'
    values = {int(row['step']): row[nll] for row in history if nll in row}
    step = min(values, key=lambda step: values[step])
    assert best.selection is not None and best.selection.step == step < max(values) == 18
    assert best.selection.evaluations == len(values) == 6
    assert best.scores['dev']['nll'] == pytest.approx(min(values.values()), rel=1e-5)
    assert best.scores['dev']['nll'] < 0.999 * values[18]
    card = (folder / 'runs' / 'best' / 'model' / 'README.md').read_text()
    assert 'a selection on rows that are reported' in card and 'a selection on rows that are reported' in best.notes[-1]
    assert run(folder, 'best', *BEST) == 0
    shown = capsys.readouterr().out
    assert 'finished before' in shown and f'{step}, by dev nll' in shown and 'a selection' in shown


@pytest.mark.parametrize('batch', [2, 17])
def test_the_best_weights_come_through_a_kill(folder, best, batch):
    """Before the first evaluation, and long after the best, when only the checkpoint has its weights."""
    (folder / 'flag').touch()
    crash = f'algorithms.crash_at.batch={batch}'
    name = f'best_{batch}'
    assert run(folder, name, *BEST, crash) == 70
    assert run(folder, name, *BEST, crash) == 0
    same(folder, 'best', name)


def test_a_monitor_writes_into_the_history(folder):
    assert run(folder, 'monitored', 'callbacks.lr_monitor={}', 'train.max_duration=1ep') == 0
    rows = read_history(folder / 'runs' / 'monitored' / 'history.csv')
    assert any('lr-AdamW/group0' in row for row in rows)


def test_a_threshold_ends_training_too(folder):
    assert run(folder, 'threshold', 'callbacks.threshold_stopper={monitor: nll, threshold: 5}') == 0
    assert results_of(folder, 'threshold').timing.steps == 3  # less is better: below at the first look


@pytest.mark.parametrize(
    ('override', 'sentence'),
    [
        ('callbacks.early_stoper={}', "Unknown callback 'early_stoper'. Did you mean 'early_stopper'?"),
        ('callbacks.early_stopper={}', "the key 'callbacks.early_stopper.monitor' is missing"),
        ('callbacks.early_stopper={monitor: nll, patience: 3sp}', "patience must be counted in 'ep' or 'ba'"),
        ('callbacks.early_stopper={monitor: nll, comp: best}', 'callbacks.early_stopper.comp: must be one of greater'),
        ('callbacks.early_stopper={monitor: nl}', "callbacks.early_stopper.monitor: unknown metric 'nl'. Did you mean"),
        ('callbacks.early_stopper={monitor: nll, dataloader_label: test}', "'test' is no evaluation split of this run"),
        ('callbacks.checkpoint_saver={}', 'the section checkpoint writes checkpoints'),
        ('train.keep_best=acuracy', "train.keep_best: unknown metric 'acuracy'. Did you mean 'accuracy'?"),
    ],
)
def test_what_cannot_be_watched_is_refused_before_training(folder, override, sentence, capsys):
    assert run(folder, 'refused', override) == 2
    assert sentence in capsys.readouterr().err
    assert not (folder / 'runs' / 'refused' / 'checkpoints').exists()


@pytest.mark.parametrize('override', ['train.keep_best=nll', 'callbacks.early_stopper={monitor: nll}'])
def test_what_waits_for_evaluations_needs_some(folder, override, capsys):
    assert run(folder, 'refused', override, 'train.eval_interval=0ba') == 2
    assert 'waits for evaluations in training' in capsys.readouterr().err


def test_a_loss_is_better_when_it_is_less():
    import torch

    from composer_cmi.run.parts.selection import EarlyStopper, settle_monitor
    from composer_cmi.run.scoring import Accuracy, NegativeLogLikelihood

    metrics = {'accuracy': Accuracy(2), 'nll': NegativeLogLikelihood(2)}
    for monitor, comparison in (('accuracy', torch.greater), ('nll', torch.less)):
        stopper = EarlyStopper(monitor)
        settle_monitor(stopper, metrics, ['dev'], 'callbacks.early_stopper')
        assert stopper.comp_func is comparison and stopper.dataloader_label == 'dev'
    told = EarlyStopper('nll', comp='greater')
    settle_monitor(told, metrics, ['dev'], 'callbacks.early_stopper')
    assert told.comp_func is torch.greater
