"""One robot or body of Safety-Gymnasium as a PettingZoo `ParallelEnv`, with our time limit and its cost in `info`."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
from gymnasium.spaces import Box
from pettingzoo import ParallelEnv

from envs.mamujoco.body import quiet
from envs.mamujoco.picture import draw

from . import bridge, naming, picture
from .scenarios import Scenario

AGENT = "agent_0"
STARTS = 20
"""Layouts tried for one seed: the package refuses those in which the robot cannot be placed, or starts with a cost."""
NEXT_SEED = 7919


class SafeRobot(ParallelEnv):
    """A scenario of one agent.

    repeat: steps of the simulator for which an action holds; rewards and costs are their sums. position: whether the
    observation ends with the robot's place, `naming.PLACE`. limit: steps of the simulator in an episode.
    An episode's last action may hold for fewer steps than the others.
    """

    def __init__(self, scenario: Scenario, repeat: int, position: bool, limit: int) -> None:
        with quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # bounds of a Box cast to a smaller type
            self.env = bridge.make(scenario.id)
        self.scenario, self.repeat, self.position, self.limit = scenario, repeat, position, limit
        self.metadata = {"name": scenario.name, "render_modes": ["rgb_array"], "is_parallelizable": True}
        self.render_mode = "rgb_array"
        self.possible_agents, self.agents = [AGENT], []
        self.max_episode_steps = math.ceil(limit / repeat)
        size = self.env.observation_space.shape[0] + position * len(naming.PLACE)
        self._observed = Box(-np.inf, np.inf, (size,), np.float64)
        self.steps = 0

    @property
    def observation_names(self) -> tuple[str, ...]:
        """What each number of the observation is; velocity tasks have the names of the body's joints."""
        if self.scenario.kind == "velocity":
            return naming.moved(self.env.unwrapped.model, self._observed.shape[0])
        return naming.sensed(self.env.obs_space_dict.spaces) + (naming.PLACE if self.position else ())

    def observation_space(self, agent: str) -> Box:
        return self._observed

    def action_space(self, agent: str) -> Box:
        return self.env.action_space

    def reset(self, seed: int | None = None, options: dict | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        """Begin an episode; a seed fixes the layout and all that happens by chance."""
        self.steps, self.agents = 0, [AGENT]
        with quiet():
            observation = self._start(seed)
        return {AGENT: self._placed(observation)}, {AGENT: {"cost": 0.0}}

    def _start(self, seed: int | None) -> np.ndarray:
        for attempt in range(STARTS):
            try:
                return self.env.reset(seed=None if seed is None else seed + attempt * NEXT_SEED)[0]
            except (AssertionError, bridge.resampling_error()) as error:
                refused = error
        raise RuntimeError(f"{self.scenario.name}: no layout can be found from seed {seed} ({refused})")

    def step(self, actions: dict[str, Any]) -> tuple[dict, dict, dict, dict, dict]:
        """Hold one action; `info` has the cost, and how often the goal was reached where there is one."""
        if not self.agents:
            return {}, {}, {}, {}, {}
        action = np.array(actions[AGENT], np.float64)
        reward, cost, goals = 0.0, 0.0, 0
        terminated = truncated = False
        for _ in range(min(self.repeat, self.limit - self.steps)):
            observation, paid, charged, terminated, truncated, info = self.env.step(action)
            reward, cost, goals = reward + float(paid), cost + float(charged), goals + bool(info.get("goal_met"))
            self.steps += 1
            if terminated or truncated:
                break
        truncated = not terminated and (truncated or self.steps >= self.limit)
        if terminated or truncated:
            self.agents = []
        told = {"cost": cost, "goals": goals}
        five = self._placed(observation), reward, terminated, truncated, told
        return tuple({AGENT: value} for value in five)

    def _placed(self, observation: np.ndarray) -> np.ndarray:
        """The observation, with the robot's place if that is wanted."""
        if not self.position:
            return observation
        agent = self.env.task.agent
        return np.concatenate([observation, agent.pos[:2], agent.mat[:2, 0]])

    def render(self) -> np.ndarray:
        """A picture without a graphics driver, (height, width, 3) uint8."""
        if self.scenario.kind == "velocity":
            inner = self.env.unwrapped
            return draw(inner.model, inner.data)
        return picture.draw_arena(self.env.task)

    def close(self) -> None:
        self.env.close()
