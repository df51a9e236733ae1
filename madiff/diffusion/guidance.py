"""Guidance: classifier-free weights, gradients of a value, and clipping of the clean estimate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from madiff.diffusion.parametrization import Prediction
from madiff.diffusion.sampler import Condition, Denoiser, Hook
from madiff.diffusion.schedule import Level

Value = Callable[[Tensor, Tensor], Tensor]


class ClassifierFree:
    """Classifier-free guidance (arXiv 2207.12598): out_u + weight (out_c - out_u), both halves in one forward of 2B.

    weight 0 is unconditional, 1 conditional, above 1 sharper than the condition. (arXiv 2311.01223 and others write
    1 + w for this weight.) Every tensor of cond is led by B; "keep" is set here.
    """

    def __init__(self, denoiser: Denoiser, weight: float) -> None:
        self.denoiser, self.weight = denoiser, weight

    def __call__(self, x: Tensor, t: Tensor, cond: Condition) -> Tensor:
        keep = x.new_ones(x.shape[0])
        if self.weight == 1:
            return self.denoiser(x, t, {**cond, "keep": keep})
        both = {name: torch.cat([value, value]) for name, value in cond.items()}
        both["keep"] = torch.cat([keep, torch.zeros_like(keep)])
        conditional, unconditional = self.denoiser(torch.cat([x, x]), torch.cat([t, t]), both).chunk(2)
        return torch.lerp(unconditional, conditional, self.weight)


def value_gradient(value: Value, x: Tensor, t: Tensor) -> Tensor:
    """Gradient of value(x, t) (rows,) with respect to x, for all rows at once; needs no surrounding grad mode."""
    with torch.inference_mode(False), torch.enable_grad():
        x = x.detach().clone().requires_grad_()
        return torch.autograd.grad(value(x, t.clone()).sum(), x)[0]


VARIANCES = ("marginal", "posterior")


def posterior_variance(t: Level, s: Level) -> float:
    """Variance of q(x_s | x_t, x0), the noise DDPM adds in a step from t to s (arXiv 2006.11239, eq. 7); 0 at s = 0."""
    return (t.sigma**2 - (t.alpha / s.alpha * s.sigma) ** 2) * (s.sigma / t.sigma) ** 2


class GradientGuidance(Hook):
    """Diffuser's guidance (arXiv 2205.09991, algorithm 1): x += scale v_t grad J(x, t), `repeats` times a step.

    value: J(x, t) -> (rows,), to be made large; t_stop: no guidance at times below it. variance: v_t is sigma_t^2
    ("marginal"), or that of the step's own noise ("posterior", as Diffuser's and TREBI's released code).
    """

    def __init__(
        self, value: Value, scale: float, repeats: int = 1, t_stop: float = 0.0, variance: str = "marginal"
    ) -> None:
        if variance not in VARIANCES:
            raise ValueError(f"variance {variance!r} is unknown; allowed: {', '.join(VARIANCES)}")
        self.value, self.scale, self.repeats, self.t_stop = value, scale, repeats, t_stop
        self.posterior = variance == "posterior"

    def before(self, x: Tensor, t: Tensor, ctx: dict[str, Any]) -> Tensor:
        level, known = ctx["level"], ctx["known"]
        if level.t < self.t_stop:
            return x
        variance = posterior_variance(level, ctx["next_level"]) if self.posterior else level.sigma**2
        for _ in range(self.repeats):
            x = x + (self.scale * variance) * value_gradient(self.value, x, t)
            x = x if known is None else known.paint(x)
        return x


class ClassifierGuidance(Hook):
    """Classifier guidance (arXiv 2105.05233, algorithm 2): eps -= scale sigma_t grad log p(y | x_t), x0 to match."""

    def __init__(self, log_prob: Value, scale: float = 1.0) -> None:
        self.log_prob, self.scale = log_prob, scale

    def predict(self, pred: Prediction, x: Tensor, t: Tensor, ctx: dict[str, Any]) -> Prediction:
        level = ctx["level"]
        eps_shift = (self.scale * level.sigma) * value_gradient(self.log_prob, x, t)
        return Prediction(pred.x0 + (level.sigma / level.alpha) * eps_shift, pred.eps - eps_shift)


class ClipX0(Hook):
    """Clamp x0_hat to [low, high]; with `rederive` the noise estimate is recomputed to match."""

    def __init__(self, low: float = -1.0, high: float = 1.0, rederive: bool = False) -> None:
        self.low, self.high, self.rederive = low, high, rederive

    def predict(self, pred: Prediction, x: Tensor, t: Tensor, ctx: dict[str, Any]) -> Prediction:
        x0 = pred.x0.clamp(self.low, self.high)
        level = ctx["level"]
        return Prediction(x0, (x - level.alpha * x0) / level.sigma if self.rederive else pred.eps)
