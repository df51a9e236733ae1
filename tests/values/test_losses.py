"""Losses against loops, minimisers and numerical integration."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate
from scipy.stats import expectile as scipy_expectile

from madiff.interfaces import EnvironmentSpec
from madiff.values import conservative_penalty, expectile_loss, masked_mean, real_dimensions, uniform_actions


def test_masked_mean_against_a_loop():
    values, valid = torch.randn(4, 3), torch.tensor([True, False, True, False])[:, None]
    kept = [float(values[b, a]) for b in (0, 2) for a in range(3)]
    assert float(masked_mean(values, valid)) == pytest.approx(sum(kept) / 6, abs=1e-6)
    assert float(masked_mean(values)) == pytest.approx(float(values.mean()))
    assert float(masked_mean(values / 0, torch.zeros(4, 1, dtype=torch.bool))) == 0.0


@pytest.mark.parametrize("level", [0.1, 0.5, 0.9])
def test_the_minimiser_of_the_expectile_loss_is_the_expectile(level):
    sample = np.random.default_rng(0).normal(size=200)
    estimates = torch.linspace(-2, 2, 40_001, dtype=torch.float64)
    loss = expectile_loss(torch.from_numpy(sample)[:, None] - estimates, level).mean(0)
    assert float(estimates[loss.argmin()]) == pytest.approx(scipy_expectile(sample, level), abs=2e-4)


def test_discrete_penalty_against_a_loop_over_legal_actions():
    values, actions = torch.randn(2, 6, 5), torch.randint(5, (6,))
    available = (torch.rand(6, 5) < 0.5).scatter(-1, actions[:, None], True)
    data = values.gather(-1, actions.expand(2, 6)[..., None])[..., 0]
    penalty = conservative_penalty(values, data, available=available)
    for c in range(2):
        for b in range(6):
            legal = [float(values[c, b, a]) for a in range(5) if available[b, a]]
            expected = math.log(sum(map(math.exp, legal))) - float(data[c, b])
            assert float(penalty[c, b]) == pytest.approx(expected, abs=1e-5)
    assert (penalty > -1e-6).all()


def test_a_padded_row_without_legal_actions_stays_finite():
    penalty = conservative_penalty(torch.zeros(1, 3), torch.zeros(1), available=torch.zeros(1, 3, dtype=torch.bool))
    assert penalty.isfinite().all()


def test_continuous_penalty_estimates_the_integral():
    """log of the integral of exp Q over the square, by importance sampling and by scipy's quadrature."""

    def q(x, y):
        return 1.5 * x - 2.0 * y**2 + 0.7 * x * y

    exact = math.log(integrate.dblquad(lambda y, x: math.exp(q(x, y)), -1, 1, -1, 1)[0])
    actions, log_density = uniform_actions(torch.zeros(5, 2), 200_000, torch.Generator().manual_seed(0))
    candidates = q(actions[..., 0], actions[..., 1]).movedim(0, -1)
    data = torch.arange(5.0)
    penalty = conservative_penalty(candidates, data, log_density=log_density.movedim(0, -1))
    assert torch.allclose(penalty + data, torch.full((5,), exact), atol=0.01)


def test_padded_dimensions_are_zero_and_carry_no_density():
    spec = EnvironmentSpec("toy", "toy", 2, 3, 3, False, 0, 9, action_sizes=(3, 1))
    real = real_dimensions(spec)
    assert real.tolist() == [[True, True, True], [True, False, False]]
    actions, log_density = uniform_actions(torch.zeros(4, 2, 3), 50, torch.Generator().manual_seed(0), real)
    assert actions.shape == (50, 4, 2, 3) and log_density.shape == (50, 4, 2)
    assert not actions[..., 1, 1:].any() and (actions[..., 0, :] != 0).all() and actions.abs().max() <= 1
    assert log_density[0, 0].tolist() == pytest.approx([-3 * math.log(2), -math.log(2)])
    whole = EnvironmentSpec("toy", "toy", 2, 3, 3, False, 0, 9)
    assert real_dimensions(whole).tolist() == [[True, True, True]]
