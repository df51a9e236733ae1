"""OMAR's particle data (arXiv 2111.11188): a folder with obs_i, acs_i, rews_i, next_obs_i and dones_i .npy per agent.

The files hold transitions in the order they were made and nothing says where episodes end: `dones` stays zero. They
are cut every 25 rows, the length of the particle tasks, or every 1000, that of HalfCheetah, whichever agrees with
next_obs: it must be the next row's obs inside an episode and cannot be at its end. Ending by time is truncation.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from madiff.data.readers.foreign import candidates, choose, cut, refusals, source, tensor
from madiff.data.store import EpisodeStore
from madiff.interfaces import UserError

KIND = "OMAR data (obs_0.npy, acs_0.npy, ...)"
FIELDS = {"obs": 2, "acs": 2, "rews": 1, "next_obs": 2, "dones": 1}  # axes of each array
HORIZONS = (25, 1000)
TOLERANCE = 1e-4  # between next_obs and the following obs, of the larger of 1 and their magnitude
HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
BLOCK = 65_536  # rows looked at together


@dataclass(frozen=True)
class Agent:
    """One agent's arrays, mapped from disk: obs, next_obs (T, O), acs (T, D), rews, dones (T,)."""

    obs: np.ndarray
    acs: np.ndarray
    rews: np.ndarray
    next_obs: np.ndarray
    dones: np.ndarray


def recognises(path: Path) -> bool:
    """Whether this folder, or one right below it, has files named like OMAR's."""
    try:
        return path.is_dir() and (holds(path) or bool(candidates(path, holds)))
    except OSError:
        return False


def read(path: Path) -> EpisodeStore:
    """The episodes of one seed's folder, or of its parent if it has one such folder only.

    Agents that observe or do less than others are padded with zeros. Raises UserError for missing or damaged files,
    arrays that disagree, NaN, actions beyond [-1, 1], and observations that do not follow one another.
    """
    with refusals(path, KIND):
        folder = choose(path, holds, KIND)
        agents = load(folder)
        dones = np.any([agent.dones != 0 for agent in agents], axis=0)
        lengths, rows, final = cut(episode_ends(breaks(agents), dones, folder))
        terminated = tensor(dones[np.cumsum(lengths) - 1])
        observation_sizes = [agent.obs.shape[1] for agent in agents]
        action_sizes = [agent.acs.shape[1] for agent in agents]
        observations = np.zeros((len(rows) + len(final), len(agents), max(observation_sizes)), np.float32)
        actions = np.zeros((len(rows), len(agents), max(action_sizes)), np.float32)
        for number, agent in enumerate(agents):
            observations[rows, number, : observation_sizes[number]] = agent.obs
            observations[final, number, : observation_sizes[number]] = agent.next_obs[np.cumsum(lengths) - 1]
            actions[:, number, : action_sizes[number]] = agent.acs
        rewards = tensor(np.stack([agent.rews for agent in agents], axis=1).astype(np.float32))
        sizes = {"observation_sizes": observation_sizes, "action_sizes": action_sizes}
        return EpisodeStore(
            tensor(observations), tensor(actions), rewards, rewards * 0.0, terminated, ~terminated, tensor(lengths),
            provenance={"source": source(folder), "format": "omar"} | unequal(sizes),
        )  # fmt: skip


def unequal(sizes: dict[str, list[int]]) -> dict[str, list[int]]:
    """Those that differ between agents: what was padded."""
    return {name: values for name, values in sizes.items() if len(set(values)) > 1}


def holds(folder: Path) -> bool:
    return agent_count(folder) > 0


def agent_count(folder: Path) -> int:
    """One more than the largest number in the names of the files."""
    pattern = re.compile(rf"(?:{'|'.join(FIELDS)})_(\d{{1,4}})\.npy")
    found = (pattern.fullmatch(entry.name) for entry in folder.iterdir())
    return max((int(match[1]) + 1 for match in found if match), default=0)


def load(folder: Path) -> list[Agent]:
    """All agents' arrays, each checked by itself and against the others."""
    agents = []
    for number in range(agent_count(folder)):
        arrays = {name: load_array(folder / f"{name}_{number}.npy", axes) for name, axes in FIELDS.items()}
        rows = len(agents[0].obs) if agents else len(arrays["obs"])
        for name, values in arrays.items():
            if len(values) != rows:
                where = str(folder / f"{name}_{number}.npy")
                raise UserError(f"has {len(values)} rows", where, f"{rows}, as obs_0.npy has")
        if arrays["next_obs"].shape != arrays["obs"].shape:
            found = f"has shape {arrays['next_obs'].shape}"
            raise UserError(found, str(folder / f"next_obs_{number}.npy"), arrays["obs"].shape)
        agents.append(Agent(**arrays))
    return agents


def load_array(path: Path, axes: int) -> np.ndarray:
    """A numeric array mapped from disk, its claims looked at before anything is read; never unpickled."""
    if not path.is_file():
        raise UserError("no such file", str(path))
    with refusals(path, ".npy array of numbers"):
        array = mapped(path)
    if axes == 1 and array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != axes or 0 in array.shape:
        allowed = "(rows >= 1, values >= 1)" if axes == 2 else "(rows >= 1,)"
        raise UserError(f"has shape {array.shape}", str(path), allowed)
    for start in range(0, len(array), BLOCK):
        bad = ~np.isfinite(array[start : start + BLOCK]).reshape(len(array[start : start + BLOCK]), -1).all(1)
        if bad.any():
            raise UserError("holds NaN or infinity", f"{path}, row {start + int(bad.argmax())}", "finite numbers")
    return array


def mapped(path: Path) -> np.ndarray:
    with open(path, "rb") as file:
        shape, fortran, dtype = HEADERS[np.lib.format.read_magic(file)](file)
        start = file.tell()
    if dtype.kind not in "biuf":
        raise UserError(f"has type {dtype}", str(path), "numbers")
    if min(shape, default=1) < 0 or start + math.prod(shape) * dtype.itemsize > path.stat().st_size:
        raise UserError(f"is cut short, or claims too much: shape {shape}", str(path))
    if 0 in shape:  # which cannot be mapped
        return np.zeros(shape, dtype)
    return np.memmap(path, dtype, "r", start, shape, "F" if fortran else "C")


def breaks(agents: list[Agent]) -> np.ndarray:
    """(T,) bool: rows whose next_obs is not the following row's obs, for any agent; true for the last."""
    broken = np.zeros(len(agents[0].obs), bool)
    broken[-1] = True
    for agent in agents:
        for start in range(0, len(broken) - 1, BLOCK):
            following = np.asarray(agent.obs[start + 1 : start + 1 + BLOCK], np.float64)
            error = np.abs(agent.next_obs[start : start + len(following)] - following)
            broken[start : start + len(following)] |= (error > TOLERANCE * np.maximum(1, np.abs(following))).any(1)
    return broken


def episode_ends(broken: np.ndarray, dones: np.ndarray, folder: Path) -> np.ndarray:
    """(T,) bool: the rows that end an episode; raises UserError where no known length agrees with `broken`."""
    for horizon in HORIZONS:
        ends = regular_ends(dones, horizon)
        if not (ends ^ (broken | dones)).any():
            return ends
    row = int((regular_ends(dones, HORIZONS[0]) ^ (broken | dones)).argmax())
    fault = "is not" if broken[row] else "is still"
    lengths = " or ".join(map(str, HORIZONS))
    raise UserError(
        f"next_obs {fault} the following row's obs", f"{folder}, row {row}", f"episodes of {lengths} rows, in order"
    )


def regular_ends(dones: np.ndarray, horizon: int) -> np.ndarray:
    """(T,) bool: dones, every `horizon` rows since the last of them, and the last row of all."""
    row = np.arange(len(dones))
    started = np.maximum.accumulate(np.where(np.append(False, dones[:-1]), row, 0))
    ends = dones | ((row - started + 1) % horizon == 0)
    ends[-1] = True
    return ends
