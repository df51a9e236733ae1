"""Distance between every two agents: one set that ties the agents of a plan together."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from safe.constants import indices
from safe.safe_set import Rows, SafeSet, Time, direction

# Pushed a hair further apart than asked for, so that sweeps end after finitely many pushes instead of creeping up.
RELAXATION = 1e-3


@dataclass(frozen=True, kw_only=True)
class Distance(SafeSet):
    """At least `minimum` between every two agents: b = |p_i - p_j|^2 / minimum^2 - 1, points (..., agent, D).

    Each agent has one barrier per other agent, in the order of the agents; both ends of a pair have the same.
    """

    minimum: float

    @property
    def convex(self) -> bool:
        return False

    @property
    def depth(self) -> float:
        return 1.0

    def barriers(self, local: Float[Tensor, "*teams agent d"]) -> Float[Tensor, "*teams agent agent-1"]:
        """(..., agent, d) -> (..., agent, agent - 1)."""
        return self._between(local).square().sum(-1) / self.minimum**2 - 1

    def gradients(self, local: Float[Tensor, "*teams agent d"]) -> Float[Tensor, "*teams agent agent-1 d"]:
        """By the agent's own position, (..., agent, agent - 1, d)."""
        return 2 * self._between(local) / self.minimum**2

    def linearise(self, points: Float[Tensor, "*points D"], time: Time = 0.0) -> Rows:
        """Each agent meets half of a pair's condition, which together is the whole (Wang, Ames, Egerstedt 2017)."""
        local = self.local(points, time)
        between = self._between(local)
        apart = self._apart(between, local)
        # As for obstacles: not shorter than at half the distance, so that steps stay short.
        gradient = apart * (2 * between.norm(dim=-1, keepdim=True) / self.minimum**2).clamp(min=1 / self.minimum)
        b = between.square().sum(-1) / self.minimum**2 - 1
        n = b.shape[-1]
        return Rows(b, self.spread(gradient, points), (0.5,) * n, (self.depth,) * n)

    def project(
        self, points: Float[Tensor, "*teams agent D"], margin: float = 0.0, time: Time = 0.0
    ) -> Float[Tensor, "*teams agent D"]:
        """One sweep over all pairs: not the nearest plan, see `safe.projection`."""
        return self.sweep(points, margin)

    def sweep(
        self, points: Float[Tensor, "*teams agent D"], margin: float = 0.0,
        movable: Bool[Tensor, "*#teams agent"] | None = None,
    ) -> Float[Tensor, "*teams agent D"]:  # fmt: skip
        """Push every pair that is too close apart, in rounds of pairs that have no agent in common.

        movable (..., agent) bool: the agents that may be moved; a pair with one of them moves only that one. The
        exact projection of one pair moves both by half of what is missing.
        """
        return self.insert(points, self.nearest(self.local(points), margin, movable))

    def nearest(
        self, local: Float[Tensor, "*teams agent d"], margin: float,
        movable: Bool[Tensor, "*#teams agent"] | None = None,
    ) -> Float[Tensor, "*teams agent d"]:  # fmt: skip
        """One sweep in the set's own features (..., agent, d)."""
        free = torch.ones_like(local[..., 0]) if movable is None else movable.to(local.dtype).expand(local.shape[:-1])
        for first, second in rounds(local.shape[-2]):
            local = self._push(local, free, first, second, margin)
        return local

    def _push(self, local: Tensor, free: Tensor, first: tuple, second: tuple, margin: float) -> Tensor:
        i, j = indices(first, local), indices(second, local)
        a, b = local.index_select(-2, i), local.index_select(-2, j)
        wanted = self.minimum * math.sqrt(1 + margin)
        between = a - b
        norm = between.norm(dim=-1, keepdim=True)
        missing = torch.where(norm < wanted, wanted * (1 + RELAXATION) - norm, torch.zeros_like(norm))
        mine, theirs = free.index_select(-1, i)[..., None], free.index_select(-1, j)[..., None]
        each = missing * direction(between, 0) / (mine + theirs).clamp(min=1)
        both = torch.cat([a + mine * each, b - theirs * each], dim=-2)
        return local.index_copy(-2, indices(first + second, local), both)

    def _between(self, local: Tensor) -> Tensor:
        """(..., agent, agent - 1, d): from each other agent to each agent."""
        agents, d = local.shape[-2:]
        others = indices(_others(agents), local)
        return local[..., :, None, :] - local.index_select(-2, others).unflatten(-2, (agents, agents - 1))


    def _apart(self, between: Tensor, local: Tensor) -> Tensor:
        """Directions at length 1; two agents in one place part along the first axis, each its own way."""
        agents = local.shape[-2]
        others = indices(_others(agents), local).view(agents, agents - 1)
        first = torch.arange(agents, device=local.device)[:, None] < others
        return torch.where((between == 0).all(-1) & ~first, -1.0, 1.0)[..., None] * direction(between, 0)


@lru_cache
def rounds(agents: int) -> tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]:
    """All pairs in rounds of disjoint pairs, as a round-robin tournament (circle method): (first, second) per round."""
    seats = list(range(agents + agents % 2))
    found = []
    for _ in range(len(seats) - 1):
        half = len(seats) // 2
        pairs = [(a, b) for a, b in zip(seats[:half], reversed(seats[half:]), strict=True) if max(a, b) < agents]
        found.append(tuple(zip(*pairs, strict=True)) if pairs else ((), ()))
        seats = [seats[0], seats[-1], *seats[1:-1]]
    return tuple(found)


@lru_cache
def _others(agents: int) -> tuple[int, ...]:
    return tuple(j for i in range(agents) for j in range(agents) if j != i)
