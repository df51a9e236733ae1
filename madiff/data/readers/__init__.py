"""File formats by name. A format is a module with `recognises(path) -> bool` and `read(path) -> EpisodeStore`."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

from madiff.data.readers import d4rl, dsrl, minari, native, omar, vault
from madiff.data.store import EpisodeStore
from madiff.interfaces import UserError

FORMATS = {"native": native, "omar": omar, "vault": vault, "dsrl": dsrl, "d4rl": d4rl, "minari": minari}


def read(path: str | PathLike[str], format: str = "auto") -> EpisodeStore:
    """Read episodes; format "auto" asks every format in turn. Raises UserError in one line for any bad file."""
    path = Path(path)
    if format not in ("auto", *FORMATS):
        raise UserError(f"unknown format {format!r}", "data.format", ["auto", *FORMATS])
    try:
        there = path.exists()
    except OSError as error:  # as of a name that is too long
        raise UserError(f"cannot be looked for ({error.strerror})", str(path)) from error
    if not there:
        raise UserError("no such file", str(path))
    if format != "auto":
        return FORMATS[format].read(path)
    for module in reversed(FORMATS.values()):  # native is asked last: it takes any HDF5 file, to say what is wrong
        if module.recognises(path):
            return module.read(path)
    raise UserError("holds no known format (damaged, or not episode data)", str(path), list(FORMATS))
