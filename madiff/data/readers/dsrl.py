"""DSRL's data (arXiv 2306.09303): one HDF5 file a task, flat arrays of transitions with costs, one agent.

Keys: observations, next_observations (N, O), actions (N, A), rewards, costs, terminals, timeouts (N,) or (N, 1). An
episode ends where terminals or timeouts is 1; ending by time is truncation. The files are compressed, so what an array
claims to hold is compared with what gzip can hold in the bytes that are there.
"""

from __future__ import annotations

import re
from pathlib import Path

import h5py
import numpy as np

from madiff.data.readers.foreign import DAMAGE, cut, refusals, source, tensor
from madiff.data.store import EpisodeStore
from madiff.interfaces import UserError

KIND = "DSRL data (observations, actions, costs, ...)"
FIELDS = {
    "observations": 2, "next_observations": 2, "actions": 2, "rewards": 1, "costs": 1, "terminals": 1, "timeouts": 1,
}  # fmt: skip
"""Keys and the axes of their arrays."""
NAME = re.compile(r"Safety(?P<task>\w+?)(Gymnasium)?-v(?P<version>\d+)-\d+-\d+\.hdf5")
LARGEST_RATIO = 1100
"""Of gzip, which makes at most 1,032 equal bytes into one, with room for the headers of chunks."""
TOLERANCE = 1e-4  # between next_observations and the following observations, of the larger of 1 and their magnitude


def recognises(path: Path) -> bool:
    """Whether an HDF5 file has DSRL's keys, or its name if it cannot be opened."""
    try:
        if not (path.is_file() and h5py.is_hdf5(path)):
            return False
        with h5py.File(path, "r") as file:
            return set(FIELDS) - {"next_observations", "timeouts"} <= set(file)
    except DAMAGE:
        return NAME.fullmatch(path.name) is not None


def read(path: Path) -> EpisodeStore:
    """The episodes of one file; the task's name comes from the file's, where that is DSRL's.

    Raises UserError in one line for a file that is missing, cut short or no HDF5, keys that are missing, arrays of
    other sizes, NaN, and observations that do not follow one another.
    """
    if not path.is_file():
        raise UserError("is not a regular file", str(path), KIND)
    with refusals(path, KIND):
        with h5py.File(path, "r") as file:
            arrays = {name: read_array(file, name, axes, path) for name, axes in FIELDS.items()}
        check_sizes(arrays, path)
        ends = (arrays["terminals"] != 0) | (arrays["timeouts"] != 0)
        ends[-1] = True
        lengths, rows, final = cut(ends)
        check_order(arrays, ends, path)
        observations = np.empty((len(rows) + len(final), arrays["observations"].shape[1]), np.float32)
        observations[rows], observations[final] = arrays["observations"], arrays["next_observations"][ends]
        terminated = arrays["terminals"][ends] != 0
        return EpisodeStore(
            tensor(observations[:, None]), tensor(arrays["actions"][:, None]), tensor(arrays["rewards"][:, None]),
            tensor(arrays["costs"][:, None]), tensor(terminated), tensor(~terminated), tensor(lengths),
            provenance={"source": source(path), "format": "dsrl"} | named(path),
        )  # fmt: skip


def named(path: Path) -> dict[str, str]:
    """What the file's name says of its content; empty for another name."""
    match = NAME.fullmatch(path.name)
    return {"task": match["task"]} if match else {}


def read_array(file: h5py.File, name: str, axes: int, path: Path) -> np.ndarray:
    """One array as float32, its claims looked at before anything is read; columns of width 1 become plain rows."""
    if name not in file:
        raise UserError(f"lacks {name}", str(path), list(FIELDS))
    data = file[name] if isinstance(file.get(name, getlink=True), h5py.HardLink) else None
    if not isinstance(data, h5py.Dataset) or data.dtype.kind not in "biuf" or data.external or data.is_virtual:
        raise UserError("is not a plain array of numbers", f"{path}, {name}")
    if data.nbytes > LARGEST_RATIO * max(data.id.get_storage_size(), 1):
        raise UserError("claims more values than the file holds", f"{path}, {name}")
    shape = data.shape[:-1] if axes == 1 and data.ndim == 2 and data.shape[1] == 1 else data.shape
    if len(shape) != axes or 0 in shape:
        raise UserError(f"has shape {data.shape}", f"{path}, {name}", "(rows, values)" if axes == 2 else "(rows,)")
    array = data[()].astype(np.float32).reshape(shape)
    bad = ~np.isfinite(array).reshape(len(array), -1).all(1)
    if bad.any():
        raise UserError("holds NaN or infinity", f"{path}, {name}, row {int(bad.argmax())}", "finite numbers")
    return array


def check_sizes(arrays: dict[str, np.ndarray], path: Path) -> None:
    rows = len(arrays["observations"])
    for name, values in arrays.items():
        if len(values) != rows:
            raise UserError(f"has {len(values)} rows", f"{path}, {name}", f"{rows}, as observations has")
    width, next_width = (arrays[name].shape[1] for name in ("observations", "next_observations"))
    if width != next_width:
        raise UserError(f"is {next_width} wide", f"{path}, next_observations", f"{width}, as observations is")


def check_order(arrays: dict[str, np.ndarray], ends: np.ndarray, path: Path) -> None:
    """Refuse shuffled or missing rows: inside an episode next_observations is the next row's observations."""
    following = arrays["observations"][1:]
    error = np.abs(arrays["next_observations"][:-1] - following) > TOLERANCE * np.maximum(1, np.abs(following))
    broken = error.any(1) & ~ends[:-1]
    if broken.any():
        where = f"{path}, next_observations, row {int(broken.argmax())}"
        raise UserError("is not the following row's observation", where, "whole episodes, in order")
