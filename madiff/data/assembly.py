"""Arrays of single episodes joined into the flat fields of a store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from madiff.interfaces import UserError

REQUIRED = ("observations", "actions", "rewards")
OPTIONAL = ("costs", "available_actions", "state", "terminated", "truncated")


def flatten(episodes: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """The tensors of an EpisodeStore from one mapping of arrays per episode; raises UserError naming the episode."""
    if not len(episodes):
        raise UserError("no episodes given", "EpisodeStore.from_arrays", "at least one episode")
    converted = [convert(episode, f"episode {number}") for number, episode in enumerate(episodes)]
    for number, episode in enumerate(converted):
        check_alike(converted[0], episode, f"episode {number}")
        if agent_names(episodes[number]) != agent_names(episodes[0]):
            raise UserError("has other agents, or in another order", f"episode {number}", agent_names(episodes[0]))
    return {name: torch.from_numpy(np.concatenate([e[name] for e in converted])) for name in converted[0]}


def convert(episode: Mapping[str, Any], where: str) -> dict[str, np.ndarray]:
    """One episode with the store's types; every array is led by its rows."""
    if missing := [name for name in REQUIRED if episode.get(name) is None]:
        raise UserError(f"lacks {', '.join(missing)}", where, list(REQUIRED))
    if unknown := sorted(set(episode) - {*REQUIRED, *OPTIONAL}):
        raise UserError(f"has unknown entries {', '.join(unknown)}", where, [*REQUIRED, *OPTIONAL])
    agents, given = agent_names(episode), {name: value for name, value in episode.items() if value is not None}
    arrays = {name: array_of(value, agents, f"{where}, {name}") for name, value in given.items()}
    actions, steps = arrays["actions"], len(arrays["rewards"]) if arrays["rewards"].ndim else 0
    terminated = flag(arrays, "terminated", False, where)
    result = {
        "observations": arrays["observations"].astype(np.float32),
        "actions": actions.astype(np.int64 if actions.dtype.kind in "iu" else np.float32),
        "rewards": per_agent(arrays["rewards"], arrays["observations"]),
        "costs": per_agent(arrays.get("costs", np.zeros(steps)), arrays["observations"]),
        "terminated": terminated,
        "truncated": flag(arrays, "truncated", not terminated[0], where),
        "lengths": np.array([steps]),
    }
    if "available_actions" in arrays:
        result["available_actions"] = arrays["available_actions"].astype(bool)
    if "state" in arrays:
        result["state"] = arrays["state"].astype(np.float32)
    check_rows(result, steps, where)
    return result


def agent_names(episode: Mapping[str, Any]) -> list[Any] | None:
    """The agents in their order, None where their observations come as one array."""
    observations = episode["observations"]
    return list(observations) if isinstance(observations, Mapping) else None


def array_of(value: Any, agents: list[Any] | None, where: str) -> np.ndarray:
    """One array of all agents, or one (rows[, size]) per agent by name: those are padded with zeros to the largest."""
    if not isinstance(value, Mapping):
        return numeric(value, where)
    if list(value) != agents or not agents:
        raise UserError(f"has the agents {', '.join(map(str, value))}", where, agents or "one array of all agents")
    return padded([numeric(value[agent], f"{where}, {agent}") for agent in agents], agents, where)


def padded(arrays: list[np.ndarray], agents: list[Any], where: str) -> np.ndarray:
    for agent, array in zip(agents, arrays, strict=True):
        if array.ndim not in (1, 2) or (array.ndim, len(array)) != (arrays[0].ndim, len(arrays[0])):
            raise UserError(f"has shape {array.shape}", f"{where}, {agent}", f"like {agents[0]}'s {arrays[0].shape}")
    size = max(array.shape[-1] for array in arrays)
    alike = [array if array.ndim == 1 else np.pad(array, ((0, 0), (0, size - array.shape[1]))) for array in arrays]
    return np.stack(alike, axis=1)


def numeric(value: Any, where: str) -> np.ndarray:
    try:
        array = np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value)
    except ValueError:
        raise UserError("is ragged", where, "an array of numbers") from None
    if array.dtype.kind not in "biuf":
        raise UserError(f"has type {array.dtype}", where, "an array of numbers")
    return array


def flag(arrays: dict[str, np.ndarray], name: str, default: bool, where: str) -> np.ndarray:
    value = arrays.get(name, np.array(default))
    if value.size != 1:
        raise UserError(f"has shape {value.shape}", f"{where}, {name}", "one truth value per episode")
    return value.reshape(1).astype(bool)


def per_agent(values: np.ndarray, observations: np.ndarray) -> np.ndarray:
    """(T,) values are shared by the team: every agent gets them."""
    if values.ndim == 1 and observations.ndim == 3:
        values = np.repeat(values[:, None], observations.shape[1], axis=1)
    return values.astype(np.float32)


def check_rows(episode: dict[str, np.ndarray], steps: int, where: str) -> None:
    """Here rather than in the whole store, where two wrong lengths could cancel out."""
    rows = {"observations": steps + 1, "available_actions": steps + 1, "state": steps + 1}
    rows |= {"actions": steps, "costs": steps}
    for name, expected in rows.items():
        if name in episode and (episode[name].ndim == 0 or len(episode[name]) != expected):
            expected_rows = f"{expected} rows for {steps} rewards"
            raise UserError(f"has shape {episode[name].shape}", f"{where}, {name}", expected_rows)


def check_alike(first: dict[str, np.ndarray], other: dict[str, np.ndarray], where: str) -> None:
    if first.keys() != other.keys():
        raise UserError(f"has {', '.join(other)}", where, f"the entries of episode 0: {', '.join(first)}")
    for name in first:
        if first[name].shape[1:] != other[name].shape[1:] or first[name].dtype != other[name].dtype:
            found = f"has {other[name].dtype} of shape {other[name].shape}"
            raise UserError(found, f"{where}, {name}", f"{first[name].dtype} of shape (rows, *{first[name].shape[1:]})")
