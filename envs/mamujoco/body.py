"""One MuJoCo body whose joints are split among several agents: `gymnasium_robotics.mamujoco_v1` on the v5 bodies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from io import StringIO
from typing import Any

import mujoco
import numpy as np

from .picture import draw

with redirect_stderr(StringIO()):  # it gives notice of a change to environments that are not used here
    from gymnasium_robotics import mamujoco_v1

NEIGHBOURS = 1
"""An agent observes its own joints in full and the positions of those so many joints away (agent_obsk)."""
LIMIT = 1000


@dataclass(frozen=True)
class Scenario:
    """A body, into how many agents of how many joints it is split, and which actuators each agent moves, in order."""

    body: str
    split: str
    actuators: tuple[tuple[int, ...], ...]

    @property
    def agents(self) -> int:
        return len(self.actuators)


SCENARIOS = {
    "2halfcheetah": Scenario("HalfCheetah", "2x3", ((0, 1, 2), (3, 4, 5))),
    "2ant": Scenario("Ant", "2x4", ((2, 3, 4, 5), (6, 7, 0, 1))),
    "4ant": Scenario("Ant", "4x2", ((2, 3), (4, 5), (6, 7), (0, 1))),
    "3hopper": Scenario("Hopper", "3x1", ((0,), (1,), (2,))),
}


class SplitBody(mamujoco_v1.parallel_env):
    """The official environment, with pictures that need no graphics driver."""

    def render(self) -> np.ndarray:
        inner = self.single_agent_env.unwrapped
        return draw(inner.model, inner.data)


def make(scenario: str, limit: int) -> SplitBody:
    """One copy; it pays every agent the body's reward."""
    chosen = SCENARIOS[scenario]
    options: dict[str, Any] = {"max_episode_steps": limit, "disable_env_checker": True}
    with quiet():
        return SplitBody(scenario=chosen.body, agent_conf=chosen.split, agent_obsk=NEIGHBOURS, **options)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep MuJoCo from writing MUJOCO_LOG.TXT where it stands about old-fashioned lines in the bodies' files."""
    before = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(lambda text: None)
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(before)
