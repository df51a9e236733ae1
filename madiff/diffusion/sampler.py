"""The one sampling loop: it knows noise levels, a denoiser and hooks, never what a task or a constraint is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from madiff.diffusion.capture import recordable
from madiff.diffusion.inpainting import Known, make_known, repeat_rows
from madiff.diffusion.parametrization import Parametrization, Prediction, Rows
from madiff.diffusion.schedule import Level, Schedule
from madiff.diffusion.solvers import Solver, State

Condition = dict[str, Tensor]
Denoiser = Callable[[Tensor, Tensor, Condition], Tensor]
Times = Float[Tensor, " rows"]


class Hook:
    """Four moments of the sampling loop, all optional; x is (rows, time, agent, feature), t and s are (rows,).

    `ctx` lives for one call: generator, schedule, known (`Known` or None), candidates, steps, step (index), calls
    (network calls so far), level and next_level (the current step's `Level`s), and whatever the caller put into
    `context`. Rows are the batch with every row repeated `candidates` times.
    """

    capturable: bool = True
    """Whether it does tensor work alone, without a look at values, so that a graph of the loop can replay it."""

    def before(self, x: Rows, t: Times, ctx: dict[str, Any]) -> Rows:
        """Change x before the network sees it."""
        return x

    def predict(self, pred: Prediction, x: Rows, t: Times, ctx: dict[str, Any]) -> Prediction:
        """Change the prediction made at x; runs at every network call."""
        return pred

    def after(
        self, x_prev: Rows, x_next: Rows, x0_hat: Rows, t: Times, s: Times, ctx: dict[str, Any]
    ) -> tuple[Rows, dict[str, Tensor]]:
        """Change the result of a step from t to s, and report tensors by name."""
        return x_next, {}

    def final(self, x: Rows, ctx: dict[str, Any]) -> tuple[Rows, dict[str, Tensor]]:
        """Change the finished sample, and report tensors by name."""
        return x, {}


class Sample(NamedTuple):
    """x: (B, T, A, F), or (B, candidates, T, A, F); calls: network calls made; info: what hooks reported, in order."""

    x: Float[Tensor, "B T A F"] | Float[Tensor, "B candidates T A F"]
    calls: int
    info: dict[str, list[Tensor]]


class Sampler:
    """Draws samples: in-painting first, hooks in the order given (constraints last), known entries always restored."""

    def __init__(
        self, schedule: Schedule, parametrization: Parametrization, solver: Solver, hooks: Sequence[Hook] = ()
    ) -> None:
        solver.check(schedule)
        self.schedule, self.parametrization, self.solver, self.hooks = schedule, parametrization, solver, tuple(hooks)

    @recordable
    def sample(
        self,
        denoiser: Denoiser,
        shape: Sequence[int],
        *,
        steps: int,
        generator: torch.Generator,
        cond: Condition | None = None,
        known: tuple[Tensor, Tensor] | None = None,
        candidates: int = 1,
        temperature: float = 1.0,
        noise_temperature: float | None = None,
        noise: Float[Tensor, "#rows #T #A #F"] | None = None,
        warm_start: tuple[Float[Tensor, "B T A F"], float] | None = None,
        context: dict[str, Any] | None = None,
        spacing: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Sample:
        """Denoise from noise, or from a noised earlier sample, to clean data.

        shape (B, T, A, F); cond: tensors led by B; known: (value, mask in {0, 1}), broadcastable to shape, mask 1 where
        the value holds. temperature scales the first noise, noise_temperature (default: the same) the noise injected
        by solvers. noise (B * candidates, T, A, F) ~ N(0, I): the first noise, where the caller shares or keeps it;
        drawn from the generator otherwise. warm_start: (clean x (B, T, A, F), t to noise it to). device and dtype
        follow `known`, else `warm_start`. Gradients flow through the chain unless the caller disables them.
        """
        if candidates < 1:
            raise ValueError(f"candidates={candidates} asks for no sample; allowed: 1 or more")
        like = _like(known, warm_start, device, dtype)
        known_rows = make_known(known, shape, candidates, like)
        rows = (shape[0] * candidates, *shape[1:])
        start = None if warm_start is None else warm_start[1]
        levels = self.schedule.levels(self.schedule.grid(steps, spacing, start))
        ctx: dict[str, Any] = {
            **(context or {}), "generator": generator, "schedule": self.schedule, "known": known_rows,
            "candidates": candidates, "steps": steps, "calls": 0,
        }  # fmt: skip
        first = _normal(rows, generator, like) if noise is None else noise.to(like).expand(rows)
        x = temperature * levels[0].sigma * first
        if warm_start is not None:
            x = x + levels[0].alpha * repeat_rows(warm_start[0].to(like), candidates)
        cond = {name: repeat_rows(value, candidates) for name, value in (cond or {}).items()}
        injected = temperature if noise_temperature is None else noise_temperature
        state = State(lambda x: injected * _normal(x.shape, generator, x), steps)
        x, info = self._denoise(denoiser, x, levels, cond, known_rows, state, ctx)
        return Sample(x if candidates == 1 else x.view(shape[0], candidates, *shape[1:]), ctx["calls"], info)

    def _denoise(
        self,
        denoiser: Denoiser,
        x: Tensor,
        levels: list[Level],
        cond: Condition,
        known: Known | None,
        state: State,
        ctx: dict[str, Any],
    ) -> tuple[Tensor, dict[str, list[Tensor]]]:
        paint = (lambda x: x) if known is None else known.paint
        info: dict[str, list[Tensor]] = {}

        def evaluate(x: Tensor, level: Level) -> Prediction:
            ctx["calls"] += 1
            ctx["level"] = level
            x = paint(x)
            # painted twice: a parametrization that scales x would otherwise hide the known values at high noise
            inputs = paint(self.parametrization.inputs(x, level))
            out = denoiser(inputs, _times(self.parametrization.network_time(level), x), cond)
            pred = self.parametrization.predict(out, x, level)
            for hook in self.hooks:
                pred = hook.predict(pred, x, _times(level.t, x), ctx)
            return pred

        for step, (level, next_level) in enumerate(zip(levels[:-1], levels[1:], strict=True)):
            x, level = self.solver.prepare(x, level, state)
            x = paint(x)
            ctx.update(step=step, level=level, next_level=next_level)
            for hook in self.hooks:
                x = paint(hook.before(x, _times(level.t, x), ctx))
            pred = evaluate(x, level)
            y = paint(self.solver.step(x, level, next_level, pred, evaluate, state))
            ctx["level"] = level
            for hook in self.hooks:
                y, report = hook.after(x, y, pred.x0, _times(level.t, x), _times(next_level.t, x), ctx)
                y = paint(y)
                _record(info, report)
            x = y
        for hook in self.hooks:
            x, report = hook.final(x, ctx)
            x = paint(x)
            _record(info, report)
        return x, info


def _like(
    known: tuple[Tensor, Tensor] | None,
    warm_start: tuple[Tensor, float] | None,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> Tensor:
    given = known or warm_start
    if given is None:
        return torch.empty(0, device=device, dtype=dtype)
    return given[0].new_empty(0, device=device, dtype=dtype)


def _normal(shape: Sequence[int], generator: torch.Generator, like: Tensor) -> Tensor:
    noise = torch.randn(shape, generator=generator, device=generator.device, dtype=like.dtype)
    return noise.to(like.device)


def _times(t: float, x: Tensor) -> Tensor:
    return x.new_full((x.shape[0],), t)


def _record(info: dict[str, list[Tensor]], report: dict[str, Tensor]) -> None:
    for name, value in report.items():
        info.setdefault(name, []).append(value)
