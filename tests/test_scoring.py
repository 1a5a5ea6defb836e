from __future__ import annotations

import string

import numpy as np
import pytest
import torch
from composer import Evaluator, Trainer
from composer.models import HuggingFaceModel
from composer.utils import dist
from scipy.special import log_softmax
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
from torchmetrics.functional.classification import multiclass_calibration_error
from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

from composer_cmi.data.batches import eval_dataloader
from composer_cmi.data.encoding import tokenize
from composer_cmi.data.readers import DataError
from composer_cmi.data.splits import Split
from composer_cmi.data.tasks import Task
from composer_cmi.registry import get_task
from composer_cmi.run.scoring import score, task_metrics
from scoring_tools import second_scores

THREE = Task('three', '', ('text',), ('a', 'b', 'c'), ('accuracy', 'macro_f1', 'matthews_correlation'))
TWO = Task('two', '', ('text',), ('a', 'b'), ('f1', 'accuracy', 'macro_f1', 'matthews_correlation'))


def by_others(logits, labels, metrics):
    answers = logits.argmax(1)
    classes = list(range(logits.shape[1]))
    known = {
        'accuracy': lambda: accuracy_score(labels, answers),
        'f1': lambda: f1_score(labels, answers),
        'macro_f1': lambda: f1_score(labels, answers, average='macro', labels=classes, zero_division=0),
        'matthews_correlation': lambda: matthews_corrcoef(labels, answers),
        'nll': lambda: -log_softmax(logits.astype(np.float64), axis=1)[range(len(labels)), labels].mean(),
    }
    return {name: known[name]() for name in (*metrics, 'nll')}


def predictions_file(path, logits, labels):
    lines = [f'{i},{label},{answer}' for i, (label, answer) in enumerate(zip(labels, logits.argmax(1), strict=True))]
    path.write_text('example_id,label,prediction\n' + '\n'.join(lines) + '\n')
    return path


def test_literal_scores():
    # Answers 0 1 1 0 1 against 0 1 0 1 1: of class 1, 2 are right, 1 is wrong, 1 is missed.
    logits = np.log([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6], [0.7, 0.3], [0.1, 0.9]])
    scores = score(TWO, logits, [0, 1, 0, 1, 1])
    assert scores['accuracy'] == pytest.approx(3 / 5)
    assert scores['f1'] == pytest.approx(2 / 3)
    assert scores['macro_f1'] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert scores['matthews_correlation'] == pytest.approx((2 * 1 - 1 * 1) / 6)
    assert scores['nll'] == pytest.approx(-np.log([0.9, 0.8, 0.4, 0.3, 0.9]).mean())
    # Bins of 1/15: 0.9 twice (both right), 0.8, 0.7 (wrong), 0.6 (wrong) on their own.
    assert scores['ece'] == pytest.approx((0.2 + 0.2 + 0.7 + 0.6) / 5)


@pytest.mark.parametrize('task', [TWO, THREE])
@pytest.mark.parametrize('scale', [0.1, 1.0, 20.0])
def test_scores_equal_scikit_learns_and_the_second_scoring(tmp_path, task, scale):
    rng = np.random.default_rng(4)
    logits = (scale * rng.normal(size=(211, task.num_classes))).astype(np.float32)
    labels = rng.integers(0, task.num_classes, size=211)
    scores = score(task, logits, labels)
    for name, expected in by_others(logits, labels, task.metrics).items():
        assert scores[name] == pytest.approx(expected, rel=1e-6, abs=1e-6), name
    again = second_scores(task, predictions_file(tmp_path / 'predictions.csv', logits, labels))
    assert again == pytest.approx({name: scores[name] for name in task.metrics}, abs=1e-6)
    probabilities = torch.from_numpy(logits).softmax(-1)
    ece = multiclass_calibration_error(probabilities, torch.from_numpy(labels), task.num_classes, 15, 'l1')
    assert scores['ece'] == pytest.approx(float(ece), abs=1e-5)


@pytest.mark.parametrize('answer', [0, 1])
@pytest.mark.parametrize('labels', [[0, 1, 1, 1], [0, 0, 0, 0], [1, 1, 1, 1]])
def test_a_constant_answer_scores_as_scikit_learn_has_it(tmp_path, answer, labels):
    # torchmetrics' own Matthews correlation gives a collapsed model a score that is not 0.
    logits = np.tile(np.eye(2, dtype=np.float32)[answer], (4, 1))
    scores = score(TWO, logits, labels)
    expected = {
        'accuracy': float(np.mean(np.array(labels) == answer)),
        'f1': f1_score(labels, [answer] * 4, zero_division=0),
        'macro_f1': f1_score(labels, [answer] * 4, average='macro', labels=[0, 1], zero_division=0),
        'matthews_correlation': 0.0,
    }
    assert {name: scores[name] for name in TWO.metrics} == pytest.approx(expected)
    assert second_scores(TWO, predictions_file(tmp_path / 'p.csv', logits, labels)) == pytest.approx(expected)


def test_macro_f1_counts_a_class_that_never_occurs():
    assert score(THREE, np.eye(3, dtype=np.float32)[[0, 1, 1]], [0, 1, 1])['macro_f1'] == pytest.approx(2 / 3)


def test_glue_scores_are_named_officially():
    logits, labels = np.eye(2, dtype=np.float32)[[0, 1, 1]], [0, 1, 0]
    assert list(score(get_task('cola'), logits, labels)) == ['matthews_correlation', 'nll', 'ece']
    assert list(score(get_task('qqp'), logits, labels)) == ['f1', 'accuracy', 'nll', 'ece']
    assert list(score(get_task('mnli'), np.eye(3), [0, 1, 2])) == ['accuracy', 'nll', 'ece']


def test_rows_without_labels_are_skipped():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(50, 3)), rng.integers(0, 3, size=50)
    mask = rng.random(50) < 0.4
    masked = np.where(mask, -100, labels)
    assert score(THREE, logits, masked) == pytest.approx(score(THREE, logits[~mask], labels[~mask]))


def test_what_cannot_be_scored_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r'logits of shape \[2, 3\], here is \[2, 2\]'):
        score(THREE, np.zeros((2, 2)), [0, 1])
    with pytest.raises(ValueError, match='None of the rows to score has a label'):
        score(THREE, np.zeros((2, 3)), [-100, -100])
    with pytest.raises(ValueError, match=r'logits of row 1 are not finite: training has diverged'):
        score(TWO, np.array([[0, 1], [np.nan, 1]]), [0, 1])
    path = tmp_path / 'predictions.csv'
    path.write_text('example_id,label,prediction\n0,0,1\n1,2,1\n')
    with pytest.raises(DataError, match=r"predictions.csv, line 3: '2' is no class index of task two"):
        second_scores(TWO, path)
    path.write_text('example_id,label\n0,0\n')
    with pytest.raises(DataError, match="no column 'prediction'"):
        second_scores(TWO, path)
    path.write_text('example_id,label,prediction\n0,,1\n')
    with pytest.raises(DataError, match='no row has a label'):
        second_scores(TWO, path)


def test_a_metric_that_saw_no_row_on_one_rank_still_merges():
    full, empty = task_metrics(THREE), task_metrics(THREE)
    logits, labels = torch.randn(9, 3), torch.randint(0, 3, (9,))
    for name, metric in full.items():
        metric.update(logits, labels)
        for state, reduction in metric._reductions.items():
            merged = reduction(torch.stack([getattr(metric, state), getattr(empty[name], state)]))
            assert torch.equal(merged, getattr(metric, state))


# On ranks -------------------------------------------------------------------------------------------------------------

ROWS = 37  # a multiple of neither 2 nor 3 nor any batch


def scored_by_a_trainer(folder, rows):
    """Composer's own evaluation of a fixed random BERT, and the same model's logits row by row."""
    folder.mkdir(exist_ok=True)
    words = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', *string.ascii_lowercase]
    (folder / f'vocab{dist.get_global_rank()}.txt').write_text('\n'.join(words))
    tokenizer = BertTokenizerFast(str(folder / f'vocab{dist.get_global_rank()}.txt'))
    torch.manual_seed(0)
    sizes = {'hidden_size': 16, 'num_hidden_layers': 1, 'num_attention_heads': 2, 'intermediate_size': 16}
    bert = BertForSequenceClassification(BertConfig(vocab_size=31, **sizes, num_labels=3, initializer_range=1.0)).eval()
    rng = np.random.default_rng(8)
    texts = [' '.join(rng.choice(list(string.ascii_lowercase), size=rng.integers(1, 9))) for _ in range(rows)]
    labels = rng.integers(0, 3, size=rows)
    split = Split((texts,), labels, np.arange(rows))
    encoded = tokenize(split, tokenizer, max_length=16, cache_dir=folder / 'cache')
    metrics = task_metrics(THREE)
    model = HuggingFaceModel(bert, tokenizer, use_logits=True, eval_metrics=list(metrics.values()))
    evaluator = Evaluator(label='dev', dataloader=eval_dataloader(encoded, tokenizer, batch_size=6))
    trainer = Trainer(model=model, eval_dataloader=evaluator, device='cpu', progress_bar=False, auto_log_hparams=False)
    trainer.eval()
    values = trainer.state.eval_metrics['dev']
    found = {name: float(values[type(metric).__name__].compute()) for name, metric in metrics.items()}
    trainer.close()
    bert.eval()  # the trainer leaves the model in train mode
    with torch.no_grad():
        logits = bert(**tokenizer(texts, padding=True, return_tensors='pt')).logits.numpy()
    return found, logits, labels


@pytest.mark.parametrize(
    'world', [1, pytest.param(2, marks=pytest.mark.world_size(2)), pytest.param(3, marks=pytest.mark.world_size(3))]
)
def test_composers_evaluation_counts_every_row_once(shared_tmp_path, world):
    assert dist.get_world_size() == world
    for rows in (ROWS, ROWS + 1):
        found, logits, labels = scored_by_a_trainer(shared_tmp_path / str(rows), rows)
        assert 0 < found['accuracy'] < 1
        for name, expected in by_others(logits, labels, THREE.metrics).items():
            assert found[name] == pytest.approx(expected, abs=2e-6), (name, rows)
        assert found == pytest.approx(score(THREE, logits, labels), abs=2e-6)


def test_nll_is_exact_where_a_probability_underflows():
    logits = np.array([[0.0, 20.0, 120.0]])
    assert score(THREE, logits, [0])['nll'] == pytest.approx(-log_softmax(logits[0])[0])
