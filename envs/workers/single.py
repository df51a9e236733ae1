"""One copy of a PettingZoo environment with all its agents as rows of arrays, whoever of them is still there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from pettingzoo import ParallelEnv

from madiff.interfaces import UserError

from .layout import Codec, Layout, read_layout, read_state


class Joint(NamedTuple):
    """One step of one copy, or of several when led by a copies axis.

    observations (A, O), state (S,) float32; available (A, n) bool, n = 0 for continuous actions; rewards, costs (A,)
    float32; terminated, truncated bool; illegal int64: actions outside the mask.
    """

    observations: np.ndarray
    state: np.ndarray
    available: np.ndarray
    rewards: np.ndarray
    costs: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    illegal: np.ndarray


class Single:
    """An environment with a fixed number of rows, one for each possible agent.

    After an agent's last step, and before its first, it sees zeros, is paid nothing and may only play action 0. The
    episode ends when all agents have left, or after `limit` steps (truncated); then the copy stands still and pays
    nothing until it is reset. An illegal action becomes the first legal one. A new one stands as after `reset(0)`.
    """

    def __init__(self, env: ParallelEnv, limit: int | None = None) -> None:
        self.env = env
        names = getattr(env, "possible_agents", None)
        if not names:
            raise UserError("has no possible_agents", type(env).__name__, "a PettingZoo ParallelEnv that lists them")
        self.codecs = [Codec(name, env.observation_space(name), env.action_space(name)) for name in names]
        observations, infos = env.reset(seed=0)
        self.layout: Layout = read_layout(env, self.codecs, limit)
        self._begin(0, observations, infos)

    def reset(self, seed: int) -> Joint:
        """Begin an episode whose randomness the seed fixes."""
        observations, infos = self.env.reset(seed=seed)
        return self._begin(seed, observations, infos)

    def _begin(self, seed: int, observations: Mapping[str, Any], infos: Mapping[str, Any]) -> Joint:
        self.seed, self.actions = seed, []
        self.live = set(self.env.agents)
        self.last = self._joint(observations, infos, {}, self.live, False, False)
        return self.last

    def step(self, actions: np.ndarray) -> Joint:
        """Play one step; actions (A,) int64 or (A, size) float32 in [-1, 1]."""
        if self.last.terminated or self.last.truncated:
            nothing = np.zeros_like(self.last.rewards)
            return self.last._replace(rewards=nothing, costs=nothing, illegal=np.int64(0))
        self.actions.append(np.array(actions))
        actions, illegal = self._legalised(actions)
        acting = {c.agent: c.act(row) for c, row in zip(self.codecs, actions, strict=True) if c.agent in self.live}
        observations, rewards, terminations, truncations, infos = self.env.step(acting)
        leaving = {name for name in self.live if terminations.get(name) or truncations.get(name)}
        present, self.live = self.live | set(self.env.agents), set(self.env.agents) - leaving
        terminated = not self.live and all(terminations.get(name) for name in leaving)
        truncated = not terminated and (not self.live or len(self.actions) >= self.layout.limit)
        joint = self._joint(observations, infos, rewards, present, terminated, truncated)
        self.last = joint._replace(illegal=np.int64(illegal))
        return self.last

    def recording(self) -> tuple[int, np.ndarray]:
        """The seed and the actions (t, A) or (t, A, size) that lead to where the copy stands."""
        size = () if self.layout.discrete else (self.layout.action_size,)
        return self.seed, np.array(self.actions).reshape(-1, len(self.codecs), *size)

    def replay(self, seed: int, actions: Sequence[np.ndarray]) -> None:
        """Bring the copy to where this recording stands, as far as the environment repeats itself."""
        self.reset(seed)
        for row in actions:
            self.step(row)

    def frame(self) -> np.ndarray:
        """The environment's own picture (height, width, 3) uint8, or one that says why there is none."""
        try:
            picture = np.asarray(self.env.render())
        except Exception as error:  # of whatever graphics library the environment uses; a film is no reason to fail
            return notice(f"no picture: {type(error).__name__}")
        return picture[..., :3].astype(np.uint8) if picture.ndim == 3 else notice("this environment draws no pictures")

    def _legalised(self, actions: np.ndarray) -> tuple[np.ndarray, int]:
        if not self.layout.discrete:
            return actions, 0
        available = self.last.available
        legal = available[np.arange(len(actions)), actions]
        return np.where(legal, actions, available.argmax(1)), int((~legal).sum())

    def _joint(
        self,
        observations: Mapping[str, Any],
        infos: Mapping[str, Any],
        rewards: Mapping[str, Any],
        present: set[str],
        terminated: bool,
        truncated: bool,
    ) -> Joint:
        """Rows of what the environment said; those who leave with this step are still shown what they see last."""
        layout, count = self.layout, len(self.codecs)
        seen = np.zeros((count, layout.observation_size), np.float32)
        available = np.zeros((count, layout.action_size if layout.discrete else 0), bool)
        paid, costs = np.zeros(count, np.float32), np.zeros(count, np.float32)
        for row, codec in enumerate(self.codecs):
            agent, info = codec.agent, infos.get(codec.agent) or {}
            paid[row], costs[row] = rewards.get(agent, 0.0), info.get("cost", 0.0)
            if agent not in present or agent not in observations:
                continue
            seen[row, : codec.observation_size] = codec.observe(observations[agent])
            # In the last step of the episode the mask belongs to what is seen last, for those who bootstrap from it.
            if layout.discrete and (agent in self.live or terminated or truncated):
                available[row, : codec.action_size] = codec.mask(observations[agent], info)
        if layout.discrete:
            available[~available.any(1), 0] = True
        state = read_state(self.env) if layout.state_size else np.zeros(0, np.float32)
        ends = np.bool_(terminated), np.bool_(truncated)
        return Joint(seen, state, available, paid, costs, *ends, np.int64(0))


def notice(text: str) -> np.ndarray:
    """A picture with one line of text."""
    canvas = FigureCanvasAgg(Figure((4, 1), 80))
    canvas.figure.text(0.5, 0.5, text, ha="center", va="center")
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
