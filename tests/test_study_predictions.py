"""NLL after temperature scaling: free of the scale of the logits, honest about the rows that chose the temperature."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import log_softmax

from composer_cmi.run.outputs.files import write_text
from composer_cmi.study.findings.predictions import read_predictions, scaled_nll


def _calibrated(rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits whose softmax is the true probability of each label."""
    draw = np.random.default_rng(seed)
    logits = draw.normal(0, 2, (rows, 4))
    chance = np.exp(log_softmax(logits, 1))
    labels = (chance.cumsum(1) > draw.random(rows)[:, None]).argmax(1)
    return logits, labels


def _nll(logits: np.ndarray, labels: np.ndarray) -> float:
    return float(-log_softmax(logits, 1)[np.arange(len(labels)), labels].mean())


@pytest.mark.parametrize('scale', [0.05, 0.3, 5.0, 20.0])
def test_the_scale_of_the_logits_does_not_matter(scale):
    logits, labels = _calibrated(1000)
    assert scaled_nll(scale * logits, labels) == pytest.approx(scaled_nll(logits, labels), abs=1e-4)
    assert _nll(scale * logits, labels) > _nll(logits, labels) + 0.1


def test_calibrated_logits_keep_their_nll():
    logits, labels = _calibrated(20_000)
    assert scaled_nll(logits, labels) == pytest.approx(_nll(logits, labels), abs=1e-3)


def test_no_row_chooses_its_own_temperature():
    # Every second row is right, the others are wrong: a temperature of the rows' own would be sure of the former.
    labels = np.zeros(100, dtype=int)
    logits = np.where(np.arange(100)[:, None] % 2 == 0, [2.0, 0.0], [0.0, 2.0])
    assert scaled_nll(logits, labels) > np.log(2) + 1


def test_one_row_has_no_other_half():
    assert np.isnan(scaled_nll(np.zeros((1, 2)), np.zeros(1, dtype=int)))


def test_rows_are_read_in_the_order_of_their_ids_and_unlabelled_ones_left_out(tmp_path):
    lines = ['example_id,label,prediction,logit_0,logit_1', '7,1,0,0.5,-1', '3,,1,0,1', '2,0,0,2,1']
    write_text(tmp_path / 'predictions_dev.csv', '\n'.join(lines) + '\n')
    found = read_predictions(tmp_path / 'predictions_dev.csv')
    assert found is not None
    assert found.example_ids.tolist() == [2, 7] and found.labels.tolist() == [0, 1] and found.answers.tolist() == [0, 0]
    assert found.logits.tolist() == [[2, 1], [0.5, -1]]
    assert read_predictions(tmp_path / 'predictions_test.csv') is None
