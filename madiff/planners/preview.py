"""Following a plan by looking ahead: the action from which, by a model of the motion, the next waypoints are met best.

Linear-quadratic preview control (Tomizuka, 1975) over a short horizon. A proportional and derivative controller knows
where it should be and turns when it is late; this one knows the way and turns in time.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from madiff.data.motion import AffineMotion
from madiff.interfaces import UserError

EFFORT = 1e-3  # of actions against places, relative to what they move: keeps the solution unique, and hardly more
SPEED = 0.1  # of velocities against places: who corrects a plan means its places, and its velocities follow but roughly
FAINT = 1e-6  # metres that a full action must move something, or there is nothing to follow with


class Preview:
    """u_0 of the u that minimise sum_k |p_k - p*_k|^2 + speed |tau (v_k - v*_k)|^2 + effort |u|^2 over the next steps.

    p_k, v_k: where the affine motion leads under u_0 ... u_(k-1); tau: the seconds of a step, which is how far a place
    moves for a unit of velocity. Without bounds on u, so that it is one product: u_0 = K (target - free motion).
    positions, velocities: dimensions of the observation, as many of each; steps: looked ahead. Raises UserError where
    no motion was measured, or where actions move nothing.
    """

    def __init__(
        self, motion: AffineMotion, positions: Sequence[int], velocities: Sequence[int], steps: int
    ) -> None:
        if not int(motion.seen):
            what = "this training measured no motion to look ahead with"
            raise UserError(what, "algo.controller", "track, or a training with algo.positions and algo.velocities")
        self.steps, rows = steps, [*positions, *velocities]
        state, action, constant = (part.double() for part in (motion.state, motion.action, motion.constant))
        free, drift, pushes = [torch.eye(state.shape[1]).to(state).expand_as(state)], [torch.zeros_like(constant)], []
        for _ in range(steps):
            pushes.append((free[-1] @ action)[:, rows])
            free.append(state @ free[-1])
            drift.append(torch.einsum("aij,aj->ai", state, drift[-1]) + constant)
        tau = state[:, list(positions), list(velocities)]
        weight = torch.cat([torch.ones_like(tau), SPEED * tau.square()], dim=1).repeat(1, steps)
        gain = self._gain(self._led(pushes), weight)
        self.gain = gain.float()
        self.free = torch.stack([power[:, rows] for power in free[1:]], 1).flatten(1, 2).float()
        self.drift = torch.stack([moved[:, rows] for moved in drift[1:]], 1).flatten(1, 2).float()

    def _led(self, pushes: list[Tensor]) -> Tensor:
        """How actions move places and velocities of all steps: (agent, steps * 2 d, steps * D), lower triangular."""
        nothing = torch.zeros_like(pushes[0])
        rows = [[pushes[k - i] if i <= k else nothing for i in range(self.steps)] for k in range(self.steps)]
        return torch.cat([torch.cat(row, dim=2) for row in rows], dim=1)

    def _gain(self, led: Tensor, weight: Tensor) -> Tensor:
        """K (agent, D, steps * 2 d)."""
        if not (led.abs().amax((1, 2)) > FAINT).all():
            raise UserError("by the motion that was measured, actions move nothing", "algo.controller", "track, plan")
        weighted = led.mT * weight[:, None]
        normal = weighted @ led
        effort = EFFORT * normal.diagonal(dim1=1, dim2=2).mean(1)
        identity = torch.eye(normal.shape[1]).to(normal)
        return torch.linalg.solve(normal + effort[:, None, None] * identity, weighted)[:, : led.shape[2] // self.steps]

    def action(self, observations: Tensor, places: Tensor, speeds: Tensor) -> Tensor:
        """Actions (B, agent, D) in [-1, 1] from raw observations (B, agent, O) and targets (B, steps, agent, d)."""
        target = torch.cat([places, speeds], dim=-1).transpose(1, 2).flatten(2)
        led = torch.einsum("aro,bao->bar", self.free, observations) + self.drift
        return torch.einsum("adr,bar->bad", self.gain, target - led).clamp(-1, 1)
