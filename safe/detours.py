"""Ways around obstacles: all waypoints of a plan that lie in one obstacle leave it on the same side.

The nearest way out of every single waypoint tears plans apart that lead through the middle of an obstacle: the first
waypoints go back, the last go ahead. Here they leave across the direction of motion, all to the shorter side.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from safe.batches import where_needed
from safe.safe_set import SafeSet, Time, direction
from safe.sets import Ball, Obstacles, Superellipse

NEWTON = 10  # from two diameters away; each step brings a power-4 curve's excess to less than a third


def around(
    points: Tensor, sets: Sequence[SafeSet], margin: float = 0.0, time: Time = 0.0, movable: Tensor | None = None
) -> Tensor:
    """Plans (..., time, agent, D) with waypoints inside of two-dimensional obstacles moved out, one after the other.

    Waypoints outside, those not movable ((..., time, agent) bool), and other sets are left as they are.
    """
    for obstacle in obstacles(sets):
        points = _around_one(points, obstacle, margin, time, movable)
    return points


def obstacles(sets: Sequence[SafeSet]) -> Iterator[Superellipse]:
    """Single two-dimensional obstacles among the sets."""
    for s in sets:
        if isinstance(s, Superellipse) and s.outside and len(s.center) == 2:
            yield s
        elif isinstance(s, Obstacles) and len(s.centers[0]) == 2:
            for center, radius in zip(s.centers, s.radii, strict=True):
                yield Ball(center=center, radius=radius, outside=True, dimensions=s.dimensions, velocity=s.velocity)


def _around_one(points: Tensor, s: Superellipse, margin: float, time: Time, movable: Tensor | None) -> Tensor:
    local = s.local(points, time)
    inside = s.barriers(local)[..., 0] < margin
    inside = (inside if movable is None else inside & movable)[..., None]
    ahead = torch.cat([local[..., 1:, :, :], local[..., -1:, :, :]], dim=-3)
    behind = torch.cat([local[..., :1, :, :], local[..., :-1, :, :]], dim=-3)
    motion = direction(torch.where(inside, ahead - behind, 0.0).sum(-3, keepdim=True), 0)
    across = torch.stack([-motion[..., 1], motion[..., 0]], dim=-1).expand_as(local)
    left, right = _exits(local, across, s, margin, inside)
    shorter = left.sum(-3, keepdim=True) <= right.sum(-3, keepdim=True)
    moved = local + torch.where(shorter, left * across, -right * across)
    return torch.where(inside, s.insert(points, moved + s.shift(points, time)), points)


def _exits(local: Tensor, across: Tensor, s: Superellipse, margin: float, inside: Tensor) -> Tensor:
    """How far it is out along `across` and against it (2, ..., 1), 0 for those that are not inside (..., 1)."""
    ways = torch.stack([across, -across])
    distance = torch.zeros_like(ways[..., :1])

    def solve(local: Tensor, ways: Tensor) -> Tensor:
        return leave(local, ways, s, margin)

    return where_needed(solve, inside[..., 0].expand(ways.shape[:-1]), distance, local.expand_as(ways), ways)


def leave(local: Tensor, way: Tensor, s: Superellipse, margin: float) -> Tensor:
    """How far along `way` (..., 2), of length 1, points (..., 2) inside leave an obstacle, (..., 1).

    Newton from outside: b is convex along the way, so that it comes closer without ever going in again.
    """
    with torch.no_grad():
        reach = torch.full_like(local[..., :1], 2.0 * sum(s.scaled(margin)))
        for _ in range(NEWTON):
            there = local + reach * way
            rise = (s.gradients(there)[..., 0, :] * way).sum(-1, keepdim=True)
            reach = reach - (s.barriers(there) - s.rounding(local, margin)) / rise
    return reach.clamp(min=0)
