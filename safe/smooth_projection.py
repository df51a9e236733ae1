"""Projection of whole plans that shares every displacement with the waypoints around it.

A waypoint moved alone bends the plan around it. Here a displacement spreads over the horizon, which keeps the plan
smooth and on one side of every obstacle.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from safe.batches import where_needed
from safe.detours import around
from safe.distance import Distance
from safe.projection import ProjectionInfo, nearly_project, project, push_out, violation
from safe.sets import SafeSet, Time
from safe.tridiagonal import Smoother

ROUNDS, INNER = 2, 4
"""Linearisations, and steps of ADMM with each."""
STIFFNESS = 16.0  # of ADMM: how fast its two halves have to come together
RELAXATION = 1.6  # of ADMM (Boyd et al. 2011, section 3.4.3)


def project_smoothly(
    points: Float[Tensor, "*plans T agent D"],
    sets: Sequence[SafeSet],
    margin: float = 0.0,
    time: Time = 0.0,
    movable: Bool[Tensor, "*#plans #T #agent"] | None = None,
    smoothness: float = 25.0,
    rounds: int = ROUNDS,
) -> tuple[Float[Tensor, "*plans T agent D"], ProjectionInfo]:
    """Project plans (..., time, agent, D), spreading every displacement e over the waypoints around it.

    Minimises |e|^2 + smoothness |e_{k+1} - e_k|^2 under the sets' linearisations, `rounds` times anew, by ADMM (Boyd
    et al. 2011, section 3) with a tridiagonal solve as one half. The first linearisation is at a plan that passes
    each obstacle on one side, which no later one leaves. smoothness >= 0 is the squared reach in waypoints. Waypoints
    not movable stay, and so do plans that are safe. What is returned is the projection of the last smooth plan, so as
    safe as `project`.
    """
    before = violation(points, sets, margin, time)
    wrong = before > 0 if movable is None else (before > 0) & movable

    def solve(points: Tensor, time: Time, movable: Tensor | None) -> Tensor:
        return _smoothed(points, sets, margin, time, movable, smoothness, rounds)

    plan = where_needed(solve, wrong.any(-1).any(-1), points, points, time, movable)
    found, last = project(plan, sets, margin, time, movable)
    return found, ProjectionInfo(last.feasible, before, last.violation_after, rounds * INNER + 1)


def _smoothed(
    points: Tensor, sets: Sequence[SafeSet], margin: float, time: Time, movable: Tensor | None, smoothness: float,
    rounds: int,
) -> Tensor:  # fmt: skip
    """The last smooth plans, nearly safe."""
    even = Smoother(
        points.transpose(-3, -2), smoothness / (1 + STIFFNESS), None if movable is None else movable.transpose(-1, -2)
    )
    alone = [s for s in sets if not isinstance(s, Distance)]
    pairs = [s for s in sets if isinstance(s, Distance)]

    def held(x: Tensor) -> Tensor:
        return x if movable is None else torch.where(movable[..., None], x, points)

    found, price = around(points, sets, margin, time, movable), torch.zeros_like(points)
    for _ in range(rounds):
        seen_from = found = held(nearly_project(found, sets, margin, time))
        rows = [s.linearise(seen_from, time) for s in alone]
        for _ in range(INNER):
            wanted = (found - price - points).transpose(-3, -2)
            plan = points + even(wanted * (STIFFNESS / (1 + STIFFNESS))).transpose(-3, -2)
            mixed = RELAXATION * plan + (1 - RELAXATION) * found
            found = push_out(mixed + price, rows, margin, seen_from) if rows else mixed + price
            for s in pairs:
                found = s.sweep(found, margin)
            found = held(found)
            price = price + mixed - found
    return held(plan)
