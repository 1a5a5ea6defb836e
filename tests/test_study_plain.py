"""What counts as plain cross-entropy in a study: by property over every registered algorithm and every key."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import catalogue
import pytest
from composer.core import Algorithm, Event, State
from composer.loggers import Logger

import toys
from composer_cmi import registry
from composer_cmi.algorithms import RDrop
from composer_cmi.errors import ConfigError
from composer_cmi.run.config import RunConfig
from composer_cmi.study.config import combinations, load_study
from composer_cmi.study.execution import plain
from composer_cmi.study.execution.plain import is_plain_ce
from composer_cmi.study.execution.plan import names_of_tuned_ce, plan_reported, plan_tuning
from composer_cmi.study.execution.refusals import check_cells
from sweep_tools import BASE, TWO_ARMS, write_study

ROOT = Path(__file__).parents[1]
STUDIES = {path.stem: path for path in sorted((ROOT / 'studies').glob('*.yaml')) if path.stem != 'base_minilm'}


class StrangersTerm(Algorithm):
    """A term of somebody else's, which nothing of ours lists."""

    def __init__(self, weight: float = 0.1, other: int = 0):
        self.weight, self.other = weight, other

    def match(self, event: Event, state: State) -> bool:
        return event == Event.AFTER_LOSS

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        state.loss = state.loss * (1 + self.weight)


@pytest.fixture(autouse=True)
def _a_stranger():
    registry.register_algorithm('strangers_term')(StrangersTerm)
    yield
    del catalogue.REGISTRY[(*registry.algorithms.namespace, 'strangers_term')]


def config(**changes: Any) -> RunConfig:
    return RunConfig.model_validate({**BASE, **changes})


def ours() -> list[str]:
    # Those that other tests have registered are no terms.
    names = [name for name in registry.known_algorithms() if name in registry.algorithms]
    modules = {name: registry.get_algorithm(name).__module__ for name in names}
    return [name for name, module in modules.items() if module.startswith('composer_cmi.') or module == __name__]


def test_no_term_of_ours_or_of_a_plugin_is_plain_unless_it_weighs_nothing():
    assert {'strangers_term', 'norm_penalty', 'supervised_contrast', 'r_drop'} <= {*ours()}
    for name in ours():
        with_it = config(algorithms={name: {}})
        assert not is_plain_ce(with_it), name
        assert not is_plain_ce(with_it, with_it), f'{name} in the base file makes all arms another method'
        names = inspect.signature(registry.get_algorithm(name)).parameters
        zero = {key: 0 for key in ('weight', 'share', 'alpha') if key in names}
        assert is_plain_ce(config(algorithms={name: zero})), name
    assert not is_plain_ce(config(algorithms={'cmi_regularization': {'weight': 0, 'separation': 1.0}}))


def test_an_algorithm_of_composers_is_plain_where_all_arms_have_it_or_whatever_the_loss_is():
    any_loss = {'ema', 'gradient_clipping', 'low_precision_layernorm', 'swa'}
    names = {*registry.composer_algorithms()}
    assert {'mixup', 'cutmix', 'label_smoothing', 'sam', 'selective_backprop'} | any_loss <= names
    for name in names:
        with_it = config(algorithms={name: {}})
        assert is_plain_ce(with_it) == (name in any_loss), name
        assert is_plain_ce(with_it, with_it) and is_plain_ce(config(), with_it), name


SHAPING = {
    'train.class_weights': 'balanced', 'train.label_smoothing': 0.1, 'train.keep_best': 'nll', 'data.label_noise': 0.2,
    'data.class_imbalance': 0.5, 'data.train_rows': 50, 'data.labelled_rows': 50, 'calibrate': 0.2,
    'model.config_overrides': {'hidden_dropout_prob': 0.2},
}  # fmt: skip
FREE = {
    'train.max_duration': '9ba', 'train.batch_size': 7, 'optimizer.lr': 0.01, 'optimizer.weight_decay': 0.5,
    'scheduler.warmup': '0ba', 'data.max_length': 16, 'model.keep_layers': [0],
    'peft': {'r': 4}, 'callbacks': {'early_stopper': {'monitor': 'nll'}},
}  # fmt: skip


def changed(key: str, value: Any) -> RunConfig:
    section, _, inner = key.partition('.')
    return config(**{section: {**BASE.get(section, {}), inner: value} if inner else value})


def test_a_key_is_plain_where_all_arms_have_it_or_where_cross_entropy_may_choose_it():
    for key, value in SHAPING.items():
        assert not is_plain_ce(changed(key, value)), key
        assert is_plain_ce(changed(key, value), changed(key, value)), key
        assert is_plain_ce(config(), changed(key, value)), f'without what the others have: {key}'
    for key, value in FREE.items():
        assert is_plain_ce(changed(key, value)), key


def test_a_key_that_nobody_has_judged_yet_is_no_baseline(monkeypatch):
    for key, value in FREE.items():
        monkeypatch.setattr(plain, '_FREE', plain._FREE - {key, key.partition('.')[0]})
        assert not is_plain_ce(changed(key, value)), key


CLASS_WEIGHTS = {'train.class_weights': 'balanced'}


def test_a_tuned_control_is_no_baseline_and_is_not_tuned_alone(tmp_path):
    tune = {'optimizer.lr': [1e-3, 2e-3]}
    controls = {
        'norm': {'algorithms.norm_penalty': {}}, 'contrast': {'algorithms.supervised_contrast': {}},
        'r_drop': {'algorithms.r_drop': {}}, 'stranger': {'algorithms.strangers_term': {}},
        'sam': {'algorithms.sam': {}}, 'weights': CLASS_WEIGHTS, 'smooth': {'train.label_smoothing': 0.1},
    }  # fmt: skip
    arms = {name: {'set': changes, 'tune': tune} for name, changes in controls.items()}
    study = load_study(write_study(tmp_path, {**TWO_ARMS, 'arms': arms}))
    assert names_of_tuned_ce(study) == []
    with pytest.raises(ConfigError, match=r'Only norm, contrast, .* would be tuned: tune a plain cross-entropy arm'):
        check_cells(study, plan_tuning(study))
    measured = {'set': {'algorithms.norm_penalty.weight': 0}, 'tune': tune}
    study = load_study(write_study(tmp_path, {**TWO_ARMS, 'arms': {'measured': measured, **arms}}))
    check_cells(study, plan_tuning(study))
    assert names_of_tuned_ce(study) == ['measured']


def test_ce_may_have_what_the_whole_study_has_and_nothing_of_its_own(tmp_path):
    def checked(**changes: Any) -> None:
        base = {**BASE, **changes.pop('base', {})}
        study = load_study(write_study(tmp_path, {**TWO_ARMS, **changes}, base=base))
        check_cells(study, plan_reported(study, {}))

    checked(base={'train': {'class_weights': 'balanced', 'label_smoothing': 0.1}})
    checked(base={'algorithms': {'sam': {'rho': 0.1}}})
    checked(settings={'unequal': {**CLASS_WEIGHTS, 'data.class_imbalance': 0.1}})
    mincmi = TWO_ARMS['arms']
    for own in (CLASS_WEIGHTS, {'algorithms.sam': {}}, {'algorithms.strangers_term': {}}, {'data.label_noise': 0.1}):
        with pytest.raises(ConfigError, match="'ce' must be plain cross-entropy"):
            checked(arms={'ce': own, **mincmi})
    with pytest.raises(ConfigError, match="'ce' must be plain cross-entropy"):
        checked(base={'algorithms': {'norm_penalty': {}}})


def test_a_term_of_weight_zero_is_the_same_run_as_without_it(tmp_path):
    arms = {'x': {'algorithms.supervised_contrast.share': 0}}
    study = load_study(write_study(tmp_path, {**TWO_ARMS, 'arms': arms}))
    with pytest.raises(ConfigError, match='The arms ce and x are the same run'):
        check_cells(study, plan_reported(study, {}))
    # And so it is in training, of the one term that would run the model a second time.
    found = []
    for algorithms in ([], [RDrop(0.0)]):
        model = toys.mlp(dropout=0.3)
        trainer = toys.trainer(model, toys.points(), algorithms, max_duration='2ba')
        trainer.fit()
        trainer.close()
        found.append(toys.weights(model))
    assert found[0].equal(found[1])


BASELINES = {
    'average': ['ce'],
    'mincmi_small': ['ce_tuned'],
    'family': ['ce_short', 'ce'],
    'family_binary': ['ce_long', 'ce'],
    'paper_tasks': ['ce'],
    'paper_base': ['ce'],
    'rte_longer': ['ce'],
}


@pytest.mark.parametrize('name', STUDIES)
def test_every_committed_study_can_be_planned_with_the_baselines_that_it_names(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    study = load_study(STUDIES[name])
    tuning, setting = plan_tuning(study), next(iter(study.settings))
    chosen = {
        (cell.setting, cell.arm): combinations(study.arms[cell.arm].tune)[0] for cell in tuning if cell.candidate == 0
    }
    reported = plan_reported(study, chosen)
    # One seed of each is enough, and the runs that it needs.
    first = [cell for cell in reported if cell.seed == study.seeds[0]]
    needed = {folder for cell in first for folder in cell.needs}
    tries = [cell for cell in tuning if cell.seed == study.tuning.seeds[0] and cell.setting == setting]
    check_cells(study, [*tries, *(cell for cell in reported if cell in first or cell.folder in needed)])
    assert names_of_tuned_ce(study) == BASELINES.get(name, [])
