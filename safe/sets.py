"""Sets of safe points: what is inside, how far, in which direction out, and the nearest safe point.

A set speaks of some features of a point, `points` (..., agent, D) or (..., D), in real units, and is safe where its
barriers b are >= 0 (arXiv 2306.00148, section 3). Barriers are written in the units of the set itself: a level of the
curve for curved sets (b of an ellipse's outside is sum ((p - c) / r)^2 - 1), the distance in units of the bound for
straight ones. A margin m asks for b >= m. Distances are Euclidean in the real units of the features a set names.

`dimensions`: positions on the last axis that a set speaks of, None for all. `velocity`: how far the set moves per unit
of time in each of them; `time` is then given by the caller, broadcastable to the points without their last axis.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from safe.constants import indices, like
from safe.curves import nearest_on_ellipse, nearest_on_superellipse, raised
from safe.distance import Distance
from safe.safe_set import Rows, SafeSet, Time, direction, lengthened

__all__ = [
    "Ball", "Box", "Ceiling", "Distance", "Ellipse", "HalfSpace", "Obstacles", "Rows", "SafeSet", "Superellipse",
    "Time",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class HalfSpace(SafeSet):
    """normal . p <= offset; b = offset - normal . p."""

    normal: tuple[float, ...]
    offset: float

    def barriers(self, local: Float[Tensor, "*points d"]) -> Float[Tensor, "*points rows"]:
        return self.offset - (local * like(self.normal, local)).sum(-1, keepdim=True)

    def gradients(self, local: Float[Tensor, "*points d"]) -> Float[Tensor, "*points rows d"]:
        return -like(self.normal, local).expand(*local.shape[:-1], 1, -1)

    def nearest(self, local: Float[Tensor, "*points d"], margin: float) -> Float[Tensor, "*points d"]:
        normal = like(self.normal, local)
        missing = (margin - self.barriers(local)).clamp(min=0)
        return local - missing * (normal / normal.square().sum())


@dataclass(frozen=True, kw_only=True)
class Ceiling(HalfSpace):
    """p + velocity_weight v <= limit for a feature and its velocity: the barrier of a roof seen ahead of time."""

    limit: float
    velocity_weight: float = 0.0
    normal: tuple[float, ...] = field(init=False, default=())
    offset: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "normal", (1.0, self.velocity_weight))
        object.__setattr__(self, "offset", self.limit)


@dataclass(frozen=True, kw_only=True)
class Box(SafeSet):
    """low <= p <= high, infinite where unbounded; one barrier per finite bound: p - low, high - p."""

    low: tuple[float, ...]
    high: tuple[float, ...]

    @property
    def bounded(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The dimensions that have a lower, and an upper, bound."""
        low, high = (tuple(i for i, v in enumerate(bound) if math.isfinite(v)) for bound in (self.low, self.high))
        return low, high

    def barriers(self, local: Float[Tensor, "*points d"]) -> Float[Tensor, "*points rows"]:
        below, above = (indices(bounded, local) for bounded in self.bounded)
        low, high = like(self.low, local), like(self.high, local)
        return torch.cat([(local - low).index_select(-1, below), (high - local).index_select(-1, above)], dim=-1)

    def gradients(self, local: Float[Tensor, "*points d"]) -> Float[Tensor, "*points rows d"]:
        d, (below, above) = local.shape[-1], self.bounded
        signed = [(i, 1.0) for i in below] + [(i, -1.0) for i in above]
        rows = tuple(tuple(sign if j == i else 0.0 for j in range(d)) for i, sign in signed)
        return like(rows, local).expand(*local.shape[:-1], len(rows), d)

    def nearest(self, local: Float[Tensor, "*points d"], margin: float) -> Float[Tensor, "*points d"]:
        bounds = [(low + margin, high - margin) for low, high in zip(self.low, self.high, strict=True)]
        # Where a margin leaves nothing of a dimension, its middle violates least.
        bounds = [((a + b) / 2, (a + b) / 2) if a > b else (a, b) for a, b in bounds]
        low, high = (like(tuple(bound), local) for bound in zip(*bounds, strict=True))
        return torch.minimum(torch.maximum(local, low), high)


@dataclass(frozen=True, kw_only=True)
class Superellipse(SafeSet):
    """Outside (or inside) of sum |(p - c) / r|^power = 1; b = sum - 1 (or 1 - sum); power >= 2, two dimensions."""

    center: tuple[float, ...]
    radii: tuple[float, ...]
    power: float = 4.0
    outside: bool = True

    @property
    def convex(self) -> bool:
        return not self.outside

    @property
    def depth(self) -> float:
        return 1.0 if self.outside else math.inf

    def level(self, local: Float[Tensor, "*points d"]) -> Float[Tensor, "*points 1"]:
        """sum |(p - c) / r|^power: (..., d) -> (..., 1)."""
        return raised(self.unit(local).abs(), self.power).sum(-1, keepdim=True)

    def unit(self, local: Float[Tensor, "*points d"]) -> Float[Tensor, "*points d"]:
        return (local - like(self.center, local)) / like(self.radii, local)

    def barriers(self, local: Float[Tensor, "*points d"]) -> Float[Tensor, "*points rows"]:
        return self.level(local) - 1 if self.outside else 1 - self.level(local)

    def gradients(self, local: Float[Tensor, "*points d"]) -> Float[Tensor, "*points rows d"]:
        unit, radii = self.unit(local), like(self.radii, local)
        gradient = self.power * raised(unit.abs(), self.power - 1) * unit.sign() / radii
        if not self.outside:
            return -gradient[..., None, :]
        shortest = self.radii.index(min(self.radii))
        return lengthened(gradient, shortest, 1 / max(self.radii))[..., None, :]

    def scaled(self, margin: float) -> tuple[float, ...]:
        """The radii of the curve on which b = margin; not below a small share of the curve's own."""
        level = 1 + margin if self.outside else max(1 - margin, 1e-6)
        return tuple(r * level ** (1 / self.power) for r in self.radii)

    def nearest(self, local: Float[Tensor, "*points d"], margin: float) -> Float[Tensor, "*points d"]:
        center = like(self.center, local)
        return center + self.on_curve(local - center, self.scaled(self.rounding(local, margin)))

    def rounding(self, local: Tensor, margin: float) -> float:
        """The margin with room for the rounding of a point on the curve."""
        reach = 1 + max(abs(c) / r for c, r in zip(self.center, self.radii, strict=True))
        return margin + 2 * self.power * reach * torch.finfo(local.dtype).eps

    def on_curve(self, u: Float[Tensor, "*points d"], radii: tuple[float, ...]) -> Float[Tensor, "*points d"]:
        a, b = radii
        return nearest_on_superellipse(u, (a, b), self.power)


@dataclass(frozen=True, kw_only=True)
class Ellipse(Superellipse):
    """Outside (or inside) of sum ((p - c) / r)^2 = 1, in any number of dimensions."""

    power: float = field(init=False, default=2.0)

    def on_curve(self, u: Float[Tensor, "*points d"], radii: tuple[float, ...]) -> Float[Tensor, "*points d"]:
        return nearest_on_ellipse(u, radii)


@dataclass(frozen=True, kw_only=True)
class Ball(Ellipse):
    """Inside (or outside) of |p - c| = radius; b as of an ellipse with equal radii."""

    radius: float
    radii: tuple[float, ...] = field(init=False, default=())
    outside: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "radii", (self.radius,) * len(self.center))

    def on_curve(self, u: Float[Tensor, "*points d"], radii: tuple[float, ...]) -> Float[Tensor, "*points d"]:
        return _radial(u, radii[0])


@dataclass(frozen=True, kw_only=True)
class Obstacles(SafeSet):
    """Outside of many balls; one barrier each, |p - c|^2 / r^2 - 1."""

    centers: tuple[tuple[float, ...], ...]
    radii: tuple[float, ...]

    @property
    def convex(self) -> bool:
        return False

    @property
    def depth(self) -> float:
        return 1.0

    def offsets(self, local: Float[Tensor, "*points d"]) -> Float[Tensor, "*points obstacle d"]:
        """(..., obstacle, d) from every centre."""
        return local[..., None, :] - like(self.centers, local)

    def barriers(self, local: Float[Tensor, "*points d"]) -> Float[Tensor, "*points rows"]:
        return self.offsets(local).square().sum(-1) / like(self.radii, local).square() - 1

    def gradients(self, local: Float[Tensor, "*points d"]) -> Float[Tensor, "*points rows d"]:
        squares = like(tuple(r**2 for r in self.radii), local)[:, None]
        return lengthened(2 * self.offsets(local) / squares, 0, 1 / squares.sqrt())

    def nearest(self, local: Float[Tensor, "*points d"], margin: float) -> Float[Tensor, "*points d"]:
        """Out of the obstacle that is entered deepest; the others are left to further sweeps."""
        deepest = self.barriers(local).argmin(-1)
        center = like(self.centers, local)[deepest]
        room = 4 * (1 + max(map(abs, sum(self.centers, ()))) / min(self.radii)) * torch.finfo(local.dtype).eps
        reach = like(self.radii, local)[deepest][..., None] * math.sqrt(1 + margin + room)
        return center + _radial(local - center, reach)


def _radial(u: Tensor, radius: Tensor | float) -> Tensor:
    """u (..., d) moved along itself to length radius; from the very centre along the first axis."""
    return radius * direction(u, 0)
