"""Arguments of algorithms, loggers and plugins have the types of their signatures, from a file and from Python."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from composer.algorithms import SWA
from composer.core import Algorithm, Time

from composer_cmi import registry
from composer_cmi.algorithms import CMIRegularization, KnowledgeDistillation
from composer_cmi.arguments import argument_types, fault
from composer_cmi.run.config import ConfigError
from composer_cmi.run.models import _override
from config_tools import loaded, refused


@pytest.mark.parametrize(
    ('argument', 'words'),
    [
        ('knowledge_distillation={teacher: t, allow_weak_teacher: no}', r"weak_teacher: must be true or false .*'no'"),
        ('knowledge_distillation={teacher: t, cache: true}', r'cache: must be text'),
        ('knowledge_distillation={teacher: true}', r'teacher: must be'),
        ('knowledge_distillation={teacher: t, alpha: 1.5}', r'alpha: must lie between 0 and 1'),
        ('knowledge_distillation={teacher: t, temperature: .inf}', r'temperature: .*finite'),
        ('cmi_regularization.start=nandur', r'start: must be a Composer time'),
        ('cmi_regularization.start=-1ba', r'start: must be a Composer time.*negative'),
        ('cmi_regularization.start=0.3', r'start: must be a Composer time.*given: 0.3'),
        ('cmi_regularization.start="3"', r'start: must be a Composer time'),
        ('cmi_regularization.ramp=1.5ep', r'ramp: must be a whole number'),
        ('cmi_regularization.weight=1e30', r'weight: .*at most'),
        ('cmi_regularization.weight=100000', r'weight: must be at most 10000'),
        ('cmi_regularization.weight="0.3"', r'weight: must be a number'),
        ('cmi_regularization.weight=true', r'weight: must be a number'),
        ('cmi_regularization.space=logit', r'space: must be one of features, logits'),
        ('cmi_regularization.label_key=true', r'label_key: must be text or a whole number'),
        ('cmi_regularization.feature_module=""', r'feature_module: must not be empty'),
        ('gradient_clipping={clipping_type: nrom, clipping_threshold: 1}', r'clipping_type: must be one of'),
        ('gradient_clipping={clipping_type: norm, clipping_threshold: -1}', r'threshold: must be positive'),
        ('swa.swa_start=half', r'swa_start: must be a Composer time'),
        ('swa.schedule_swa_lr=no', r'schedule_swa_lr: must be true or false'),
        ('sam.interval=-1', r'interval: must be at least 0'),
        ('ema.update_interval=1.5ep', r'update_interval: must be a whole number'),
    ],
)
def test_promise_22_arguments_of_algorithms_are_typed(tmp_path, argument, words):
    assert re.search(rf'algorithms\..*{words}', refused(tmp_path, f'algorithms.{argument}'))


def test_promise_22_arguments_of_loggers_are_typed(tmp_path):
    assert 'loggers.tensorboard.rank_zero_only: must be true' in refused(
        tmp_path, 'loggers.tensorboard.rank_zero_only=no'
    )
    assert 'loggers.wandb.tags: must be a list' in refused(tmp_path, 'loggers.wandb.tags=a')
    assert 'loggers.file.filename' in refused(tmp_path, "loggers.file.filename='{rnak}.txt'")
    assert loaded(tmp_path, "loggers.file.filename='{task}{rank}.txt'").loggers['file']['filename'] == 'rte{rank}.txt'


PLUGIN = """
from __future__ import annotations
from typing import TYPE_CHECKING
from composer.core import Algorithm, Time
from composer_cmi.registry import register_algorithm
if TYPE_CHECKING:
    from torch import nn

@register_algorithm('test_typed_plugin')
class Mine(Algorithm):
    def __init__(self, rate: float = 0.5, *, start: str | Time = '1ep', deep: bool = False, module: nn.Module | str | None = None):
        self.rate = rate
    def match(self, event, state): return False
    def apply(self, event, state, logger): pass
"""


def test_promise_22_a_plugins_own_algorithm_is_typed_too(tmp_path):
    (tmp_path / 'plugin.py').write_text(PLUGIN)
    code = f'code_paths=[{tmp_path / "plugin.py"}]'
    own = 'algorithms.test_typed_plugin'
    for argument, words in (
        ('rate=fast', 'rate: must be a number'),
        ('start=-1ba', 'start: must be a Composer time'),
        ('deep=no', 'deep: must be true or false'),
        ('module=3', 'module: must be text'),
    ):
        assert words in refused(tmp_path, code, f'{own}.{argument}')
    assert loaded(tmp_path, code, f'{own}.rate=1').algorithms == {'test_typed_plugin': {'rate': 1}}
    plugin = registry.get_algorithm('test_typed_plugin')
    with pytest.raises(ValueError, match=r"^rate must be a number, got 'fast'\.$"):
        plugin(rate='fast')  # type: ignore
    assert plugin(module=torch.nn.Linear(1, 1), rate=torch.tensor(0.25)).rate == 0.25  # type: ignore


@pytest.mark.parametrize(
    ('make', 'words'),
    [
        (lambda: CMIRegularization(weight='0.1'), 'weight must be a number'),
        (lambda: CMIRegularization(float('nan')), 'weight must be a finite number'),
        (lambda: CMIRegularization(start='nandur'), 'start must be a Composer time'),
        (lambda: CMIRegularization(start=Time(-1, 'ba')), 'start must be a Composer time'),
        (lambda: CMIRegularization(start='-1ba'), 'start must be a Composer time'),
        (lambda: KnowledgeDistillation('t', allow_weak_teacher='no'), 'allow_weak_teacher must be true or false'),
        (lambda: KnowledgeDistillation('t', cache=True), 'cache must be text'),
        (lambda: KnowledgeDistillation(3), 'teacher must be'),
    ],
)
def test_promise_22_constructors_in_python_say_the_same(make, words):
    with pytest.raises(ValueError, match=words) as caught:
        make()
    assert '\n' not in str(caught.value)


def test_promise_22_what_is_right_is_taken():
    import numpy as np

    assert CMIRegularization(np.float32(0.5), start=Time(3, 'ba'), temperature=2).weight == 0.5  # type: ignore
    assert KnowledgeDistillation(torch.nn.Linear(2, 2), cache=Path('logits')).alpha == 0.5
    assert fault(argument_types(SWA)['swa_start'], '0.7dur') is None

    @registry.register_algorithm('test_odd')
    class Odd(Algorithm):
        def __init__(self, a: NotThere, b: tuple[int, int] = (1, 2), c: list[float] | None = None, **rest: int):  # noqa: F821 # type: ignore
            self.given = a, b, c, rest

        def match(self, event, state):
            return False

        def apply(self, event, state, logger):
            pass

    assert Odd(object(), (3, 4), [1], more=1).given[1:] == ((3, 4), [1], {'more': 1})
    with pytest.raises(TypeError):
        Odd()  # type: ignore
    with pytest.raises(ValueError, match='b must be a whole number'):
        Odd(object(), b=(1, 'x'))  # type: ignore


def test_promise_22_overrides_of_a_model_have_the_type_of_what_they_replace():
    from transformers import BertConfig

    config = BertConfig()
    for key, value, words in (
        ('hidden_size', '32', 'must be a whole number'),
        ('hidden_dropout_prob', 'no', 'must be a number'),
        ('hidden_act', 3, 'must be text'),
        ('use_cache', 'no', 'must be true or false'),
    ):
        with pytest.raises(ConfigError, match=f'model.config_overrides.{key}: {words}'):
            _override(config, {key: value})
    _override(config, {'hidden_dropout_prob': 0, 'classifier_dropout': 0.3})
    assert (config.hidden_dropout_prob, config.classifier_dropout) == (0, 0.3)
