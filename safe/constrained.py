"""What all constraint hooks share: real units, which waypoints may move, and what is reported."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from madiff.diffusion.inpainting import repeat_rows
from madiff.diffusion.sampler import Hook
from safe.constants import indices
from safe.dynamics import Dynamics
from safe.projection import least_barrier, project, tolerance
from safe.sets import SafeSet, Time
from safe.space import Space

if TYPE_CHECKING:
    from madiff.interfaces import PlanLayout

Report = dict[str, Tensor]


class Scene(NamedTuple):
    """What a correction may know of a plan: when its waypoints are, which may move, and where the sampler is.

    time (rows or 1, time, 1); movable (rows, time, agent) bool; remaining: denoising steps left, this one included.
    """

    time: Time
    movable: Tensor
    remaining: int
    steps: int
    memory: dict[Any, Tensor]


class ConstrainedHook(Hook):
    """Keeps plans within sets: denormalises the features they speak of, corrects them, and normalises them again.

    sets: on the features of the layout (`safe.constraints.load(file, layout.names)`); none leave the plan bit for bit.
    margin: barriers are kept above it. last: only the last so many denoising steps are corrected, None for all.
    dynamics: carries corrections of positions over to velocities and actions. Waypoints before now, and those that
    in-painting holds, are not moved. Sets that move are told the time of a waypoint: `context["time"]` of the sampler
    (a number, or one per plan: when now is, 0 by default) plus dt for each waypoint from now on.

    Reports, per row and after each corrected step: `infeasible`, movable waypoints that could not be made safe, and
    `moved`, how far the waypoint that was moved furthest was moved, in real units of what the sets speak of; and of
    the final plan `least_barrier`, its smallest barrier from now on where it could be moved, `unsafe`, the number of
    such waypoints below zero, and `clamped_unsafe`, the number of held waypoints (now, goals) that are below zero.
    """

    def __init__(
        self, sets: Sequence[SafeSet], layout: PlanLayout, margin: float = 0.01, last: int | None = None,
        dynamics: Dynamics | None = None,
    ) -> None:  # fmt: skip
        everything = tuple(range(len(layout.names)))
        spoken_of = {d for s in sets for d in (everything if s.dimensions is None else s.dimensions)}
        dimensions = tuple(sorted(spoken_of | set(dynamics.dimensions if dynamics else ())))
        self.constrained = tuple(dimensions.index(d) for d in sorted(spoken_of))
        whole = [s if s.dimensions is not None else replace(s, dimensions=everything) for s in sets]
        self.sets = [s.over(dimensions) for s in whole]
        self.dynamics = None if dynamics is None else dynamics.over(dimensions)
        self.space, self.layout, self.margin, self.last = Space(layout, dimensions), layout, margin, last

    @property
    def capturable(self) -> bool:
        """A model of the motion lives on the host."""
        return self.dynamics is None or self.dynamics.motion is None

    @abstractmethod
    def correct(self, before: Tensor, points: Tensor, scene: Scene) -> Tensor:
        """Safe points in place of `points` (rows, time, agent, D); `before`: those that entered the denoising step."""

    def after(
        self, x_prev: Tensor, x_next: Tensor, x0_hat: Tensor, t: Tensor, s: Tensor, ctx: dict[str, Any]
    ) -> tuple[Tensor, Report]:
        if not self.active(ctx):
            return x_next, {}
        return self.applied(x_prev, x_next, ctx)

    def active(self, ctx: dict[str, Any]) -> bool:
        """Whether the current denoising step is corrected."""
        return bool(self.sets) and (self.last is None or ctx["steps"] - ctx["step"] <= self.last)

    def applied(self, x_prev: Tensor, x: Tensor, ctx: dict[str, Any]) -> tuple[Tensor, Report]:
        """x with its movable waypoints corrected."""
        scene, points = self.scene(x, ctx), self.space.gather(x)
        before = points if x_prev is x else self.space.gather(x_prev)
        found = self.correct(before, points, scene)
        found = torch.where(scene.movable[..., None], found, points)
        moved = (found - points).norm(dim=-1).amax((1, 2))
        if self.dynamics is not None:
            found = self.dynamics.agree(points, found, scene.movable)
            found = project(found, self.sets, self.margin, scene.time, scene.movable)[0]
        return self.space.write(x, points, found), {"infeasible": self.unmet(found, scene), "moved": moved}

    def unmet(self, points: Tensor, scene: Scene) -> Tensor:
        """(rows,) movable waypoints whose barriers do not reach zero; NaN counts."""
        reached = least_barrier(points, self.sets, scene.time) >= -tolerance(points)
        return (scene.movable & ~reached).sum((1, 2))

    def final(self, x: Tensor, ctx: dict[str, Any]) -> tuple[Tensor, Report]:
        return (x, self.report(x, ctx)) if self.sets else (x, {})

    def report(self, x: Tensor, ctx: dict[str, Any]) -> Report:
        """What the finished plan keeps, from now on."""
        scene = self.scene(x, ctx)
        b = least_barrier(self.space.gather(x), self.sets, scene.time)
        later = torch.arange(x.shape[1], device=x.device)[:, None] >= self.layout.history
        least = torch.where(scene.movable, b, torch.inf).amin((1, 2))
        unsafe = ~(b >= 0) & later
        return {
            "least_barrier": least,
            "unsafe": (unsafe & scene.movable).sum((1, 2)),
            "clamped_unsafe": (unsafe & ~scene.movable).sum((1, 2)),
        }

    def scene(self, x: Tensor, ctx: dict[str, Any]) -> Scene:
        start, known = ctx.get("time", 0.0), ctx.get("known")
        if isinstance(start, Tensor) and start.ndim and len(start) != len(x):
            start = repeat_rows(start, ctx["candidates"])
        movable = (torch.arange(x.shape[1], device=x.device) >= self.layout.history)[:, None].expand(x.shape[:3])
        if known is not None:
            chosen = indices(tuple(self.space.dimensions[d] for d in self.constrained), x)
            movable = movable & ~known.mask.index_select(-1, chosen).any(-1)
        remaining = ctx["steps"] - ctx.get("step", ctx["steps"] - 1)
        return Scene(self.space.time(x, start), movable, remaining, ctx["steps"], ctx.setdefault(str(id(self)), {}))
