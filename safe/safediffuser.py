"""SafeDiffuser's three forms as hooks (arXiv 2306.00148), and corrections that need no barrier function on the way.

Of every waypoint the change d = x^{j} - x^{j+1} that a denoising step proposes is replaced by the nearest one that
meets grad b(x^{j+1}) . d + b >= 0 for all sets (class-K gain and time step 1, as released). Outside a convex obstacle
b is convex, so the result is safe after one step; inside of a curved set the linear condition is not cautious, and
`exact` is the form to use.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from madiff.diffusion.parametrization import Prediction
from madiff.interfaces import UserError
from safe import two_rows
from safe.batches import where_needed
from safe.constants import like
from safe.constrained import ConstrainedHook, Report, Scene
from safe.detours import around
from safe.dynamics import Dynamics
from safe.projection import project
from safe.sets import Rows, SafeSet, Time
from safe.smooth_projection import project_smoothly
from safe.tridiagonal import Smoother

if TYPE_CHECKING:
    from madiff.interfaces import PlanLayout

BACKENDS = ("torch", "cvxpylayers")
RELAXED_SHARE = 10 / 256  # of the steps, at the end, in which the relaxed form has no slack (released code)


def linearise(sets: Sequence[SafeSet], points: Float[Tensor, "*points D"], time: Time) -> Rows:
    """The rows of all sets, one after the other."""
    rows = [s.linearise(points, time) for s in sets]
    b, gradient = torch.cat([r.b for r in rows], -1), torch.cat([r.gradient for r in rows], -2)
    return Rows(b, gradient, sum((r.share for r in rows), ()), sum((r.depth for r in rows), ()))


def nearest_change(
    reference: Float[Tensor, "*points D"],
    gradient: Float[Tensor, "*points rows D"],
    bound: Float[Tensor, "*points rows"],
    slack: float = 0.0,
    backend: str = "torch",
) -> Float[Tensor, "*points D"]:
    """The d nearest to `reference` (..., D) with gradient . d + bound >= slack r, |r|^2 paid beside the distance.

    gradient (..., rows, D), bound (..., rows). Rows that contradict each other are violated little. Changes that meet
    the rows already come back bit for bit.
    """
    short = ((gradient * reference[..., None, :]).sum(-1) + bound < 0).any(-1)

    def solve(reference: Tensor, flat: Tensor) -> Tensor:
        rows = flat.unflatten(-1, (bound.shape[-1], -1))
        return _quadratic_program(reference, -rows[..., :-1], rows[..., -1], slack, backend)

    flat = torch.cat([gradient, bound[..., None]], dim=-1).flatten(-2)
    return where_needed(solve, short, reference, reference, flat)


def _quadratic_program(reference: Tensor, rows: Tensor, bound: Tensor, slack: float, backend: str) -> Tensor:
    if backend == "torch" and rows.shape[-2] <= 2:
        return two_rows.solve(reference, rows, bound, slack).x
    from safe import qp  # needed for three rows and more only

    d, m = reference.shape[-1], rows.shape[-2]
    if slack:  # one more unknown per row
        eye = slack * torch.eye(m, dtype=rows.dtype, device=rows.device)
        rows = torch.cat([rows, -eye.expand(*rows.shape[:-2], m, m)], dim=-1)
        reference = torch.cat([reference, torch.zeros_like(bound)], dim=-1)
    if backend == "cvxpylayers":
        flat = [x.reshape(-1, *x.shape[-k:]) for x, k in ((reference, 1), (-rows, 2), (bound, 1))]
        return _layer(reference.shape[-1], m)(*flat)[0].view_as(reference).to(reference.dtype)[..., :d]
    hessian = torch.eye(reference.shape[-1], dtype=rows.dtype, device=rows.device)
    return qp.solve(hessian, -reference, rows, bound).x[..., :d]


@lru_cache
def _layer(dimensions: int, rows: int) -> Any:
    from safe import qp_layer

    return qp_layer.barrier_layer(dimensions, rows)


class Robust(ConstrainedHook):
    """RoS: grad b . d + b - margin >= 0 in every corrected step (arXiv 2306.00148, eq. 8)."""

    def __init__(self, sets: Sequence[SafeSet], layout: PlanLayout, backend: str = "torch", **options: Any) -> None:
        if backend not in BACKENDS:
            raise UserError(f"unknown value {backend!r}", "safe.backend", BACKENDS)
        super().__init__(sets, layout, **options)
        self.backend = backend

    @property
    def capturable(self) -> bool:
        """cvxpylayers moves its parameters through NumPy at every call."""
        return self.backend == "torch" and super().capturable

    def correct(self, before: Tensor, points: Tensor, scene: Scene) -> Tensor:
        rows = linearise(self.sets, before, scene.time)
        bound = like(rows.share, points) * self.bound(rows, scene)
        reference = points - before
        change = nearest_change(reference, rows.gradient, bound, self.slack(scene), self.backend)
        return torch.where(change == reference, points, before + change)

    def bound(self, rows: Rows, scene: Scene) -> Tensor:
        """What grad b . d may be below zero."""
        return rows.b - self.margin

    def slack(self, scene: Scene) -> float:
        """Weight of the slack; 0: the rows are hard."""
        return 0.0


class Relaxed(Robust):
    """ReS: the same rows with slack, weight w until the last `hard` steps, then 0 (eq. 10; w = 100 as released).

    hard: None takes the released share, 10 of 256 steps, at least one.
    """

    def __init__(
        self, sets: Sequence[SafeSet], layout: PlanLayout, weight: float = 100.0, hard: int | None = None,
        **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(sets, layout, **options)
        self.weight, self.hard = weight, hard

    def slack(self, scene: Scene) -> float:
        hard = max(1, math.ceil(RELAXED_SHARE * scene.steps)) if self.hard is None else self.hard
        return self.weight if scene.remaining > hard else 0.0


class TimeVarying(Robust):
    """TVS: b - gamma >= 0 with gamma rising to 0: grad b . d - gamma' + b - gamma - margin >= 0 (eq. 12).

    gamma = -(1 - sigmoid(bias - t)) depth, t: steps still to come after this one; depth: how far a barrier can fall
    below zero (1 for obstacles, so that they grow from nothing), or, where that has no end, how far it was when the
    correction began. sign: -1 subtracts gamma' as the paper does, +1 adds it as the released code does, which ends
    0.0033 inside of the obstacle with margin 0.01.
    """

    def __init__(
        self, sets: Sequence[SafeSet], layout: PlanLayout, bias: float = 5.0, sign: float = -1.0, **options: Any
    ) -> None:
        super().__init__(sets, layout, **options)
        self.bias, self.sign = bias, sign

    def bound(self, rows: Rows, scene: Scene) -> Tensor:
        grown = 1 / (1 + math.exp(min(scene.remaining - 1 - self.bias, 700.0)))
        depth = scene.memory.setdefault("depth", self._depth(rows))
        return rows.b - self.margin + depth * ((1 - grown) + self.sign * grown * (1 - grown))

    def _depth(self, rows: Rows) -> Tensor:
        fallen = (self.margin - rows.b).clamp(min=0)
        known = like(rows.depth, fallen)
        return torch.where(known.isinf(), fallen, known.expand_as(fallen))


class Exact(ConstrainedHook):
    """Every corrected iterate is projected onto the sets: the nearest safe point, never further than it has to.

    smoothness: 0 moves each waypoint alone; else a displacement is shared with about sqrt(smoothness) waypoints on
    either side (`safe.smooth_projection`).
    """

    def __init__(
        self, sets: Sequence[SafeSet], layout: PlanLayout, smoothness: float = 0.0, **options: Any
    ) -> None:  # fmt: skip
        super().__init__(sets, layout, **options)
        self.smoothness = smoothness

    def correct(self, before: Tensor, points: Tensor, scene: Scene) -> Tensor:
        if self.smoothness:
            return project_smoothly(
                points, self.sets, self.margin, scene.time, scene.movable, self.smoothness
            )[0]  # fmt: skip
        return project(points, self.sets, self.margin, scene.time, scene.movable)[0]


class Clean(Exact):
    """The predicted clean plan is projected instead of the noisy iterate; the noise estimate stays as it is.

    The next iterate is then alpha x0* + sigma eps: the correction is pushed through the solver (arXiv 2606.15359).
    """

    def after(
        self, x_prev: Tensor, x_next: Tensor, x0_hat: Tensor, t: Tensor, s: Tensor, ctx: dict[str, Any]
    ) -> tuple[Tensor, Report]:
        return x_next, {}

    def predict(self, pred: Prediction, x: Tensor, t: Tensor, ctx: dict[str, Any]) -> Prediction:
        return Prediction(self.applied(pred.x0, pred.x0, ctx)[0], pred.eps) if self.active(ctx) else pred

    def final(self, x: Tensor, ctx: dict[str, Any]) -> tuple[Tensor, Report]:
        """Solvers that mix several predictions may have left the sets by a little."""
        if not self.sets:
            return x, {}
        x, report = self.applied(x, x, ctx)
        return x, report | self.report(x, ctx)


class PredictCorrect(Robust):
    """SafeFlowMatcher's two phases (arXiv 2509.24243): an unconstrained draw, then steps that correct it.

    The drawn plan is led around each obstacle on one side (`safe.detours`). Each of `corrections` steps then moves it
    by the change u nearest to a reference that meets the finite-time row
    grad b . u + rate sgn(b - margin) |b - margin|^power >= 0, the last one the full row. The reference evens out the
    displacement over `smoothness` waypoints (squared) and vanishes towards the end, in the place of the model's scaled
    velocity: no network is called again.
    """

    def __init__(
        self, sets: Sequence[SafeSet], layout: PlanLayout, corrections: int = 16, power: float = 0.99,
        rate: float = 0.3, smoothness: float = 25.0, **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(sets, layout, **options)
        self.corrections, self.power, self.rate, self.smoothness = corrections, power, rate, smoothness

    def active(self, ctx: dict[str, Any]) -> bool:
        return False

    def final(self, x: Tensor, ctx: dict[str, Any]) -> tuple[Tensor, Report]:
        if not self.sets:
            return x, {}
        x, report = self.applied(x, x, ctx)
        return x, report | self.report(x, ctx)

    def correct(self, before: Tensor, points: Tensor, scene: Scene) -> Tensor:
        found = around(points, self.sets, self.margin, scene.time, scene.movable)
        smoother = Smoother(points.transpose(-3, -2), self.smoothness, scene.movable.mT)
        for k in range(self.corrections):
            moved = found - points
            even = smoother(moved.transpose(-3, -2)).transpose(-3, -2)
            reference = (1 - (k + 1) / self.corrections) * (even - moved)
            rows = linearise(self.sets, found, scene.time)
            gap = rows.b - self.margin
            if k + 1 < self.corrections:
                gap = self.rate * gap.sign() * gap.abs() ** self.power
            change = nearest_change(reference, rows.gradient, like(rows.share, points) * gap, 0.0, self.backend)
            found = torch.where(scene.movable[..., None], found + change, points)
        return project(found, self.sets, self.margin, scene.time, scene.movable)[0]


def _final(sets: Sequence[SafeSet], layout: PlanLayout, last: int | None = None, **options: Any) -> Exact:
    return Exact(sets, layout, last=1 if last is None else last, **options)


def _smooth(sets: Sequence[SafeSet], layout: PlanLayout, smoothness: float = 25.0, **options: Any) -> Exact:
    return _final(sets, layout, smoothness=smoothness, **options)


def _released(sets: Sequence[SafeSet], layout: PlanLayout, **options: Any) -> TimeVarying:
    return TimeVarying(sets, layout, sign=1.0, **options)


HOOKS: dict[str, Callable[..., ConstrainedHook]] = {
    "ros": Robust,
    "res": Relaxed,
    "tvs": TimeVarying,
    "tvs-released": _released,
    "exact": Exact,
    "clean": Clean,
    "final": _final,
    "smooth": _smooth,
    "predict-correct": PredictCorrect,
}


def make_hook(
    name: str, sets: Sequence[SafeSet], layout: PlanLayout, last: int | None = None, margin: float = 0.01,
    dynamics: Dynamics | None = None, **options: Any,
) -> ConstrainedHook:  # fmt: skip
    """A hook by name: ros, res, tvs, tvs-released, exact, clean, final, smooth (final, smoothly), predict-correct.

    sets: on the layout's features; last: only the last so many denoising steps (final, smooth: 1 unless said otherwise;
    predict-correct knows none); margin >= 0 that barriers keep; dynamics: makes velocities and actions follow.
    options: backend (torch, cvxpylayers: ros, res, tvs, predict-correct), weight and hard (res), bias (tvs),
    smoothness (exact, clean, final, smooth, predict-correct), corrections, power, rate (predict-correct).
    Raises UserError for an unknown name, or one that does not have the option.
    """
    if name not in HOOKS:
        raise UserError(f"unknown value {name!r}", "safe", ["none", *HOOKS])
    if not margin >= 0 or not math.isfinite(margin):
        raise UserError(f"{margin} is no margin", "safe.margin", "finite, 0 or more")
    if last is not None and last < 1:
        raise UserError(f"{last} corrects nothing", "safe.last", "1 or more")
    try:
        return HOOKS[name](sets, layout, last=last, margin=margin, dynamics=dynamics, **options)
    except TypeError as error:
        raise UserError(f"{name} cannot be told {', '.join(options)} ({error})", "safe") from error
