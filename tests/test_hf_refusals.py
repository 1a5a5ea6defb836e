"""What a CMITrainer cannot do exactly is refused in one sentence; its vocabulary is that of the Composer classes."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from transformers.trainer_pt_utils import AcceleratorConfig

from composer_cmi.errors import ConfigError
from composer_cmi.hf.refusals import refuse_settings
from hf_tools import Rows, bert, trainer


@pytest.mark.parametrize(
    ('terms', 'message'),
    [
        ({'cmi_regularization': {'wieght': 1}}, "cmi_regularization has no argument 'wieght'. Did you mean 'weight'?"),
        ({'cmi_regularization': {'max_cmi': 1}}, "cmi_regularization has no argument 'max_cmi'"),
        ({'cmi_maximization': {'label_key': 'x'}}, "cmi_maximization has no argument 'label_key'"),
        ({'knowledge_distillation': {'temprature': 2}}, "Did you mean 'temperature'?"),
        ({'cmi_regularization': 0.05}, 'cmi_regularization must be a mapping of its arguments'),
        ({'cmi_regularization': {}, 'cmi_maximization': {}}, 'Only one CMI term can be used in a run'),
        ({'cmi_regularization': {'weight': -1}}, 'weight must be at least 0, got -1'),
        ({'cmi_regularization': {'start': '3sec'}}, 'start must be a time such as'),
        ({'cmi_regularization': {'start': '3ba', 'ramp': '0.1dur'}}, 'start and ramp must be in the same unit'),
        ({'cmi_regularization': {'feature_module': 'nowhere'}}, "feature_module='nowhere' is no module of the model"),
        ({'cmi_regularization': {'centroids': 'mean'}}, 'centroids must be one of ema, fixed'),
        ({'knowledge_distillation': {}}, 'Distillation needs a teacher'),
        ({'knowledge_distillation': {'teacher': bert()}}, 'pass assume_same_labels=True'),
        ({'compute_loss_func': lambda *_, **__: 0}, 'CMITrainer owns the loss'),
        ({'settings': {'ignore_data_skip': True}}, 'ignore_data_skip=True begins an epoch anew'),
        ({'settings': {'accelerator_config': {'even_batches': False}}}, 'even_batches=False gives ranks different'),
        ({'settings': {'accelerator_config': {'split_batches': True}}}, 'split_batches and dispatch_batches deal'),
    ],
)
def test_refused_in_one_sentence(tmp_path, terms, message):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        trainer(tmp_path, **terms)
    assert '\n' not in str(error.value)


def test_a_teacher_of_the_students_own_weights_is_refused(tmp_path):
    model = bert()
    with pytest.raises(ValueError, match='shares weights with the student'):
        trainer(tmp_path, model=model, knowledge_distillation={'teacher': model})


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter([])


def test_streams_are_refused(tmp_path):
    with pytest.raises(ConfigError, match='needs a map-style train_dataset'):
        trainer(tmp_path, rows=Stream(), settings={'max_steps': 2})


@pytest.mark.parametrize('change', [{'num_labels': 1}, {'problem_type': 'multi_label_classification'}], ids=str)
def test_what_is_no_single_label_classifier_is_refused(tmp_path, change):
    model = bert()
    for name, value in change.items():
        setattr(model.config, name, value)
    with pytest.raises(ConfigError, match='trains single-label classifiers'):
        trainer(tmp_path, model=model)


@pytest.mark.parametrize('labels', [torch.zeros(3), torch.zeros(3, dtype=torch.bool)], ids=['one-hot', 'bool'])
def test_labels_that_are_no_classes_are_refused(tmp_path, labels):
    rows = [{**{k: v for k, v in Rows(4)[i].items() if k != 'example_id'}, 'labels': labels} for i in range(4)]
    with pytest.raises(ValueError, match='There must be one integer class per example'):
        trainer(tmp_path, rows=rows).train()


def mock_trainer(**args):
    """A Trainer of machines that are not here: several GPUs, DeepSpeed, FSDP, tensor parallelism."""
    settings = {'n_gpu': 1, 'ignore_data_skip': False, 'accelerator_config': AcceleratorConfig()}
    extras = {name: args.pop(name) for name in [*args] if name.startswith(('is_', 'get_'))}
    return SimpleNamespace(
        args=SimpleNamespace(**{**settings, **args}), model=bert(), train_dataset=Rows(4), compute_loss_func=None,
        **{'is_deepspeed_enabled': False, 'is_fsdp_enabled': False, **extras},
    )  # fmt: skip


@pytest.mark.parametrize(
    ('machine', 'message'),
    [
        ({'n_gpu': 2}, 'start one process a GPU'),
        ({'is_deepspeed_enabled': True}, 'does not run under DeepSpeed'),
        ({'is_fsdp_enabled': True}, 'does not run under FSDP'),
        ({'is_tp_enabled': True}, 'does not run with TP parallelism'),
        ({'get_cp_size': lambda: 2, 'get_sp_size': lambda: 2}, 'does not run with CP/SP parallelism'),
        ({'train_sampling_strategy': 'batch_rebalance'}, "train_sampling_strategy='batch_rebalance' deals rows"),
    ],
)
def test_refused_on_machines_that_are_not_here(machine, message):
    refuse_settings(mock_trainer())
    with pytest.raises(ConfigError, match=message):
        refuse_settings(mock_trainer(**machine))


def test_arguments_and_defaults_are_those_of_the_composer_classes():
    composer_cmi = pytest.importorskip('composer_cmi.algorithms')
    from composer_cmi.teachers.matching import DistillationArguments
    from composer_cmi.terms.arguments import MaximizationArguments, RegularizationArguments

    def defaults(cls):
        return {p.name: p.default for p in inspect.signature(cls).parameters.values()}

    pairs = {
        'CMIRegularization': RegularizationArguments,
        'CMIMaximization': MaximizationArguments,
        'KnowledgeDistillation': DistillationArguments,
    }
    for name, ours in pairs.items():
        whole = defaults(getattr(composer_cmi, name))
        only_there = {'label_key', 'allow_weak_teacher'} & set(whole)
        assert defaults(ours) == {key: value for key, value in whole.items() if key not in only_there}


def test_it_needs_no_composer():
    code = "import sys; sys.modules['composer'] = None; import composer_cmi.hf"
    subprocess.run([sys.executable, '-c', code], check=True, timeout=200)
