"""Regions of the plane to stay out of, as a constraint file states them: what an environment charges a cost for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

POSITION = ["x", "y"]


@dataclass(frozen=True)
class Obstacles:
    """K superellipses in the units of the position, each inside where its barrier is negative.

    centers, radii, velocities: (K, 2), the centres at time 0 and how far they move per environment step;
    powers: (K,), 2 for an ellipse.
    """

    centers: Tensor
    radii: Tensor
    powers: Tensor
    velocities: Tensor

    def __len__(self) -> int:
        return len(self.centers)

    def to(self, device: torch.device, dtype: torch.dtype) -> Obstacles:
        return Obstacles(*(getattr(self, name).to(device, dtype) for name in self.__dataclass_fields__))

    def barrier(self, position: Tensor, time: Tensor | float = 0.0) -> Tensor:
        """sum |(p - c - v t) / r|^power - 1 of each obstacle, negative inside (arXiv 2306.00148, section 5).

        position (..., 2), time in environment steps, broadcast against its leading axes: (..., K).
        """
        moved = self.centers + self.velocities * torch.as_tensor(time, device=position.device)[..., None, None]
        scaled = ((position[..., None, :] - moved) / self.radii).abs()
        return scaled.pow(self.powers[:, None]).sum(-1) - 1


def read(path: Path | None) -> Obstacles:
    """The obstacles of a constraint file, none without one; what it says of other dimensions is left out."""
    sets = [] if path is None else yaml.safe_load(path.read_text())["sets"]
    rows = [row for entry in sets for row in regions(entry)]
    columns = zip(*rows, strict=True) if rows else ([], [], [], [])
    centers, radii, powers, velocities = (torch.tensor(list(column), dtype=torch.float64) for column in columns)
    return Obstacles(centers.view(-1, 2), radii.view(-1, 2), powers.view(-1), velocities.view(-1, 2))


def regions(entry: Mapping[str, Any]) -> Iterator[tuple[list[float], list[float], float, list[float]]]:
    """Center, radii, power and velocity of what an entry of a file says about the position."""
    velocity = list(entry.get("velocity", (0.0, 0.0)))
    if entry["dimensions"] != POSITION or entry["type"] == "distance":
        return
    if entry["type"] == "obstacles":
        for center, radius in zip(entry["centers"], entry["radii"], strict=True):
            yield center, [radius, radius], 2.0, velocity
        return
    if entry["type"] not in ("ellipse", "superellipse", "ball") or not entry["outside"]:
        raise ValueError(f"a {entry['type']} is not an obstacle")
    radii = entry["radii"] if "radii" in entry else [entry["radius"]] * 2
    yield entry["center"], radii, float(entry.get("power", 2)), velocity
