"""Scripted drivers of the navigation tasks, from one that keeps clear of whatever costs to one that lingers in it.

They see what a learner sees, the observation, and decide for all copies at once. Places are in metres in the robot's
own frame unless said otherwise, speeds in metres a second.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .dial import Curve, at
from .drives import Drive
from .lidar import BINS, heading, object_place, object_places, own_place, rotated
from .steering import Discs, steer

REACH = 3.0
CIRCLE_REACH = 6.0
CIRCLE = 1.5
"""Radius of the circle that the circle task pays for."""
AHEAD = 0.5
"""Radians by which the point to follow runs ahead on the circle."""
SEARCH = (1.0, 0.3)
"""Where to go while the goal is out of the lidar's reach: in a wide bow."""
SHOVE = 0.6
"""Share of the speed kept while pushing the box, which slips off when pushed fast."""
BODY, ROOM = 0.15, 0.12
"""Half a robot's length, and the room beside bodies that must not be bumped into, whoever drives."""


@dataclass(frozen=True)
class Manners:
    """What a driver does at each dial.

    speed: wanted; gap: room given to hazards beyond their radius; fear: weight of hazards when steering, negative ones
    attract; linger: share of the speed kept inside a hazard; wall: farthest |x| aimed at on the circle.
    """

    speed: Curve
    gap: Curve = ((0.0, 0.0), (1.0, 0.0))
    fear: Curve = ((0.0, 0.0), (1.0, 0.0))
    linger: Curve = ((0.0, 1.0), (1.0, 1.0))
    wall: Curve = ((0.0, CIRCLE), (1.0, CIRCLE))


class Senses:
    """A robot's observations (n, O), by the names of their parts."""

    def __init__(self, names: tuple[str, ...], observations: Tensor) -> None:
        self.names, self.observations = names, observations

    def part(self, first: str, size: int) -> Tensor:
        start = self.names.index(first)
        return self.observations[:, start : start + size]

    def lidar(self, thing: str) -> Tensor:
        return self.part(f"{thing}_lidar_0", BINS)

    @property
    def velocity(self) -> Tensor:
        return self.part("velocimeter_x", 2)

    @property
    def spin(self) -> Tensor:
        return self.part("gyro_z", 1)[:, 0]

    @property
    def magnetometer(self) -> Tensor:
        return self.part("magnetometer_x", 3)


@dataclass(frozen=True)
class Driver:
    """A robot's drive and manners with a dial (n,) for each copy; its methods give actions (n, 2)."""

    drive: Drive
    manners: Manners
    dial: Tensor
    hazard: float = 0.2
    box: float = 0.2

    def goal(self, senses: Senses) -> Tensor:
        """Goal tasks: from goal to goal, around the hazards or through them."""
        goal, seen = object_place(senses.lidar("goal"), REACH)
        target = torch.where(seen[:, None], goal, goal.new_tensor(SEARCH))
        return self.go(senses, target, self.hazards(senses))

    def circle(self, senses: Senses) -> Tensor:
        """Circle tasks: after a point that runs ahead on the circle, cut off at the wall the driver respects."""
        middle, _ = object_place(senses.lidar("circle"), CIRCLE_REACH)
        cos, sin = heading(senses.magnetometer)
        place = own_place(middle, senses.magnetometer)
        angle = torch.atan2(place[:, 1], place[:, 0]) + AHEAD
        wall = at(self.manners.wall, self.dial)
        point = torch.stack([(CIRCLE * angle.cos()).clamp(-wall, wall), CIRCLE * angle.sin()], -1)
        return self.towards(senses, rotated(point - place, cos, -sin))

    def push(self, senses: Senses) -> Tensor:
        """Push tasks: around the box to the side away from the goal, then straight on."""
        goal, seen = object_place(senses.lidar("goal"), REACH)
        box, boxed = object_place(senses.lidar("push_box"), REACH)
        way = torch.where((seen & boxed)[:, None], goal - box, box)
        way = way / way.norm(dim=-1, keepdim=True).clamp_min(1e-6)
        # Where the robot is, seen from the box: how far along the way to the goal, and how far beside it.
        along = -(box * way).sum(-1, keepdim=True)
        beside = -box - along * way
        reach = 1.5 * self.box  # with the posts at its corners, between which the robot finds hold
        ready = (along[:, 0] < -reach) & (beside.norm(dim=-1) < 0.5 * reach)
        pillars, there = object_places(senses.lidar("pillars"), REACH)
        discs = self.hazards(senses) + Discs.of(pillars, there, self.hazard + BODY + ROOM, 4.0)
        around = discs + Discs.of(box[:, None], boxed[:, None], reach + BODY + ROOM, 4.0)
        behind = box - (reach + BODY + 2 * ROOM) * way
        walk = self.go(senses, torch.where(boxed[:, None], behind, box.new_tensor(SEARCH)), around)
        shove = self.towards(senses, way - 5.0 * beside, SHOVE)
        return torch.where((ready & boxed)[:, None], shove, walk)

    def hazards(self, senses: Senses) -> Discs:
        places, there = object_places(senses.lidar("hazards"), REACH)
        radius = self.hazard + at(self.manners.gap, self.dial)
        return Discs.of(places, there, radius, at(self.manners.fear, self.dial))

    def go(self, senses: Senses, target: Tensor, discs: Discs) -> Tensor:
        """Towards a target, steering by the discs, slower inside a hazard for drivers who linger."""
        inside = senses.lidar("hazards").amax(-1) >= 1 - self.hazard / REACH
        share = torch.where(inside, at(self.manners.linger, self.dial), 1.0)
        return self.towards(senses, steer(target, discs), share)

    def towards(self, senses: Senses, way: Tensor, share: Tensor | float = 1.0) -> Tensor:
        """Along a direction, of any length, with this share of the wanted speed."""
        speed = at(self.manners.speed, self.dial) * share
        wanted = way / way.norm(dim=-1, keepdim=True).clamp_min(1e-6) * speed[:, None]
        return self.drive.act(wanted, senses.velocity, senses.spin)
