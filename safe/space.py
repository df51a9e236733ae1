"""The features of a plan that constraints speak of, in real units, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from safe.constants import indices

if TYPE_CHECKING:
    from madiff.interfaces import PlanLayout


class Space:
    """Gathers some features of normalised plans (rows, time, agent, feature) in real units, and writes them back.

    layout: what the features mean (`madiff.interfaces.PlanLayout`); dimensions: which of them, in this order. Real
    units come from the layout, so that any normaliser works; one that clips (the empirical CDF) keeps points within the
    data's range, and a point that had to leave it comes back unsafe, which whoever reads it again will see.
    """

    def __init__(self, layout: PlanLayout, dimensions: tuple[int, ...]) -> None:
        self.layout, self.dimensions = layout, dimensions

    def gather(self, plan: Float[Tensor, "*points feature"]) -> Float[Tensor, "*points dimension"]:
        """(..., feature) normalised -> (..., dimension) real."""
        return self._chosen(self.layout.denormalize(plan))

    def write(
        self,
        plan: Float[Tensor, "*points feature"],
        before: Float[Tensor, "*points dimension"],
        points: Float[Tensor, "*points dimension"],
    ) -> Float[Tensor, "*points feature"]:
        """The plan with `points` (..., dimension) in place of `before`, its own; equal entries stay bit for bit."""
        chosen = indices(self.dimensions, plan)
        real = self.layout.denormalize(plan).index_copy(-1, chosen, points.to(plan.dtype))
        written = torch.where(points == before, self._chosen(plan), self._chosen(self.layout.normalize(real)))
        return plan.index_copy(-1, chosen, written)

    def _chosen(self, plan: Tensor) -> Tensor:
        return plan.index_select(-1, indices(self.dimensions, plan))

    def time(self, plan: Tensor, start: Tensor | float = 0.0) -> Tensor:
        """When each waypoint is, (rows or 1, time, 1): `start` (rows,) at the one now, dt more at each later one."""
        steps = torch.arange(plan.shape[1], device=plan.device, dtype=plan.dtype) - self.layout.history
        start = start.to(plan).view(-1, 1) if isinstance(start, Tensor) else start
        return (start + self.layout.dt * steps).reshape(-1, plan.shape[1], 1)
