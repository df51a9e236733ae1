"""Robots that seek their goals and make way for each other more or less: a dial from reckless to good."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from envs.arena import Player
from envs.workers import RandomPolicy
from madiff.interfaces import UserError

from .batched import Crossing
from .robots import MAX_SPEED, RADIUS

SLOWING = 0.4
"""Distance from the goal at which a robot begins to slow down."""
FORESIGHT = 1.0
"""Seconds ahead for which a robot expects all to go on as they do."""
BERTH = 0.12
"""Free space that a robot would like to have between its edge and another one."""
SOFTNESS = 0.05
URGE, CROWDED = 3.0, 1.5
"""Largest wish to get away from one robot or obstacle, and from all, as a multiple of that to get to the goal."""
SIDESTEP = math.pi / 5
"""Turn to the right of the way away: two robots that meet head-on then pass each other on the same side."""


@dataclass(frozen=True)
class Level:
    """How robots go about it.

    care: least and largest share of the full avoidance; each episode draws its own in between; noise: standard
    deviation of the noise on each action.
    """

    care: tuple[float, float]
    noise: float


LEVELS = {
    "good": Level((0.7, 1.0), 0.1),
    "medium": Level((0.2, 0.5), 0.2),
    "reckless": Level((0.0, 0.0), 0.1),
    "mixed": Level((0.0, 1.0), 0.15),
}
QUALITIES = [*LEVELS, "random"]


def behaviour(env: Crossing, quality: str) -> Seekers | RandomPolicy:
    """The policy that makes data of a quality: good, medium, reckless, mixed, or uniformly random actions."""
    if quality not in QUALITIES:
        raise UserError(f"no quality is called {quality!r}", "data.quality", QUALITIES)
    return RandomPolicy(env.spec, env.device) if quality == "random" else Seekers(env, LEVELS[quality])


class Seekers(Player):
    """Each robot goes straight for its goal and is pushed away from where it expects to come too near to somebody."""

    def __init__(self, env: Crossing, level: Level) -> None:
        super().__init__(env)
        self.level, self.centers = level, env.centers
        self.reach = torch.cat([torch.full((env.spec.agents,), 2 * RADIUS).to(env.sizes), env.sizes + RADIUS])

    def reset(self, seed: int, n: int) -> None:
        super().reset(seed, n)
        least, most = self.level.care
        self.care = least + (most - least) * self.uniforms(n, 1, 1)

    def act(self, observations: Tensor, masks: Tensor | None, active: Tensor | None = None) -> Tensor:
        """(n, agent, 2)."""
        position, velocity, goal = (observations[..., i : i + 2] for i in (0, 2, 4))
        ahead = goal - position
        distance = ahead.norm(dim=-1, keepdim=True)
        wish = MAX_SPEED * ahead / distance.clamp_min(SLOWING)
        wish = wish + self.care * self._away(position, velocity)
        wish = wish / wish.norm(dim=-1, keepdim=True).clamp_min(1)
        return (wish + self.level.noise * self.normals(wish)).clamp(-1, 1)

    def _away(self, position: Tensor, velocity: Tensor) -> Tensor:
        """Push away from all robots and obstacles by how near one expects to come to each, (n, agent, 2)."""
        n, agents = position.shape[:2]
        still = self.centers.expand(n, -1, -1)
        apart = position[:, :, None] - torch.cat([position, still], 1)[:, None]
        moving = velocity[:, :, None] - torch.cat([velocity, torch.zeros_like(still)], 1)[:, None]
        time = -(apart * moving).sum(-1) / moving.square().sum(-1).clamp_min(1e-6)
        apart = apart + time.clamp(0, FORESIGHT)[..., None] * moving
        length = apart.norm(dim=-1).clamp_min(1e-6)
        urge = softplus((self.reach + BERTH - length) / SOFTNESS).clamp(max=URGE)
        itself = torch.arange(agents, device=self.device)
        urge[:, itself, itself] = 0
        away = (apart * (urge / length)[..., None]).sum(2)
        away = away * (CROWDED / away.norm(dim=-1, keepdim=True).clamp_min(CROWDED))
        turn = apart.new_tensor([[math.cos(SIDESTEP), math.sin(SIDESTEP)], [-math.sin(SIDESTEP), math.cos(SIDESTEP)]])
        return away @ turn.T
