"""Running bodies with a dial: trained runners, slowed when they run faster than the dial lets them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from envs.mamujoco.behaviours import FOLDER, Actor

from .dial import Curve, at

OWN = Path(__file__).parent / "actors"


@dataclass(frozen=True)
class Gait:
    """How a body runs; speeds in metres a second, forwards.

    runner, sprinter: levels of its actors; speed: where in what one agent of the whole body observes its speed stands.
    sprint: above this speed the runner takes over from the sprinter, within 1 m/s; rest: above this one the action
    fades to none, within 1 m/s.
    """

    folder: Path
    runner: str
    sprinter: str
    speed: int
    sprint: Curve
    rest: Curve


GAITS = {
    "HalfCheetah": Gait(
        FOLDER, "medium", "medium", 8, sprint=((0.0, 0.0), (1.0, 0.0)), rest=((0.0, 1.0), (1.0, 3.0)),
    ),
    "Walker2d": Gait(
        OWN, "medium", "expert", 8, sprint=((0.0, -6.0), (0.4, -1.0), (1.0, 2.0)),
        rest=((0.0, 1.8), (0.3, 2.1), (0.5, 6.0), (1.0, 9.0)),
    ),
}  # fmt: skip


class Runner:
    """The actions of a whole body, (n, actuators), for what one agent of it observes, (n, O), and dials (n,)."""

    def __init__(self, body: str, device: torch.device) -> None:
        gait = self.gait = GAITS[body]
        levels = (gait.runner, gait.sprinter)
        self.run, self.sprint = (Actor(gait.folder / f"{body}-v5-{level}.safetensors", device) for level in levels)

    def __call__(self, observations: Tensor, dial: Tensor) -> Tensor:
        speed = observations[:, self.gait.speed]
        running = self.run(observations)
        fast = fading(speed, at(self.gait.sprint, dial))[:, None]
        action = running + fast * (self.sprint(observations) - running)
        return action * fading(speed, at(self.gait.rest, dial))[:, None]


def fading(speed: Tensor, limit: Tensor) -> Tensor:
    """1 up to the limit, 0 from 1 m/s above it."""
    return (1 - (speed - limit)).clamp(0, 1)
