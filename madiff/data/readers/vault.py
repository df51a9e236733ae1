"""OG-MARL's vaults (arXiv 2302.00521), as flashbax writes them: an OCDBT store of zarr arrays, one per field.

A vault holds one long stream of steps; an episode ends where terminals or truncations are set for all agents. No
field holds the observation that followed an episode's last action, so the last one (with its mask and state) stands
for it. Dropping the last transition instead would lose its reward, which is the win of a battle, and the fact that
the episode terminated. After termination nobody looks at that observation; after truncation a value is bootstrapped
from an observation one step old.

Vaults come from strangers: all files must be plain files of the folder, arrays are looked at before they are opened,
and a chunk that is not there is damage rather than zeros.
"""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from madiff.data.readers.foreign import candidates, choose, cut, refusals, source, tensor
from madiff.data.store import EpisodeStore
from madiff.interfaces import UserError

KIND = "flashbax vault (manifest.ocdbt)"
MANIFEST = "manifest.ocdbt"
FIELDS = {"observations.": 4, "rewards.": 3, "terminals.": 3, "truncations.": 3}  # axes, led by (1, T)
OPTIONAL = {"infos.state.": 3, "infos.legals.": 4}
LARGEST_CHUNK = 2**28  # bytes of one decoded chunk; flashbax makes chunks of 4 MiB
LARGEST_RATIO = 2_000  # decoded bytes for each byte on disk; gzip reaches 1,032
COMPRESSORS = ("gzip", "zlib", "blosc")  # flashbax's and tensorstore's own; others make far more of a byte
PADDING = -np.inf
NUMBERS = {f"{order}{kind}" for order in "<>|" for kind in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "b1")}


def recognises(path: Path) -> bool:
    """Whether this folder is a vault or a folder of vaults."""
    try:
        return path.is_dir() and (holds(path) or bool(candidates(path, holds)))
    except OSError:
        return False


def holds(folder: Path) -> bool:
    return (folder / MANIFEST).is_file()


def read(path: Path) -> EpisodeStore:
    """The finished episodes of a vault (`NAME.vlt/UID`, or `NAME.vlt` if it holds one UID only).

    Observations padded with -inf, as those of agents that see less than others are, get zeros there. Raises UserError
    without the package tensorstore and for any store that is incomplete, oversized or not a vault.
    """
    with refusals(path, KIND):
        vault = Vault.open(choose(path, holds, KIND))
        terminals, truncations = vault.flags("terminals."), vault.flags("truncations.")
        ended = np.asarray((terminals | truncations).all(1))
        if not ended.any():
            raise UserError("no episode ever ends", "terminals, truncations", "true for all agents at its last step")
        steps = len(ended) - int(ended[::-1].argmax())
        lengths, rows, final = cut(ended[:steps])
        observations, padded = vault.observed("observations.", rows, final)
        state = vault.observed("infos.state.", rows, final)[0] if "infos.state." in vault.arrays else None
        legals = vault.legal(rows, final) if "infos.legals." in vault.arrays else None
        rewards = vault.taken("rewards.", steps, np.float32)
        terminated = np.asarray(terminals[:steps][ended[:steps]].all(1))
        card = {"source": name(vault.folder), "format": "vault", "final_observation": "repeats the last one"}
        if padded.any():
            card["observation_sizes"] = (~padded).sum(1).tolist()
        if steps < len(ended):
            card["dropped"] = f"{len(ended) - steps} steps of an unfinished last episode"
        return EpisodeStore(
            observations, vault.taken("actions.", steps, np.int64 if vault.discrete else np.float32), rewards,
            torch.zeros_like(rewards), tensor(terminated), tensor(~terminated), tensor(lengths),
            available_actions=legals, state=state, provenance=card,
        )  # fmt: skip


def name(folder: Path) -> str:
    """3m.vlt/Good of any place that it lies in."""
    parent = folder.resolve().parent.name
    return f"{parent}/{source(folder)}" if parent.endswith(".vlt") else source(folder)


@dataclass(frozen=True)
class Vault:
    """The arrays of a vault by name, each (1, at least `steps`, ...), and how many of their steps are data."""

    folder: Path
    arrays: dict[str, Any]
    steps: int

    @classmethod
    def open(cls, folder: Path) -> Vault:
        """Look at every file and every array's metadata, then open the arrays."""
        size = checked_size(folder)
        store = Store(folder)
        steps = int(store.array("vault_index", 1)[0].read().result())
        if steps < 1:
            raise UserError(f"is {steps}", "vault_index", "at least one step")
        discrete = len(store.metadata("actions.")["shape"]) == 3
        needed = FIELDS | {"actions.": 3 if discrete else 4}
        present = {name: axes for name, axes in OPTIONAL.items() if store.has(name)}
        arrays = {name: store.array(name, axes) for name, axes in (needed | present).items()}
        check_shapes(arrays, steps)
        decoded = steps * sum(math.prod(a.shape[2:]) * a.dtype.numpy_dtype.itemsize for a in arrays.values())
        if decoded > LARGEST_RATIO * size:
            raise UserError(f"claims {decoded:,} bytes of data in {size:,} on disk", str(folder))
        return cls(folder, arrays, steps)

    @property
    def discrete(self) -> bool:
        return self.arrays["actions."].ndim == 3

    def chunks(self, name: str, steps: int) -> Iterator[tuple[slice, np.ndarray]]:
        """The first `steps` steps of an array, one chunk's worth of rows at a time."""
        array = self.arrays[name]
        rows = array.chunk_layout.read_chunk.shape[1]
        for start in range(0, steps, rows):
            here = slice(start, min(start + rows, steps))
            yield here, array[0, here].read().result()

    def taken(self, name: str, steps: int, dtype: type) -> torch.Tensor:
        """(steps, ...) of a field with one row per transition."""
        array = self.arrays[name]
        if np.issubdtype(dtype, np.integer) and array.dtype.numpy_dtype.kind not in "iu":
            raise UserError(f"has type {array.dtype.name}", name, "integers (1, T, agents), numbers (1, T, agents, D)")
        values = np.empty((steps, *array.shape[2:]), dtype)
        for here, chunk in self.chunks(name, steps):
            values[here] = chunk
        return tensor(values)

    def flags(self, name: str) -> np.ndarray:
        """(T, agents) bool."""
        return np.concatenate([chunk != 0 for _, chunk in self.chunks(name, self.steps)])

    def observed(self, name: str, rows: np.ndarray, final: np.ndarray) -> tuple[torch.Tensor, np.ndarray]:
        """A field with one row more than transitions, and (...) bool: which of its entries are padding throughout."""
        array = self.arrays[name]
        values = np.empty((len(rows) + len(final), *array.shape[2:]), np.float32)
        padded = np.ones(array.shape[2:], bool)
        for here, chunk in self.chunks(name, len(rows)):
            values[rows[here]] = chunk
            padded &= (chunk == PADDING).all(0)
        values[final] = values[final - 1]
        values[:, padded] = 0.0
        return tensor(values), padded

    def legal(self, rows: np.ndarray, final: np.ndarray) -> torch.Tensor:
        values = np.empty((len(rows) + len(final), *self.arrays["infos.legals."].shape[2:]), bool)
        for here, chunk in self.chunks("infos.legals.", len(rows)):
            values[rows[here]] = chunk > 0
        values[final] = values[final - 1]
        return tensor(values)


class Store:
    """The key-value store under a vault's arrays, read with tensorstore's file driver and nothing else."""

    def __init__(self, folder: Path) -> None:
        try:
            import tensorstore  # an optional dependency, and slow to import
        except ImportError:
            raise UserError("needs the package tensorstore", str(folder), 'pip install "madiff-suite[data]"') from None
        self.library = tensorstore
        self.context = tensorstore.Context({"cache_pool": {"total_bytes_limit": 2**26}})
        self.base = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{folder.resolve()}/"}}
        self.keys = tensorstore.KvStore.open(self.base, context=self.context).result()

    def has(self, name: str) -> bool:
        return self.keys.read(f"{name}/.zarray").result().state == "value"

    def metadata(self, name: str) -> dict[str, Any]:
        """What an array says of itself; raises UserError for more than plain numbers in chunks of sane size."""
        if not self.has(name):
            raise UserError("is missing", name, ["actions.", *FIELDS])
        told = json.loads(self.keys.read(f"{name}/.zarray").result().value)
        if not isinstance(told, dict) or str(told.get("dtype")) not in NUMBERS:
            raise UserError("is not an array of numbers", name)
        compressor = told.get("compressor")
        if compressor is not None and compressor["id"] not in COMPRESSORS:
            raise UserError(f"is compressed by {compressor['id']!r}", name, COMPRESSORS)
        chunk = [int(length) for length in told["chunks"]]
        if min(chunk) < 1 or np.prod(chunk, dtype=float) * np.dtype(told["dtype"]).itemsize > LARGEST_CHUNK:
            raise UserError(f"has chunks of {chunk} numbers", name, f"at most {LARGEST_CHUNK:,} bytes each")
        return told

    def array(self, name: str, axes: int) -> Any:
        shape = self.metadata(name)["shape"]
        if len(shape) != axes:
            raise UserError(f"has {len(shape)} axes", name, f"{axes} axes")
        spec = {"driver": "zarr", "kvstore": {**self.base, "path": f"{name}/"}, "fill_missing_data_reads": False}
        return self.library.open(spec, open=True, read=True, context=self.context).result()


def checked_size(folder: Path) -> int:
    """Bytes of all files below; raises UserError for anything but plain files and folders, as links lead outside."""
    total = 0
    for place, folders, files in os.walk(folder, onerror=fail):
        for entry in (*folders, *files):
            path = Path(place) / entry
            found = path.lstat()
            if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
                raise UserError("is a link or a special file", str(path), "plain files and folders")
            total += found.st_size if stat.S_ISREG(found.st_mode) else 0
    return total


def fail(error: OSError) -> None:
    raise error


def check_shapes(arrays: dict[str, Any], steps: int) -> None:
    """All arrays lead by (1, at least `steps`) and, but for the state, by one and the same number of agents."""
    agents = arrays["observations."].shape[2]
    for name, array in arrays.items():
        shape = tuple(array.shape)
        if shape[0] != 1 or shape[1] < steps or 0 in shape:
            raise UserError(f"has shape {shape}", name, f"(1, at least {steps}, ...)")
        if name != "infos.state." and shape[2] != agents:
            raise UserError(f"has {shape[2]} agents", name, f"{agents}, as observations. has")
