"""Which way to go: the heading nearest to the target's that does not lead into what is to be avoided."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

HEADINGS = 64
NEAR = 0.6
"""Distance, in metres, over which the thought of an obstacle ahead fades to a third."""


@dataclass(frozen=True)
class Discs:
    """Things to steer around: places (n, m, 2) in metres in the robot's frame, there (n, m) bool.

    radius (n, m): how much room they are given, metres; weight (n, m): how many half turns of detour such a disc
    straight ahead is worth; a negative one attracts.
    """

    places: Tensor
    there: Tensor
    radius: Tensor
    weight: Tensor

    @classmethod
    def of(cls, places: Tensor, there: Tensor, radius: Tensor | float, weight: Tensor | float) -> Discs:
        """Discs with one radius and weight, or with those of each robot (n,)."""
        like = places[..., 0]
        sizes = [torch.as_tensor(value, dtype=like.dtype, device=like.device) for value in (radius, weight)]
        return cls(places, there, *((value.reshape(-1, 1) + torch.zeros_like(like)) for value in sizes))

    def __add__(self, other: Discs) -> Discs:
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Discs(*(torch.cat(pair, 1) for pair in pairs))


def steer(target: Tensor, discs: Discs) -> Tensor:
    """Unit vectors (n, 2) towards targets (n, 2), in the robot's frame, by the best of HEADINGS directions.

    A direction costs its angle to the target's, in half turns, and the worst of the discs it leads through: their
    weight, less the farther they are and the more they are only brushed. Discs beyond the target do not matter; who is
    inside one finds the ways out free.
    """
    angles = torch.arange(HEADINGS, device=target.device) * (2 * math.pi / HEADINGS)
    rays = torch.stack([angles.cos(), angles.sin()])
    along = discs.places @ rays
    lateral = (discs.places[..., :1] * rays[1] - discs.places[..., 1:] * rays[0]).abs()
    size = discs.radius[..., None].clamp_min(1e-6)
    reached = target.norm(dim=-1)[:, None, None]
    met = discs.there[..., None] & (along > 0) & (lateral < size) & (along < reached)
    threat = discs.weight[..., None] * met * (1 - lateral / size) * torch.exp(-along / NEAR)
    worst = threat.clamp_min(0).amax(1) + threat.clamp_max(0).amin(1)
    towards = torch.atan2(target[:, 1], target[:, 0])[:, None]
    detour = torch.remainder(angles - towards + math.pi, 2 * math.pi) - math.pi
    score, best = (detour.abs() / math.pi + worst).min(-1)
    # No direction of the grid is far from the target's own, which is taken where nothing speaks for another.
    straight = (score >= 0) & (score <= 1 / HEADINGS)
    chosen = torch.where(straight, towards[:, 0], angles[best])
    return torch.stack([chosen.cos(), chosen.sin()], -1)
