"""One body whose joints are split among agents, below a speed limit: the package's multi-agent velocity tasks."""

from __future__ import annotations

import math
from importlib import import_module
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box
from pettingzoo import ParallelEnv

from envs.mamujoco.body import NEIGHBOURS, quiet
from envs.mamujoco.picture import draw

from . import bridge
from .scenarios import Scenario


class Reachable(gymnasium.Wrapper):
    """Gymnasium's environment with the body's own attributes, which its wrappers hid from version 1.0 on."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.env.unwrapped, name)


class SafeTeam(ParallelEnv):
    """The agents of one body; each is paid the body's reward and charged the body's cost.

    repeat and limit as those of `SafeRobot`. The state is what one agent of the whole body would observe.
    """

    def __init__(self, scenario: Scenario, repeat: int, limit: int) -> None:
        bridge.load()
        module = import_module(f"{bridge.PACKAGE}.tasks.safe_multi_agent.safe_mujoco_multi")
        with quiet():
            body = gymnasium.make(f"{scenario.body}-v5", max_episode_steps=limit, disable_env_checker=True)
            self.env = module.SafeMAEnv(scenario.body, scenario.split, NEIGHBOURS, gym_env=Reachable(body))
        self.scenario, self.repeat, self.limit = scenario, repeat, limit
        self.metadata = {"name": scenario.name, "render_modes": ["rgb_array"], "is_parallelizable": True}
        self.render_mode = "rgb_array"
        self.possible_agents, self.agents = list(self.env.possible_agents), []
        self.max_episode_steps = math.ceil(limit / repeat)
        self.threshold = module.TASK_VELCITY_THRESHOLD[scenario.body][scenario.split]

    def observation_space(self, agent: str) -> Box:
        return self.env.observation_space(agent)

    def action_space(self, agent: str) -> Box:
        return self.env.action_space(agent)

    def reset(self, seed: int | None = None, options: dict | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        """Begin an episode."""
        with quiet():
            observations, _ = self.env.reset(seed=seed)
        self.agents = list(self.possible_agents)
        return observations, {agent: {"cost": 0.0} for agent in self.agents}

    def step(self, actions: dict[str, Any]) -> tuple[dict, dict, dict, dict, dict]:
        """Hold the agents' actions; an agent left out plays a zero vector."""
        if not self.agents:
            return {}, {}, {}, {}, {}
        held = {name: np.asarray(actions.get(name, self._zeros(name)), np.float32) for name in self.possible_agents}
        reward, cost = 0.0, 0.0
        for _ in range(self.repeat):
            observations, paid, charged, terminations, truncations, _ = self.env.step(held)
            first = self.possible_agents[0]
            reward, cost = reward + float(paid[first]), cost + float(charged[first])
            if terminations[first] or truncations[first]:
                self.agents = []
                break
        names, terminated = self.possible_agents, bool(terminations[first])
        infos = {name: {"cost": cost} for name in names}
        ended = dict.fromkeys(names, terminated), dict.fromkeys(names, bool(truncations[first]) and not terminated)
        return observations, dict.fromkeys(names, reward), *ended, infos

    def _zeros(self, agent: str) -> np.ndarray:
        return np.zeros(self.action_space(agent).shape, np.float32)

    def state(self) -> np.ndarray:
        """What one agent of the whole body would observe."""
        return self.env.state()

    def render(self) -> np.ndarray:
        """A picture without a graphics driver, (height, width, 3) uint8."""
        inner = self.env.single_agent_env.unwrapped
        return draw(inner.model, inner.data)

    def close(self) -> None:
        self.env.env.close()
