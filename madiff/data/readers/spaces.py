"""Gymnasium's spaces as Minari writes them in JSON, and how arrays of their elements become rows of ours."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeGuard

import h5py
import numpy as np

from madiff.data.readers import arrays
from madiff.interfaces import UserError

LARGEST = 2**20  # numbers of one observation or action, or choices of an action
LARGEST_ONE_HOT = 2**29  # numbers that the choices of a data set take as one-hot rows
DEEPEST = 8  # spaces within spaces
PIXELS = 32  # pictures, which Minari keeps as JPEG, have at least so many rows and columns of bytes
GOAL, ACHIEVED, OBSERVATION = "desired_goal", "achieved_goal", "observation"
OBSERVED = ["Box that is no picture", "Discrete", "Dict", "Tuple"]


@dataclass(frozen=True)
class Leaf:
    """A Box of `size` numbers, or a Discrete of `size` choices from `start` on."""

    size: int
    discrete: bool = False
    start: int = 0

    @classmethod
    def of(cls, described: dict[str, Any], where: str) -> Leaf:
        """From JSON; raises UserError for any other space."""
        if described.get("type") == "Discrete":
            size, start = described.get("n"), described.get("start", 0)
            if not whole(size, 1, LARGEST) or not whole(start, -(2**53), 2**53):
                raise UserError(f"has {size!r} choices from {start!r} on", where, f"1 to {LARGEST:,}")
            return cls(size, True, start)
        shape = described.get("shape")
        if described.get("type") != "Box" or not isinstance(shape, list):
            raise UserError(f"is {described.get('type')!r}", where, OBSERVED)
        if not all(whole(length, 1, LARGEST) for length in shape) or math.prod(shape) > LARGEST:
            raise UserError(f"has shape {shape}", where, f"1 to {LARGEST:,} numbers")
        if described.get("dtype") == "uint8" and len(shape) > 1 and min(shape[:2]) >= PIXELS:
            raise UserError("is a picture", where, OBSERVED)
        return cls(math.prod(shape))

    def read(self, group: h5py.Group, name: str, where: str) -> np.ndarray:
        """(rows, size) float32; one-hot where discrete."""
        if self.discrete:
            choices = self.choices(group, name, where)
            if len(choices) * self.size > LARGEST_ONE_HOT:
                raise UserError(f"has {len(choices)} rows of {self.size} choices", f"{where}, {name}", "fewer")
            rows = np.zeros((len(choices), self.size), np.float32)
            rows[np.arange(len(choices)), choices] = 1.0
            return rows
        data = arrays.find(group, name, where)
        if data.ndim < 1 or len(data) < 1 or math.prod(data.shape[1:]) != self.size:
            raise UserError(f"has shape {data.shape}", f"{where}, {name}", f"rows of {self.size} numbers")
        return arrays.finite(data[()].reshape(len(data), self.size).astype(np.float32), f"{where}, {name}")

    def choices(self, group: h5py.Group, name: str, where: str) -> np.ndarray:
        """(rows,) int64 from 0 to size - 1, of a Discrete."""
        data = arrays.find(group, name, where, arrays.WHOLE)
        if data.ndim < 1 or len(data) < 1 or math.prod(data.shape) != len(data):
            raise UserError(f"has shape {data.shape}", f"{where}, {name}", "(rows,)")
        choices = data[()].reshape(-1).astype(np.int64) - self.start
        if choices.min() < 0 or choices.max() >= self.size:
            allowed = f"{self.start} to {self.start + self.size - 1}"
            raise UserError("holds a choice out of range", f"{where}, {name}", allowed)
        return choices


@dataclass(frozen=True)
class ObservationSpace:
    """What is kept of an observation: leaves in order, each with the keys that lead to it."""

    leaves: tuple[tuple[tuple[str, ...], Leaf], ...]

    @property
    def choices(self) -> int:
        """Numbers of a row that stand for choices, of which a file holds far fewer bytes."""
        return sum(leaf.size for _, leaf in self.leaves if leaf.discrete)

    @classmethod
    def of(cls, described: Any) -> ObservationSpace:
        """From JSON; raises UserError for spaces that are no plain numbers."""
        space = cls(tuple(walk(described, ())))
        size = sum(leaf.size for _, leaf in space.leaves)
        if not 1 <= size <= LARGEST:
            raise UserError(f"has {size:,} numbers", "observation_space", f"1 to {LARGEST:,}")
        return space

    def read(self, group: h5py.Group, name: str, where: str) -> np.ndarray:
        """(rows, numbers) float32."""
        parts = [leaf.read(*descend(group, (name, *keys), where)) for keys, leaf in self.leaves]
        if len({len(part) for part in parts}) > 1:
            raise UserError("has parts of different lengths", f"{where}, {name}")
        return np.concatenate(parts, axis=1)


@dataclass(frozen=True)
class ActionSpace:
    """A Box whose middle becomes 0 and whose bounds -1 and 1 (infinite ones are taken for -1 and 1), or a Discrete."""

    leaf: Leaf
    middle: np.ndarray | None = None
    half: np.ndarray | None = None

    @classmethod
    def of(cls, described: Any) -> ActionSpace:
        """From JSON; raises UserError for any other space."""
        kind = described.get("type") if isinstance(described, dict) else None
        if kind not in ("Box", "Discrete"):
            raise UserError(f"is {kind!r}", "action_space", ["Box", "Discrete"])
        leaf = Leaf.of(described, "action_space")
        if leaf.discrete:
            return cls(leaf)
        low, high = (bound(described, name, leaf.size) for name in ("low", "high"))
        low, high = np.where(np.isfinite(low), low, -1.0), np.where(np.isfinite(high), high, 1.0)
        if not (low < high).all():
            raise UserError("has no room between low and high", "action_space")
        return cls(leaf, (low + high) / 2, (high - low) / 2)

    def read(self, group: h5py.Group, name: str, where: str) -> np.ndarray:
        """(rows, size) float32 in [-1, 1], or (rows,) int64 from 0 on."""
        if self.leaf.discrete:
            return self.leaf.choices(group, name, where)
        return ((self.leaf.read(group, name, where) - self.middle) / self.half).astype(np.float32)


def walk(described: Any, keys: tuple[str, ...]) -> list[tuple[tuple[str, ...], Leaf]]:
    """The leaves of a space, depth first, in the order in which it names its parts."""
    where = ".".join(("observation_space", *keys))
    if not isinstance(described, dict) or len(keys) > DEEPEST:
        raise UserError("is not a space", where, OBSERVED)
    inner = described.get("subspaces")
    if described.get("type") == "Dict" and isinstance(inner, dict):
        kept = [OBSERVATION, GOAL] if set(inner) == {GOAL, ACHIEVED, OBSERVATION} else list(inner)
        return [leaf for key in kept for leaf in walk(inner[key], (*keys, key))]
    if described.get("type") == "Tuple" and isinstance(inner, list):
        return [leaf for number, part in enumerate(inner) for leaf in walk(part, (*keys, f"_index_{number}"))]
    return [(keys, Leaf.of(described, where))]


def whole(value: Any, least: int, most: int) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def bound(described: dict[str, Any], name: str, size: int) -> np.ndarray:
    """One bound of a Box for each of its numbers, float64."""
    values = np.asarray(described.get(name), np.float64).ravel()
    if len(values) not in (1, size) or np.isnan(values).any():
        raise UserError(f"{name} has {len(values)} numbers", "action_space", f"{size}")
    return np.broadcast_to(values, size)


def descend(group: h5py.Group, keys: tuple[str, ...], where: str) -> tuple[h5py.Group, str, str]:
    """The group that holds what the keys lead to, its name there, and where that is."""
    *path, last = keys
    for key in path:
        arrays.check_keys(group, [key], where)
        group, where = arrays.find_group(group, key, where), f"{where}, {key}"
    arrays.check_keys(group, [last], where)
    return group, last, where
