"""Players of a maze: a controller that follows waypoints along a shortest way and sees no obstacles."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from envs.arena import Player
from envs.workers import RandomPolicy
from madiff.interfaces import UserError

from .ball import GEAR, MASS, TIME_STEP
from .batched import Maze
from .shortest import Corners, Route

P_GAIN, D_GAIN = 10.0, 1.0
"""Of the controller that made D4RL's maze data (arXiv 2004.07219): action = 10 (waypoint - place) - velocity.

Where an action is held for longer, gains are smaller, so that no step overshoots the wanted velocity or the waypoint.
"""
REACHED = 0.35
"""Distance from a waypoint at which the next one comes; the turns then stay clear of the walls."""
LOST = 1.6
"""Distance from the waypoint, a little more than a diagonal step, from which the way is looked up anew."""
SLOWEST = 0.85
"""Every episode goes at its own share of the pace, this at least."""


@dataclass(frozen=True)
class Level:
    """How a player goes about it.

    pace: m/s on a straight way; noise: standard deviation of the noise on each action; wander: largest distance of a
    waypoint, along each axis, from the middle of its cell; detour: share of the episodes that first visit a cell
    drawn at random; roam: from there to another one, and so on to the end, past the goal by chance alone, as D4RL's
    maze data goes; shortest: not from cell to cell, but round the walls' corners by the shortest way.
    """

    pace: float
    noise: float
    wander: float
    detour: float
    roam: bool = False
    shortest: bool = False


LEVELS = {
    "shortest": Level(3.0, 0.05, 0.0, 0.0, shortest=True),
    "expert": Level(3.0, 0.05, 0.15, 0.0),
    "good": Level(3.0, 0.15, 0.25, 0.5),
    "medium": Level(2.0, 0.4, 0.25, 0.5),
    "roam": Level(3.0, 0.15, 0.25, 1.0, roam=True),
}
QUALITIES = [*LEVELS, "random"]


def behaviour(env: Maze, quality: str) -> Waypoints | RandomPolicy:
    """The policy that makes data of a quality: shortest, expert, good, medium, roam, or uniformly random actions."""
    if quality not in QUALITIES:
        raise UserError(f"no quality is called {quality!r}", "data.quality", QUALITIES)
    if quality == "random":
        return RandomPolicy(env.spec, env.device)
    level = LEVELS[quality]
    return (Shortest if level.shortest else Waypoints)(env, level)


class Waypoints(Player):
    """From cell to cell along a shortest way to the goal; which one, and where in the cells, changes by episode."""

    def __init__(self, env: Maze, level: Level) -> None:
        super().__init__(env)
        self.maze, self.level = env.maze, level
        held = TIME_STEP * env.repeat
        self.hurry = min(P_GAIN / D_GAIN, 1 / held)
        """Wanted velocity by the distance from the waypoint, 1/s."""
        self.gain = min(D_GAIN, MASS / (GEAR * held))
        self.ways, self.free = env.maze.ways.to(env.device), env.maze.free.to(env.device)
        self.middles = env.maze.center(torch.arange(env.maze.walls.numel())).to(env.device, env.dtype)

    def reset(self, seed: int, n: int) -> None:
        super().reset(seed, n)
        self.taste = self._integers(len(self.ways), n)
        self.pace = self.level.pace * (SLOWEST + (1 - SLOWEST) * self.uniforms(n, 1))
        self.wander = self.level.wander * (2 * self.uniforms(n, len(self.middles), 2) - 1)
        visited = self.free[self._integers(len(self.free), n)]
        self.detour = torch.where(self.uniforms(n) < self.level.detour, visited, -1)
        self.waypoint = torch.full((n,), -1, device=self.device)

    def act(self, observations: Tensor, masks: Tensor | None, active: Tensor | None = None) -> Tensor:
        """(n, 1, 2)."""
        position, velocity, goal = observations[:, 0].split(2, -1)
        target = self._target(position, goal)
        ahead = target - position
        speed = (self.hurry * ahead.norm(dim=1, keepdim=True)).minimum(self.pace)
        wanted = normalize(ahead, dim=1) * speed
        action = self.gain * (wanted - velocity) + self.level.noise * self.normals(ahead)
        return action.clamp(-1, 1)[:, None]

    def _target(self, position: Tensor, goal: Tensor) -> Tensor:
        """Where to steer now, (n, 2)."""
        here, last = self.maze.cell(position), self.maze.cell(goal)
        known = self.waypoint.clamp(min=0)
        away = (self._place(known, goal, last) - position).norm(dim=1)
        lost = (self.waypoint < 0) | (away > LOST)
        reached = ~lost & (away < REACHED)
        arrived = reached & (known == self.detour)
        onwards = self.free[self._integers(len(self.free), len(known))] if self.level.roam else -1
        self.detour = torch.where(arrived, onwards, self.detour)
        aim = torch.where(self.detour < 0, last, self.detour)
        start = torch.where(lost, here, known)
        self.waypoint = torch.where(lost | reached, self.ways[self.taste, start, aim], known)
        return self._place(self.waypoint, goal, last)

    def _place(self, cell: Tensor, goal: Tensor, last: Tensor) -> Tensor:
        """Where in a cell to go: the goal itself in the cell it is in."""
        there = self.middles[cell] + self.wander.gather(1, cell[:, None, None].expand(-1, 1, 2))[:, 0]
        return torch.where((cell == last)[:, None], goal, there)

    def _integers(self, count: int, n: int) -> Tensor:
        return torch.randint(count, (n,), generator=self.generator, device=self.device)


class Shortest(Waypoints):
    """By the shortest way to the goal, straight from one corner of the walls to the next."""

    def __init__(self, env: Maze, level: Level) -> None:
        super().__init__(env, level)
        self.corners = Corners(env.maze, env.ball, self.middles)

    def reset(self, seed: int, n: int) -> None:
        super().reset(seed, n)
        self.route: Route | None = None

    def _target(self, position: Tensor, goal: Tensor) -> Tensor:
        if self.route is None:
            self.route = Route(self.corners, goal)
        target, seen = self.route.towards(position)
        # One that a wall has pushed out of every line's sight takes a step from cell to cell.
        return torch.where(seen[:, None], target, super()._target(position, goal))
