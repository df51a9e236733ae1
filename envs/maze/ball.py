"""The ball of gymnasium-robotics' PointMaze, as MuJoCo 4 moves it: a point mass pushed along x and y between walls.

Constants are those of its model file and of MuJoCo's defaults; equations are those of MuJoCo's documentation
("Computation", sections on the constraint model and on implicit damping in the Euler integrator). A contact without
friction that acts on a point mass leaves a convex problem with two unknowns, which is solved exactly here.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .maps import Map

TIME_STEP = 0.01
"""Seconds."""
RADIUS, DENSITY = 0.1, 1000.0
MASS = 4 / 3 * math.pi * RADIUS**3 * DENSITY
DAMPING, GEAR = 1.0, 100.0
MAX_SPEED = 5.0
"""Along each axis, kept before every step."""

MARGIN = 2 * 0.002
"""Gap at which a contact begins: margins of both bodies add up."""
SOFT_SECONDS, HARDEST, SOFTEST, WIDTH = 0.02, 0.95, 0.9, 0.001
"""solref's time constant at a damping ratio of 1, and solimp: impedance rises from 0.9 to 0.95 over the width."""
STIFFNESS, DRAG = 1 / (HARDEST * SOFT_SECONDS) ** 2, 2 / (HARDEST * SOFT_SECONDS)
SIDES = ((1.0, 0.0), (0.0, 1.0), (1.0, 1.0))
"""Of the eight cells around the ball's own, only those towards its nearest corner are near enough to touch."""
TOUCHING = tuple((float(a), float(b), float(c)) for a in (0, 1) for b in (0, 1) for c in (0, 1))
"""Every way in which the three may push or not."""


class Ball:
    """Motion of many balls in one maze; positions, velocities and actions are (n, 2) in metres, m/s and [-1, 1]."""

    def __init__(self, maze: Map, device: torch.device, dtype: torch.dtype) -> None:
        self.maze, self.walls = maze, maze.walls.to(device)
        self.half = torch.tensor(maze.half, device=device, dtype=dtype)
        self.sides = torch.tensor(SIDES, device=device, dtype=dtype)
        self.touching = torch.tensor(TOUCHING, device=device, dtype=dtype)

    def advance(self, position: Tensor, velocity: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Positions and velocities one time step of the simulator later."""
        velocity = velocity.clamp(-MAX_SPEED, MAX_SPEED)
        force = GEAR * action - DAMPING * velocity
        force = force + self.push(position, velocity, force / MASS)
        velocity = velocity + TIME_STEP * force / (MASS + TIME_STEP * DAMPING)
        return position + TIME_STEP * velocity, velocity

    def gaps(self, position: Tensor) -> tuple[Tensor, Tensor]:
        """Directions away from the three nearest cells (n, 3, 2), and gaps to their walls (n, 3), infinite without."""
        column = (position[:, 0] + self.half[0]).floor()
        row = (self.half[1] - position[:, 1]).floor()
        offset = position - torch.stack([column + 0.5 - self.half[0], self.half[1] - row - 0.5], 1)
        side = torch.where(offset < 0, -1.0, 1.0).to(offset.dtype)
        towards = self.sides * side[:, None]
        apart = torch.where(towards == 0, 0.0, (offset - 0.5 * side)[:, None])
        distance = apart.norm(dim=-1)
        rows = (row[:, None] - towards[..., 1]).long().clamp(0, self.maze.rows - 1)
        columns = (column[:, None] + towards[..., 0]).long().clamp(0, self.maze.columns - 1)
        gap = torch.where(self.walls[rows, columns], distance - RADIUS, torch.inf)
        return apart / distance.clamp_min(1e-12)[..., None], gap

    def push(self, position: Tensor, velocity: Tensor, free: Tensor) -> Tensor:
        """Force of the walls (n, 2) on balls whose acceleration without them is `free`."""
        normal, gap = self.gaps(position)
        force = torch.zeros_like(free)
        # Few balls touch anything at a time: the others are spared the search.
        rows = (gap < MARGIN).any(1).nonzero()[:, 0]
        if len(rows):
            force[rows] = self._reaction(normal[rows], gap[rows], velocity[rows], free[rows])
        return force

    def _reaction(self, normal: Tensor, gap: Tensor, velocity: Tensor, free: Tensor) -> Tensor:
        """The acceleration a with walls minimises m |a - free|^2 / 2 + sum D max(0, wanted - n . a)^2 / 2 over the
        contacts of normal n; returns the sum of their forces.
        """
        depth = (gap - MARGIN).clamp(max=0)  # 0 where nothing touches
        impedance = rise(-depth / WIDTH)
        wanted = -DRAG * (normal * velocity[:, None]).sum(-1) - STIFFNESS * impedance * depth
        weight = MASS * impedance / (1 - impedance) * (gap < MARGIN)
        acceleration = self._least(normal, weight, wanted, free)
        missing = (wanted - (normal * acceleration[:, None]).sum(-1)).clamp_min(0)
        return ((weight * missing)[..., None] * normal).sum(1)

    def _least(self, normal: Tensor, weight: Tensor, wanted: Tensor, free: Tensor) -> Tensor:
        """The minimiser: of the minimisers for each choice of pushing contacts, the one of least cost."""
        pushing = weight[:, None] * self.touching
        x, y = normal.unbind(-1)
        xx, xy, yy = ((pushing * product[:, None]).sum(-1) for product in (x * x, x * y, y * y))
        right = MASS * free[:, None] + ((pushing * wanted[:, None])[..., None] * normal[:, None]).sum(-2)
        xx, yy = xx + MASS, yy + MASS
        determinant = xx * yy - xy * xy
        solved = [yy * right[..., 0] - xy * right[..., 1], xx * right[..., 1] - xy * right[..., 0]]
        choices = torch.stack(solved, -1) / determinant[..., None]
        missing = (wanted[:, None] - (choices[..., None, :] * normal[:, None]).sum(-1)).clamp_min(0)
        cost = MASS * (choices - free[:, None]).square().sum(-1) + (weight[:, None] * missing.square()).sum(-1)
        best = cost.argmin(1)
        return choices.gather(1, best[:, None, None].expand(-1, 1, 2))[:, 0]


def rise(depth: Tensor) -> Tensor:
    """Impedance of a contact by its depth in widths: MuJoCo's default curve of power 2 with its middle at one half."""
    depth = depth.clamp(0, 1)
    share = torch.where(depth <= 0.5, 2 * depth.square(), 1 - 2 * (1 - depth).square())
    return SOFTEST + (HARDEST - SOFTEST) * share
