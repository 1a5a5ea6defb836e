"""NLL after temperature scaling: free of the scale of the logits, honest about the rows that chose the temperature."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import log_softmax

from composer_cmi.errors import ConfigError
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


def test_good_classifiers_are_never_much_above_their_nll():
    # One error in 200, and it lies in one half: a temperature of the other half would be sure of everything.
    for seed in range(20):
        draw = np.random.default_rng(seed)
        labels = draw.integers(0, 2, 200)
        margin = np.where(np.arange(200) == draw.integers(200), -1, 1) * draw.uniform(2, 6, 200)
        logits = np.stack([0 * margin, np.where(labels == 1, margin, -margin)], axis=1)
        assert scaled_nll(logits, labels) <= _nll(logits, labels) + 1 / 200 + 1e-12
        assert scaled_nll(3 * logits, labels) < _nll(3 * logits, labels) + 1e-12


def test_no_error_at_all_is_no_explosion():
    labels = np.arange(200) % 2
    logits = np.stack([-4.0 * labels, 4.0 * labels - 2], axis=1)
    assert scaled_nll(logits, labels) == pytest.approx(1 / 200, abs=1e-3)


def test_what_the_temperature_gains_by_having_seen_the_rows_is_taken_off():
    found, fitted_alone, new = np.zeros(300), np.zeros(300), np.zeros(300)
    for study in range(300):
        logits, labels = _calibrated(40, seed=study)
        fresh = _calibrated(4000, seed=10_000 + study)
        found[study] = scaled_nll(logits, labels)
        losses = {t: _nll(logits / t, labels) for t in np.exp(np.linspace(-2, 2, 41))}
        best = min(losses, key=lambda t: losses[t])
        fitted_alone[study], new[study] = losses[best], _nll(fresh[0] / best, fresh[1])
    standard_error = (found - new).std() / np.sqrt(300)
    assert abs((found - new).mean()) < 3 * standard_error
    assert (fitted_alone - new).mean() < (found - new).mean() - 0.02


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


HEADER = 'example_id,label,prediction,logit_0,logit_1'


@pytest.mark.parametrize(
    ('lines', 'message'),
    [
        (['0,1,1,0,1'], 'has 1 rows, and the run was scored on 2'),
        (['0,1,1,0,1', '1,1,1,0'], 'is not a predictions file'),
        (['0,1,1,0,1', '1,1,1,0,x'], 'is not a predictions file'),
        (['0,1,1,0,1', '1,1,1,0,nan'], 'a logit is not finite'),
        (['0,1,1,0,1', '1,7,1,0,1'], 'a label is no class'),
        (['0,1,1,0,1', '0,1,1,0,1'], 'an example_id twice'),
    ],
)
def test_promise_16b_a_changed_predictions_file_is_named(tmp_path, lines, message):
    path = tmp_path / 'predictions_dev.csv'
    write_text(path, '\n'.join([HEADER, *lines]) + '\n')
    with pytest.raises(ConfigError, match=f'predictions_dev.csv .*{message}'):
        read_predictions(path, rows=2)
    path.write_bytes(b'\xff\xfe\x00')
    with pytest.raises(ConfigError, match='is not a predictions file'):
        read_predictions(path)
