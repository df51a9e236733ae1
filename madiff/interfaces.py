"""The protocols that hold the suite together, and its one user-facing error.

This file imports nothing of ours: every room may import it, and it explains what the rooms hand each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor


class UserError(ValueError):
    """A mistake the user can mend: shown as one line without a traceback; the process exits with code 2.

    what: the value and what is wrong with it; where: the key, file or flag it came from; allowed: what is accepted.
    """

    def __init__(self, what: str, where: str = "", allowed: object = None) -> None:
        self.what, self.where, self.allowed = what, where, allowed
        parts = [f"{where}: {what}" if where else what]
        if allowed is not None:
            parts.append(f"allowed: {', '.join(map(str, allowed)) if isinstance(allowed, list | tuple) else allowed}")
        # Names within files may be anybody's: one line, and nothing that a terminal would obey.
        super().__init__("".join(letter if letter.isprintable() else " " for letter in "; ".join(parts)))


def within(low: float, high: float, default: float) -> Any:
    """A method's option with its smallest and largest legal value, both legal; high may be infinite."""
    return field(default=default, metadata={"minimum": low, "maximum": None if high == math.inf else high})


@dataclass(frozen=True)
class EnvironmentSpec:
    """What a learner may know of an environment; JSON-serialisable through `dataclasses.asdict`.

    action_size: number of discrete actions, or dimensions of a continuous action in [-1, 1].
    state_size: length of the global state vector, 0 where there is none.
    episode_limit: longest episode in environment steps.
    options: keyword arguments that make the same environment again.
    observation_sizes, action_sizes: what each agent has of the padded sizes; empty where all agents have all of them.
    observation_names: of each observed value, the same for all agents; empty where the environment names nothing.
    """

    name: str
    scenario: str
    agents: int
    observation_size: int
    action_size: int
    discrete: bool
    state_size: int
    episode_limit: int
    options: Mapping[str, Any] = field(default_factory=dict)
    observation_sizes: tuple[int, ...] = ()
    action_sizes: tuple[int, ...] = ()
    observation_names: tuple[str, ...] = ()


class TimeStep(NamedTuple):
    """One step of all copies of a batched environment.

    observations (copies, agent, O) float32; state (copies, S) float32;
    available_actions (copies, agent, n) bool, None for continuous actions;
    rewards, costs (copies, agent) float32; terminated, truncated (copies,) bool;
    info: tensors led by the copies axis, e.g. won (copies,) bool, illegal_actions (copies,) int64.
    """

    observations: Tensor
    state: Tensor
    available_actions: Tensor | None
    rewards: Tensor
    costs: Tensor
    terminated: Tensor
    truncated: Tensor
    info: dict[str, Tensor]


@runtime_checkable
class BatchedEnvironment(Protocol):
    """Many independent copies of one environment, stepped together as tensors.

    With auto_reset=False a finished copy stands still and pays nothing until `reset`; with auto_reset=True it starts
    anew within the same step and its last observation is in `info["final_observations"]`.
    """

    spec: EnvironmentSpec
    copies: int
    device: torch.device

    def reset(self, seed: int) -> TimeStep: ...

    def step(self, actions: Tensor) -> TimeStep:
        """actions: (copies, agent) int64, or (copies, agent, A) float32 in [-1, 1]."""
        ...

    @property
    def state(self) -> dict[str, Tensor]:
        """Everything needed to repeat the next step exactly, by name."""
        ...

    def set_state(self, state: dict[str, Tensor]) -> None: ...

    def frame(self, copy: int = 0) -> np.ndarray:
        """A picture of one copy: (height, width, 3) uint8."""
        ...


class Policy(Protocol):
    """Acts for all agents of many environment copies at once; planners, policies, baselines and scripts alike.

    A learned policy also says its `parameters` and `network_calls_per_decision`; a script has neither.
    """

    def reset(self, seed: int, n: int) -> None:
        """Forget all history and prepare for n copies; the seed fixes every later draw."""
        ...

    def act(self, observations: Tensor, masks: Tensor | None, active: Tensor | None = None) -> Tensor:
        """Choose one action per agent and copy.

        observations (n, agent, O); masks (n, agent, actions) bool or None; active (n,) bool: the copies still
        running, None for all. Returns (n, agent) int64 or (n, agent, A) float32; rows of copies that are not
        active may hold anything legal for their shape.
        """
        ...


@runtime_checkable
class RewardAware(Protocol):
    """A policy that also wants to know what each step paid, as one conditioned on the return still to come."""

    def receive(self, rewards: Tensor) -> None:
        """rewards (n, agent) of the step that followed the last `act`."""
        ...


@runtime_checkable
class CostAware(Protocol):
    """A policy that also wants to know what each step cost, as one that plans within what is left of a budget."""

    def pay(self, costs: Tensor) -> None:
        """costs (n, agent) of the step that followed the last `act`."""
        ...


@dataclass(frozen=True)
class PlanLayout:
    """What the features of a plan (rows, time, agent, feature) mean, and how they come back to real units.

    names: of every feature, in order: "agent_0"... for identities, "action_0"... for actions, then the observation's
    own names, or "observation_0"... where the environment names nothing.
    normalize, denormalize: (..., feature) -> (..., feature), inverse of each other within the data's range.
    history: waypoints before `now`, clamped, never projected. dt: environment steps (or seconds) between waypoints.
    """

    names: tuple[str, ...]
    normalize: Callable[[Tensor], Tensor]
    denormalize: Callable[[Tensor], Tensor]
    history: int = 0
    dt: float = 1.0


class BatchSource(Protocol):
    """Training batches by index from data that stays on the device."""

    def sample(self, generator: torch.Generator) -> dict[str, Tensor]: ...


class Learner(Protocol):
    """A method: what it learns from, one update, the policy it gives, and its whole state as tensors."""

    device: torch.device
    def batches(self, store: Any) -> BatchSource:
        """Fit what depends on the data (normalisers, scales) and return the source of training batches."""
        ...

    def update(self, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """One gradient step; returns scalar metrics as detached tensors (no `.item()`)."""
        ...

    def policy(self) -> Policy: ...

    def weights(self) -> dict[str, Tensor]:
        """All that acting needs: networks, averaged networks, normalisers, scales."""
        ...

    def load_weights(self, weights: dict[str, Tensor]) -> None: ...

    def training_state(self) -> dict[str, Any]:
        """What continuing needs beyond the weights (optimiser, counters): tensors, numbers, strings, lists, dicts."""
        ...

    def load_training_state(self, state: dict[str, Any]) -> None: ...


@runtime_checkable
class Guarded(Protocol):
    """A learner whose actions can pass through hooks that it is handed: in its losses, in its targets and in acting.

    Its hooks find in their ctx `observations` (B, agent, O), the present ones in the environment's units. motion: how
    observations follow actions (`madiff.data.motion.AffineMotion`), measured in `batches`; None for discrete actions.
    """

    motion: Any

    def guard(self, hooks: Sequence[Hook]) -> None:
        """Use these hooks from now on, in place of earlier ones; policies given out before keep theirs."""
        ...


@runtime_checkable
class Online(Protocol):
    """A learner that also acts in the environment while it learns, stepping copies of its own inside `update`.

    `batches` then gives it its starting set, which may be small. Where its copies stand and what they have gathered
    belongs to `training_state`, so that a resumed run equals an unbroken one.
    """

    def enter(self, make: Callable[[int], BatchedEnvironment]) -> None:
        """Be told, after `batches` and before any checkpoint is taken up, how to make so many copies."""
        ...


@runtime_checkable
class Hosting(Protocol):
    """A learner that trains another one, of whatever room, on what it makes; it acts with that one's policy."""

    @property
    def guest(self) -> tuple[str, Mapping[str, Any]]:
        """The name of the other method, and those of its options that are not its defaults."""
        ...

    def host(self, learner: Learner) -> None:
        """Be handed the other learner, untrained, before anything else is asked for."""
        ...


@runtime_checkable
class Hook(Protocol):
    """Four moments of the one sampling loop; x is (batch, time, agent, feature), t and s times of the schedule."""

    def before(self, x: Tensor, t: Tensor, ctx: dict[str, Any]) -> Tensor: ...

    def predict(self, pred: Any, x: Tensor, t: Tensor, ctx: dict[str, Any]) -> Any: ...

    def after(
        self, x_prev: Tensor, x_next: Tensor, x0_hat: Tensor, t: Tensor, s: Tensor, ctx: dict[str, Any]
    ) -> tuple[Tensor, dict[str, Tensor]]: ...

    def final(self, x: Tensor, ctx: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]: ...
