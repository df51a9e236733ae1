"""Schedules against their definitions written as plain loops, and grids against the rules they promise."""

import math

import pytest
import torch

from madiff.diffusion.schedule import SPACINGS, make_schedule

DISCRETE = ("cosine", "linear", "vp")


def alpha_bars(name: str, K: int) -> list[float]:
    def f(i):
        return math.cos((i / K + 0.008) / 1.008 * math.pi / 2) ** 2

    bars = [1.0]
    for i in range(1, K + 1):
        beta = {
            "cosine": min(1 - f(i) / f(i - 1), 0.999),
            "linear": (1e-4 + (0.02 - 1e-4) * (i - 1) / (K - 1)) * 1000 / K,
            "vp": 1 - math.exp(-0.1 / K - 9.9 * (2 * i - 1) / (2 * K * K)),
        }[name]
        bars.append(bars[-1] * (1 - beta))
    return bars


@pytest.mark.parametrize("name", DISCRETE)
@pytest.mark.parametrize("K", [50, 200])
def test_tables_equal_the_cumulative_products(name, K):
    schedule = make_schedule(name, K)
    t = torch.arange(K + 1, dtype=torch.float64) / K
    bars = torch.tensor(alpha_bars(name, K), dtype=torch.float64)
    torch.testing.assert_close(schedule.alpha(t) ** 2, bars, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(schedule.sigma(t) ** 2, 1 - bars, rtol=1e-9, atol=1e-13)
    assert schedule.alpha(t)[0] == 1 and schedule.sigma(t)[0] == 0
    assert schedule.log_snr(t)[0] == math.inf
    torch.testing.assert_close(schedule.log_snr(t)[1:], 0.5 * torch.log(bars / (1 - bars))[1:], rtol=1e-6, atol=1e-8)


def test_single_precision_times_find_their_knots():
    schedule = make_schedule("cosine", 1000)
    t = torch.arange(1001) / 1000
    torch.testing.assert_close(schedule.alpha(t).double(), schedule.alpha(t.double()), rtol=1e-6, atol=1e-7)


def test_continuous_schedules():
    t = torch.linspace(0.1, 1, 10, dtype=torch.float64)
    flow, edm = make_schedule("flow"), make_schedule("edm")
    torch.testing.assert_close(flow.alpha(t) + flow.sigma(t), torch.ones_like(t))
    torch.testing.assert_close(edm.sigma(t), t)
    assert (edm.alpha(t) == 1).all()


@pytest.mark.parametrize("name", [*DISCRETE, "flow", "edm"])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("steps", [1, 2, 15, 100])
def test_grids_fall_strictly_from_the_start_to_clean_data(name, spacing, steps):
    schedule = make_schedule(name)
    grid = schedule.grid(steps, spacing)
    assert grid.shape == (steps + 1,) and grid.dtype == torch.float64
    assert (grid.diff() < 0).all()
    assert grid[0] == schedule.start and grid[-1] == 0
    half = schedule.grid(steps, spacing, start=schedule.start / 2)
    assert half[0] == schedule.start / 2 and (half.diff() < 0).all()
    if name in DISCRETE:
        torch.testing.assert_close(grid * 200, (grid * 200).round(), rtol=0, atol=1e-9)


def test_karras_grid_is_the_papers():
    n, low, high = 18, 0.002 ** (1 / 7), 80 ** (1 / 7)
    expected = [(high + i / (n - 1) * (low - high)) ** 7 for i in range(n)] + [0.0]
    torch.testing.assert_close(make_schedule("edm").grid(n), torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("name", ["linear", "edm", "flow"])
def test_log_snr_grid_has_equal_distances(name):
    schedule = make_schedule(name, 100_000)
    log_snr = schedule.log_snr(schedule.grid(12, "log_snr")[1:-1])
    torch.testing.assert_close(log_snr.diff(), log_snr.diff().mean().expand(10), rtol=2e-2, atol=0)


def test_training_times_cover_the_levels():
    generator = torch.Generator().manual_seed(0)
    times = make_schedule("cosine", 10).sample_times(20_000, generator)
    knots, counts = (times * 10).round().unique(return_counts=True)
    assert knots.tolist() == list(range(1, 11))
    assert (counts.float() / 2000 - 1).abs().max() < 0.1
    times = make_schedule("flow").sample_times(20_000, generator)
    assert 0 < times.min() and times.max() <= 1 and abs(times.mean() - 0.5) < 0.01
    log_sigma = make_schedule("edm").sample_times(20_000, generator).log()
    assert abs(log_sigma.mean() + 1.2) < 0.05 and abs(log_sigma.std() - 1.2) < 0.05


@pytest.mark.parametrize(
    "call",
    [
        lambda: make_schedule("sine"),
        lambda: make_schedule("cosine", 0),
        lambda: make_schedule("linear", 20),
        lambda: make_schedule("edm", sigma_min=2.0, sigma_max=1.0),
        lambda: make_schedule("cosine", 10).grid(11),
        lambda: make_schedule("cosine", 10).grid(0),
        lambda: make_schedule("cosine").grid(5, "even"),
        lambda: make_schedule("cosine").grid(5, start=1.5),
        lambda: make_schedule("cosine", 10).grid(6, start=0.5),
    ],
)
def test_mistakes_name_what_is_allowed(call):
    with pytest.raises(ValueError, match="allowed: "):
        call()
