"""Every parametrization recovers (x0, eps) from its own target; edm and consistency keep their promises."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from madiff.diffusion.parametrization import PARAMETRIZATIONS, make_parametrization
from madiff.diffusion.schedule import NAMES, make_schedule

PAIRS = [(name, schedule) for name, cls in PARAMETRIZATIONS.items() for schedule in NAMES if schedule in cls.schedules]


@pytest.mark.parametrize(("name", "schedule_name"), PAIRS)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), u=st.floats(0.02, 0.98))
def test_prediction_inverts_target(name, schedule_name, seed, u):
    schedule = make_schedule(schedule_name)
    parametrization = make_parametrization(name, schedule)
    generator = torch.Generator().manual_seed(seed)
    x0, eps = torch.randn(2, 3, 2, 2, 5, generator=generator, dtype=torch.float64)
    level = schedule.level(torch.tensor([u, u / 2 + 0.01, 1 - u], dtype=torch.float64))
    x = level.alpha * x0 + level.sigma * eps
    pred = parametrization.predict(parametrization.target(x0, eps, level), x, level)
    torch.testing.assert_close(pred.x0, x0, rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(pred.eps, eps, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(level.alpha * pred.x0 + level.sigma * pred.eps, x, rtol=1e-9, atol=1e-9)


def test_edm_error_is_karras_weighted_denoiser_error():
    schedule = make_schedule("edm")
    edm = make_parametrization("edm", schedule, sigma_data=0.6)
    generator = torch.Generator().manual_seed(0)
    x0, eps, out = torch.randn(3, 4, 2, 2, 3, generator=generator, dtype=torch.float64)
    sigma = torch.tensor([0.01, 0.3, 2.0, 50.0], dtype=torch.float64)
    level = schedule.level(sigma)
    x = x0 + level.sigma * eps
    error = edm.error(out, x, x0, eps, level).square()
    weight = ((sigma**2 + 0.36) / (sigma * 0.6) ** 2).view(-1, 1, 1, 1)
    torch.testing.assert_close(error, weight * (edm.predict(out, x, level).x0 - x0).square(), rtol=1e-9, atol=1e-9)


def test_edm_scales_inputs_and_targets_to_unit_variance():
    schedule = make_schedule("edm")
    edm = make_parametrization("edm", schedule)
    generator = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 200_000, 1, 1, 1, generator=generator, dtype=torch.float64)
    x0 = 0.5 * x0
    for sigma in (0.05, 1.0, 30.0):
        (level,) = schedule.levels(torch.tensor([sigma]))
        assert abs(edm.inputs(x0 + sigma * eps, level).std() - 1) < 0.01
        assert abs(edm.target(x0, eps, level).std() - 1) < 0.01


def test_consistency_is_the_identity_at_sigma_min():
    schedule = make_schedule("edm")
    consistency = make_parametrization("consistency", schedule)
    (level,) = schedule.levels(torch.tensor([0.002], dtype=torch.float64))
    x, out = torch.randn(2, 3, 2, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(consistency.predict(out, x, level).x0, x, rtol=0, atol=0)


@pytest.mark.parametrize(("name", "schedule"), [("epsilon", "flow"), ("edm", "cosine"), ("v", "edm"), ("score", "vp")])
def test_mistakes_name_what_is_allowed(name, schedule):
    with pytest.raises(ValueError, match="allowed: "):
        make_parametrization(name, make_schedule(schedule))
