"""Round robots in a square arena: how they move, and how near they come to each other and to obstacles on the way.

Positions and velocities are (copies, robot, 2) in metres and metres per second.
"""

from __future__ import annotations

import torch
from torch import Tensor

TIME_STEP = 0.1
"""Seconds."""
MAX_SPEED = 1.0
RADIUS = 0.085
HALF_SIDE = 2.5
RESPONSE = {"double": 0.4, "single": 1.0}
"""Share of the way from its velocity to the commanded one that a robot gets in a step.

double: a double integrator with drag, v' = v + 0.1 * 4 (a - v); single: the command is the velocity.
"""


def advance(position: Tensor, velocity: Tensor, action: Tensor, response: float) -> tuple[Tensor, Tensor]:
    """Positions and velocities one step later; actions beyond length 1 are shortened, so no speed exceeds 1 m/s.

    A robot that meets the edge of the arena stops there, along the axis it cannot go on.
    """
    command = MAX_SPEED * action / action.norm(dim=-1, keepdim=True).clamp_min(1)
    velocity = velocity + response * (command - velocity)
    free = position + TIME_STEP * velocity
    position = free.clamp(RADIUS - HALF_SIDE, HALF_SIDE - RADIUS)
    return position, torch.where(position == free, velocity, 0.0)


def nearest(start: Tensor, end: Tensor) -> Tensor:
    """Least length of a vector that moves from start to end in a straight line: (..., 2), (..., 2) -> (...)."""
    moved = end - start
    share = -(start * moved).sum(-1) / moved.square().sum(-1).clamp_min(1e-12)
    return (start + share.clamp(0, 1)[..., None] * moved).norm(dim=-1)


def between(position: Tensor, after: Tensor) -> Tensor:
    """Least distance between every two robots within a step, (copies, robot, robot), infinite to itself."""
    apart = [p[:, :, None] - p[:, None] for p in (position, after)]
    itself = torch.eye(position.shape[1], dtype=torch.bool, device=position.device)
    return nearest(*apart).masked_fill(itself, torch.inf)


def from_points(position: Tensor, after: Tensor, points: Tensor) -> Tensor:
    """Least distance from each of the points (K, 2) within a step, (copies, robot, K)."""
    return nearest(position[:, :, None] - points, after[:, :, None] - points)
