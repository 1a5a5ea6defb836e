"""The study's statistics: numbers worked by hand, then scipy on the raw numbers, then coverage by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from composer_cmi.study.findings import statistics


def test_difference_of_four_seeds_by_hand():
    # differences 1, 2, 3, 2: mean 2, sd sqrt(2/3), standard error 0.408248, t(3, .975) = 3.182446
    found = statistics.paired_difference([11.0, 12.0, 13.0, 12.0], [10.0, 10.0, 10.0, 10.0])
    assert found.n == 4
    assert found.mean == pytest.approx(2.0)
    assert found.sd == pytest.approx(0.8164966)
    assert (found.t_low, found.t_high) == pytest.approx((2 - 1.2992282, 2 + 1.2992282), abs=1e-6)
    assert found.t_p == pytest.approx(0.0162766, abs=1e-6)
    assert (found.wins, found.ties, found.losses) == (4, 0, 0)


def test_wins_follow_the_direction_and_the_mean_keeps_its_sign():
    arm, baseline = [0.3, 0.2, 0.5, 0.4], [0.4, 0.2, 0.4, 0.6]
    loss = statistics.paired_difference(arm, baseline, higher_is_better=False)
    score = statistics.paired_difference(arm, baseline)
    assert loss.mean == score.mean == pytest.approx(-0.05)
    assert (loss.wins, loss.ties, loss.losses) == (2, 1, 1)
    assert (score.wins, score.ties, score.losses) == (1, 1, 2)


def test_a_difference_below_rounding_is_a_tie():
    found = statistics.paired_difference([0.1 + 0.2, 0.5], [0.3, 0.5])
    assert found.ties == 2
    assert found.t_p == 1.0


def test_tests_agree_with_scipy_on_the_raw_scores():
    generator = np.random.default_rng(3)
    for seeds in (5, 8, 10, 31):
        arm, baseline = generator.normal(0.82, 0.01, seeds), generator.normal(0.81, 0.01, seeds)
        found = statistics.paired_difference(arm, baseline)
        reference = stats.ttest_rel(arm, baseline)
        interval = reference.confidence_interval(0.95)
        assert found.t_p == pytest.approx(reference.pvalue, rel=1e-6)
        assert (found.t_low, found.t_high) == pytest.approx((interval.low, interval.high), rel=1e-6)
        assert found.wilcoxon_p == pytest.approx(stats.wilcoxon(arm, baseline).pvalue, rel=1e-9)


def test_bootstrap_by_enumerating_every_resample_of_three():
    # 27 resamples of (0, 0, 3): the mean is 0, 1, 2, 3 with chances 8, 12, 6, 1 of 27. The expanded tails lie far
    # outside 1/27 and 8/27, so the interval is the whole range.
    interval = statistics.bootstrap_interval([0.0, 0.0, 3.0])
    assert (float(interval.low), float(interval.high)) == pytest.approx((0.0, 3.0))
    # At 50 %: t(2, .75) = 0.8164966, times sqrt(3/2) = 1.0, Phi(-1.0) = .158655: the 15.9 % and 84.1 % points.
    interval = statistics.bootstrap_interval([0.0, 0.0, 3.0], confidence=0.5)
    assert (float(interval.low), float(interval.high)) == pytest.approx((0.0, 2.0))


def test_bootstrap_of_many_seeds_agrees_with_scipy():
    values = np.random.default_rng(0).exponential(1.0, 200)
    reference = stats.bootstrap((values,), np.mean, method='percentile', n_resamples=10_000, rng=1)
    ours = statistics.bootstrap_interval(values)
    assert float(ours.low) == pytest.approx(reference.confidence_interval.low, abs=0.012)
    assert float(ours.high) == pytest.approx(reference.confidence_interval.high, abs=0.012)


def test_intervals_of_many_samples_at_once_are_those_of_each():
    values = np.random.default_rng(1).normal(size=(3, 7))
    for interval in (statistics.t_interval, statistics.bootstrap_interval):
        together = interval(values)
        for row in range(3):
            alone = interval(values[row])
            np.testing.assert_allclose(np.array(together)[:, row], np.array(alone))


def test_one_seed_says_nothing():
    found = statistics.paired_difference([0.9], [0.8])
    assert found.mean == pytest.approx(0.1)
    for value in (found.sd, found.t_low, found.t_high, found.bootstrap_low, found.t_p):
        assert math.isnan(value)


def test_no_variance_is_not_certainty():
    assert math.isnan(statistics.paired_t_test([0.5, 0.5, 0.5]))
    assert statistics.paired_t_test([0.0, 0.0, 0.0]) == 1.0
    assert statistics.wilcoxon_p([0.0, 0.0]) == 1.0


def test_holm_by_hand():
    # sorted .01 .02 .03 .04 -> .01*4, .02*3, .03*2, .04*1 -> running maximum .04 .06 .06 .06
    assert statistics.holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert statistics.holm([0.6, 0.5]) == pytest.approx([1.0, 1.0])


def test_holm_leaves_out_what_could_not_be_tested():
    adjusted = statistics.holm([math.nan, 0.02, 0.04])
    assert math.isnan(adjusted[0])
    assert adjusted[1:] == pytest.approx([0.04, 0.04])


@pytest.mark.parametrize(('effect', 'expected'), [(0.2, 199), (0.5, 34), (0.8, 15), (1.0, 10)])
def test_seeds_needed_are_the_tabulated_ones(effect, expected):
    # G*Power 3.1, "means: difference between two dependent means", two-sided, alpha .05, power .80
    assert statistics.seeds_needed(sd=2.0, gain=2.0 * effect) == expected


def test_detectable_gain_inverts_seeds_needed():
    gain = statistics.detectable_gain(sd=1.3, n=8)
    assert statistics.power_of_paired_t_test(8, gain, 1.3) == pytest.approx(0.8, abs=1e-6)
    assert statistics.seeds_needed(1.3, gain * 1.001) == 8
    assert statistics.seeds_needed(1.3, gain * 0.999) == 9


def test_power_is_that_of_simulated_tests():
    samples = np.random.default_rng(5).normal(1.0, 1.5, size=(20_000, 10))
    seen = (stats.ttest_1samp(samples, 0.0, axis=1).pvalue < 0.05).mean()
    assert statistics.power_of_paired_t_test(10, 1.0, 1.5) == pytest.approx(seen, abs=0.01)


def test_seeds_needed_at_the_edges():
    assert statistics.seeds_needed(math.nan, 1.0) is None
    assert statistics.seeds_needed(100.0, 0.01, limit=1000) is None
    assert statistics.seeds_needed(0.0, 1.0) == 2
    with pytest.raises(ValueError, match='gain of 0'):
        statistics.seeds_needed(1.0, 0.0)


def test_mcnemar_by_hand():
    # 6 rows only the arm, 1 only the baseline: 2 * (C(7,0) + C(7,1)) / 2^7 = 16 / 128
    arm = [True] * 6 + [False] + [True] * 3 + [False] * 2
    baseline = [False] * 6 + [True] + [True] * 3 + [False] * 2
    assert statistics.mcnemar(arm, baseline) == (6, 1, 0.125)
    assert statistics.mcnemar([True, False], [True, False]).p == 1.0


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ValueError, match='one number per seed'):
        statistics.paired_difference([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match='must be finite'):
        statistics.paired_difference([1.0, math.nan], [1.0, 1.0])
    with pytest.raises(ValueError, match='at least one number'):
        statistics.t_interval([])
    with pytest.raises(ValueError, match='same rows'):
        statistics.mcnemar([True], [True, False])


def test_power_knows_what_more_seeds_on_the_same_rows_cannot_mend():
    # Rows alone leave a standard error of 0.5: a gain of 1 is 2 of them, which 80 % power (2.8) is out of reach of.
    assert statistics.seeds_needed(1.0, 1.0, row_variance=0.25) is None
    assert statistics.seeds_needed(1.0, 1.0, row_variance=0.05) > statistics.seeds_needed(1.0, 1.0)
    assert statistics.detectable_gain(0.0, 8, row_variance=0.25) == pytest.approx(2.80 * 0.5, abs=0.01)
