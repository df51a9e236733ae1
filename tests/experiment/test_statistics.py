"""Statistics against hand computation, scipy and exact enumeration."""

import itertools

import numpy as np
import pytest
from scipy import stats

from madiff.experiment.statistics import (
    bootstrap_ci,
    bootstrap_ci_over_seeds,
    difference_ci_over_seeds,
    flattened,
    iqm,
    mean,
    median,
    paired_improvement,
    performance_profile,
    performance_profile_band,
    probability_of_improvement,
    stratified_bootstrap_ci,
)


def test_point_estimates_by_hand():
    values = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 100.0]
    assert (mean(values), median(values), iqm(values)) == (16.0, 4.5, 4.5)
    assert iqm([3.0]) == 3.0 and iqm([0.0, 10.0, 20.0]) == 10.0
    np.testing.assert_array_equal(iqm([[0, 1, 2, 9], [8, 6, 4, 0]], axis=-1), [1.5, 5.0])


@pytest.mark.parametrize(("ours", "theirs"), [(mean, np.mean), (median, np.median)])
def test_bootstrap_agrees_with_scipy(ours, theirs):
    values = np.random.default_rng(0).gamma(2.0, 3.0, 60)
    low, high = bootstrap_ci(values, ours, 0.9, seed=1, resamples=20_000)
    expected = stats.bootstrap(
        (values,), theirs, confidence_level=0.9, n_resamples=20_000, method="percentile", rng=np.random.default_rng(2)
    ).confidence_interval
    assert (low, high) == pytest.approx(tuple(expected), abs=0.06)


def test_bootstrap_of_three_values_equals_the_enumeration_of_all_27_resamples():
    values = [0.0, 1.0, 10.0]
    means = [np.mean(draw) for draw in itertools.product(values, repeat=3)]
    exact = np.quantile(means, [0.1, 0.9], method="inverted_cdf")
    assert bootstrap_ci(values, mean, 0.8, resamples=50_000) == pytest.approx(tuple(exact))


def test_intervals_repeat_with_the_seed_and_not_with_memory_chunks(monkeypatch):
    values = np.random.default_rng(0).normal(size=50)
    first = bootstrap_ci(values, seed=3)
    assert first == bootstrap_ci(values, seed=3) != bootstrap_ci(values, seed=4)
    monkeypatch.setattr("madiff.experiment.statistics.CHUNK", 777)
    assert bootstrap_ci(values, seed=3) == first


def test_coverage_of_the_mean_is_near_nominal():
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(300):
        low, high = bootstrap_ci(rng.normal(size=40), seed=trial, resamples=400)
        covered += low <= 0.0 <= high
    assert 0.89 <= covered / 300 <= 0.98


def test_difference_of_two_samples_equals_the_enumeration_of_all_resamples_of_both():
    ours, theirs = [[0.0], [3.0]], [[1.0], [2.0], [9.0]]  # a run of one episode each
    means = [[np.mean(draw) for draw in itertools.product(np.ravel(runs), repeat=len(runs))] for runs in (ours, theirs)]
    exact = np.quantile(np.subtract.outer(*means).ravel(), [0.1, 0.9], method="inverted_cdf")
    assert difference_ci_over_seeds(ours, theirs, confidence=0.8, resamples=50_000) == pytest.approx(tuple(exact))


def test_difference_of_two_samples_has_the_spread_of_both_at_both_levels():
    rng = np.random.default_rng(0)
    ours, theirs = rng.normal(size=(12, 1)) + rng.normal(size=(12, 80)), 2 * rng.normal(size=(9, 1)) + np.zeros((9, 3))
    low, high = difference_ci_over_seeds(ours, theirs)
    spread = np.sqrt(sum(runs.mean(1).var() / len(runs) for runs in (ours, theirs)) + 1 / (12 * 80))
    assert (high - low) / 2 == pytest.approx(1.96 * spread, rel=0.1)
    assert (low + high) / 2 == pytest.approx(ours.mean() - theirs.mean(), abs=0.1)
    assert (low, high) == difference_ci_over_seeds(ours, theirs) != difference_ci_over_seeds(ours, theirs, seed=1)


def test_interval_over_seeds_grows_with_the_spread_between_runs():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(5, 100))
    alike, apart = noise, noise + 10 * np.arange(5)[:, None]
    pooled = bootstrap_ci(apart.reshape(-1))
    low, high = bootstrap_ci_over_seeds(apart)
    assert high - low > 3 * (pooled[1] - pooled[0])
    narrow = bootstrap_ci_over_seeds(alike)
    assert narrow[1] - narrow[0] < 0.6 and narrow[0] < noise.mean() < narrow[1]


def test_interval_over_seeds_has_the_two_level_variance():
    """Var = variance of run means / runs + mean of within-run variances / (runs * episodes), each divided by n."""
    rng = np.random.default_rng(1)
    runs = rng.normal(size=(6, 12)) + rng.normal(size=(6, 1))
    variance = runs.mean(1).var() / 6 + runs.var(1).mean() / (6 * 12)
    low, high = bootstrap_ci_over_seeds(runs, confidence=0.6827, resamples=20_000)
    assert (high - low) / 2 == pytest.approx(np.sqrt(variance), rel=0.05)


def test_runs_of_unequal_length_count_alike():
    runs = [[1.0] * 3, [5.0] * 7, [9.0]]
    low, high = bootstrap_ci_over_seeds(runs, confidence=0.999, resamples=5000)
    assert (low, high) == (1.0, 9.0)
    assert bootstrap_ci_over_seeds([[2.0, 2.0], [2.0]]) == (2.0, 2.0)


def test_stratified_bootstrap_never_mixes_tasks():
    scores = np.array([[0.0, 0.0, 0.0], [100.0, 100.0, 100.0]])
    assert stratified_bootstrap_ci(scores, mean) == (50.0, 50.0)
    spread = scores + np.array([-1.0, 0.0, 1.0])
    low, high = stratified_bootstrap_ci(spread, mean, confidence=0.6827, resamples=20_000)
    assert (high - low) / 2 == pytest.approx(np.sqrt((2 / 3) / 3 / 2), rel=0.15)


def test_probability_of_improvement_by_hand_and_against_scipy():
    value, (low, high) = probability_of_improvement([1.0, 2.0, 3.0], [2.0, 0.0])
    assert value == pytest.approx((0 + 1 + 0.5 + 1 + 1 + 1) / 6) and low <= value <= high
    rng = np.random.default_rng(0)
    x, y = rng.normal(0.5, size=30), rng.normal(size=40)
    value, (low, high) = probability_of_improvement(x, y, resamples=20_000)
    assert value == pytest.approx(stats.mannwhitneyu(x, y).statistic / (30 * 40))
    expected = stats.bootstrap(
        (x, y),
        lambda a, b: np.mean(np.asarray(a)[:, None] > np.asarray(b)),
        n_resamples=3000,
        method="percentile",
        vectorized=False,
        rng=np.random.default_rng(1),
    ).confidence_interval
    assert (low, high) == pytest.approx(tuple(expected), abs=0.02)
    assert probability_of_improvement([5.0, 6.0], [1.0]) == (1.0, (1.0, 1.0))


def test_tasks_may_have_unequal_numbers_of_runs():
    assert stratified_bootstrap_ci([[1.0], [4.0, 4.0]], mean) == (3.0, 3.0)
    low, high = stratified_bootstrap_ci([[0.0, 6.0], [3.0]], mean, confidence=0.999, resamples=5000)
    assert (low, high) == (1.0, 5.0)


def test_the_improvement_over_pairs_by_hand_and_by_enumeration():
    """Two seeds of two tasks: X wins one pair and loses one, and wins one and ties one."""
    x, y = [[3.0, 1.0], [5.0, 2.0]], [[2.0, 2.0], [4.0, 2.0]]
    value, interval = paired_improvement(x, y, confidence=0.8, resamples=50_000)
    assert value == pytest.approx((0.5 + 0.75) / 2)
    first, second = ([np.mean(draw) for draw in itertools.product(wins, repeat=2)] for wins in ([1, 0], [1, 0.5]))
    means = [(a + b) / 2 for a in first for b in second]
    assert interval == pytest.approx(tuple(np.quantile(means, [0.1, 0.9], method="inverted_cdf")))


def test_pairs_keep_what_all_pairs_lose():
    """Y is X less one everywhere: with the same seed X is always better, with a random one not."""
    x = np.array([0.0, 10.0, 20.0])
    assert paired_improvement([x], [x - 1])[0] == 1.0
    assert probability_of_improvement(x, x - 1)[0] == pytest.approx(6 / 9)


def test_the_band_of_a_profile_holds_the_profile_and_is_scipys():
    tasks = np.random.default_rng(0).normal(size=(1, 30))
    thresholds = np.linspace(-2, 2, 5)
    low, high = performance_profile_band(tasks, thresholds, resamples=20_000)
    expected = stats.bootstrap(
        (tasks[0],), lambda v, axis: (v > 0.0).mean(axis), n_resamples=20_000, method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval  # fmt: skip
    assert (low[2], high[2]) == pytest.approx(tuple(expected), abs=0.035)
    profile = performance_profile(tasks[0], thresholds)
    assert bool((low <= profile).all() and (profile <= high).all())
    alike = performance_profile_band([[1.0, 1.0], [3.0, 3.0]], [0.0, 2.0, 4.0])
    np.testing.assert_array_equal(alike, [[1.0, 0.5, 0.0]] * 2)


def test_a_curve_is_flat_when_its_last_quarter_is_no_higher_than_noise():
    rising, level = np.arange(12.0), np.minimum(np.arange(12.0), 6.0)
    assert flattened(rising, np.full(12, 1.0)) is False and flattened(level, np.full(12, 1.0)) is True
    assert flattened(rising, np.full(12, 3.0)) is True  # the last three are 3 above the three before
    assert flattened(-rising, np.zeros(12)) is True
    assert flattened([0.0, 0.0, 0.0, 1.0], np.zeros(4)) is False and flattened([0.0, 5.0, 9.0], np.zeros(3)) is None


def test_performance_profile_by_hand():
    np.testing.assert_allclose(
        performance_profile([0.0, 1.0, 1.0, 4.0], [-1.0, 0.0, 1.0, 2.0, 4.0]), [1, 0.75, 0.25, 0.25, 0]
    )


def test_a_statistic_needs_values():
    for bad in ([], [[1.0, 2.0]]):
        with pytest.raises(ValueError, match="at least one value"):
            bootstrap_ci(bad)
