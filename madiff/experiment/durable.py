"""Files that are either whole or absent: writes survive kills and power cuts, and disk errors become one clear line."""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from madiff.interfaces import UserError


@contextmanager
def disk_errors(action: str, path: Path) -> Iterator[None]:
    """Turn the operating system's refusal (full, read-only, forbidden, missing) into a UserError naming the path."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot {action} {path} ({error.strerror or error})", allowed="a writable path") from error


def check_place(path: Path, where: str) -> None:
    """Refuse before the work what could not be written at `path` after it; leaves nothing behind."""
    try:
        folder = next(parent for parent in path.absolute().parents if parent.exists())
        with tempfile.NamedTemporaryFile(dir=folder, prefix=f".{path.name}."):
            pass
    except OSError as error:
        raise UserError(f"cannot write {path} ({error.strerror or error})", where, "a writable path") from error


def write(path: Path, data: bytes) -> None:
    """Write a new file and wait until the disk holds it."""
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def replace(path: Path, data: bytes) -> None:
    """Put `data` at `path` in one move: a reader sees the old file or the new one, never a part.

    Of several processes that do so at once each writes a file of its own, and the last to end wins.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        write(temporary, data)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Wait until the disk holds the directory's entries (renames included); only POSIX systems can and need to."""
    if os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
