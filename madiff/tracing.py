"""A planner's first decision written down while it is made: every iterate, what was held, and what was carried out.

Plans that agents make each for itself are kept by their own agents: of every plan the agents whose present it knows.
Unsafe is what the sets say within that same plan, as the evaluation's measure of plans does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from madiff.diffusion.inpainting import repeat_rows
from madiff.diffusion.sampler import Hook
from madiff.diffusion.schedule import Level
from madiff.experiment.plan_pictures import Denoising, Paths
from madiff.interfaces import CostAware, PlanLayout, Policy, RewardAware
from madiff.planners.planner import Planned, Planner

POSITION = ("x", "y")
FILMED, PICTURED = 4, 16
"""Episodes of which all iterates are kept, and of which the plans are."""


class Trace(Hook):
    """Goes along for one decision, behind all other hooks and as the one who watches.

    "episode" in the hooks' ctx: that of every plan. The first iterate is what the network is first shown, noise that
    only guidance has touched; the last one is the plan. chosen: the candidates carried out, (B,) of every sampling.
    """

    capturable = False  # keeps what it sees

    def __init__(self, layout: PlanLayout, sets: Sequence[Any], episodes: int) -> None:
        self.layout, self.sets, self.episodes = layout, sets, episodes
        self.columns = [layout.names.index(name) for name in POSITION]
        self.chosen: list[Tensor] = []
        self.candidates = 1
        self.noise: list[float] = []
        self.iterates: list[tuple[Tensor, Tensor]] = []
        self.kept: dict[str, Tensor] = {}
        """By name, (episode, agent, ...): NaN or False where an agent was not planned for."""

    def before(self, x: Tensor, t: Tensor, ctx: dict[str, Any]) -> Tensor:
        if ctx["step"] == 0:
            self.candidates, self.noise, self.iterates = ctx["candidates"], [], []
            self.rows = repeat_rows(ctx["episode"] < FILMED, self.candidates)
            self._see(x, ctx["level"])
        return x

    def after(
        self, x_prev: Tensor, x_next: Tensor, x0_hat: Tensor, t: Tensor, s: Tensor, ctx: dict[str, Any]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        self._see(x_next, ctx["next_level"])
        return x_next, {}

    def final(self, x: Tensor, ctx: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        self.finished, self.iterates[-1] = x, self.places(x[self.rows])
        return x, {}

    def __call__(self, planned: Planned) -> None:
        episode, now = planned.told["episode"], self.layout.history
        held = planned.known[:, now:][..., self.columns].all(-1).movedim(-1, 1)
        own = held[..., 0]
        chosen = self._carried_out(planned.plans)
        self.chosen.append(chosen)
        few = episode < PICTURED
        points, unsafe = self.places(planned.plans[few])
        self._keep(PICTURED, episode[few], own[few], plan=points.movedim(-2, 1), unsafe_plan=unsafe.movedim(-1, 1))
        few = episode < FILMED
        rows = torch.arange(int(few.sum()), device=chosen.device) * self.candidates + chosen[few]
        points, unsafe = (torch.stack(part, dim=1)[rows] for part in zip(*self.iterates, strict=True))
        self._keep(FILMED, episode[few], own[few], points=points.movedim(-2, 1), unsafe=unsafe.movedim(-1, 1),
                   held=held[few])  # fmt: skip

    def places(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Of plans (rows, T, agent, F), from now on: places (rows, time, agent, 2); unsafe (rows, time, agent) bool."""
        points = self.layout.denormalize(x)[:, self.layout.history :]
        time = self.layout.dt * torch.arange(points.shape[1], dtype=x.dtype, device=x.device)[:, None]
        return points[..., self.columns], below(points, self.sets, time)

    @property
    def denoising(self) -> Denoising:
        points, unsafe = (self.kept[name].movedim(1, 3).cpu().numpy() for name in ("points", "unsafe"))
        return Denoising(points, unsafe, self.kept["held"].movedim(1, 2).cpu().numpy(), np.array(self.noise))

    @property
    def plans(self) -> Paths:
        return Paths(*(self.kept[name].movedim(1, 2).cpu().numpy() for name in ("plan", "unsafe_plan")))

    def _see(self, x: Tensor, level: Level) -> None:
        self.noise.append(level.sigma)
        self.iterates.append(self.places(x[self.rows]))

    def _carried_out(self, plans: Tensor) -> Tensor:
        """(B,) int64: which of the candidates finished last the plans (B, T, agent, F) are."""
        same = self.finished.unflatten(0, (len(plans), self.candidates)) == plans[:, None]
        return same.flatten(2).all(-1).int().argmax(1)

    def _keep(self, most: int, episode: Tensor, own: Tensor, **values: Tensor) -> None:
        """Values (rows, agent, ...) of the episodes (rows,), where `own` (rows, agent) says that it is the agent's."""
        rows, agents = own.nonzero(as_tuple=True)
        for name, value in values.items():
            if name not in self.kept:
                nothing = torch.nan if value.is_floating_point() else False
                self.kept[name] = value.new_full((min(most, self.episodes), *value.shape[1:]), nothing)
            self.kept[name][episode[rows], agents] = value[rows, agents]


class Same:
    """Chooser: of every sampling the candidates that were carried out in another trace."""

    def __init__(self, candidates: int, chosen: Sequence[Tensor]) -> None:
        self.candidates, self.left = candidates, iter(chosen)

    def __call__(self, plans: Tensor, context: dict[str, Tensor], info: dict[str, list[Tensor]]) -> Tensor:
        return next(self.left)


class Traced:
    """A planner's policy whose very first decision is traced; it does the same as without."""

    def __init__(self, policy: Policy, layout: PlanLayout, sets: Sequence[Any]) -> None:
        self.policy, self.layout, self.sets = policy, layout, sets
        self.parameters, self.network_calls_per_decision = policy.parameters, policy.network_calls_per_decision
        self.trace: Trace | None = None

    def reset(self, seed: int, n: int) -> None:
        if self.trace is None:
            self.seed = seed
        self.policy.reset(seed, n)

    def act(self, observations: Tensor, masks: Tensor | None, active: Tensor | None = None) -> Tensor:
        if self.trace is not None:
            return self.policy.act(observations, masks, active)
        self.asked = observations.clone(), None if masks is None else masks.clone(), active
        self.trace = Trace(self.layout, self.sets, len(observations))
        with along(self.policy, self.trace):
            return self.policy.act(observations, masks, active)

    def receive(self, rewards: Tensor) -> None:
        if isinstance(self.policy, RewardAware):
            self.policy.receive(rewards)

    def pay(self, costs: Tensor) -> None:
        if isinstance(self.policy, CostAware):
            self.policy.pay(costs)

    def without_safeguard(self, planner: Planner) -> Trace:
        """The planner's own decision at the same moment, from the same noise and of the same candidates."""
        trace = Trace(self.layout, self.sets, self.trace.episodes)
        policy = planner.policy(chooser=Same(self.trace.candidates, self.trace.chosen))
        policy.reset(self.seed, trace.episodes)
        with along(policy, trace):
            policy.act(*self.asked)
        return trace


@contextmanager
def along(policy: Policy, trace: Trace) -> Iterator[None]:
    """While this lasts, the trace sees all that the policy plans."""
    planner = innermost(policy)
    hooks, watch = planner.sampler.hooks, planner.watch

    def both(planned: Planned) -> None:
        trace(planned)
        if watch is not None:
            watch(planned)

    planner.sampler.hooks, planner.watch = (*hooks, trace), both
    planner.context["episode"] = torch.arange(trace.episodes, device=planner.generator.device)
    try:
        yield
    finally:
        planner.sampler.hooks, planner.watch = hooks, watch
        del planner.context["episode"]


def innermost(policy: Any) -> Any:
    """The planner's own policy, which has a sampler, within what may be wrapped around it; None without one."""
    while policy is not None and not hasattr(policy, "sampler"):
        policy = getattr(policy, "policy", None)
    return policy


def below(points: Tensor, sets: Sequence[Any], time: Tensor) -> Tensor:
    """Whether a barrier is below zero or not a number at points (..., agent, D), (..., agent) bool."""
    if not sets:
        return torch.zeros(points.shape[:-1], dtype=torch.bool, device=points.device)
    from safe.projection import least_barrier

    return ~(least_barrier(points, sets, time) >= 0)
