"""Aggregates and their intervals: what no rearrangement changes, what bounds them, and scipy's word for it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from madiff.experiment.statistics import (
    bootstrap_ci,
    bootstrap_ci_over_seeds,
    iqm,
    mean,
    median,
    paired_improvement,
    performance_profile,
    performance_profile_band,
    probability_of_improvement,
    stratified_bootstrap_ci,
)
from tests.properties import few

FEW = 300  # resamples
scores = st.floats(-1e4, 1e4).map(lambda value: round(value, 3))
samples = hnp.arrays(np.float64, st.integers(1, 24), elements=scores)
statistics = st.sampled_from([mean, median, iqm])


def room(values):
    """What rounding may take."""
    return 1e-9 * (1 + np.abs(values).max())


@few
@given(values=samples, seed=st.integers(0, 999))
def test_the_interquartile_mean_is_that_of_the_sorted_middle(values, seed):
    cut = len(values) // 4
    expected = np.sort(values)[cut : len(values) - cut].mean()
    assert iqm(values) == pytest.approx(expected, abs=room(values))
    assert iqm(np.random.default_rng(seed).permutation(values)) == pytest.approx(expected, abs=room(values))
    assert iqm(-3 * values + 2) == pytest.approx(-3 * expected + 2, abs=10 * room(values))
    spoilt = np.sort(values)
    spoilt[len(values) - cut :] += 1e6  # no outlier of a quarter of the values is seen
    assert iqm(spoilt) == pytest.approx(expected, abs=room(values))


@few
@given(values=samples, statistic=statistics, confidence=st.sampled_from([0.5, 0.8, 0.95, 0.99]))
def test_an_interval_lies_within_the_data_and_grows_with_its_confidence(values, statistic, confidence):
    low, high = bootstrap_ci(values, statistic, confidence, resamples=FEW)
    assert values.min() - room(values) <= low <= high <= values.max() + room(values)
    wider = bootstrap_ci(values, statistic, (1 + confidence) / 2, resamples=FEW)
    assert wider[0] <= low and high <= wider[1]
    assert bootstrap_ci(np.full_like(values, 7.25), statistic, resamples=FEW) == (7.25, 7.25)


@few
@given(values=samples, statistic=statistics)
def test_an_interval_holds_the_point_and_moves_with_the_data(values, statistic):
    low, high = bootstrap_ci(values, statistic, resamples=FEW)
    assert low - room(values) <= float(statistic(values)) <= high + room(values)
    moved = bootstrap_ci(2 * values + 5, statistic, resamples=FEW)
    assert moved == pytest.approx((2 * low + 5, 2 * high + 5), abs=10 * room(values))
    turned = bootstrap_ci(-values, statistic, resamples=FEW)
    assert turned == pytest.approx((-high, -low), abs=10 * room(values))
    assert stratified_bootstrap_ci([values], statistic, resamples=FEW) == (low, high)


@few
@given(runs=st.lists(samples, min_size=1, max_size=5))
def test_an_interval_over_runs_lies_between_the_worst_and_the_best_episode(runs):
    low, high = bootstrap_ci_over_seeds(runs, resamples=FEW)
    together = np.concatenate(runs)
    assert together.min() - room(together) <= low <= high <= together.max() + room(together)
    means = [run.mean() for run in runs]
    assert low - room(together) <= np.mean(means) <= high + room(together)


@few
@given(x=samples, y=samples, seed=st.integers(0, 999))
def test_improvement_is_scipys_and_the_other_side_of_a_decline(x, y, seed):
    value, (low, high) = probability_of_improvement(x, y, resamples=FEW)
    assert value == pytest.approx(stats.mannwhitneyu(x, y).statistic / (len(x) * len(y)))
    assert 0 <= low <= value + 1e-12 and value - 1e-12 <= high <= 1 + 1e-12
    rng = np.random.default_rng(seed)
    shuffled = probability_of_improvement(rng.permutation(x), rng.permutation(y), resamples=FEW)[0]
    assert shuffled == pytest.approx(value)
    assert probability_of_improvement(y, x, resamples=FEW)[0] == pytest.approx(1 - value)
    assert probability_of_improvement(np.arctan(x), np.arctan(y), resamples=FEW)[0] == pytest.approx(value)


@few
@given(x=samples, shift=st.sampled_from([-1.0, 0.0, 1.0]))
def test_pairs_see_what_is_always_better(x, shift):
    certain = {-1.0: 0.0, 0.0: 0.5, 1.0: 1.0}[shift]
    assert paired_improvement([x + shift], [x], resamples=FEW) == (certain, (certain, certain))


@few
@given(values=samples, thresholds=hnp.arrays(np.float64, st.integers(1, 6), elements=scores))
def test_a_profile_is_one_less_the_distribution_function_and_lies_in_its_band(values, thresholds):
    thresholds = np.sort(thresholds)
    profile = performance_profile(values, thresholds)
    np.testing.assert_allclose(profile, 1 - stats.ecdf(values).cdf.evaluate(thresholds), atol=1e-12)
    assert (np.diff(profile) <= 0).all()
    low, high = performance_profile_band([values], thresholds, resamples=FEW)
    assert (low <= profile + 1e-12).all() and (profile <= high + 1e-12).all()
    assert (low >= 0).all() and (high <= 1).all()
