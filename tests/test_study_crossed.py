"""Seeds and rows as two sources of chance: numbers by hand, statsmodels on the same numbers, coverage by simulation."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import numpy as np
import pandas
import pytest
from scipy import stats
from sklearn.metrics import f1_score, matthews_corrcoef
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm
from statsmodels.stats.multitest import multipletests

from composer_cmi.study.findings import statistics
from composer_cmi.study.findings.crossed import crossed
from composer_cmi.study.findings.predictions import Predictions, row_values


def test_two_seeds_and_three_rows_by_hand():
    # means of seeds 1, 3; of rows 0, 2, 4; residuals all 0: MS_s = 3 * 2 = 6, MS_i = 2 * 4 = 8, MS_si = 0
    found = crossed([[-1.0, 1.0, 3.0], [1.0, 3.0, 5.0]])
    assert found.mean == pytest.approx(2.0)
    assert found.standard_error == pytest.approx(math.sqrt(14 / 6))
    assert found.degrees == pytest.approx(14**2 / (6**2 / 1 + 8**2 / 2))
    assert found.row_variance == pytest.approx(8 / 6)
    assert found.high - found.low == pytest.approx(2 * stats.t.ppf(0.975, 196 / 68) * math.sqrt(14 / 6))


def test_the_mean_squares_are_those_of_statsmodels():
    draw = np.random.default_rng(0)
    values = draw.normal(size=(5, 1)) + 2 * draw.normal(size=(1, 40)) + draw.normal(size=(5, 40))
    seeds, rows = np.indices(values.shape)
    frame = pandas.DataFrame({'value': values.ravel(), 'seed': seeds.ravel(), 'row': rows.ravel()})
    table = anova_lm(ols('value ~ C(seed) + C(row)', frame).fit())
    of_seeds, of_rows, residual = table['sum_sq'] / table['df']
    found = crossed(values)
    assert found.standard_error**2 == pytest.approx((of_seeds + of_rows - residual) / values.size)
    parts = (of_seeds**2 / 4, of_rows**2 / 39, residual**2 / (4 * 39))
    assert found.degrees == pytest.approx((of_seeds + of_rows - residual) ** 2 / sum(parts))


def test_the_variance_is_never_below_that_of_seeds_or_rows_alone():
    # A checkerboard: the residual exceeds both, and the plain estimate would be negative.
    board = np.indices((6, 8)).sum(0) % 2 * 2.0
    board[0, 0] += 1
    found = crossed(board)
    least = max(8 * board.mean(1).var(ddof=1), 6 * board.mean(0).var(ddof=1)) / board.size
    assert found.standard_error**2 == pytest.approx(least)


@pytest.mark.parametrize(('values', 'p'), [(np.zeros((4, 9)), 1.0), (np.full((4, 9), 0.3), math.nan)])
def test_no_variance_is_not_certainty(values, p):
    assert float(crossed(values).p) == pytest.approx(p, nan_ok=True)


def test_one_seed_or_one_row_says_nothing():
    assert np.isnan(crossed(np.ones((1, 9))).p) and np.isnan(crossed(np.ones((9, 1))).p)


def test_many_studies_at_once_are_each():
    values = np.random.default_rng(1).normal(size=(3, 2, 5, 30))
    together = crossed(values)
    for place in np.ndindex(3, 2):
        np.testing.assert_allclose([field[place] for field in together], list(crossed(values[place])))


def test_holm_is_that_of_statsmodels():
    p_values = np.random.default_rng(2).random(40) ** 3
    assert statistics.holm(p_values) == pytest.approx(multipletests(p_values, method='holm')[1])


def _answers(rows: int, classes: int, seed: int) -> Predictions:
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, classes, rows)
    answers = np.where(draw.random(rows) < 0.7, labels, draw.integers(0, classes, rows))
    return Predictions(np.arange(rows), labels, answers, draw.normal(size=(rows, classes)))


@pytest.mark.parametrize(
    ('metric', 'classes', 'reference'),
    [
        ('f1', 2, lambda labels, answers: f1_score(labels, answers, zero_division=0)),
        (
            'macro_f1',
            4,
            lambda labels, answers: f1_score(labels, answers, average='macro', labels=range(4), zero_division=0),
        ),
        ('matthews_correlation', 2, matthews_corrcoef),
        ('matthews_correlation', 4, matthews_corrcoef),
    ],
)
def test_a_rows_value_is_its_influence_by_leaving_it_out(metric, classes, reference):
    found = _answers(60, classes, seed=classes)
    score = reference(found.labels, found.answers)
    keep = ~np.eye(60, dtype=bool)
    without = np.array([reference(found.labels[rows], found.answers[rows]) for rows in keep])
    values = row_values(found, metric)
    assert values.mean() == pytest.approx(score)
    np.testing.assert_allclose(values - values.mean(), 59 * (without.mean() - without), atol=1e-9)


def test_a_rows_value_in_accuracy_is_whether_it_is_right():
    found = _answers(50, 3, seed=0)
    np.testing.assert_allclose(row_values(found, 'accuracy'), found.labels == found.answers, atol=1e-12)
    assert row_values(found, 'ece') is None


@pytest.fixture(scope='module')
def simulation():
    path = Path(__file__).parents[1] / 'benchmarks' / 'statistics_coverage.py'
    specification = importlib.util.spec_from_file_location('statistics_coverage', path)
    assert specification is not None and specification.loader is not None
    script = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(script)
    return script


def test_where_rows_react_to_the_arm_seeds_alone_do_not_cover_and_both_together_do(simulation):
    case = next(case for case in simulation.CASES if case.name == 'rows react to the arm')
    found = simulation.coverage(case, 400, np.random.default_rng(0))
    assert found['seeds_coverage'] < 0.85
    assert found['crossed_coverage'] >= 0.93


def test_a_study_in_which_nothing_is_claims_nothing(simulation):
    found = simulation.claims(60, np.random.default_rng(0))
    assert found['any_claim'] <= 0.1 < 0.5 < found['any_claim_seeds_a_pair_at_once']
