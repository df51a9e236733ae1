"""EpisodeStore, the data contract: whole episodes of all agents, stored flat with offsets, never padded.

Row arithmetic used everywhere: with episodes e = 0, 1, ... of T_e steps, transition k of episode e starts at the
observation row k + e, because every episode has one observation more than it has transitions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from os import PathLike
from typing import Any

import torch
from torch import Tensor

from madiff.data.assembly import flatten
from madiff.data.checks import check_store
from madiff.interfaces import UserError

OBSERVED: tuple[str, ...] = ("observations", "available_actions", "state")  # T + 1 rows per episode
TAKEN: tuple[str, ...] = ("actions", "rewards", "costs")  # T rows per episode
PER_EPISODE: tuple[str, ...] = ("terminated", "truncated", "lengths")
FIELDS = OBSERVED + TAKEN + PER_EPISODE


@dataclass(frozen=True, eq=False)
class EpisodeStore:
    """Episodes of a team, checked once when the store is made and not changed afterwards; all tensors on the CPU.

    observations (sum(T+1), A, O) float32; actions (sum T, A) int64 or (sum T, A, D) float32 in [-1, 1];
    rewards, costs (sum T, A) float32; available_actions (sum(T+1), A, n) bool or None; state (sum(T+1), S) float32
    or None; terminated, truncated (E,) bool; lengths (E,) int64.
    action_size: number of discrete actions, or D; 0 lets the data decide.
    provenance: where the data came from, JSON-serialisable (env, scenario, quality, env_version, seed, ...).
    Raises UserError for shapes that disagree, NaN or infinity, actions out of range or not available.
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    costs: Tensor
    terminated: Tensor
    truncated: Tensor
    lengths: Tensor
    available_actions: Tensor | None = None
    state: Tensor | None = None
    action_size: int = 0
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "action_size", check_store(self))

    @classmethod
    def from_arrays(
        cls, episodes: Sequence[Mapping[str, Any]], card: Mapping[str, Any] | None = None, action_size: int = 0
    ) -> EpisodeStore:
        """A store from one mapping of arrays per episode; needs no environment.

        Each has observations (T+1, A, O), actions (T, A) integer or (T, A, D) float, rewards (T, A) or (T,), and
        optionally costs like rewards, available_actions (T+1, A, n), state (T+1, S), terminated, truncated (bool;
        an episode that is neither counts as truncated). In place of the agent axis each may be a mapping from agent to
        array, as PettingZoo has them: agents of smaller sizes are then padded with zeros, masks with False. Whoever
        pads by himself must do likewise; actions of padded dimensions have to be 0.
        """
        return cls(**flatten(episodes), action_size=action_size, provenance=dict(card or {}))

    @classmethod
    def open(cls, path: str | PathLike[str], format: str = "auto") -> EpisodeStore:
        """Read a data file; raises UserError if it is missing, damaged, foreign, or the format is unknown."""
        from madiff.data import readers  # readers build stores, so they cannot be imported above

        return readers.read(path, format)

    def save(self, path: str | PathLike[str]) -> None:
        """Write one native HDF5 file; whole or not at all, even if the process is killed."""
        from madiff.data.readers import native

        native.write(self, path)

    @classmethod
    def concatenate(cls, stores: Sequence[EpisodeStore], card: Mapping[str, Any] | None = None) -> EpisodeStore:
        """The episodes of several stores, in order; raises UserError unless all have the same sizes and fields."""
        if not stores:
            raise UserError("no stores to concatenate", "EpisodeStore.concatenate")
        first = stores[0]
        for number, other in enumerate(stores[1:], start=1):
            if other.signature != first.signature:
                raise UserError(f"store {number} has {other.signature}", "EpisodeStore.concatenate", first.signature)
        joined = {name: torch.cat([getattr(s, name) for s in stores]) for name in first.tensors}
        return cls(**joined, action_size=first.action_size, provenance=dict(card or first.provenance))

    def subset(self, indices: Sequence[int] | Tensor) -> EpisodeStore:
        """The episodes with these indices, in this order."""
        chosen = torch.as_tensor(indices, dtype=torch.int64).reshape(-1)
        if len(chosen) and not (0 <= int(chosen.min()) and int(chosen.max()) < self.episodes):
            raise UserError("an episode index is out of range", "EpisodeStore.subset", f"0 to {self.episodes - 1}")
        lengths = self.lengths[chosen]
        taken = ranges(self.offsets[chosen], lengths)
        observed = ranges(self.offsets[chosen] + chosen, lengths + 1)
        rows = dict.fromkeys(OBSERVED, observed) | dict.fromkeys(TAKEN, taken) | dict.fromkeys(PER_EPISODE, chosen)
        return replace(self, **{name: values[rows[name]] for name, values in self.tensors.items()})

    @property
    def episodes(self) -> int:
        return len(self.lengths)

    @property
    def transitions(self) -> int:
        return len(self.rewards)

    @property
    def agents(self) -> int:
        return self.observations.shape[1]

    @property
    def observation_size(self) -> int:
        return self.observations.shape[2]

    @property
    def state_size(self) -> int:
        return 0 if self.state is None else self.state.shape[1]

    @property
    def discrete(self) -> bool:
        return not self.actions.is_floating_point()

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The fields that are there, by name."""
        return {name: value for name in FIELDS if (value := getattr(self, name)) is not None}

    @property
    def signature(self) -> str:
        """What two stores must share to be joined."""
        kind = "discrete" if self.discrete else "continuous"
        masks = "with" if self.available_actions is not None else "without"
        return (
            f"{self.agents} agents, {self.observation_size} observed values, {self.action_size} {kind} actions "
            f"{masks} availability, {self.state_size} state values"
        )

    @cached_property
    def offsets(self) -> Tensor:
        """(E,) int64: each episode's first transition."""
        return self.lengths.cumsum(0) - self.lengths

    @cached_property
    def episode_of(self) -> Tensor:
        """(sum T,) int64: the episode of each transition."""
        return torch.arange(self.episodes).repeat_interleave(self.lengths)

    def returns(self) -> Tensor:
        """(E, A) float64: undiscounted sum of each agent's rewards."""
        return self._episode_sums(self.rewards)

    def team_returns(self) -> Tensor:
        """(E,) float64: mean over agents of their returns."""
        return self.returns().mean(1)

    def team_costs(self) -> Tensor:
        """(E,) float64: mean over agents of their summed costs."""
        return self._episode_sums(self.costs).mean(1)

    def _episode_sums(self, values: Tensor) -> Tensor:
        sums = torch.zeros(self.episodes, self.agents, dtype=torch.float64)
        return sums.index_add_(0, self.episode_of, values.double())

    @property
    def card(self) -> dict[str, Any]:
        """Provenance and what the data holds, JSON-serialisable."""
        return dict(self.provenance) | self.measured

    @cached_property
    def measured(self) -> dict[str, Any]:
        """The part of the card that follows from the data."""
        returns, costs = self.team_returns(), self.team_costs()
        return {
            "episodes": self.episodes,
            "transitions": self.transitions,
            "agents": self.agents,
            "observation_size": self.observation_size,
            "action_size": self.action_size,
            "discrete": self.discrete,
            "state_size": self.state_size,
            "length_mean": float(self.lengths.double().mean()),
            "return_mean": float(returns.mean()),
            "return_min": float(returns.min()),
            "return_max": float(returns.max()),
            "return_std": float(returns.std(correction=0)),
            "cost_mean": float(costs.mean()),
            "cost_min": float(costs.min()),
            "cost_max": float(costs.max()),
            "sha256": self.sha256,
        }

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of all fields: names, types, shapes and values."""
        digest = hashlib.sha256()
        for name, values in self.tensors.items():
            digest.update(f"{name} {values.dtype} {tuple(values.shape)};".encode())
            flat = values.contiguous().numpy()
            # numpy's stubs know no buffers before Python 3.12
            digest.update(memoryview(flat).cast("B"))  # pyright: ignore[reportArgumentType]
        return digest.hexdigest()


def ranges(starts: Tensor, lengths: Tensor) -> Tensor:
    """Concatenation of start, start + 1, ..., start + length - 1 over all pairs; lengths are positive."""
    before = lengths.cumsum(0) - lengths
    return torch.arange(int(lengths.sum())) + (starts - before).repeat_interleave(lengths)
