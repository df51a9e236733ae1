"""Gaussian data N(mean, std^2), for which the perfect denoiser and the probability flow are known in closed form."""

import math

import torch
from torch import Tensor

from madiff.diffusion.parametrization import Parametrization
from madiff.diffusion.sampler import Hook, Sample, Sampler
from madiff.diffusion.schedule import Level, Schedule

MEAN, STD = 0.7, 0.4


def posterior_mean(x: Tensor, alpha: float, sigma: float) -> Tensor:
    """E[x0 | x_t = x]."""
    return MEAN + alpha * STD**2 * (x - alpha * MEAN) / (alpha**2 * STD**2 + sigma**2)


def flow_map(x: Tensor, start: Level, end: Level) -> Tensor:
    """Where the exact probability flow carries x from one level to another: standardised values are kept."""
    widths = [math.sqrt(level.alpha**2 * STD**2 + level.sigma**2) for level in (start, end)]
    return end.alpha * MEAN + widths[1] / widths[0] * (x - start.alpha * MEAN)


def perfect_denoiser(schedule: Schedule, parametrization: Parametrization):
    """The network output that gives the posterior mean, for parametrizations whose network time is t."""

    def denoise(x: Tensor, t: Tensor, cond: dict) -> Tensor:
        (level,) = schedule.levels(t[:1])
        x0 = posterior_mean(x, level.alpha, level.sigma)
        return parametrization.target(x0, (x - level.alpha * x0) / level.sigma, level)

    return denoise


def perfect_edm_denoiser(sigma_data: float = 0.5):
    """The same for edm: undo c_in, and solve D = c_skip x + c_out F for F."""

    def denoise(x: Tensor, t: Tensor, cond: dict) -> Tensor:
        sigma = math.exp(4 * float(t[0]))
        variance = sigma**2 + sigma_data**2
        x = x * math.sqrt(variance)
        D = posterior_mean(x, 1.0, sigma)
        return (D - sigma_data**2 / variance * x) * math.sqrt(variance) / (sigma * sigma_data)

    return denoise


class FirstNoise(Hook):
    """Remembers the noise a sampling started from."""

    x: Tensor | None = None

    def before(self, x, t, ctx):
        self.x = x if ctx["step"] == 0 else self.x
        return x


def draw(schedule, parametrization, solver, *, steps, n=64, seed=0, **options) -> tuple[Sample, Tensor]:
    """n samples of the Gaussian in float64 and the noise they came from."""
    edm = schedule.name == "edm"
    denoiser = perfect_edm_denoiser() if edm else perfect_denoiser(schedule, parametrization)
    start = FirstNoise()
    sampler = Sampler(schedule, parametrization, solver, [start])
    generator = torch.Generator().manual_seed(seed)
    sample = sampler.sample(denoiser, (n, 1, 1, 1), steps=steps, generator=generator, dtype=torch.float64, **options)
    return sample, start.x
