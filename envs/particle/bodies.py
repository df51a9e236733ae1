"""Round bodies in an open plane: their forces, contacts and motion, many copies at once.

Positions and velocities are (2, body, copies): with the copies last, every operation runs along contiguous memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

TIME_STEP = 0.1
DAMPING = 0.25
"""Part of its velocity a body loses every step."""
CONTACT_FORCE = 100.0
CONTACT_MARGIN = 1e-3
"""Softness of a contact: forces begin about this far before bodies touch."""
STIFF = 30.0
"""Depth in margins from which the softplus of a contact equals the depth to less than 1e-13 of a margin."""


@dataclass(frozen=True)
class Body:
    """One round body; all have mass 1.

    role: agent, prey, landmark, obstacle, food or forest; force: of an action of length 1 along an axis, 0 for what
    never moves; spread: half the side of the square it starts in.
    """

    role: str
    size: float
    force: float = 0.0
    max_speed: float = math.inf
    spread: float = 1.0


class Mechanics:
    """Motion of the first `movers` bodies, of which the first `colliders` push each other away.

    position_first: move by the old velocity before it changes, as MPE2 does; otherwise by the new one, as the older
    multiagent-particle-envs and their forks do.
    """

    def __init__(
        self, bodies: Sequence[Body], colliders: int, position_first: bool, device: torch.device, dtype: torch.dtype
    ) -> None:
        movers = [body for body in bodies if body.force]
        self.movers, self.colliders, self.position_first = len(movers), colliders, position_first
        self.size = torch.tensor([body.size for body in bodies], device=device, dtype=dtype)[:, None]
        self.reach = self.size[: self.movers, None] + self.size[:colliders]
        self.force = torch.tensor([body.force for body in movers], device=device, dtype=dtype)[:, None]
        limits = torch.tensor([body.max_speed for body in movers], device=device, dtype=dtype)[:, None]
        self.max_speed = limits if bool(limits.isfinite().any()) else None

    def contacts(self, position: Tensor) -> Tensor:
        """Forces of the colliders on the movers, (2, movers, copies); bodies at the same point do not push."""
        apart, distance = separations(position[:, : self.movers], position[:, : self.colliders])
        depth = F.softplus(self.reach - distance, beta=1 / CONTACT_MARGIN, threshold=STIFF)
        return (apart * (depth * CONTACT_FORCE / distance.clamp_min(1e-9))).sum(2)

    def move(self, position: Tensor, velocity: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """One step under actions (2, movers, copies) in [-1, 1]; returns all new positions, new velocities."""
        pushed = (self.contacts(position) + self.force * actions) * TIME_STEP
        after = torch.add(pushed, velocity, alpha=1 - DAMPING)
        if self.max_speed is not None:
            after = after * (self.max_speed / length(after)).clamp(max=1)
        moving = torch.add(position[:, : self.movers], velocity if self.position_first else after, alpha=TIME_STEP)
        return torch.cat([moving, position[:, self.movers :]], 1), after


def separations(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """From each of b to each of a: vectors (2, a, b, copies) and their lengths (a, b, copies)."""
    apart = a[:, :, None] - b[:, None]
    return apart, length(apart)


def length(vectors: Tensor) -> Tensor:
    """Euclidean length along the first axis, which has two entries."""
    return torch.addcmul(vectors[0] * vectors[0], vectors[1], vectors[1]).sqrt()
