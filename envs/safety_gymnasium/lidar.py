"""From the package's lidars and sensors back to places: what a robot can know of where things are, and where it is.

Bin i of a lidar looks at directions from i to i + 1 times 22.5 degrees, counter-clockwise from the robot's own x axis;
it reads s = 1 - distance / reach of the nearest object there, and its neighbours read shares a s above and (1 - a) s
below, where a is how far through the bin the object's direction is.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

BINS = 16
BIN = 2 * math.pi / BINS
FIELD = 0.5
"""Strength of the magnetic field, which points along the world's negative y."""


def object_place(lidar: Tensor, reach: float) -> tuple[Tensor, Tensor]:
    """Where the only, or nearest, object of a lidar is: (n, BINS) -> (n, 2) in metres, robot's frame, and (n,) seen.

    Exact for one object within reach.
    """
    places, peaks = object_places(lidar, reach)
    strongest = lidar.argmax(-1)
    return places[torch.arange(len(lidar)), strongest], peaks.any(-1)


def object_places(lidar: Tensor, reach: float) -> tuple[Tensor, Tensor]:
    """A place for every bin, (n, BINS, 2) in metres, and (n, BINS) bool: bins with a peak, which is where objects are.

    Of objects in neighbouring bins only the nearest is found, with a direction up to half a bin off.
    """
    above, below = lidar.roll(-1, -1), lidar.roll(1, -1)
    peaks = (lidar > 0) & (lidar >= above) & (lidar > below)
    share = above / (above + below).clamp_min(1e-9)
    angle = (torch.arange(BINS, device=lidar.device) + share) * BIN
    distance = reach * (1 - lidar)
    return distance[..., None] * torch.stack([angle.cos(), angle.sin()], -1), peaks


def heading(magnetometer: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the angle from the world's x axis to the robot's: (n, 3) -> two of (n,)."""
    return -magnetometer[:, 1] / FIELD, -magnetometer[:, 0] / FIELD


def own_place(origin: Tensor, magnetometer: Tensor) -> Tensor:
    """The robot's place in the world, (n, 2), from where the world's origin is in its own frame, (n, 2)."""
    cos, sin = heading(magnetometer)
    return -rotated(origin, cos, sin)


def rotated(vectors: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Vectors (n, 2) turned counter-clockwise by an angle of which cosine and sine (n,) are given."""
    x, y = vectors.unbind(-1)
    return torch.stack([cos * x - sin * y, sin * x + cos * y], -1)
