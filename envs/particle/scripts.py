"""Scripted players whose errors last: the behaviour policies of particle and of MPE2's spread and tag."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .aims import Aims
from .bodies import DAMPING, TIME_STEP
from .scene import Scene

BLUNDER_STEPS = 12.0
"""Mean length of a blunder: half an episode."""
GAIN = 8.0
"""Wished speed for each unit of distance to the goal, per second."""
IDLE = 0.5
"""Players of discrete actions push along an axis when they wish for at least this part of its full force."""


class Level(NamedTuple):
    """How well somebody plays.

    skill: share of time without a blunder; pace: largest part of the full force along an axis, or, where actions are
    discrete, the share of steps in which force is used at all; thrash: share of blunders that are uniformly random
    actions, the others go to a wrong place; noise: standard deviation of the Gaussian noise on every action, in units
    of the full force.
    """

    skill: float
    pace: float
    thrash: float
    noise: float = 0.1


RANDOM = Level(0.0, 1.0, 1.0)
"""Uniformly random actions."""


class Script:
    """A `Policy` that pursues its aim with limited force or, while a blunder lasts, goes to a wrong place or thrashes.

    What makes a weak player weak is slowness and long errors that each agent makes by itself, not noise around the
    skilled action: to clone the mean action is not to play better. levels: of the first and the last copy, the others
    lie evenly between; discrete: choose among MPE2's five actions; steady: the level of agents, by index, that play
    alike in all qualities.
    """

    def __init__(
        self,
        scene: Scene,
        aims: Aims,
        levels: tuple[Level, Level],
        *,
        discrete: bool = False,
        steady: dict[int, Level] | None = None,
    ) -> None:
        self.aims, self.discrete, self.device = aims, discrete, scene.device
        self.agents = scene.plan.controlled
        self.force = scene.mechanics.force[: self.agents].float()
        self.lag = TIME_STEP if scene.plan.position_first else 0.0
        ends = torch.tensor(levels, device=self.device, dtype=torch.float32)
        self._ends = ends[:, None].repeat(1, self.agents, 1)
        for agent, level in (steady or {}).items():
            self._ends[:, agent] = torch.tensor(level, device=self.device)

    def reset(self, seed: int, n: int) -> None:
        """Begin n episodes of all levels between the first and the last."""
        self._generator = torch.Generator(self.device).manual_seed(seed)
        part = (torch.arange(n, device=self.device)[:, None, None] + 0.5) / n
        self._skill, self._pace, self._thrash, self._noise = torch.lerp(*self._ends, part).unbind(-1)
        self._blundering = torch.zeros(n, self.agents, dtype=torch.bool, device=self.device)
        self._thrashing = self._blundering
        self._draw = torch.zeros(n, self.agents, 2, device=self.device)
        self._begun = False
        self.aims.reset(n, self._generator)

    @torch.no_grad()
    def act(self, observations: Tensor, masks: Tensor | None, active: Tensor | None = None) -> Tensor:
        """(n, agent, 2) in [-1, 1], or (n, agent) integers; acts on the observations alone."""
        self._blunder()
        observations = observations.float()
        lost = self._blundering[..., None]
        velocity, aim = observations[..., :2], self.aims(observations)
        place = torch.where(lost, self.aims.astray(observations, self._draw), aim.place) - self.lag * velocity
        wished = GAIN * place + torch.where(lost, 0.0, aim.velocity)
        push = (wished - (1 - DAMPING) * velocity) / (self.force * TIME_STEP)
        noise = self._noise[..., None] * torch.randn(push.shape, generator=self._generator, device=self.device)
        thrashing = self._blundering & self._thrashing
        if self.discrete:
            return torch.where(thrashing, (5 * self._random(*thrashing.shape)).long(), self._move(push + noise))
        pace = self._pace[..., None]
        limited = push * (pace / push.abs().amax(-1, keepdim=True).clamp(min=1e-6)).clamp(max=1)
        anything = 2 * self._random(*push.shape) - 1
        return torch.where(thrashing[..., None], anything, (limited + noise).clamp(-1, 1))

    def _move(self, push: Tensor) -> Tensor:
        """MPE2's action most like a push: along its larger axis, or none where that is weak or the pace is spent."""
        axis = push.abs().argmax(-1)
        along = push.gather(-1, axis[..., None])[..., 0]
        still = (along.abs() < IDLE) | (self._random(*along.shape) >= self._pace)
        return torch.where(still, 0, 1 + 2 * axis + (along > 0))

    def _blunder(self) -> None:
        """Begin and end blunders so that they take their share of time from the first step on."""
        shape, fault = self._blundering.shape, 1 - self._skill
        start = (fault / (BLUNDER_STEPS * (1 - fault).clamp(min=1e-6))).clamp(max=1)
        goes_on = torch.where(fault < 1, 1 - 1 / BLUNDER_STEPS, 1.0)
        chance = torch.where(self._blundering, goes_on, start) if self._begun else fault
        lasting = self._random(*shape) < chance
        new = lasting & ~self._blundering
        self._thrashing = torch.where(new, self._random(*shape) < self._thrash, self._thrashing)
        self._draw = torch.where(new[..., None], self._random(*shape, 2), self._draw)
        self._blundering, self._begun = lasting, True

    def _random(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self._generator, device=self.device)


def levels_of(quality: str, levels: dict[str, Level]) -> tuple[Level, Level]:
    """The levels of a quality's first and last copy; replay grows from random actions to medium."""
    if quality == "random":
        return RANDOM, RANDOM
    if quality == "replay":
        medium = levels["medium"]
        return RANDOM._replace(pace=medium.pace), medium
    return levels[quality], levels[quality]
