"""Arrays of strangers' HDF5 files: looked at before they are read, finite, never followed elsewhere."""

from __future__ import annotations

import math
from collections.abc import Iterable

import h5py
import numpy as np

from madiff.interfaces import UserError

LARGEST_RATIO = 1100
"""Of gzip, which makes at most 1,032 equal bytes into one, with room for the headers of chunks."""
LARGEST_CHUNK = 2**24
"""Bytes of a chunk, which is unpacked whole, where the array itself is smaller; h5py makes chunks of up to 2**20."""
NUMBERS, WHOLE = "biuf", "iu"
"""Kinds of types: booleans, integers and floats; integers alone."""


def check_keys(group: h5py.Group, needed: Iterable[str], where: str) -> None:
    """Raises UserError for the first key that is not there."""
    for name in needed:
        if name not in group:
            raise UserError(f"lacks {name}", where, list(needed))


def find_group(group: h5py.Group, name: str, where: str) -> h5py.Group:
    """A group within a group of the same file; links are never followed."""
    inner = group[name] if isinstance(group.get(name, getlink=True), h5py.HardLink) else None
    if not isinstance(inner, h5py.Group):
        raise UserError("is not a group", f"{where}, {name}")
    return inner


def find(group: h5py.Group, name: str, where: str, kinds: str = NUMBERS) -> h5py.Dataset:
    """An array, its claims looked at before anything is read of it; links and objects are never followed."""
    data = group[name] if isinstance(group.get(name, getlink=True), h5py.HardLink) else None
    if not isinstance(data, h5py.Dataset) or data.dtype.kind not in kinds or data.external or data.is_virtual:
        what = "whole numbers" if kinds == WHOLE else "numbers"
        raise UserError(f"is not a plain array of {what}", f"{where}, {name}")
    if math.prod(data.chunks or ()) * data.dtype.itemsize > max(LARGEST_CHUNK, data.nbytes):
        raise UserError(f"has chunks of {data.chunks}", f"{where}, {name}", f"at most {LARGEST_CHUNK:,} bytes each")
    if data.nbytes > LARGEST_RATIO * max(data.id.get_storage_size(), 1):
        raise UserError("claims more values than the file holds", f"{where}, {name}")
    return data


def read_rows(group: h5py.Group, name: str, axes: int, where: str) -> np.ndarray:
    """Finite float32 (rows, values) or (rows,); columns of width 1 become plain rows."""
    data = find(group, name, where)
    shape = data.shape[:-1] if axes == 1 and data.ndim == 2 and data.shape[1] == 1 else data.shape
    if len(shape) != axes or 0 in shape:
        raise UserError(f"has shape {data.shape}", f"{where}, {name}", "(rows, values)" if axes == 2 else "(rows,)")
    return finite(data[()].astype(np.float32).reshape(shape), f"{where}, {name}")


def finite(array: np.ndarray, where: str) -> np.ndarray:
    """The array itself; raises UserError naming the first row with NaN or infinity."""
    bad = ~np.isfinite(array).reshape(len(array), -1).all(1)
    if bad.any():
        raise UserError("holds NaN or infinity", f"{where}, row {int(bad.argmax())}", "finite numbers")
    return array
