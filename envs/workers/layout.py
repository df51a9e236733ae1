"""The sizes of a PettingZoo environment as ours, and each agent's observations and actions as rows of equal length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.spaces.utils import flatdim, flatten
from pettingzoo import ParallelEnv

from madiff.interfaces import UserError

DEFAULT_LIMIT = 500
LIMIT_NAMES = ("max_cycles", "max_steps", "episode_limit", "max_episode_steps")
"""Where environments keep the length of their longest episode; without one of these it is DEFAULT_LIMIT."""
OBSERVED = spaces.Box | spaces.Discrete | spaces.MultiBinary | spaces.MultiDiscrete
OBSERVED_NAMES = ("Box", "Discrete", "MultiBinary", "MultiDiscrete", "Dict of observation and action_mask")


@dataclass(frozen=True)
class Layout:
    """What a batched form must know of an environment, one entry per possible agent; see `EnvironmentSpec`.

    observation_names: what the environment itself calls each observed value, in an attribute of this name.
    """

    agents: tuple[str, ...]
    observation_sizes: tuple[int, ...]
    action_sizes: tuple[int, ...]
    discrete: bool
    state_size: int
    limit: int
    observation_names: tuple[str, ...] = ()

    @property
    def observation_size(self) -> int:
        return max(self.observation_sizes)

    @property
    def action_size(self) -> int:
        return max(self.action_sizes)


class Codec:
    """One agent's spaces: `observe` makes a flat float32 row of an observation, `act` an action of a row."""

    def __init__(self, agent: str, observation: spaces.Space, action: spaces.Space) -> None:
        inner = observation
        if isinstance(inner, spaces.Dict) and set(inner.spaces) == {"observation", "action_mask"}:
            inner = inner["observation"]
        if not isinstance(inner, OBSERVED):
            raise UserError(f"{agent} observes a {type(inner).__name__} space", "observations", OBSERVED_NAMES)
        floats = isinstance(action, spaces.Box) and np.issubdtype(action.dtype, np.floating)
        if not floats and not isinstance(action, spaces.Discrete):
            raise UserError(f"{agent} acts in {action}", "actions", "Discrete, or Box of floating-point numbers")
        self.agent, self.observed, self.action = agent, inner, action
        self.discrete = isinstance(action, spaces.Discrete)
        self.observation_size, self.action_size = flatdim(inner), flatdim(action)
        if isinstance(action, spaces.Box):
            low, high = finite_bounds(action)
            self.middle, self.half = (low + high) / 2, (high - low) / 2

    def observe(self, observation: Any) -> np.ndarray:
        """The flat row; one-hot for discrete observations, an image's pixels as they are."""
        if isinstance(observation, Mapping):
            observation = observation["observation"]
        return np.asarray(flatten(self.observed, observation), np.float32)

    def act(self, row: Any) -> Any:
        """An index becomes an element of the Discrete space, a vector in [-1, 1] one of the Box."""
        if isinstance(self.action, spaces.Discrete):
            return int(self.action.start + row)
        part = np.minimum(np.maximum(row[: self.action_size], -1.0), 1.0)
        return (self.middle + self.half * part).astype(self.action.dtype).reshape(self.action.shape)

    def mask(self, observation: Any, info: Mapping[str, Any]) -> np.ndarray:
        """Legal actions (action_size,) bool, from `info` or the observation; all where neither has an action_mask."""
        found = info.get("action_mask")
        if found is None and isinstance(observation, Mapping):
            found = observation["action_mask"]
        return np.ones(self.action_size, bool) if found is None else np.asarray(found).astype(bool)


def finite_bounds(box: spaces.Box) -> tuple[np.ndarray, np.ndarray]:
    """The flat bounds of a Box, with -1 and 1 for those that are infinite."""
    low, high = box.low.ravel().astype(float), box.high.ravel().astype(float)
    return np.where(np.isfinite(low), low, -1.0), np.where(np.isfinite(high), high, 1.0)


def read_layout(env: ParallelEnv, codecs: Sequence[Codec], limit: int | None) -> Layout:
    """The layout of an environment that has just been reset."""
    kinds = {codec.discrete for codec in codecs}
    if len(kinds) > 1:
        some = {codec.discrete: codec.agent for codec in codecs}
        raise UserError(f"{some[True]} has discrete actions, {some[False]} continuous ones", "actions", "one kind")
    try:
        state_size = len(read_state(env))
    except Exception:  # whatever a missing state raises
        state_size = 0
    return Layout(
        agents=tuple(codec.agent for codec in codecs),
        observation_sizes=tuple(codec.observation_size for codec in codecs),
        action_sizes=tuple(codec.action_size for codec in codecs),
        discrete=kinds.pop(),
        state_size=state_size,
        limit=limit or own_limit(env) or DEFAULT_LIMIT,
        observation_names=tuple(getattr(env, "observation_names", ())),
    )


def read_state(env: ParallelEnv) -> np.ndarray:
    """The global state as a flat float32 row; empty where it is an image."""
    state = np.asarray(env.state())
    return np.zeros(0, np.float32) if state.dtype == np.uint8 else state.astype(np.float32).ravel()


def own_limit(env: ParallelEnv) -> int | None:
    """The longest episode the environment itself declares, if it does."""
    inner = env.unwrapped
    found = [getattr(holder, name, None) for holder in (env, inner) for name in LIMIT_NAMES]
    return next((int(value) for value in found if isinstance(value, int | np.integer) and value > 0), None)
