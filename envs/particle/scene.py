"""What a particle world is made of: its bodies, where they start, what each mover observes and what is paid."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from envs.randomness import draw_bits, uniform

from .bodies import Body, Mechanics

HORIZON = 25
"""Steps of an episode."""


@dataclass(frozen=True)
class Plan:
    """A scene before it has tensors.

    bodies: movers first, then what stands still, colliding ones before the others; controlled: how many of the movers
    are agents; colliders: how many of the bodies push each other; names: of the movers; position_first: see Mechanics.
    """

    bodies: Sequence[Body]
    controlled: int
    colliders: int
    names: Sequence[str]
    position_first: bool = False

    @property
    def movers(self) -> int:
        return sum(body.force > 0 for body in self.bodies)

    def rows(self, *roles: str) -> list[int]:
        """The bodies that have one of these roles."""
        return [i for i, body in enumerate(self.bodies) if body.role in roles]


class Table:
    """Observations as differences of two rows of one table of numbers, so that one gather makes them all.

    The table has the movers' velocities, all positions, the scene's flags and a zero; an index names a row.
    """

    def __init__(self, plan: Plan, flags: int) -> None:
        self.movers, self.entities, self.flags = plan.movers, len(plan.bodies), flags

    def velocity(self, mover: int) -> list[int]:
        return [mover, self.movers + mover]

    def position(self, body: int) -> list[int]:
        start = 2 * self.movers
        return [start + body, start + self.entities + body]

    def flag(self, number: int) -> int:
        return 2 * (self.movers + self.entities) + number

    @property
    def zero(self) -> int:
        return 2 * (self.movers + self.entities) + self.flags


class Scene(ABC):
    """A plan with tensors on a device. position (2, body, copies), velocity (2, mover, copies)."""

    flags = 0

    def __init__(self, plan: Plan, device: torch.device, dtype: torch.dtype) -> None:
        self.plan, self.device, self.dtype = plan, device, dtype
        self.mechanics = Mechanics(plan.bodies, plan.colliders, plan.position_first, device, dtype)
        self.spread = torch.tensor([body.spread for body in plan.bodies], device=device, dtype=dtype)[:, None]
        self.table = Table(plan, self.flags)
        features = [self.features(mover) for mover in range(plan.movers)]
        self.sizes = tuple(len(rows) for rows in features)
        self.width = max(self.sizes[: plan.controlled])
        self._pairs = [
            self._padded(features[: plan.controlled], self.width),
            self._padded(features[plan.controlled :], max(self.sizes[plan.controlled :], default=0)),
        ]

    def _padded(self, features: list[list[tuple[int, int]]], width: int) -> tuple[Tensor, Tensor]:
        nothing = (self.table.zero, self.table.zero)
        rows = [pair for own in features for pair in own + [nothing] * (width - len(own))]
        pairs = torch.tensor(rows, device=self.device, dtype=torch.int64).reshape(-1, 2)
        return pairs[:, 0].contiguous(), pairs[:, 1].contiguous()

    def own(self, mover: int) -> list[tuple[int, int]]:
        """Features: the mover's velocity and position."""
        return [(row, self.table.zero) for row in self.table.velocity(mover) + self.table.position(mover)]

    def relative(self, mover: int, bodies: Sequence[int]) -> list[tuple[int, int]]:
        """Features: where other bodies are, seen from the mover."""
        here = self.table.position(mover)
        return [pair for body in bodies for pair in zip(self.table.position(body), here, strict=True)]

    def others(self, mover: int) -> list[int]:
        return [other for other in range(self.plan.movers) if other != mover]

    @abstractmethod
    def features(self, mover: int) -> list[tuple[int, int]]:
        """What the mover observes, as pairs of table rows whose difference it is."""

    @abstractmethod
    def rewards(self, position: Tensor) -> Tensor:
        """(agent, copies): what the agents are paid for bodies that stand like this."""

    def flag_rows(self, position: Tensor) -> list[Tensor]:
        """Rows of the table that neither positions nor velocities are, (flags, copies) in total."""
        return []

    def observations(self, position: Tensor, velocity: Tensor) -> Tensor:
        """Of the agents: (copies, agent, width), contiguous."""
        seen = self._seen(position, velocity, *self._pairs[0])
        return seen.T.reshape(-1, self.plan.controlled, self.width)

    def scripted_observations(self, position: Tensor, velocity: Tensor) -> Tensor:
        """Of the movers that are no agents, (copies, mover, features)."""
        seen = self._seen(position, velocity, *self._pairs[1])
        return seen.T.reshape(seen.shape[1], self.plan.movers - self.plan.controlled, -1)

    def _seen(self, position: Tensor, velocity: Tensor, left: Tensor, right: Tensor) -> Tensor:
        rows = [velocity.flatten(0, 1), position.flatten(0, 1), *self.flag_rows(position)]
        table = torch.cat([*rows, torch.zeros_like(position[:1, 0])])
        return table[left] - table[right]

    def begin(self, key: Tensor, episode: Tensor) -> Tensor:
        """Where all bodies start: uniform in their squares. key, episode (copies,) -> (2, body, copies)."""
        drawn = self.uniforms(key, episode, 2 * len(self.plan.bodies))
        return (2 * drawn - 1).reshape(2, len(self.plan.bodies), -1) * self.spread

    def uniforms(self, key: Tensor, episode: Tensor, count: int) -> Tensor:
        """(count, copies) uniform numbers in [0, 1) that key and episode fix."""
        return uniform(draw_bits(key, episode, count)).to(self.dtype)


def ring(angle: Tensor, places: int, radius: float) -> Tensor:
    """Points evenly on a circle about the origin, the first at the angle: (copies,) -> (2, place, copies)."""
    turn = angle + torch.arange(places, device=angle.device, dtype=angle.dtype)[:, None] * (2 * math.pi / places)
    return radius * torch.stack([turn.cos(), turn.sin()])
