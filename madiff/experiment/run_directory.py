"""The folder of one run: who may write it, what it records, and what survives a kill."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import filelock
import yaml

from madiff.data import stored
from madiff.experiment import durable
from madiff.interfaces import UserError

LOCK, OWNER, IDENTITY = ".lock", ".owner.json", "run.json"


class RunDirectory:
    """An open run directory, locked for this process until `close` (or the process's end).

    path/config.yaml, metrics.jsonl, summary.json, checkpoints/, plots/; run.json says what the run is of.
    As a context manager it closes itself, and removes a new directory again when an error comes before any result.
    """

    def __init__(
        self,
        path: Path,
        config: dict[str, Any],
        identity: dict[str, Any],
        lock: filelock.BaseFileLock,
        created: list[Path],
    ):
        self.path, self.config, self.identity = path, config, identity
        self.metrics = Metrics(path / "metrics.jsonl")
        self._lock, self._created = lock, created
        self._fresh = not (path / IDENTITY).exists()

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        config: dict[str, Any],
        identity: dict[str, Any],
        resume: Literal["auto", "no"] = "auto",
    ) -> RunDirectory:
        """Create the directory, or take up the run it holds; raises UserError and leaves nothing behind otherwise.

        config: plain values, written to config.yaml. identity: what a resumed run must share (algo, env, scenario).
        """
        if resume not in ("auto", "no"):
            raise UserError(f"{resume!r} is not known", "resume", ["auto", "no"])
        path, identity = Path(os.path.expanduser(path)).absolute(), json.loads(json.dumps(identity))
        _refuse(path, identity, resume)
        created: list[Path] = []
        try:
            with durable.disk_errors("write run directory", path):
                _make(path, created)
                lock = _lock(path)
        except BaseException:
            _remove_empty(created)
            raise
        run = cls(path, config, identity, lock, created)
        try:
            with durable.disk_errors("write run directory", path):
                run._claim(resume)
        except BaseException:
            run.discard()
            raise
        return run

    def _claim(self, resume: str) -> None:
        # Another process may have started a run between the first look and the lock.
        _refuse(self.path, self.identity, resume)
        for left in self.path.glob(".*.tmp"):  # by killed writes
            if not left.is_dir():
                left.unlink()
        owner = {"pid": os.getpid(), "host": socket.gethostname()}
        durable.replace(self.path / OWNER, json.dumps(owner).encode())
        if self._fresh:
            self.write_config()
            durable.replace(self.path / IDENTITY, _json(self.identity))

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def plots(self) -> Path:
        return self.path / "plots"

    def write_config(self) -> None:
        """Record this process's config; a continued run calls it when it has grown past the recorded one."""
        text = yaml.safe_dump(self.config, sort_keys=False, allow_unicode=True)
        with durable.disk_errors("write", self.path / "config.yaml"):
            durable.replace(self.path / "config.yaml", text.encode())

    def write_json(self, name: str, value: Any) -> None:
        """Write `value` to the file `name` in one move; NaN and infinities become null."""
        with durable.disk_errors("write", self.path / name):
            durable.replace(self.path / name, _json(value))

    def summary(self) -> dict[str, Any] | None:
        """The finished run's summary.json; None while there is none that can be read."""
        try:
            summary = stored.read_json(self.path / "summary.json")
        except (OSError, ValueError):
            return None
        return summary if isinstance(summary, dict) and isinstance(summary.get("steps"), int) else None

    def finished(self, steps: int) -> bool:
        """Whether a summary says that this run has done at least `steps` training steps."""
        summary = self.summary()
        return summary is not None and summary["steps"] >= steps

    def close(self) -> None:
        """Let other processes in."""
        self.metrics.close()
        with suppress(OSError):  # of a disk that is read-only by now, which must not hide why the run ended
            (self.path / OWNER).unlink(missing_ok=True)
        self._lock.release()

    def discard(self) -> None:
        """Close, and take back everything this process made if it started the run; an earlier run is left alone."""
        with suppress(OSError):
            for entry in self.path.iterdir() if self._fresh else ():
                shutil.rmtree(entry, ignore_errors=True) if entry.is_dir() else entry.unlink(missing_ok=True)
        self.close()
        if self._fresh:
            _remove_empty(self._created)

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is not None and not self.metrics.path.exists() and not self.checkpoints.exists():
            self.discard()
        else:
            self.close()


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(config, identity) of an existing run, without locking it; raises UserError where there is none."""
    path = Path(os.path.expanduser(path))
    try:
        identity = stored.read_json(path / IDENTITY)
        config = stored.read_yaml(path / "config.yaml")
        if not isinstance(identity, dict) or not isinstance(config, dict):
            raise ValueError(f"{IDENTITY} and config.yaml must hold mappings")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not a run directory ({_first_line(error)})", "run") from error
    return config, identity


class Metrics:
    """metrics.jsonl: one JSON object a line, each with its "step", each step once, ascending."""

    def __init__(self, path: Path):
        self.path = path
        self._file: Any = None

    def append(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add one record; NaN and infinities become null."""
        line = json.dumps(_finite({"step": step, **metrics})) + "\n"
        with durable.disk_errors("write", self.path):
            if self._file is None:
                self._file = open(self.path, "ab", buffering=0)
            if self._file.write(line.encode()) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def sync(self) -> None:
        """Wait until the disk holds every record so far; a checkpoint must never outlive the records before it."""
        if self._file is not None:
            with durable.disk_errors("write", self.path):
                os.fsync(self._file.fileno())

    def rewind(self, step: int) -> int:
        """Drop every record after `step` and any torn one; returns the last step recorded, 0 for none."""
        self.close()
        kept = {record["step"]: record for record in self if record["step"] <= step}
        text = "".join(json.dumps(kept[key]) + "\n" for key in sorted(kept))
        with durable.disk_errors("write", self.path):
            if text or os.path.lexists(self.path):  # a link as well, which appending would follow
                durable.replace(self.path, text.encode())
        return max(kept, default=0)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The whole records on disk, in the file's order."""
        return iter(read_records(self.path))

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl; lines torn by a kill are left out, a missing file has none."""
    with durable.disk_errors("read", path):
        content = stored.read_bytes(path) if path.exists() else b""
    records = []
    for line in content.splitlines():
        try:
            record = stored.parse_json(line)
        except ValueError:
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            records.append(record)
    return records


def _refuse(path: Path, identity: dict[str, Any], resume: str) -> None:
    """Raise UserError where `path` holds something this run may not write over."""
    with durable.disk_errors("read run directory", path):
        if not os.path.lexists(path):
            return
        if not path.is_dir():
            raise UserError(f"{path} exists and is not a directory", "run_dir", "a new path or an earlier run")
        content = [entry.name for entry in path.iterdir() if not _ours(entry.name)]
    if IDENTITY not in content and set(content) - {"config.yaml"}:
        raise UserError(
            f"{path} holds other files ({', '.join(sorted(content)[:3])})", "run_dir", "a new path or an earlier run"
        )
    if IDENTITY not in content:
        return
    if resume == "no":
        raise UserError(f"{path} already holds a run", "run_dir", ["resume=auto", "another run_dir"])
    recorded = read(path)[1]
    different = [key for key in {**recorded, **identity} if recorded.get(key) != identity.get(key)]
    if different:
        theirs = ", ".join(f"{key}={recorded.get(key)}" for key in different)
        ours = ", ".join(f"{key}={identity.get(key)}" for key in different)
        raise UserError(f"{path} holds a run with {theirs}, not {ours}", "run_dir", f"{theirs}, or another run_dir")


def _ours(name: str) -> bool:
    return name in (LOCK, OWNER) or (name.startswith(".") and name.endswith(".tmp"))


def _make(path: Path, created: list[Path]) -> None:
    """Create `path` and its parents, noting in `created` (innermost last) those that were not there."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    for folder in reversed(missing):
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        created.append(folder)


def _remove_empty(created: list[Path]) -> None:
    """Take back the folders this process made, innermost first, as far as nobody else has filled them."""
    for folder in reversed(created):
        try:
            folder.rmdir()
        except OSError:
            return


def _lock(path: Path) -> filelock.BaseFileLock:
    lock = filelock.FileLock(path / LOCK)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        try:
            owner = stored.read_json(path / OWNER)
            who = f"process {owner['pid']} on {owner['host']}"
        except (OSError, ValueError, LookupError, TypeError):
            who = "another process"
        raise UserError(f"{path} is in use by {who}", "run_dir", "another run_dir, or wait until it ends") from None
    return lock


def _finite(value: Any) -> Any:
    """`value` with every NaN and infinity replaced by None, which is all that strict JSON can say."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _json(value: Any) -> bytes:
    return (json.dumps(_finite(value), indent=2) + "\n").encode()


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
