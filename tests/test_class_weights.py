"""Class weights in the cross-entropy: worked numbers, any cut of a batch, beside a teacher and CMI."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from composer.utils import dist
from torch.nn.functional import cross_entropy

from composer_cmi.errors import ConfigError
from composer_cmi.run.command import run_file
from composer_cmi.run.config.schema import ModelConfig
from composer_cmi.run.models import build_model
from composer_cmi.run.outputs.results import load_results
from composer_cmi.run.parts.classifier import build_composer_model, class_weights, weighted_cross_entropy
from run_tools import SENTENCES, make_all, make_model, predictions

NAMES = ('a', 'b', 'c')
LABELS = np.array([0, 0, 0, 0, 0, 0, 1, 1, 1, 2])


def test_balanced_classes_count_alike_and_the_mean_over_the_rows_is_1():
    weights = class_weights('balanced', NAMES, LABELS)
    assert weights.tolist() == pytest.approx([10 / 18, 10 / 9, 10 / 3])
    assert float(weights[LABELS].mean()) == pytest.approx(1)
    assert [float(weights[c]) * (c == LABELS).sum() for c in range(3)] == pytest.approx([10 / 3] * 3)


@pytest.mark.parametrize('given', [[1, 2, 4], {'c': 4, 'a': 1, 'b': 2}, {'a': 0.5, 'b': 1.0, 'c': 2.0}])
def test_a_list_or_names_give_ratios(given):
    # 6 * 1 + 3 * 2 + 1 * 4 = 16, of 10 rows
    assert class_weights(given, NAMES, LABELS).tolist() == pytest.approx([0.625, 1.25, 2.5])


def test_a_class_without_rows_does_not_disturb_the_others():
    assert class_weights('balanced', (*NAMES, 'd'), LABELS)[:3].tolist() == pytest.approx([10 / 18, 10 / 9, 10 / 3])


@pytest.mark.parametrize(
    ('given', 'sentence'),
    [
        ([1, 2], r'train\.class_weights: 2 weights for 3 classes \(a, b, c\)\.'),
        ({'a': 1, 'b': 2}, r"the class 'c' has no weight"),
        ({'a': 1, 'b': 2, 'C': 3}, r"there is no class 'C'\. Did you mean 'c'\?"),
    ],
)
def test_weights_that_do_not_fit_the_classes_are_refused(given, sentence):
    with pytest.raises(ConfigError, match=sentence):
        class_weights(given, NAMES, LABELS)


def test_worked_numbers():
    logits = torch.tensor([[0.0, math.log(3)], [0.0, 0.0], [5.0, 5.0]])
    labels, weights = torch.tensor([0, 1, -100]), torch.tensor([0.5, 2.0])
    # ce is ln 4 and ln 2: (0.5 ln 4 + 2 ln 2) / 2 labelled rows
    assert float(weighted_cross_entropy(logits, labels, weights)) == pytest.approx(1.5 * math.log(2))
    same = weighted_cross_entropy(logits, labels, torch.ones(2), 0.2)
    assert float(same) == pytest.approx(float(cross_entropy(logits, labels, label_smoothing=0.2)))


def test_rows_without_labels_give_nothing_and_no_nan():
    logits = torch.zeros(2, 3, requires_grad=True)
    loss = weighted_cross_entropy(logits, torch.tensor([-100, -100]), torch.ones(3))
    loss.backward()
    assert loss == 0 and torch.equal(logits.grad, torch.zeros(2, 3))


def test_any_cut_of_a_batch_gives_its_loss_where_torchs_weighted_mean_does_not():
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(10, 3, generator=generator).double(), torch.from_numpy(LABELS)
    weights = class_weights('balanced', NAMES, LABELS).double()
    for cut in ([5, 5], [3, 3, 4], [1] * 10):
        parts = zip(logits.split(cut), labels.split(cut), strict=True)
        found = sum(weighted_cross_entropy(x, y, weights) * len(y) for x, y in parts) / 10
        assert float(found) == pytest.approx(float(weighted_cross_entropy(logits, labels, weights)), abs=1e-12)
    parts = zip(logits.split(5), labels.split(5), strict=True)
    torchs = sum(cross_entropy(x, y, weights) for x, y in parts) / 2
    assert abs(float(torchs - cross_entropy(logits, labels, weights))) > 1e-2


def test_the_model_weighs_in_training_alone_and_beside_smoothed_labels(tmp_path):
    model, tokenizer = build_model(ModelConfig(name_or_path=str(make_model(tmp_path / 'm'))), ('food', 'weather'))
    weights = torch.tensor([0.4, 1.6])
    batch = dict(tokenizer(SENTENCES['food'][:4], padding=True, return_tensors='pt'), labels=torch.tensor([0, 1, 1, 0]))
    wrapped = build_composer_model(model, tokenizer, weights=weights, label_smoothing=0.1)
    outputs = wrapped.train()(batch)
    rows = cross_entropy(outputs['logits'], batch['labels'], reduction='none', label_smoothing=0.1)
    assert float(wrapped.loss(outputs, batch)) == pytest.approx(float((rows * weights[batch['labels']]).mean()))
    plain = float(cross_entropy(outputs['logits'], batch['labels']))
    assert float(wrapped.eval()(batch)['loss']) == pytest.approx(plain, abs=1e-6)
    assert 'class_weights' not in wrapped.state_dict()  # a checkpoint of an unweighted run has none either


def test_beside_a_teacher_and_cmi_any_microbatch_ends_in_the_same_weights(tmp_path, capsys):
    distillation = {'teacher': str(make_model(tmp_path / 'teacher', seed=3)), 'alpha': 0.4}
    distillation |= {'allow_weak_teacher': True, 'assume_same_labels': True}
    algorithms = {'knowledge_distillation': distillation, 'cmi_regularization': {'start': '0.3dur'}}
    data = {'path': str(tmp_path / 'data'), 'max_length': 16, 'labelled_rows': 16}
    path = str(make_all(tmp_path, algorithms=algorithms, data=data, optimizer={'lr': 0.01}))
    weighted = ['train.class_weights={food: 1, weather: 9}']
    for name, overrides in {'whole': weighted, 'cut': [*weighted, 'train.microbatch_size=3'], 'plain': []}.items():
        assert run_file(path, [f'run_name={name}', *overrides]) == 0, capsys.readouterr().err
    logits = {
        name: [float(row['logit_0']) for row in predictions(tmp_path / 'runs' / name)]
        for name in ('whole', 'cut', 'plain')
    }
    assert logits['cut'] == pytest.approx(logits['whole'], abs=2e-5)
    assert max(abs(a - b) for a, b in zip(logits['plain'], logits['whole'], strict=True)) > 1e-3
    results = load_results(tmp_path / 'runs' / 'whole')
    assert results is not None
    assert results.notes[-1] == 'Weights of the classes in the cross-entropy: food 0.2, weather 1.8.'


@pytest.mark.world_size(2)
def test_two_ranks_take_the_step_of_one(shared_tmp_path):
    """A step of SGD on both ranks' rows is the step on all rows at once, classes shared out unequally or not."""
    from composer import Trainer
    from torch.utils.data import DataLoader

    import toys

    data, weights = toys.Sentences(16), torch.tensor([0.2, 1.0, 3.0])

    def fresh():
        return _weighted(toys.tiny_bert(), weights)

    model, reference = fresh(), fresh()
    loader = DataLoader(data, batch_size=8, sampler=dist.get_sampler(data, shuffle=False))
    trainer = Trainer(
        model=model,
        train_dataloader=loader,
        max_duration='1ba',
        optimizers=torch.optim.SGD(model.parameters(), lr=0.5),
        device='cpu',
        device_train_microbatch_size=3,
        progress_bar=False,
    )
    trainer.fit()
    trainer.close()
    batch = next(iter(DataLoader(data, batch_size=16)))
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.5)
    reference.loss(reference.train()(batch), batch).backward()
    optimizer.step()
    for (name, one), other in zip(model.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5, msg=name)


def _weighted(model, weights):
    """A toy model with the loss of a run's."""
    from composer_cmi.run.parts.classifier import _ClassifierModel

    return _ClassifierModel(model.model, None, use_logits=True, label_smoothing=None, weights=weights)
