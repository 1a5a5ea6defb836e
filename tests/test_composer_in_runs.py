"""Whatever Composer names, now or in a later version, either runs to its end in a run or is refused before it."""

from __future__ import annotations

import pytest

from composer_cmi import registry
from composer_cmi.run.command import run_file
from composer_cmi.run.parts.by_name import get_algorithm, known_algorithms, known_callbacks
from run_tools import make_all, predictions

ARGUMENTS = {
    'gradient_clipping': {'clipping_type': 'norm', 'clipping_threshold': 0.01},
    'ema': {'half_life': '2ba'},
    'swa': {'swa_start': '0.3dur', 'swa_end': '0.9dur', 'update_interval': '1ba'},
    'early_stopper': {'monitor': 'accuracy', 'dataloader_label': 'dev'},
    'threshold_stopper': {'monitor': 'accuracy', 'dataloader_label': 'dev', 'threshold': 2.0},
}
IN_FP32 = 'low_precision_layernorm'  # has no effect there, as Composer warns
WITH_PLACE = [name for name in known_algorithms() if name in registry.composer_algorithms()]


@pytest.mark.parametrize('name', sorted(registry.composer_algorithms()))
def test_an_algorithm_runs_with_an_effect_or_is_refused_before_the_run(tmp_path, capsys, name):
    train = {'max_duration': '9ba', 'batch_size': 8, 'progress_bar': False, 'device': 'cpu'}
    options = {'train': train, 'optimizer': {'lr': 0.01}}
    code = run_file(str(make_all(tmp_path / name, algorithms={name: ARGUMENTS.get(name, {})}, **options)), [])
    said = capsys.readouterr().err.strip()
    if name not in WITH_PLACE:
        assert code == 2, said
        assert said.startswith('composer-cmi: ') and f'algorithms.{name} has no place in a run: ' in said
        assert len(said.splitlines()) == 1
        assert not (tmp_path / name / 'runs').exists()
        return
    assert code == 0, said
    assert run_file(str(make_all(tmp_path / 'plain', algorithms={}, **options)), []) == 0
    logits = [[row['logit_0'] for row in predictions(tmp_path / run / 'runs' / 'tiny')] for run in (name, 'plain')]
    assert (logits[0] != logits[1]) == (name != IN_FP32)


@pytest.mark.parametrize('name', WITH_PLACE)
def test_an_algorithm_runs_beside_an_adapter(tmp_path, capsys, name):
    adapter = {'r': 2, 'target_modules': ['query', 'value']}
    code = run_file(str(make_all(tmp_path, algorithms={name: ARGUMENTS.get(name, {})}, peft=adapter)), [])
    assert code == 0, capsys.readouterr().err


@pytest.mark.parametrize('name', known_callbacks())
def test_a_callback_runs(tmp_path, capsys, name):
    code = run_file(str(make_all(tmp_path, callbacks={name: ARGUMENTS.get(name, {})})), [])
    assert code == 0, capsys.readouterr().err


def test_activations_are_logged(tmp_path):
    path = make_all(tmp_path, callbacks={'activation_monitor': {'interval': '1ba'}})
    assert run_file(str(path), []) == 0
    text = (tmp_path / 'runs' / 'tiny' / 'history.csv').read_text()
    assert 'activations/l2_norm/model.classifier_input.0' in text


def test_a_plugins_algorithm_may_have_the_name_of_one_without_a_place(monkeypatch):
    class Mine(get_algorithm('ema')): ...

    assert 'mixup' not in known_algorithms()
    monkeypatch.setattr(registry, 'algorithms', {'mixup': Mine})
    monkeypatch.setattr(registry, 'get_algorithm', {'mixup': Mine}.__getitem__)
    assert get_algorithm('mixup') is Mine
