"""Solvers against Gaussian data: exact maps, laws, orders of convergence, and identities between solvers."""

import math

import pytest
import torch

from madiff.diffusion import solvers
from madiff.diffusion.parametrization import Prediction, make_parametrization
from madiff.diffusion.sampler import Sampler
from madiff.diffusion.schedule import Level, make_schedule
from madiff.diffusion.solvers import make_solver
from tests.diffusion.gaussian_data import MEAN, STD, draw, flow_map, posterior_mean

VP = ("cosine", "linear", "vp")
DETERMINISTIC = [
    *[(schedule, "epsilon", *solver) for schedule in VP for solver in [("ddim", 1), ("dpmpp1", 1), ("dpmpp2m", 2)]],
    ("cosine", "v", "dpmpp2m", 2),
    ("cosine", "x0", "dpmpp2m", 2),
    ("flow", "flow", "flow_euler", 1),
    ("flow", "x0", "ddim", 1),
    ("edm", "edm", "edm_euler", 1),
    ("edm", "edm", "edm_heun", 2),
    ("edm", "edm", "dpmpp2m", 2),
]  # fmt: skip


def make(schedule_name, parametrization_name, solver_name, K=8192, **options):
    schedule = make_schedule(schedule_name, K)
    return schedule, make_parametrization(parametrization_name, schedule), make_solver(solver_name, **options)


def integrate(schedule, parametrization, solver, steps) -> float:
    """The largest error of a solver that walks from 0.9 to 0.1 of the time axis in equal steps, seen from the flow."""
    times = torch.linspace(0.9, 0.1, steps + 1, dtype=torch.float64)
    levels = schedule.levels(times if schedule.start == 1 else 2 * times)
    x = noise = torch.linspace(-2, 2, 9, dtype=torch.float64).view(9, 1, 1, 1)

    def evaluate(x, level):
        x0 = posterior_mean(x, level.alpha, level.sigma)
        out = parametrization.target(x0, (x - level.alpha * x0) / level.sigma, level)
        return parametrization.predict(out, x, level)

    state = solvers.State(torch.zeros_like, steps)
    for t, s in zip(levels[:-1], levels[1:], strict=True):
        x = solver.step(x, t, s, evaluate(x, t), evaluate, state)
    return (x - flow_map(noise, levels[0], levels[-1])).abs().max().item()


@pytest.mark.parametrize(("schedule", "parametrization", "solver", "order"), DETERMINISTIC)
def test_deterministic_solvers_converge_to_the_probability_flow_at_their_order(
    schedule, parametrization, solver, order
):
    parts = make(schedule, parametrization, solver, K=2560)
    coarse, fine = integrate(*parts, steps=128), integrate(*parts, steps=256)
    assert fine < (2e-2 if order == 1 else 1e-4)
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.25)


@pytest.mark.parametrize(("schedule", "parametrization", "solver", "order"), DETERMINISTIC)
def test_deterministic_solvers_meet_mean_and_variance(schedule, parametrization, solver, order):
    parts = make(schedule, parametrization, solver)
    sample, noise = draw(*parts, steps=512)
    start, end = parts[0].levels(torch.tensor([parts[0].start, 0.0], dtype=torch.float64))
    slope = (sample.x[1] - sample.x[0]) / (noise[1] - noise[0])
    assert (sample.x[0] - slope * noise[0]).item() == pytest.approx(flow_map(0.0, start, end), abs=0.01)
    assert (slope * start.sigma).item() == pytest.approx(STD, rel=0.02)


@pytest.mark.parametrize(
    ("schedule", "parametrization", "solver", "options"),
    [
        *[(name, "epsilon", solver, {}) for name in VP for solver in ("ddpm", "sde_dpmpp1")],
        ("cosine", "epsilon", "ddim", {"eta": 0.5}),
        ("flow", "flow", "sde_dpmpp1", {}),
        ("edm", "edm", "sde_dpmpp1", {}),
        ("edm", "edm", "edm_heun", {"S_churn": 20.0}),
        ("edm", "edm", "edm_heun", {"S_churn": 1e9, "S_min": 0.05, "S_max": 50.0}),
    ],
)
def test_stochastic_solvers_draw_from_the_data_distribution(schedule, parametrization, solver, options):
    sample, _ = draw(*make(schedule, parametrization, solver, K=512, **options), steps=256, n=20_000)
    assert sample.x.mean().item() == pytest.approx(MEAN, abs=0.025)
    assert sample.x.std().item() == pytest.approx(STD, rel=0.05)


@pytest.mark.parametrize("schedule", VP)
@pytest.mark.parametrize("spacing", ["uniform", "log_snr", "quadratic", "karras"])
def test_ddim_is_dpm_solver_of_order_one(schedule, spacing):
    ddim, _ = draw(*make(schedule, "epsilon", "ddim", K=200), steps=15, spacing=spacing)
    dpm, _ = draw(*make(schedule, "epsilon", "dpmpp1", K=200), steps=15, spacing=spacing)
    torch.testing.assert_close(ddim.x, dpm.x, rtol=0, atol=1e-6)


@pytest.mark.parametrize("other", ["sde_dpmpp1", "ddim"])
@pytest.mark.parametrize("schedule", VP)
def test_ddpm_equals_its_other_forms_noise_for_noise(schedule, other):
    options = {"eta": 1.0} if other == "ddim" else {}
    ddpm, _ = draw(*make(schedule, "epsilon", "ddpm", K=200), steps=30)
    same, _ = draw(*make(schedule, "epsilon", other, K=200, **options), steps=30)
    torch.testing.assert_close(ddpm.x, same.x, rtol=0, atol=1e-8)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("schedule", [*VP, "flow", "edm"])
def test_ddim_keeps_the_marginals_for_every_eta(schedule, eta):
    """With the true (x0, eps) as prediction, x_s has mean alpha_s x0 and variance sigma_s^2 whatever eta is."""
    t, s = make_schedule(schedule).levels(torch.tensor([0.8, 0.5]))
    zero, one = torch.zeros(1), torch.ones(1)

    def step(x0, eps, z):
        x = t.alpha * x0 + t.sigma * eps
        return solvers.ddim(x, t, s, Prediction(x0, eps), None, solvers.State(lambda x: z, 1), eta=eta)

    assert step(one, zero, zero).item() == pytest.approx(s.alpha, rel=1e-6)
    assert (step(zero, one, zero) ** 2 + step(zero, zero, one) ** 2).item() == pytest.approx(s.sigma**2, rel=1e-6)
    ancestral = (s.sigma / t.sigma) ** 2 * (t.sigma**2 - (t.alpha / s.alpha * s.sigma) ** 2)
    assert (step(zero, zero, one) ** 2).item() == pytest.approx(eta**2 * ancestral, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_consistency_sampling_has_the_law_of_its_function(steps):
    """For Gaussian data f(x, sigma) = m + (x - m) sqrt((s^2 + sigma_min^2) / (s^2 + sigma^2)), from any level."""
    schedule = make_schedule("edm")
    parametrization = make_parametrization("consistency", schedule)

    def denoiser(x, t, cond):
        (level,) = schedule.levels(torch.exp(4 * t[:1]))
        c_skip, c_out = parametrization.coefficients(level)
        x = x * (level.sigma**2 + 0.25) ** 0.5
        f = MEAN + (x - MEAN) * ((STD**2 + 0.002**2) / (STD**2 + level.sigma**2)) ** 0.5
        return (f - c_skip * x) / (c_out + (c_out == 0))

    generator = torch.Generator().manual_seed(0)
    sampler = Sampler(schedule, parametrization, make_solver("consistency"))
    sample = sampler.sample(denoiser, (20_000, 1, 1, 1), steps=steps, generator=generator, dtype=torch.float64)
    assert sample.calls == steps
    assert sample.x.mean().item() == pytest.approx(MEAN, abs=0.015)
    assert sample.x.std().item() == pytest.approx(STD, rel=0.02)


@pytest.mark.parametrize(("solver", "calls"), [("edm_euler", 7), ("edm_heun", 13), ("dpmpp2m", 7)])
def test_network_calls_are_counted(solver, calls):
    sample, _ = draw(*make("edm", "edm", solver), steps=7)
    assert sample.calls == calls


@pytest.mark.parametrize("name", solvers.SOLVERS)
def test_last_step_returns_the_clean_estimate(name):
    x, x0 = torch.randn(2, 3, 1, 1, 2, generator=torch.Generator().manual_seed(0))
    pred = Prediction(x0, x)
    result = make_solver(name).step(x, Level(0.1, 1.0, 0.1), Level(0.0, 1.0, 0.0), pred, None, solvers.State(None, 1))
    assert torch.equal(result, x0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make_solver("rk45"), "ddim"),
        (lambda: make_solver("ddim", churn=1.0), "eta"),
        (lambda: make_solver("ddpm", eta=1.0), "none"),
        (lambda: make_solver("edm_heun").check(make_schedule("cosine")), "edm"),
    ],
)
def test_mistakes_name_what_is_allowed(call, message):
    with pytest.raises(ValueError, match=f"allowed: .*{message}"):
        call()
