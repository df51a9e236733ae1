"""How a robot is made to move with a wanted velocity: from vectors in the robot's own frame to its actuators."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Drive:
    """Gains of a robot, and its geometry.

    thrust: action for each m/s of speed that is lacking; turn: action for each radian of error in direction; damp:
    action taken back for each rad/s of turning. wheels: whether the robot's front is its own negative y axis and its
    actions are two wheels, as the Car's are, rather than thrust along x and a turn, as the Point's.
    """

    thrust: float
    turn: float
    damp: float
    wheels: bool

    def act(self, wanted: Tensor, velocity: Tensor, spin: Tensor) -> Tensor:
        """Actions (n, 2) in [-1, 1] from wanted and present velocities (n, 2), m/s, and turning rates (n,), rad/s."""
        wanted, velocity = self.ahead(wanted), self.ahead(velocity)
        # A sliding robot has to push against its own motion; wheels slide little and only need to point the right way.
        push = wanted if self.wheels else 2 * wanted - velocity
        error = torch.atan2(push[:, 1], push[:, 0])
        thrust = (self.thrust * (wanted - velocity)[:, 0]).clamp(-1, 1)
        turn = (self.turn * error - self.damp * spin).clamp(-1, 1)
        if not self.wheels:
            return torch.stack([thrust, turn], -1)
        return torch.stack([thrust + 2 * turn, thrust - 2 * turn], -1).clamp(-1, 1)

    def ahead(self, vectors: Tensor) -> Tensor:
        """Vectors (n, 2) of the robot's frame as (forward, left)."""
        return torch.stack([-vectors[:, 1], vectors[:, 0]], -1) if self.wheels else vectors


DRIVES = {
    "Point": Drive(thrust=4.0, turn=4.0, damp=0.0, wheels=False),
    "Car": Drive(thrust=4.0, turn=3.0, damp=0.2, wheels=True),
}
