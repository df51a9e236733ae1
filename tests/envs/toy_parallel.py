"""Small PettingZoo environments with the oddities that batching must cope with; worker processes import this file."""

import os
import signal
import time

import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple
from pettingzoo import ParallelEnv

SPACES = {
    "tuple": (Tuple([Discrete(2)]), Discrete(2)),
    "multi-discrete actions": (Box(-1, 1, (2,)), MultiDiscrete([2, 2])),
    "whole-number box": (Box(-1, 1, (2,)), Box(0, 5, (1,), np.int64)),
}


class Countdown(ParallelEnv):
    """Agent k leaves (terminated) after k + 2 steps; sizes differ; the reward is the action, the cost the step.

    Agent 0 may not play its last action, agent 1 not its first, and action spaces do not start at 0. The observation
    starts with a random number of this episode, the agent's row and the last action; a uniform draw is added each step.
    """

    metadata = {"name": "countdown", "render_modes": ["rgb_array"]}

    def __init__(self, agents=3, render_mode=None):
        self.possible_agents = [f"runner_{k}" for k in range(agents)]
        self.render_mode, self.received = render_mode, []
        self._observed = {a: Box(-99, 99, (3 + k,)) for k, a in enumerate(self.possible_agents)}
        self._acted = {a: Discrete(2 + k, start=10 * k) for k, a in enumerate(self.possible_agents)}

    def observation_space(self, agent):
        return self._observed[agent]

    def action_space(self, agent):
        return self._acted[agent]

    def reset(self, seed=None, options=None):
        self.random = np.random.default_rng(seed)
        self.number, self.time, self.agents = self.random.random(), 0, list(self.possible_agents)
        return self._seen({}), self._infos()

    def _seen(self, actions):
        rows = {}
        for k, agent in enumerate(self.possible_agents):
            if agent in self.agents:
                rows[agent] = np.zeros(3 + k, np.float32)
                rows[agent][:3] = self.number, k + self.random.random(), actions.get(agent, -1)
        return rows

    def _infos(self):
        masks = {}
        for k, agent in enumerate(self.possible_agents):
            masks[agent] = np.ones(2 + k, np.int8)
        masks["runner_0"][-1] = 0
        if "runner_1" in masks:
            masks["runner_1"][0] = 0
        return {agent: {"action_mask": masks[agent], "cost": float(self.time)} for agent in self.agents}

    def step(self, actions):
        assert set(actions) == set(self.agents)
        assert all(self.action_space(agent).contains(action) for agent, action in actions.items())
        self.received.append(dict(actions))
        self.time += 1
        answer = self._seen(actions), {agent: float(action) for agent, action in actions.items()}
        ends = {agent: self.time >= 2 + k for k, agent in enumerate(self.possible_agents) if agent in self.agents}
        infos = self._infos()
        self.agents = [agent for agent in self.agents if not ends[agent]]
        return *answer, ends, dict.fromkeys(ends, False), infos

    def state(self):
        return np.array([self.number, self.time])

    def render(self):
        return np.full((4, 6, 3), int(255 * self.number), np.uint8)


class Endless(Countdown):
    """Never over, unless it declares a limit."""

    def __init__(self, limit=None, observed=None, acted=None):
        super().__init__(agents=2)
        self.max_cycles = limit
        self._observed = dict.fromkeys(self.possible_agents, observed) if observed else self._observed
        self._acted = dict.fromkeys(self.possible_agents, acted) if acted else self._acted

    def _seen(self, actions):
        self.received.append(actions)
        return {agent: self._observed[agent].sample() for agent in self.possible_agents}

    def _infos(self):
        return {agent: {} for agent in self.agents}

    def step(self, actions):
        self.time += 1
        no = dict.fromkeys(self.agents, False)
        return self._seen(actions), dict.fromkeys(self.agents, 1.0), no, no, self._infos()

    def state(self):
        raise NotImplementedError

    def render(self):
        raise RuntimeError("no display")


class Trouble(Countdown):
    """Something goes wrong in the third step of a game of three agents."""

    def __init__(self, kind):
        if kind == "refuse":
            raise ValueError("no such board")
        super().__init__()
        self.kind = kind

    def step(self, actions):
        if self.time == 2 and self.kind == "raise":
            raise ZeroDivisionError("the third step")
        if self.time == 2 and self.kind == "exit":
            os._exit(7)
        if self.time == 2 and self.kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.time == 2 and self.kind == "sleep":
            time.sleep(1000)
        return super().step(actions)


def countdown(agents=3):
    return Countdown(agents)


def trouble(kind):
    return Trouble(kind)


def endless(limit=None):
    return Endless(limit)


def masked_observations():
    mask = Dict({"observation": Discrete(3), "action_mask": MultiBinary(2)})
    return Endless(observed=mask, acted=Discrete(2))


def pictures():
    return Endless(observed=Box(0, 255, (4, 5, 3), np.uint8), acted=Discrete(2))


def floats():
    return Endless(acted=Box(np.array([[0.0, -np.inf]]), np.array([[10.0, np.inf]]), dtype=np.float64))


def mixed():
    env = Endless(acted=Discrete(2))
    env._acted["runner_1"] = Box(-1, 1, (1,))
    return env


def unsupported(kind):
    observed, acted = SPACES[kind]
    return Endless(observed=observed, acted=acted)
