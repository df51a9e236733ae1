"""Where a skilled agent wants to be, from the agents' own observations: the scripted experts' one idea per scenario."""

from __future__ import annotations

from itertools import permutations
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

LEAD = 0.5
"""Longest time, in seconds, a predator looks ahead of its prey."""


class Aim(NamedTuple):
    """place (n, agent, 2): the goal, seen from the agent; velocity (n, agent, 2): how the goal moves."""

    place: Tensor
    velocity: Tensor


class Aims(Protocol):
    """Chooses goals; `reset` begins n episodes and fixes what stays the same in one."""

    def reset(self, n: int, generator: torch.Generator) -> None: ...

    def __call__(self, observations: Tensor) -> Aim: ...

    def astray(self, observations: Tensor, draw: Tensor) -> Tensor:
        """Where a blundering agent goes instead, seen from it; draw (n, agent, 2) in [0, 1) stays for the blunder."""
        ...


class Cover:
    """Each agent takes the landmark that the assignment with the shortest way for all gives it."""

    def __init__(self, agents: int, device: torch.device) -> None:
        self.agents = agents
        self.assignments = torch.tensor(list(permutations(range(agents))), device=device)

    def reset(self, n: int, generator: torch.Generator) -> None:
        """Nothing is kept: the assignment follows from what is observed."""

    def __call__(self, observations: Tensor) -> Aim:
        landmarks = self.landmarks(observations)
        ways = landmarks.norm(dim=-1)
        agent = torch.arange(self.agents, device=ways.device)
        chosen = self.assignments[ways[:, agent, self.assignments].sum(-1).argmin(1)]
        return self._towards(landmarks, chosen)

    def astray(self, observations: Tensor, draw: Tensor) -> Tensor:
        """To any landmark, whoever else is there."""
        return self._towards(self.landmarks(observations), (draw[..., 0] * self.agents).long()).place

    def landmarks(self, observations: Tensor) -> Tensor:
        """(n, agent, landmark, 2), seen from each agent."""
        return observations[..., 4 : 4 + 2 * self.agents].unflatten(-1, (self.agents, 2))

    def _towards(self, landmarks: Tensor, chosen: Tensor) -> Aim:
        place = landmarks.gather(2, chosen[..., None, None].expand(-1, -1, 1, 2))[:, :, 0]
        return Aim(place, torch.zeros_like(place))


class Agree(Cover):
    """All agents of an episode follow one assignment drawn uniformly from all there are."""

    def reset(self, n: int, generator: torch.Generator) -> None:
        device = self.assignments.device
        drawn = torch.randint(len(self.assignments), (n,), generator=generator, device=device)
        self.chosen = self.assignments[drawn]

    def __call__(self, observations: Tensor) -> Aim:
        return self._towards(self.landmarks(observations), self.chosen)


class Hunt:
    """Go to where the prey will be, and with it once there.

    still: what stands still in the scene; mates: other predators. An observation has them after velocity and position,
    then the prey, then the prey's velocity.
    """

    def __init__(self, still: int, mates: int) -> None:
        self.prey = 4 + 2 * (still + mates)

    def reset(self, n: int, generator: torch.Generator) -> None:
        """Nothing is kept."""

    def __call__(self, observations: Tensor) -> Aim:
        prey, velocity = observations[..., self.prey : self.prey + 4].unflatten(-1, (2, 2)).unbind(-2)
        ahead = prey.norm(dim=-1, keepdim=True).clamp(max=LEAD)
        return Aim(prey + velocity * ahead, velocity)

    def astray(self, observations: Tensor, draw: Tensor) -> Tensor:
        """To any point of the square."""
        return 2 * draw - 1 - observations[..., 2:4]
