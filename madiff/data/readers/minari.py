"""Minari's data sets: a folder with metadata.json and main_data.hdf5, one group an episode, one agent.

Read without the package. Each group episode_0, episode_1, ... has observations of T + 1 rows, actions, rewards,
terminations and truncations of T, and perhaps infos, of which `cost` (as safe environments name it) and `action_mask`
(as PettingZoo does) are read. The spaces in metadata.json decide what becomes of the values:

    observations  Box: as they are, in one row; Discrete: one-hot; Dict and Tuple: their parts one after the other
    actions       Box: its bounds become -1 and 1; Discrete: counted from 0

Of a goal-conditioned observation (desired_goal, achieved_goal, observation) the observation and then the goal are kept:
what was achieved is part of the observation.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from madiff.data.readers import arrays
from madiff.data.readers.foreign import candidates, choose, refusals, source
from madiff.data.readers.spaces import LARGEST_ONE_HOT, ActionSpace, ObservationSpace
from madiff.data.store import EpisodeStore
from madiff.interfaces import UserError

KIND = "Minari data (metadata.json, main_data.hdf5)"
METADATA, DATA = "metadata.json", "main_data.hdf5"
LARGEST_METADATA = 2**24  # bytes
EPISODE = re.compile(r"episode_(0|[1-9]\d{0,8})")
FIELDS = ("observations", "actions", "rewards", "terminations", "truncations")
COST, MASK = "cost", "action_mask"


def recognises(path: Path) -> bool:
    """Whether this folder, or one right below it (`data`, as Minari has it), is a Minari data set."""
    try:
        return path.is_dir() and (holds(path) or bool(candidates(path, holds)))
    except OSError:
        return False


def holds(folder: Path) -> bool:
    return (folder / METADATA).is_file() and (folder / DATA).is_file()


def read(path: Path) -> EpisodeStore:
    """The episodes of a data set's folder, or of the folder `data` in it.

    Raises UserError in one line for missing or damaged files, other spaces (images, texts), arrays that disagree with
    them or with each other, NaN, and actions beyond their bounds.
    """
    with refusals(path, KIND):
        folder = choose(path, holds, KIND)
        metadata = read_metadata(folder / METADATA)
        observed = ObservationSpace.of(space(metadata, "observation_space"))
        acted = ActionSpace.of(space(metadata, "action_space"))
        where = str(folder / DATA)
        with h5py.File(folder / DATA, "r") as file:
            episodes, rows = [], 0
            for name in episode_groups(file, where, metadata):
                group = arrays.find_group(file, name, where)
                episodes += (parts := list(read_episode(group, observed, acted, f"{where}, {name}")))
                rows += sum(len(np.asarray(part["observations"])) for part in parts)
                if rows * observed.choices > LARGEST_ONE_HOT:
                    raise UserError(f"has more than {rows} rows of {observed.choices} choices", where, "fewer")
        return EpisodeStore.from_arrays(episodes, card=card(folder, metadata), action_size=acted.leaf.size)


def read_metadata(path: Path) -> dict[str, Any]:
    if path.stat().st_size > LARGEST_METADATA:
        raise UserError(f"takes {path.stat().st_size:,} bytes", str(path), f"at most {LARGEST_METADATA:,}")
    metadata = json.loads(path.read_text("utf-8"))
    if not isinstance(metadata, dict):
        raise UserError("is not a mapping", str(path))
    if metadata.get("data_format") != "hdf5":
        raise UserError(f"data_format is {metadata.get('data_format')!r}", str(path), ["hdf5"])
    return metadata


def space(metadata: dict[str, Any], name: str) -> Any:
    """A space as JSON has it, which Minari keeps as text within its JSON."""
    told = metadata.get(name)
    if not isinstance(told, str):
        raise UserError(f"lacks {name}", METADATA, "a space written by Minari 0.5 or later")
    return json.loads(told)


def card(folder: Path, metadata: dict[str, Any]) -> dict[str, Any]:
    """Names alone: of the data set by Minari's id, of the package that wrote it, of the environment."""
    told = {"source": source(folder.parent if folder.name == "data" else folder), "format": "minari"}
    known = {name: metadata[name] for name in ("dataset_id", "minari_version") if isinstance(metadata.get(name), str)}
    spec = metadata.get("env_spec")
    described = json.loads(spec) if isinstance(spec, str) else None
    if isinstance(described, dict) and isinstance(described.get("id"), str):
        known["environment"] = described["id"]
    return told | known


def episode_groups(file: h5py.File, where: str, metadata: dict[str, Any]) -> list[str]:
    """The names of the episodes' groups, in order, as many as metadata.json tells of."""
    numbers = sorted(int(match[1]) for match in map(EPISODE.fullmatch, file) if match)
    if not numbers or numbers != list(range(len(numbers))):
        raise UserError("has no episodes numbered from 0", where, "groups episode_0, episode_1, ...")
    if metadata.get("total_episodes") != len(numbers):
        told = metadata.get("total_episodes")
        raise UserError(f"has {len(numbers)} episodes", where, f"{told!r}, the total_episodes of {METADATA}")
    return [f"episode_{number}" for number in numbers]


def read_episode(
    group: h5py.Group, observed: ObservationSpace, acted: ActionSpace, where: str
) -> Iterator[dict[str, np.ndarray | bool]]:
    """The episodes of a group: one, or several where a step within it ends one."""
    arrays.check_keys(group, FIELDS, where)
    rewards = arrays.read_rows(group, "rewards", 1, where)
    steps = len(rewards)
    flags = {name: arrays.read_rows(group, name, 1, where) != 0 for name in ("terminations", "truncations")}
    taken = {"rewards": rewards, "actions": acted.read(group, "actions", where)}
    seen = {"observations": observed.read(group, "observations", where)}
    if "infos" in group:
        infos, inside = arrays.find_group(group, "infos", where), f"{where}, infos"
        if COST in infos:
            costs = arrays.read_rows(infos, COST, 1, inside)
            # One more row than steps where the first is of the reset, as Minari's own collector has it.
            taken["costs"] = costs[1:] if len(costs) == steps + 1 else costs
        if MASK in infos and acted.leaf.discrete:
            seen["available_actions"] = arrays.read_rows(infos, MASK, 2, inside) != 0
    for values, count in ((taken | flags, steps), (seen, steps + 1)):
        for name, array in values.items():
            if len(array) != count:
                raise UserError(f"has {len(array)} rows", f"{where}, {name}", f"{count} for {steps} rewards")
    ends = np.flatnonzero(flags["terminations"] | flags["truncations"] | (np.arange(steps) == steps - 1))
    for start, end in zip([0, *ends[:-1] + 1], ends, strict=True):
        part = {name: array[start : end + 1, None] for name, array in taken.items()}
        part |= {name: array[start : end + 2, None] for name, array in seen.items()}
        terminated = bool(flags["terminations"][end])
        yield part | {"terminated": terminated, "truncated": bool(flags["truncations"][end]) or not terminated}
