"""PettingZoo's parallel interface over any batched environment of ours with one copy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from pettingzoo import ParallelEnv
from torch import Tensor

from madiff.interfaces import BatchedEnvironment, TimeStep, UserError

RENDER_MODES = ("rgb_array",)


class ParallelView(ParallelEnv):
    """One copy of a batched environment as dictionaries by agent; all agents stay listed until the episode ends.

    `infos[agent]` holds "cost", "action_mask" (actions,) int8 where the environment has masks, and whatever the
    environment itself reports; entries led by (copies, agent) give each agent its own.
    names: of the agents in their order, None for agent_0, agent_1, ...; bound: largest absolute observation.
    """

    def __init__(
        self,
        env: BatchedEnvironment,
        names: Sequence[str] | None = None,
        render_mode: str | None = None,
        *,
        bound: float = np.inf,
        render_fps: int = 10,
    ) -> None:
        if render_mode not in (None, *RENDER_MODES):
            raise UserError(f"{render_mode!r}", "render_mode", RENDER_MODES)
        if env.copies != 1:
            raise ValueError(f"a parallel view shows one copy, not {env.copies}")
        self.batched, self.spec, self.render_mode = env, env.spec, render_mode
        self.metadata = {
            "name": env.spec.name, "render_modes": list(RENDER_MODES), "is_parallelizable": True,
            "render_fps": render_fps,
        }  # fmt: skip
        self.possible_agents = list(names or (f"agent_{i}" for i in range(env.spec.agents)))
        self.agents: list[str] = []
        spec, count = env.spec, env.spec.agents
        self._sizes = spec.observation_sizes or (spec.observation_size,) * count
        self._widths = spec.action_sizes or (spec.action_size,) * count
        observed = [Box(-bound, bound, (size,)) for size in self._sizes]
        acting = [Discrete(width) if spec.discrete else Box(-1.0, 1.0, (width,)) for width in self._widths]
        self._observation_space = dict(zip(self.possible_agents, observed, strict=True))
        self._action_space = dict(zip(self.possible_agents, acting, strict=True))
        self._state = np.zeros(spec.state_size, np.float32)
        self._seeds = np.random.default_rng()

    def observation_space(self, agent: str) -> Box:
        return self._observation_space[agent]

    def action_space(self, agent: str) -> Box | Discrete:
        return self._action_space[agent]

    def reset(self, seed: int | None = None, options: dict | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        """Begin an episode; without a seed the next one of the stream that the last given seed began."""
        if seed is not None:
            self._seeds = np.random.default_rng(seed)
        self.agents = list(self.possible_agents)
        with torch.inference_mode():
            step = self.batched.reset(int(self._seeds.integers(2**62)))
        return self._observed(step), self._infos(step)

    def step(self, actions: dict[str, Any]) -> tuple[dict, dict, dict, dict, dict]:
        """Observations, rewards, terminations, truncations and infos; an agent left out plays 0 or a zero vector."""
        if not self.agents:
            return {}, {}, {}, {}, {}
        # Nothing leaves as a tensor here; inference mode saves a sixth of a single copy's time.
        with torch.inference_mode():
            step = self.batched.step(self._joined(actions))
        observations, infos = self._observed(step), self._infos(step)
        rewards = dict(zip(self.agents, step.rewards[0].tolist(), strict=True))
        terminated, truncated = bool(step.terminated), bool(step.truncated)
        terminations = dict.fromkeys(self.agents, terminated)
        truncations = dict.fromkeys(self.agents, truncated)
        if terminated or truncated:
            self.agents = []
        return observations, rewards, terminations, truncations, infos

    def _joined(self, actions: dict[str, Any]) -> Tensor:
        if self.spec.discrete:
            return torch.tensor([[int(actions.get(agent, 0)) for agent in self.possible_agents]])
        joint = np.zeros((1, self.spec.agents, self.spec.action_size), np.float32)
        for i, (agent, width) in enumerate(zip(self.possible_agents, self._widths, strict=True)):
            joint[0, i, :width] = actions.get(agent, 0.0)
        if not np.isfinite(joint).all():
            raise UserError("an action is NaN or infinite", "actions", "numbers in [-1, 1]")
        return torch.from_numpy(joint)

    def _observed(self, step: TimeStep) -> dict[str, np.ndarray]:
        self._state = step.state[0].float().cpu().numpy()
        rows = zip(self.possible_agents, step.observations[0].float().cpu().numpy(), self._sizes, strict=True)
        return {agent: row[:size] for agent, row, size in rows}

    def _infos(self, step: TimeStep) -> dict[str, dict[str, Any]]:
        costs = step.costs[0].tolist()
        shared = {name: value[0].item() for name, value in step.info.items() if value.ndim == 1}
        own = {name: value[0].cpu().numpy() for name, value in step.info.items() if value.ndim > 1}
        infos = {}
        for i, agent in enumerate(self.possible_agents):
            infos[agent] = {"cost": costs[i]} | shared | {name: value[i] for name, value in own.items()}
        if step.available_actions is not None:
            masks = step.available_actions[0].cpu().numpy().astype(np.int8)
            for agent, mask, width in zip(self.possible_agents, masks, self._widths, strict=True):
                infos[agent]["action_mask"] = mask[:width]
        return infos

    def state(self) -> np.ndarray:
        """The global state, (S,) float32; empty where the environment has none."""
        return self._state

    def render(self) -> np.ndarray | None:
        """A picture as (height, width, 3) uint8, None unless render_mode is "rgb_array"."""
        return self.batched.frame() if self.render_mode == "rgb_array" else None

    def close(self) -> None:
        """Close the environment where it holds something open, as worker processes."""
        close = getattr(self.batched, "close", None)
        if close is not None:
            close()
