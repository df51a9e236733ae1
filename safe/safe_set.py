"""What every set of safe points offers: barriers, gradients, and the nearest safe point, of some features of points."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from safe.constants import indices, like

Time = Tensor | float


class Rows(NamedTuple):
    """Barriers b (..., rows) of points and their gradients (..., rows, D) over all features of the points.

    share (rows,): how much of a row's condition this point has to meet alone; 1, or 1/2 where two agents share it.
    depth (rows,): how far below zero the barrier can fall, infinite where that has no end.
    """

    b: Float[Tensor, "*points rows"]
    gradient: Float[Tensor, "*points rows D"]
    share: tuple[float, ...]
    depth: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class SafeSet(ABC):
    """Base of all sets; `convex` says whether the safe points themselves form a convex set."""

    dimensions: tuple[int, ...] | None = None
    velocity: tuple[float, ...] | None = None

    @property
    def convex(self) -> bool:
        return True

    @property
    def depth(self) -> float:
        """How far below zero a barrier can fall; infinite where that has no end."""
        return math.inf

    def b(self, points: Float[Tensor, "*points D"], time: Time = 0.0) -> Float[Tensor, "*points rows"]:
        """Barrier values (..., rows), >= 0 where the point is safe."""
        return self.barriers(self.local(points, time))

    def linearise(self, points: Float[Tensor, "*points D"], time: Time = 0.0) -> Rows:
        """Barriers and gradients at the points.

        A gradient that vanishes, as at the centre of an obstacle, is replaced by one along a fixed axis, and a small
        one lengthened, so that a step that meets the linear condition stays about as short as the obstacle is wide.
        """
        local = self.local(points, time)
        b = self.barriers(local)
        n = b.shape[-1]
        return Rows(b, self.spread(self.gradients(local), points), (1.0,) * n, (self.depth,) * n)

    def project(
        self, points: Float[Tensor, "*points D"], margin: float = 0.0, time: Time = 0.0
    ) -> Float[Tensor, "*points D"]:
        """The nearest points with b >= margin; safe points come back bit for bit."""
        local = self.local(points, time)
        safe = (self.barriers(local) >= margin).all(-1, keepdim=True)
        moved = self.nearest(local, margin) + self.shift(points, time)
        return torch.where(safe, points, self.insert(points, moved))

    def over(self, dimensions: tuple[int, ...]) -> SafeSet:
        """The same set for points that hold only these features of the former points, in this order."""
        own = self.dimensions if self.dimensions is not None else tuple(range(len(dimensions)))
        return replace(self, dimensions=tuple(dimensions.index(d) for d in own))

    # What a kind of set has to say, of local points (..., d): its own features, relative to where the set is.

    @abstractmethod
    def barriers(self, local: Float[Tensor, "*points d"]) -> Float[Tensor, "*points rows"]:
        """(..., d) -> (..., rows)."""

    @abstractmethod
    def gradients(self, local: Float[Tensor, "*points d"]) -> Float[Tensor, "*points rows d"]:
        """(..., d) -> (..., rows, d)."""

    @abstractmethod
    def nearest(self, local: Float[Tensor, "*points d"], margin: float) -> Float[Tensor, "*points d"]:
        """(..., d) -> (..., d): the nearest safe point of a point that is not safe."""

    # Between all features of a point and those of the set.

    def local(self, points: Float[Tensor, "*points D"], time: Time = 0.0) -> Float[Tensor, "*points d"]:
        own = points if self.dimensions is None else points.index_select(-1, indices(self.dimensions, points))
        return own if self.velocity is None else own - self.shift(points, time)

    def shift(self, points: Tensor, time: Time) -> Tensor | float:
        """How far the set has moved by `time`, (..., d)."""
        if self.velocity is None:
            return 0.0
        velocity = like(self.velocity, points)
        return (time[..., None] if isinstance(time, Tensor) else time) * velocity

    def insert(
        self, points: Float[Tensor, "*points D"], own: Float[Tensor, "*points d"]
    ) -> Float[Tensor, "*points D"]:
        """points with the set's features replaced."""
        if self.dimensions is None:
            return own
        return points.index_copy(-1, indices(self.dimensions, points), own)

    def spread(
        self, gradient: Float[Tensor, "*points rows d"], points: Float[Tensor, "*points D"]
    ) -> Float[Tensor, "*points rows D"]:
        """Gradients over the set's features (..., rows, d) as gradients over all features (..., rows, D)."""
        if self.dimensions is None:
            return gradient
        whole = gradient.new_zeros(*gradient.shape[:-1], points.shape[-1])
        return whole.index_copy(-1, indices(self.dimensions, points), gradient)


def direction(u: Float[Tensor, "*points d"], axis: int) -> Float[Tensor, "*points d"]:
    """u (..., d) at length 1; along an axis where it vanishes."""
    norm = u.norm(dim=-1, keepdim=True)
    least = torch.finfo(u.dtype).tiny ** 0.5
    fixed = like(tuple(float(i == axis) for i in range(u.shape[-1])), u)
    return torch.where(norm > least, u / norm.clamp(min=least), fixed)


def lengthened(
    gradient: Float[Tensor, "*points d"], axis: int, floor: Tensor | float
) -> Float[Tensor, "*points d"]:
    """Gradients (..., d) at least `floor` long, 1 / (largest radius) for curves; along `axis` where they vanish.

    Inside of a unit circle 1 is the length at half its radius. From there inwards a step that meets the linear
    condition moves by at most one radius (plus margin) and still ends outside.
    """
    return direction(gradient, axis) * gradient.norm(dim=-1, keepdim=True).clamp(min=floor)
