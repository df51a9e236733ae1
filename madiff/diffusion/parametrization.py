"""What the network predicts, and how its output becomes (x0_hat, eps_hat).

The training loss is the plain squared error of the network's own output; for edm that equals Karras's weighting
(s^2 + sd^2) / (s sd)^2 of the denoiser's error (arXiv 2206.00364, section 5). The network's time is t of the schedule
(in [0, 1]) or, for edm and consistency, ln(sigma) / 4 (in [-1.6, 1.1] by default).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from madiff.diffusion.schedule import Level, Schedule

Rows = Float[Tensor, "rows time agent feature"]


class Prediction(NamedTuple):
    """What solvers and hooks work with: the clean estimate and the noise estimate, both shaped like x."""

    x0: Rows
    eps: Rows


class Parametrization:
    """Predicts the noise eps (arXiv 2006.11239); the base of the others."""

    schedules = ("cosine", "linear", "vp")

    def __init__(self, schedule: Schedule) -> None:
        if schedule.name not in self.schedules:
            name, allowed = type(self).__name__.lower(), ", ".join(self.schedules)
            raise ValueError(
                f"parametrization {name!r} does not fit the schedule {schedule.name!r}; allowed: {allowed}"
            )

    def inputs(self, x: Rows, level: Level) -> Rows:
        """x as the network sees it."""
        return x

    def network_time(self, level: Level) -> Any:
        """The time as the network sees it, a float or tensor like `level.t`."""
        return level.t

    def target(self, x0: Rows, eps: Rows, level: Level) -> Rows:
        """The output a perfect network would give for x_t = alpha x0 + sigma eps."""
        return eps

    def predict(self, out: Rows, x: Rows, level: Level) -> Prediction:
        """Clean and noise estimates from the network's output at x_t."""
        return Prediction((x - level.sigma * out) / level.alpha, out)

    def error(self, out: Rows, x: Rows, x0: Rows, eps: Rows, level: Level) -> Rows:
        """The residual whose square is the training loss."""
        return out - self.target(x0, eps, level)


class Epsilon(Parametrization):
    """Predicts the noise."""


class X0(Parametrization):
    """Predicts the clean data."""

    schedules = ("cosine", "linear", "vp", "flow")

    def target(self, x0: Rows, eps: Rows, level: Level) -> Rows:
        return x0

    def predict(self, out: Rows, x: Rows, level: Level) -> Prediction:
        return Prediction(out, (x - level.alpha * out) / level.sigma)


class V(Parametrization):
    """Predicts v = alpha eps - sigma x0 (arXiv 2202.00512), on variance-preserving schedules."""

    def target(self, x0: Rows, eps: Rows, level: Level) -> Rows:
        return level.alpha * eps - level.sigma * x0

    def predict(self, out: Rows, x: Rows, level: Level) -> Prediction:
        return Prediction(level.alpha * x - level.sigma * out, level.sigma * x + level.alpha * out)


class Flow(Parametrization):
    """Predicts the velocity u = eps - x0 (arXiv 2210.02747, 2209.03003)."""

    schedules = ("cosine", "linear", "vp", "flow")

    def target(self, x0: Rows, eps: Rows, level: Level) -> Rows:
        return eps - x0

    def predict(self, out: Rows, x: Rows, level: Level) -> Prediction:
        total = level.alpha + level.sigma
        return Prediction((x - level.sigma * out) / total, (x + level.alpha * out) / total)


class EDM(Parametrization):
    """Preconditioned denoiser D(x) = c_skip x + c_out F(c_in x, ln(sigma) / 4) (arXiv 2206.00364, eq. 7, table 1)."""

    schedules = ("edm",)

    def __init__(self, schedule: Schedule, sigma_data: float = 0.5) -> None:
        super().__init__(schedule)
        self.sigma_data, self.sigma_min = sigma_data, schedule.t_min

    def inputs(self, x: Rows, level: Level) -> Rows:
        return x / (level.sigma**2 + self.sigma_data**2) ** 0.5

    def network_time(self, level: Level) -> Any:
        return torch.log(level.sigma) / 4 if isinstance(level.sigma, Tensor) else math.log(level.sigma) / 4

    def coefficients(self, level: Level) -> tuple[Any, Any]:
        """(c_skip, c_out) at a level."""
        variance = level.sigma**2 + self.sigma_data**2
        return self.sigma_data**2 / variance, level.sigma * self.sigma_data / variance**0.5

    def target(self, x0: Rows, eps: Rows, level: Level) -> Rows:
        c_skip, c_out = self.coefficients(level)
        return (x0 - c_skip * (x0 + level.sigma * eps)) / c_out

    def predict(self, out: Rows, x: Rows, level: Level) -> Prediction:
        c_skip, c_out = self.coefficients(level)
        x0 = c_skip * x + c_out * out
        return Prediction(x0, (x - x0) / level.sigma)


class Consistency(EDM):
    """EDM with coefficients that make f(x, sigma_min) = x (arXiv 2303.01469, app. C).

    The network's target is singular at sigma_min, so the error is measured on f itself.
    """

    def coefficients(self, level: Level) -> tuple[Any, Any]:
        above, variance = level.sigma - self.sigma_min, level.sigma**2 + self.sigma_data**2
        return self.sigma_data**2 / (above**2 + self.sigma_data**2), self.sigma_data * above / variance**0.5

    def error(self, out: Rows, x: Rows, x0: Rows, eps: Rows, level: Level) -> Rows:
        return self.predict(out, x, level).x0 - x0


PARAMETRIZATIONS: dict[str, type[Parametrization]] = {
    "epsilon": Epsilon,
    "x0": X0,
    "v": V,
    "flow": Flow,
    "edm": EDM,
    "consistency": Consistency,
}


def make_parametrization(name: str, schedule: Schedule, **options: float) -> Parametrization:
    """A parametrization by name: epsilon, x0, v, flow, edm, consistency; options: sigma_data (edm, consistency)."""
    if name not in PARAMETRIZATIONS:
        raise ValueError(f"parametrization {name!r} is unknown; allowed: {', '.join(PARAMETRIZATIONS)}")
    return PARAMETRIZATIONS[name](schedule, **options)
