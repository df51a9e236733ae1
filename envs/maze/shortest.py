"""Shortest ways of the ball through a maze, round the corners of its walls and straight in between."""

from __future__ import annotations

import math

import torch
from scipy.sparse.csgraph import dijkstra
from torch import Tensor
from torch.nn.functional import pad

from .ball import RADIUS, Ball
from .maps import Map

BERTH = 0.15
"""Between the ball and the corner it goes round, along each axis."""
CLEARANCE = 0.05
"""Between the ball and the walls beside a free line."""
SPACING = 0.1
"""Between the points of a line at which walls are looked for, at most."""


class Corners:
    """The places beside the corners of a maze's walls where a shortest way may turn, and the lengths between them."""

    def __init__(
        self, maze: Map, ball: Ball, like: Tensor, berth: float = BERTH, clearance: float = CLEARANCE
    ) -> None:  # fmt: skip
        self.maze, self.ball, self.clearance = maze, ball, clearance
        self.walls = maze.walls.flatten().to(like.device)
        self.line = torch.linspace(0, 1, 1 + math.ceil(2 * math.hypot(*maze.half) / SPACING)).to(like)[:, None]
        self.places = corners(maze, RADIUS + berth).to(like)
        """(corners, 2), metres."""
        apart, count = torch.cdist(self.places, self.places), len(self.places)
        seen = self.free(self.places[:, None].expand(-1, count, -1), self.places.expand(count, -1, -1))
        self.steps = torch.where(seen, apart, torch.inf)
        """Length of the free line between two, infinite where there is none."""
        self.lengths = torch.from_numpy(dijkstra(self.steps.cpu().numpy(), directed=False)).to(like)

    def free(self, start: Tensor, end: Tensor) -> Tensor:
        """Whether the ball can go straight from start to end, (n, k, 2) twice -> (n, k) bool."""
        points = start[..., None, :] + self.line * (end - start)[..., None, :]
        near = self.ball.gaps(points.flatten(0, 2))[1].amin(1) < self.clearance
        return ~(near.reshape(points.shape[:-1]) | self.walls[self.maze.cell(points)]).any(-1)


class Route:
    """The shortest ways to goals (n, 2), followed from corner to corner; the goal is the last of the places."""

    def __init__(self, corners: Corners, goal: Tensor) -> None:
        self.corners, n, count = corners, len(goal), len(corners.places)
        self.places = torch.cat([corners.places.expand(n, -1, -1), goal[:, None]], 1)
        start, end = self.places[:, :-1], goal[:, None].expand(-1, count, -1)
        last = torch.where(corners.free(start, end), (start - end).norm(dim=-1), torch.inf)
        through = pad(corners.lengths + last[:, None], (0, 1), value=torch.inf)
        self.to_go = pad(through.amin(-1), (0, 1))
        """Length of the shortest way from each place, (n, corners + 1)."""
        onwards = torch.cat([corners.steps.expand(n, -1, -1), last[..., None]], -1) + self.to_go[:, None]
        itself = torch.eye(count, count + 1, dtype=torch.bool, device=goal.device)
        self.following = pad(onwards.masked_fill(itself, torch.inf).argmin(-1), (0, 1), value=count)
        """The place that comes after each."""
        self.place = torch.full((n,), -1, device=goal.device)

    def towards(self, position: Tensor) -> tuple[Tensor, Tensor]:
        """Where to go from here, (n, 2), and whether a free line leads there, (n,) bool."""
        known = self.place.clamp(min=0)[:, None]
        both = torch.cat([self.following.gather(1, known), known], 1)
        free = self._free(position, both, slice(None)) & (self.place >= 0)[:, None]
        self.place = both.gather(1, free.int().argmax(1, keepdim=True))[:, 0]
        seen = free.any(1)
        rows = (~seen).nonzero()[:, 0]  # few: those that begin, and those that a wall has pushed out of sight
        length = (self.places[rows] - position[rows, None]).norm(dim=-1) + self.to_go[rows]
        every = torch.arange(self.places.shape[1], device=position.device).expand(len(rows), -1)
        length = length.where(self._free(position[rows], every, rows), torch.inf)
        self.place[rows], seen[rows] = length.argmin(1), length.isfinite().any(1)
        return self.places.gather(1, self.place[:, None, None].expand(-1, 1, 2))[:, 0], seen

    def _free(self, position: Tensor, places: Tensor, rows: slice | Tensor) -> Tensor:
        """Whether free lines lead from positions (m, 2) of these rows to their places by number (m, k), (m, k) bool."""
        ends = self.places[rows].gather(1, places[..., None].expand(-1, -1, 2))
        return self.corners.free(position[:, None].expand_as(ends), ends)


def corners(maze: Map, off: float) -> Tensor:
    """Places so far off the walls' corners along both axes, in the free cell diagonally opposite, (corners, 2)."""
    walls, found = maze.walls, []
    for row in range(1, maze.rows):
        for column in range(1, maze.columns):
            for down, right in ((-1, -1), (-1, 0), (0, -1), (0, 0)):  # the wall's cell, from the point between four
                beside = walls[row - 1 - down, column + right], walls[row + down, column - 1 - right]
                opposite = walls[row - 1 - down, column - 1 - right]
                if walls[row + down, column + right] and not (opposite or any(beside)):
                    x, y = column - maze.half[0], maze.half[1] - row
                    found.append((x - off * (1 + 2 * right), y + off * (1 + 2 * down)))
    return torch.tensor(found, dtype=torch.float64).reshape(-1, 2)
