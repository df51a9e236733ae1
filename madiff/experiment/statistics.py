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
    episodes = [sample(run) for run in runs]
    sizes = np.array([len(run) for run in episodes])
    padded = np.zeros((len(runs), sizes.max()))
    for row, run in zip(padded, episodes, strict=True):
        row[: len(run)] = run
    generator = np.random.default_rng(seed)

    def draw(count: int) -> np.ndarray:
        run = generator.integers(len(sizes), size=(count, len(sizes)))[..., None]
        episode = (generator.random((count, len(sizes), sizes.max())) * sizes[run]).astype(np.int64)
        counted = np.arange(sizes.max()) < sizes[run]
        return statistic((padded[run, episode] * counted).sum(-1) / sizes[run][..., 0], axis=-1)

    return percentile_interval(in_chunks(draw, padded.size, resamples), confidence)


def stratified_bootstrap_ci(
    scores: ArrayLike, statistic: Statistic = iqm, confidence: float = 0.95, seed: int = 0, resamples: int = 2000
) -> Interval:
    """Interval of `statistic` over all scores (runs, tasks); runs are drawn again within each task (section 4.1)."""
    scores = np.asarray(scores, dtype=np.float64)
    runs, tasks = scores.shape
    generator = np.random.default_rng(seed)

    def draw(count: int) -> np.ndarray:
        chosen = generator.integers(runs, size=(count, runs, tasks))
        return statistic(scores[chosen, np.arange(tasks)].reshape(count, -1), axis=-1)

    return percentile_interval(in_chunks(draw, scores.size, resamples), confidence)


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


def performance_profile(values: ArrayLike, thresholds: ArrayLike) -> np.ndarray:
    """(thresholds,) share of all values above each threshold (2108.13264, equation 2)."""
    values = np.asarray(values, dtype=np.float64).reshape(-1)
    return (values > np.asarray(thresholds, dtype=np.float64)[..., None]).mean(-1)


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


def percentile_interval(draws: np.ndarray, confidence: float) -> Interval:
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
