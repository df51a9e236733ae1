"""Plans whose positions and velocities agree: a place is where the speeds before it lead."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from madiff.diffusion.sampler import Hook

if TYPE_CHECKING:
    from madiff.planners.diffuser_encoding import PlanEncoder


class ConsistentMotion(Hook):
    """Makes the denoised plan one that a body can follow.

    Of positions p and velocities v it keeps the p' that minimise |p' - p|^2 + weight |p'_{k+1} - p'_k -
    seconds (v_k + v_{k+1}) / 2|^2, in real units, and as velocities the mean speeds of p' around each waypoint. The
    first waypoint stays as it is, and so do the last one's positions where a goal holds them.

    positions, velocities: dimensions of the observation; seconds: from one waypoint to the next.
    """

    capturable = False  # its shares and indices come from the host

    def __init__(
        self, encoder: PlanEncoder, positions: Sequence[int], velocities: Sequence[int], seconds: float, weight: float
    ) -> None:
        self.encoder, self.positions, self.velocities = encoder, list(positions), list(velocities)
        self.seconds, self.weight = seconds, weight
        self.held = bool(set(positions) & set(encoder.goal))

    def after(
        self, x_prev: Tensor, x_next: Tensor, x0_hat: Tensor, t: Tensor, s: Tensor, ctx: dict[str, Any]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        return (self.led(x_next) if ctx["step"] + 1 == ctx["steps"] else x_next), {}

    def led(self, plans: Tensor) -> Tensor:
        """Normalised plans with positions and velocities that agree."""
        observed = self.encoder.decode(self.encoder.observations(plans))
        observed[..., self.positions], observed[..., self.velocities] = self.agreed(
            observed[..., self.positions], observed[..., self.velocities]
        )
        encoded, changed = self.encoder.encode(observed), plans.clone()
        for i in (*self.positions, *self.velocities):
            from_end = i - observed.shape[-1]
            changed[..., from_end] = encoded[..., from_end]
        return changed

    def agreed(self, p: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Positions and velocities (B, T, agent, d) that agree, in real units."""
        missing = self.seconds * (v[:, 1:] + v[:, :-1]) / 2 - p.diff(dim=1)
        shares = spread(p.shape[1], self.weight, self.held).to(p)
        p = p + torch.einsum("ij,bjad->biad", shares, missing)
        speed = p.diff(dim=1) / self.seconds
        return p, torch.cat([v[:, :1], (speed[:, 1:] + speed[:, :-1]) / 2, v[:, -1:]], dim=1)


@lru_cache
def spread(waypoints: int, weight: float, held: bool) -> Tensor:
    """What each waypoint moves for what is missing between two, (T, T - 1): the solution of the normal equations."""
    moves = torch.eye(waypoints, dtype=torch.float64).diff(dim=0)
    free = slice(1, waypoints - 1 if held else waypoints)
    system = torch.eye(waypoints, dtype=torch.float64) + weight * moves.T @ moves
    found = torch.zeros(waypoints, waypoints - 1, dtype=torch.float64)
    found[free] = torch.linalg.solve(system[free, free], weight * moves.T[free])
    return found
