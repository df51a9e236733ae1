"""Noise schedules x_t = alpha(t) x_0 + sigma(t) eps, and the time grids that solvers walk down.

Clean data is t = 0. The discrete schedules (cosine, linear, vp) live on the knots t = i/K, i = 0..K; flow lives on
[0, 1]; edm measures time by the noise itself, t = sigma. Tables are float64; solvers get Python floats (`levels`).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor

SPACINGS = ("uniform", "quadratic", "log_snr", "karras")
KARRAS_RHO = 7.0


class Level(NamedTuple):
    """A point of the schedule: Python floats while sampling, (B, 1, 1, 1) tensors while training."""

    t: Any
    alpha: Any
    sigma: Any


class Schedule(ABC):
    """What all schedules share. `start` is pure noise, `t_min` the smallest time with noise that grids resolve."""

    name: str
    start: float
    t_min: float
    default_spacing = "uniform"

    @abstractmethod
    def alpha(self, t: Float[Tensor, "*times"]) -> Float[Tensor, "*times"]:
        """Signal scale at times t of any shape."""

    @abstractmethod
    def sigma(self, t: Float[Tensor, "*times"]) -> Float[Tensor, "*times"]:
        """Noise scale at times t of any shape."""

    @abstractmethod
    def time(self, log_snr: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The inverse of `log_snr`; the nearest knot for discrete schedules."""

    @abstractmethod
    def sample_times(
        self, n: int, generator: torch.Generator, device: torch.device | str = "cpu"
    ) -> Float32[Tensor, " n"]:
        """Noise levels to train on: (n,) float32."""

    def log_snr(self, t: Float[Tensor, "*times"]) -> Float[Tensor, "*times"]:
        """lambda = log(alpha / sigma), half the log of the signal-to-noise ratio; +inf at clean data."""
        return torch.log(self.alpha(t) / self.sigma(t))

    def level(self, t: Float[Tensor, " B"]) -> Level:
        """The level of every row, shaped to broadcast with x: t (B,) gives fields (B, 1, 1, 1)."""
        t = t.view(-1, 1, 1, 1)
        return Level(t, self.alpha(t), self.sigma(t))

    def levels(self, grid: Float[Tensor, " points"]) -> list[Level]:
        """The levels of a grid (n,) as Python floats in double precision."""
        grid = grid.double().cpu()
        return [Level(*row) for row in torch.stack([grid, self.alpha(grid), self.sigma(grid)], dim=1).tolist()]

    def grid(
        self, steps: int, spacing: str | None = None, start: float | None = None
    ) -> Float64[Tensor, " points"]:
        """Times from `start` (default: pure noise) down to clean data: (steps + 1,) float64, strictly decreasing.

        spacing: uniform or quadratic in t, uniform in log-SNR, or Karras (arXiv 2206.00364, eq. 5, rho = 7);
        None takes the schedule's own. Raises ValueError for an unknown spacing or an impossible number of steps.
        """
        spacing = spacing or self.default_spacing
        start = self.start if start is None else start
        if spacing not in SPACINGS:
            raise ValueError(f"spacing {spacing!r} is unknown; allowed: {', '.join(SPACINGS)}")
        if not self.t_min <= start <= self.start:
            raise ValueError(f"{self.name} cannot start at t={start}; allowed: {self.t_min} to {self.start}")
        if steps < 1:
            raise ValueError(f"steps={steps} makes no grid; allowed: 1 or more")
        u = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
        if spacing == "uniform":
            return self._snap(start * u)
        if spacing == "quadratic":
            return self._snap(start * u**2)
        times = torch.cat([self.time(self._noise_spaced(steps, spacing, start)), u[-1:]])
        times[0] = start
        return self._snap(times)

    def _noise_spaced(self, steps: int, spacing: str, start: float) -> Tensor:
        low, high = self.log_snr(torch.tensor([start, self.t_min], dtype=torch.float64))
        low = torch.where(low.isinf(), -high, low)  # flow starts without any signal
        u = torch.linspace(1, 0, steps, dtype=torch.float64)
        if spacing == "log_snr":
            return u * low + (1 - u) * high
        root_max, root_min = torch.exp(-low / KARRAS_RHO), torch.exp(-high / KARRAS_RHO)
        return -KARRAS_RHO * torch.log(u * root_max + (1 - u) * root_min)

    def _snap(self, times: Tensor) -> Tensor:
        return times


class DiscreteSchedule(Schedule):
    """A variance-preserving schedule given by K betas: alpha_i^2 = prod (1 - beta_j), alpha^2 + sigma^2 = 1."""

    start = 1.0

    def __init__(self, name: str, betas: Tensor) -> None:
        self.name, self.steps = name, len(betas)
        self.t_min = 1.0 / self.steps
        log_alpha = torch.cat([betas.new_zeros(1), torch.log1p(-betas).cumsum(0) / 2])
        sigma = torch.expm1(2 * log_alpha).abs().sqrt()
        self._log_snr = log_alpha - torch.log(sigma)
        self._tables = {"alpha": torch.exp(log_alpha), "sigma": sigma}
        self._cast: dict[tuple[str, torch.device, torch.dtype], Tensor] = {}

    def alpha(self, t: Float[Tensor, "*times"]) -> Float[Tensor, "*times"]:
        return self._at("alpha", t)

    def sigma(self, t: Float[Tensor, "*times"]) -> Float[Tensor, "*times"]:
        return self._at("sigma", t)

    def time(self, log_snr: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        distance = (self._log_snr[1:] - log_snr[:, None]).abs()
        return (distance.argmin(dim=1) + 1).double() / self.steps

    def sample_times(
        self, n: int, generator: torch.Generator, device: torch.device | str = "cpu"
    ) -> Float32[Tensor, " n"]:
        index = torch.randint(1, self.steps + 1, (n,), generator=generator, device=generator.device)
        return index.to(device, torch.float32) / self.steps

    def _at(self, table: str, t: Tensor) -> Tensor:
        key = (table, t.device, t.dtype)
        if key not in self._cast:
            self._cast[key] = self._tables[table].to(t.device, t.dtype)
        return self._cast[key][(t * self.steps).round().long()]

    def _snap(self, times: Tensor) -> Tensor:
        n, rank = len(times) - 1, torch.arange(len(times))
        index = (times.flip(0) * self.steps).round().long()
        start = int(index[-1])
        if n > start:
            raise ValueError(f"steps={n} is more than the noise levels of {self.name}; allowed: 1 to {start}")
        index = (index - rank).cummax(0).values + rank
        return torch.minimum(index, start - n + rank).flip(0).double() / self.steps


class FlowSchedule(Schedule):
    """Straight paths (rectified flow, arXiv 2209.03003): alpha = 1 - t, sigma = t."""

    name, start, t_min = "flow", 1.0, 1e-3

    def alpha(self, t: Float[Tensor, "*times"]) -> Float[Tensor, "*times"]:
        return 1 - t

    def sigma(self, t: Float[Tensor, "*times"]) -> Float[Tensor, "*times"]:
        return t

    def time(self, log_snr: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        return torch.sigmoid(-log_snr)

    def sample_times(
        self, n: int, generator: torch.Generator, device: torch.device | str = "cpu"
    ) -> Float32[Tensor, " n"]:
        return 1 - torch.rand(n, generator=generator, device=generator.device).to(device)


class EDMSchedule(Schedule):
    """Variance-exploding noise measured by t = sigma (arXiv 2206.00364): alpha = 1, ln sigma ~ N(P_mean, P_std^2)."""

    name, default_spacing = "edm", "karras"

    def __init__(
        self, sigma_min: float = 0.002, sigma_max: float = 80.0, P_mean: float = -1.2, P_std: float = 1.2
    ) -> None:
        if not 0 < sigma_min < sigma_max:
            raise ValueError(f"sigma_min={sigma_min}, sigma_max={sigma_max}; allowed: 0 < sigma_min < sigma_max")
        self.t_min, self.start, self.P_mean, self.P_std = sigma_min, sigma_max, P_mean, P_std

    def alpha(self, t: Float[Tensor, "*times"]) -> Float[Tensor, "*times"]:
        return torch.ones_like(t)

    def sigma(self, t: Float[Tensor, "*times"]) -> Float[Tensor, "*times"]:
        return t

    def time(self, log_snr: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        return torch.exp(-log_snr)

    def sample_times(
        self, n: int, generator: torch.Generator, device: torch.device | str = "cpu"
    ) -> Float32[Tensor, " n"]:
        normal = torch.randn(n, generator=generator, device=generator.device).to(device)
        return torch.exp(self.P_mean + self.P_std * normal).clamp(self.t_min, self.start)


def cosine_betas(steps: int, s: float = 0.008, max_beta: float = 0.999) -> Tensor:
    """squaredcos_cap_v2 (arXiv 2102.09672, eq. 17): beta_i = min(1 - f(i/K) / f((i-1)/K), max_beta)."""
    f = torch.cos((torch.linspace(0, 1, steps + 1, dtype=torch.float64) + s) / (1 + s) * math.pi / 2) ** 2
    return (1 - f[1:] / f[:-1]).clamp(max=max_beta)


def linear_betas(steps: int, beta_min: float = 1e-4, beta_max: float = 0.02) -> Tensor:
    """Ho et al. (arXiv 2006.11239): beta from 1e-4 to 0.02 at K = 1000, scaled by 1000 / K."""
    if beta_max * 1000 / steps >= 1:
        raise ValueError(f"steps={steps} is too few for the linear schedule; allowed: more than {1000 * beta_max:g}")
    return torch.linspace(beta_min, beta_max, steps, dtype=torch.float64) * 1000 / steps


def vp_betas(steps: int, beta_min: float = 0.1, beta_max: float = 10.0) -> Tensor:
    """Diffusion-QL's VP (arXiv 2208.06193, app. B): 1 - beta_i = exp(-b_min/K - (b_max - b_min)(2i - 1) / (2K^2))."""
    i = torch.arange(1, steps + 1, dtype=torch.float64)
    return -torch.expm1(-beta_min / steps - (beta_max - beta_min) * (2 * i - 1) / (2 * steps**2))


BETAS: dict[str, Callable[..., Tensor]] = {"cosine": cosine_betas, "linear": linear_betas, "vp": vp_betas}
NAMES = (*BETAS, "flow", "edm")


def make_schedule(name: str, steps: int = 200, **options: float) -> Schedule:
    """A schedule by name: cosine, linear, vp (discrete, `steps` noise levels), flow, edm (continuous, no `steps`).

    options: s, max_beta (cosine); beta_min, beta_max (linear, vp); sigma_min, sigma_max, P_mean, P_std (edm).
    """
    if name == "flow":
        return FlowSchedule(**options)
    if name == "edm":
        return EDMSchedule(**options)
    if name not in BETAS:
        raise ValueError(f"schedule {name!r} is unknown; allowed: {', '.join(NAMES)}")
    if steps < 1:
        raise ValueError(f"steps={steps} makes no schedule; allowed: 1 or more")
    return DiscreteSchedule(name, BETAS[name](steps, **options))
