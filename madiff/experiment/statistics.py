"""Aggregates of returns and their uncertainty, after "Deep RL at the Edge of the Statistical Precipice" (2108.13264).

All intervals are percentile bootstraps from a seeded generator: the same numbers give the same interval everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import trim_mean

Statistic = Callable[..., np.ndarray]  # (values, axis) -> values reduced over axis
Interval = tuple[float, float]
CHUNK = 4_000_000  # resampled numbers held at once


def mean(values: ArrayLike, axis: int = -1) -> np.ndarray:
    return np.mean(values, axis=axis)


def median(values: ArrayLike, axis: int = -1) -> np.ndarray:
    return np.median(values, axis=axis)


def iqm(values: ArrayLike, axis: int = -1) -> np.ndarray:
    """Interquartile mean: the mean of what is left after dropping a quarter at each end."""
    return trim_mean(np.asarray(values), 0.25, axis=axis)


def bootstrap_ci(
    values: ArrayLike, statistic: Statistic = mean, confidence: float = 0.95, seed: int = 0, resamples: int = 2000
) -> Interval:
    """Interval of `statistic` over independent values (n,), drawn again with replacement."""
    values = sample(values)
    generator = np.random.default_rng(seed)

    def draw(count: int) -> np.ndarray:
        return statistic(values[generator.integers(len(values), size=(count, len(values)))], axis=-1)

    return percentile_interval(in_chunks(draw, len(values), resamples), confidence)


def bootstrap_ci_over_seeds(
    runs: Sequence[ArrayLike],
    statistic: Statistic = mean,
    confidence: float = 0.95,
    seed: int = 0,
    resamples: int = 2000,
) -> Interval:
    """Interval of `statistic` over training runs, each with its episodes: (runs, episodes), or runs of unequal length.

    Two levels: runs are drawn with replacement, then as many episodes within each drawn run, so that both the luck of
    the training seed and of the episodes count. The statistic sees per-run means.
    """
    return percentile_interval(draws_over_seeds(runs, statistic, np.random.default_rng(seed), resamples), confidence)


def difference_ci_over_seeds(
    ours: Sequence[ArrayLike],
    theirs: Sequence[ArrayLike],
    statistic: Statistic = mean,
    confidence: float = 0.95,
    seed: int = 0,
    resamples: int = 2000,
) -> Interval:
    """Interval of the statistic of `ours` less that of `theirs`, runs with their episodes that have nothing in common.

    Both are drawn again at both levels, each by itself. What shares seeds and episodes is paired instead: the
    differences are then one sample for `bootstrap_ci_over_seeds`.
    """
    one, other = (draws_over_seeds(runs, statistic, np.random.default_rng([seed, side]), resamples)
                  for side, runs in enumerate((ours, theirs)))  # fmt: skip
    return percentile_interval(one - other, confidence)


def draws_over_seeds(
    runs: Sequence[ArrayLike], statistic: Statistic, generator: np.random.Generator, resamples: int
) -> np.ndarray:
    """(resamples,) the statistic of the means of runs, these and then their episodes drawn again."""
    episodes = [sample(run) for run in runs]
    sizes = np.array([len(run) for run in episodes])
    padded = np.zeros((len(runs), sizes.max()))
    for row, run in zip(padded, episodes, strict=True):
        row[: len(run)] = run

    def draw(count: int) -> np.ndarray:
        run = generator.integers(len(sizes), size=(count, len(sizes)))[..., None]
        episode = (generator.random((count, len(sizes), sizes.max())) * sizes[run]).astype(np.int64)
        counted = np.arange(sizes.max()) < sizes[run]
        return statistic((padded[run, episode] * counted).sum(-1) / sizes[run][..., 0], axis=-1)

    return in_chunks(draw, padded.size, resamples)


def stratified_bootstrap_ci(
    tasks: Sequence[ArrayLike],
    statistic: Statistic = iqm,
    confidence: float = 0.95,
    seed: int = 0,
    resamples: int = 2000,
) -> Interval:
    """Interval of `statistic` over all scores, given the runs' scores of each task; tasks may have unequal numbers.

    Runs are drawn again within each task (2108.13264, section 4.1).
    """
    return percentile_interval(stratified_draws(tasks, statistic, seed, resamples), confidence)


def stratified_draws(tasks: Sequence[ArrayLike], statistic: Statistic, seed: int, resamples: int) -> np.ndarray:
    """(resamples, ...) the statistic of the scores of all tasks together, runs drawn again within each task."""
    tasks = [sample(task) for task in tasks]
    generator = np.random.default_rng(seed)

    def draw(count: int) -> np.ndarray:
        drawn = [task[generator.integers(len(task), size=(count, len(task)))] for task in tasks]
        return statistic(np.concatenate(drawn, axis=1), axis=-1)

    return in_chunks(draw, sum(map(len, tasks)), resamples)


def probability_of_improvement(
    x: ArrayLike, y: ArrayLike, confidence: float = 0.95, seed: int = 0, resamples: int = 2000
) -> tuple[float, Interval]:
    """P(X > Y) + P(X = Y) / 2 for a random value of each sample (n,), (m,), and its interval (2108.13264, 4.3)."""
    x, y = sample(x), sample(y)
    wins = (x[:, None] > y) + 0.5 * (x[:, None] == y)
    generator = np.random.default_rng(seed)

    def draw(count: int) -> np.ndarray:
        weights = [generator.multinomial(n, np.full(n, 1 / n), size=count) / n for n in wins.shape]
        return np.einsum("rm,rm->r", weights[0] @ wins, weights[1])

    return float(wins.mean()), percentile_interval(in_chunks(draw, len(x) + len(y), resamples), confidence)


def paired_improvement(
    x: Sequence[ArrayLike], y: Sequence[ArrayLike], confidence: float = 0.95, seed: int = 0, resamples: int = 2000
) -> tuple[float, Interval]:
    """Probability that X is better than Y on a random task with the same training seed, and its interval.

    x, y: for each task the runs' scores, seed by seed; ties count one half. Pairs are drawn again within each task.
    """
    wins = [(sample(a) > sample(b)) + 0.5 * (sample(a) == sample(b)) for a, b in zip(x, y, strict=True)]
    generator = np.random.default_rng(seed)

    def draw(count: int) -> np.ndarray:
        drawn = [won[generator.integers(len(won), size=(count, len(won)))].mean(-1) for won in wins]
        return np.mean(drawn, axis=0)

    value = float(np.mean([won.mean() for won in wins]))
    return value, percentile_interval(in_chunks(draw, sum(map(len, wins)), resamples), confidence)


def performance_profile(values: ArrayLike, thresholds: ArrayLike) -> np.ndarray:
    """(..., thresholds) share of all values (..., n) above each threshold (2108.13264, equation 2)."""
    return (np.asarray(values, dtype=np.float64)[..., None, :] > np.asarray(thresholds)[:, None]).mean(-1)


def performance_profile_band(
    tasks: Sequence[ArrayLike], thresholds: ArrayLike, confidence: float = 0.95, seed: int = 0, resamples: int = 500
) -> tuple[np.ndarray, np.ndarray]:
    """(low, high) ends of the profile at each threshold, by the stratified bootstrap."""

    def profile(values: ArrayLike, axis: int) -> np.ndarray:
        return performance_profile(values, thresholds)

    low, high = percentiles(stratified_draws(tasks, profile, seed, resamples), confidence)
    return low, high


def flattened(curve: ArrayLike, half_widths: ArrayLike) -> bool | None:
    """Whether a learning curve had stopped rising: its last quarter is not above the third by more than its noise.

    curve: evaluated returns, evenly spaced in updates; half_widths: of their 95% intervals. The noise is the mean half
    width over both quarters. None for fewer than four points, which cannot tell.
    """
    quarter = len(np.asarray(curve)) // 4
    if not quarter:
        return None
    last, third = np.asarray(curve)[-quarter:], np.asarray(curve)[-2 * quarter : -quarter]
    return bool(last.mean() <= third.mean() + np.asarray(half_widths)[-2 * quarter :].mean())


def sample(values: ArrayLike) -> np.ndarray:
    """A non-empty (n,) float64 array; raises ValueError otherwise."""
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"a statistic needs at least one value in one dimension, got shape {values.shape}")
    return values


def in_chunks(draw: Callable[[int], np.ndarray], size: int, resamples: int) -> np.ndarray:
    """`resamples` draws of `size` numbers each, few enough at a time to fit in memory."""
    chunk = max(1, CHUNK // size)
    return np.concatenate([draw(min(chunk, resamples - start)) for start in range(0, resamples, chunk)])


def percentiles(draws: np.ndarray, confidence: float) -> np.ndarray:
    """(2, ...) the ends of the central interval over draws (resamples, ...)."""
    return np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)


def percentile_interval(draws: np.ndarray, confidence: float) -> Interval:
    low, high = percentiles(draws, confidence)
    return float(low), float(high)
