"""Arms of a run: they start equal, are set side by side, and hand a teacher to a student."""

from __future__ import annotations

import json

import pytest
import torch
import transformers

from composer_cmi.run.command import run_file
from composer_cmi.run.outputs.results import load_results
from run_tools import make_all, make_model


def test_arms_start_equal_and_are_set_side_by_side(tmp_path, capsys):
    arms = {'ce': {'algorithms.cmi_regularization.weight': 0}, 'cmi': {'algorithms.cmi_regularization.weight': 5}}
    path = make_all(tmp_path, arms=arms, model={'name_or_path': str(tmp_path / 'model'), 'keep_layers': [1]})
    assert run_file(str(path), []) == 0
    printed = capsys.readouterr().out
    assert 'dev accuracy' in printed and 'CMI, features' in printed and 'runs/tiny' in printed
    ce, cmi = (load_results(tmp_path / 'runs' / 'tiny' / name) for name in arms)
    assert ce is not None and cmi is not None
    assert ce.cmi['before'] == cmi.cmi['before']
    assert cmi.cmi['after']['features'].cmi < ce.cmi['after']['features'].cmi
    config = json.loads((tmp_path / 'runs' / 'tiny' / 'ce' / 'model' / 'config.json').read_text())
    assert config['num_hidden_layers'] == 1


def test_a_chain_of_arms_hands_the_teacher_to_the_student(tmp_path, capsys):
    arms = {
        'ce_teacher': {'train.max_duration': '10ep'},
        'maxcmi_teacher': {
            'model.name_or_path': 'arm:ce_teacher',
            'algorithms.cmi_maximization': {'weight': 0.2, 'start': '0dur'},
        },
        'student': {
            'model.keep_layers': [0],
            'data.labelled_rows': 12,
            'algorithms.knowledge_distillation': {
                'teacher': 'arm:maxcmi_teacher',
                'cache': str(tmp_path / 'logits'),
                'allow_weak_teacher': True,
            },
        },
    }
    assert run_file(str(make_all(tmp_path, arms=arms, algorithms={})), []) == 0
    ce, maxcmi, student = (load_results(tmp_path / 'runs' / 'tiny' / name) for name in arms)
    assert ce is not None and maxcmi is not None and student is not None
    assert maxcmi.cmi['before']['logits'].cmi == pytest.approx(ce.cmi['after']['logits'].cmi, rel=1e-4)
    assert maxcmi.cmi['after']['logits'].cmi > maxcmi.cmi['before']['logits'].cmi
    assert student.num_examples['train'] == 12 and student.num_examples['unlabelled'] == 12
    assert student.timing.steps == 9  # the rows without labels are trained on too
    assert student.teacher is not None
    assert student.teacher['accuracy'] == pytest.approx(maxcmi.primary_score)
    assert 'teacher accuracy' in capsys.readouterr().out


def test_a_teacher_at_chance_is_refused_before_the_student_trains(tmp_path, capsys):
    """An untrained teacher scores the commonest class at best; the word for it lets it pass."""
    teacher = make_model(tmp_path / 'teacher', seed=3)
    config = transformers.AutoConfig.from_pretrained(teacher)
    config.id2label, config.label2id = {0: 'food', 1: 'weather'}, {'food': 0, 'weather': 1}
    model = transformers.AutoModelForSequenceClassification.from_pretrained(teacher, config=config)
    torch.nn.init.zeros_(model.classifier.weight)  # it answers the same class always
    model.save_pretrained(teacher)
    path = str(make_all(tmp_path, algorithms={'knowledge_distillation': {'teacher': str(teacher)}}))
    assert run_file(path, []) == 2
    assert 'commonest class' in capsys.readouterr().err
    assert not (tmp_path / 'runs' / 'tiny' / 'checkpoints').exists()
    assert run_file(path, ['algorithms.knowledge_distillation.allow_weak_teacher=true']) == 0


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        ({'algorithms.cmi_regularization': {'tau': 0.2}}, 'algorithms.cmi_regularization: tau=0.2 means nothing'),
        ({'algorithms.cmi_regularization': {'start': '1dur'}}, "algorithms.cmi_regularization.start: '1dur' is not"),
        ({'scheduler.warmup': '9ba'}, 'scheduler.warmup: 9 steps leave nothing of the 9 steps'),
        ({'callbacks.early_stopper': {'monitor': 'nil'}}, "callbacks.early_stopper.monitor: unknown metric 'nil'"),
        ({'train.keep_best': 'nil'}, "train.keep_best: unknown metric 'nil'"),
        ({'train.keep_best': 'nll', 'train.eval_interval': '0ba'}, 'keep_best waits for evaluations in training'),
        ({'train.precision': 'amp_fp16'}, "train.precision: 'amp_fp16' needs a GPU"),
        ({'train.class_weights': {'food': 2, 'sport': 1}}, 'train.class_weights'),
        ({'optimizer': {'name': 'decoupled_sgdw', 'arguments': {'momentum': -1.0}}}, 'optimizer.arguments'),
        ({'peft.target_modules': ['nothing']}, 'peft: '),
        ({'algorithms.cmi_regularization.feature_module': 'bert.poler'}, 'algorithms.cmi_regularization: '),
        ({'model.keep_layers': [0, 5]}, 'model.keep_layers: [0, 5] must be different numbers from 0 to 1'),
        ({'data.max_length': 64}, 'data.max_length: 64 is more than the 32 positions of the model'),
    ],
)
def test_promise_26_a_later_arm_is_refused_before_the_first_one_trains(tmp_path, capsys, changes, words):
    path = make_all(tmp_path, arms={'ce': {}, 'later': changes}, algorithms={})
    assert run_file(str(path), []) == 2
    error = capsys.readouterr().err
    assert error.startswith('composer-cmi: ') and f'arm later: {words}' in error, error
    assert not list((tmp_path / 'runs').glob('**/results.json'))
