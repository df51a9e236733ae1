"""Guidance against two plain forwards and against the analytic posterior of a Gaussian."""

import math

import pytest
import torch

from madiff.diffusion.guidance import ClassifierFree, ClassifierGuidance, GradientGuidance, value_gradient
from madiff.diffusion.networks.transformer import TemporalAgentTransformer
from madiff.diffusion.parametrization import make_parametrization
from madiff.diffusion.sampler import Sampler
from madiff.diffusion.schedule import make_schedule
from madiff.diffusion.solvers import make_solver
from tests.diffusion.gaussian_data import MEAN, STD, perfect_denoiser


def random_network(seed=0):
    torch.manual_seed(seed)
    network = TemporalAgentTransformer(5, width=32, layers=2, conditions={"returns": 1}).double()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return network


def batch(rows=3):
    x, t, returns = torch.randn(rows, 4, 2, 5), torch.rand(rows), torch.randn(rows, 2, 1)
    return x.double(), t.double(), {"returns": returns.double()}


@torch.no_grad()
@pytest.mark.parametrize("weight", [0.0, 0.5, 1.2, 3.0])
def test_one_forward_of_two_batches_equals_two_forwards(weight):
    network, (x, t, cond) = random_network(), batch()
    conditional = network(x, t, cond | {"keep": torch.ones(3)})
    unconditional = network(x, t, cond | {"keep": torch.zeros(3)})
    expected = unconditional + weight * (conditional - unconditional)
    assert (conditional - unconditional).abs().max() > 1e-3
    torch.testing.assert_close(ClassifierFree(network, weight)(x, t, cond), expected)


@torch.no_grad()
def test_weight_one_is_the_conditional_network():
    network, (x, t, cond) = random_network(), batch()
    assert torch.equal(ClassifierFree(network, 1.0)(x, t, cond), network(x, t, cond | {"keep": torch.ones(3)}))


@torch.no_grad()
def test_value_gradient_is_exact_for_all_rows_at_once_even_in_inference_mode():
    centre = torch.tensor([1.0, -2.0])

    def value(x, t):
        return -0.5 * ((x - centre) ** 2).sum((1, 2, 3)) * t

    x, t = torch.randn(4, 3, 1, 2), torch.rand(4)
    expected = (centre - x) * t.view(-1, 1, 1, 1)
    torch.testing.assert_close(value_gradient(value, x, t), expected)
    with torch.inference_mode():
        torch.testing.assert_close(value_gradient(value, x.clone(), t.clone()), expected)


def test_gradient_guidance_takes_its_steps_and_stops():
    schedule = make_schedule("cosine")
    hook = GradientGuidance(lambda x, t: -0.5 * (x**2).sum((1, 2, 3)), scale=0.3, repeats=2, t_stop=0.5)
    x, mask = torch.ones(2, 4, 1, 1), (torch.arange(4) < 1).view(4, 1, 1)
    for time, active in [(0.8, True), (0.5, True), (0.4, False)]:
        (level,) = schedule.levels(torch.tensor([time]))
        result = hook.before(x, torch.full((2,), time), {"level": level, "known": None})
        factor = (1 - 0.3 * level.sigma**2) ** 2 if active else 1.0
        torch.testing.assert_close(result, factor * x)
    sampler = Sampler(schedule, make_parametrization("epsilon", schedule), make_solver("ddim"), [hook])
    generator = torch.Generator().manual_seed(0)
    sample = sampler.sample(lambda x, t, c: 0 * x, (2, 4, 1, 1), steps=4, generator=generator, known=(x, mask))
    assert torch.equal(sample.x[:, 0], x[:, 0])


@pytest.mark.parametrize("solver", ["ddpm", "dpmpp2m"])
def test_classifier_guidance_samples_the_gaussian_posterior(solver):
    """Prior N(m, s^2), observation y = x0 + noise(r): p(y | x_t) is Gaussian, so is the posterior of x0."""
    y, r = 1.5, 0.3
    schedule = make_schedule("cosine", 512)
    parametrization = make_parametrization("epsilon", schedule)

    def log_prob(x, t):
        (level,) = schedule.levels(t[:1])
        total = level.alpha**2 * STD**2 + level.sigma**2
        mean = MEAN + level.alpha * STD**2 * (x - level.alpha * MEAN) / total
        variance = STD**2 * level.sigma**2 / total + r**2
        return (-0.5 * (y - mean) ** 2 / variance).sum((1, 2, 3))

    sampler = Sampler(schedule, parametrization, make_solver(solver), [ClassifierGuidance(log_prob)])
    generator = torch.Generator().manual_seed(0)
    denoiser = perfect_denoiser(schedule, parametrization)
    sample = sampler.sample(denoiser, (20_000, 1, 1, 1), steps=256, generator=generator, dtype=torch.float64)
    variance = 1 / (1 / STD**2 + 1 / r**2)
    assert sample.x.mean().item() == pytest.approx(variance * (MEAN / STD**2 + y / r**2), abs=0.01)
    assert sample.x.std().item() == pytest.approx(math.sqrt(variance), rel=0.05)


def test_classifier_guidance_keeps_x0_and_eps_consistent():
    schedule = make_schedule("cosine")
    (level,) = schedule.levels(torch.tensor([0.6]))
    x, eps = torch.randn(2, 3, 1, 1, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    pred = make_parametrization("epsilon", schedule).predict(eps, x, level)
    hook = ClassifierGuidance(lambda x, t: x.sum((1, 2, 3)), scale=2.0)
    guided = hook.predict(pred, x, torch.full((3,), 0.6), {"level": level})
    torch.testing.assert_close(guided.eps, eps - 2 * level.sigma)
    torch.testing.assert_close(level.alpha * guided.x0 + level.sigma * guided.eps, x)
