"""The native format: one HDF5 file of the flat store, its card as JSON, sealed with SHA-256.

Files come from strangers, so reading accepts only what writing makes: plain contiguous arrays of the known types that
lie in the file itself, no compression, references, links or objects. Nothing can be executed or inflated.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from madiff.data.store import FIELDS, EpisodeStore
from madiff.interfaces import UserError

MARKER = b"madiff-episodes"
VERSION = 1
LARGEST_CARD = 60_000  # bytes; an HDF5 attribute holds at most 64 KiB
ACCEPTED = {np.dtype(name) for name in ("float32", "int64", "bool")}
DAMAGE = (OSError, RuntimeError, LookupError, ValueError, TypeError, AttributeError, OverflowError, MemoryError)


def recognises(path: Path) -> bool:
    """Whether the file starts as HDF5; whether it is ours, `read` says."""
    try:
        return path.is_file() and h5py.is_hdf5(path)
    except OSError:
        return False


def read(path: Path) -> EpisodeStore:
    """The store in a native file; raises UserError if anything but a whole, unchanged file is found."""
    if not path.is_file():  # a pipe would be waited for
        raise UserError("is not a regular file", str(path), "a native HDF5 file")
    try:
        with h5py.File(path, "r") as file:
            check_marker(file, path)
            card = read_card(file)
            size = path.stat().st_size
            arrays = {name: read_array(file, name, size) for name in FIELDS if name in file}
        store = EpisodeStore(**arrays, action_size=card["measured"]["action_size"], provenance=card["provenance"])
        intact = store.sha256 == card["measured"]["sha256"]
    except PermissionError:
        raise UserError("may not be read (permission denied)", str(path)) from None
    except UserError as error:
        raise error if error.where == str(path) else UserError(f"unusable data: {error}", str(path)) from None
    except DAMAGE as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"damaged, or not a native data file ({reason})", str(path)) from None
    if not intact:
        raise UserError("damaged: its SHA-256 differs from its card", str(path))
    return store


def check_marker(file: h5py.File, path: Path) -> None:
    if "format" not in file.attrs or attribute(file, "format") != MARKER:
        raise UserError("an HDF5 file, but not native episode data", str(path), "a file written by EpisodeStore.save")
    version = int(attribute(file, "version"))
    if version != VERSION:
        raise UserError(f"written in version {version} of the native format", str(path), [VERSION])


def attribute(file: h5py.File, name: str) -> bytes:
    """A fixed-length byte string; the type is looked at before anything is read."""
    kind = file.attrs.get_id(name)
    if kind.dtype.kind != "S" or kind.shape != ():
        raise ValueError(f"attribute {name} is not a plain string")
    return bytes(file.attrs[name])  # pyright: ignore[reportArgumentType]  # h5py's stubs know no kinds: it is a string


def read_card(file: h5py.File) -> dict[str, Any]:
    text = attribute(file, "card")
    if hashlib.sha256(text).hexdigest().encode() != attribute(file, "card_sha256"):
        raise ValueError("its card was changed")
    card = json.loads(text)
    if not all(isinstance(card[part], dict) for part in ("provenance", "measured")):
        raise ValueError("its card is not a card")
    if type(card["measured"]["action_size"]) is not int:
        raise ValueError("its card has no whole number of actions")
    return card


def read_array(file: h5py.File, name: str, file_size: int) -> torch.Tensor:
    if not isinstance(file.get(name, getlink=True), h5py.HardLink):
        raise ValueError(f"{name} is a link")
    data = file[name]
    if not isinstance(data, h5py.Dataset) or data.dtype not in ACCEPTED:
        raise ValueError(f"{name} is not a plain array of {', '.join(sorted(map(str, ACCEPTED)))}")
    if data.chunks is not None or data.external is not None or data.is_virtual:
        raise ValueError(f"{name} is not stored in one piece inside the file")
    if data.nbytes > file_size or data.id.get_storage_size() != data.nbytes:
        raise ValueError(f"{name} claims more values than the file holds")
    return torch.from_numpy(data[()])


def write(store: EpisodeStore, path: str | os.PathLike[str]) -> None:
    """Write the store; readers see the old file or the new one, never a part."""
    path = Path(path)
    card = card_text(store, path)
    with atomic_path(path) as temporary, h5py.File(temporary, "x") as file:
        file.attrs["format"] = np.bytes_(MARKER)
        file.attrs["version"] = np.bytes_(str(VERSION))
        file.attrs["card"] = np.bytes_(card)
        file.attrs["card_sha256"] = np.bytes_(hashlib.sha256(card).hexdigest())
        for name, values in store.tensors.items():
            file.create_dataset(name, data=values.numpy())


def card_text(store: EpisodeStore, path: Path) -> bytes:
    try:
        text = json.dumps({"provenance": plain(store.provenance), "measured": store.measured}).encode()
    except (TypeError, ValueError) as error:
        raise UserError(f"the card cannot be written as JSON ({error})", str(path)) from None
    if len(text) > LARGEST_CARD:
        raise UserError(f"the card takes {len(text)} bytes", str(path), f"at most {LARGEST_CARD}")
    return text


def plain(value: Any) -> Any:
    """Mappings of any kind as dicts, which is all that JSON knows."""
    return {name: plain(entry) for name, entry in value.items()} if isinstance(value, Mapping) else value


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to; flushed to disk and moved into place on success, removed on failure."""
    if path.is_dir():
        raise UserError("is a directory", str(path), "a file name")
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            flush(temporary)
            os.replace(temporary, path)
            flush(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else error  # HDF5's own texts are long
        raise UserError(f"cannot be written ({reason})", str(path)) from None


def flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
