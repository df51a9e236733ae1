"""The one checkpoint format: a folder that is either whole and verified, or not there.

checkpoints/step-000004000/model.safetensors   learner.weights()
                           train_state.pt      learner.training_state() and the loop's own; plain values and tensors
                           meta.json           schema, step, config, spec, SHA-256 of the two files and of itself
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from madiff.data import stored
from madiff.experiment import durable
from madiff.interfaces import Learner, UserError

SCHEMA = 1
KEPT = 2
WEIGHTS, TRAINING, META = "model.safetensors", "train_state.pt", "meta.json"


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint, read into memory: `meta` as saved, the rest as bytes until it is asked for."""

    path: Path
    meta: dict[str, Any]
    files: dict[str, bytes]

    @property
    def step(self) -> int:
        return self.meta["step"]

    def weights(self) -> dict[str, Tensor]:
        """Tensors on the CPU, by name."""
        try:
            weights = safetensors.torch.load(self.files[WEIGHTS])
            if any(bool(value.isnan().any()) for value in weights.values() if value.is_floating_point()):
                raise ValueError("a weight is nan, which no training saves")
        except Exception as error:  # a parser fails in as many ways as a file can be wrong
            raise _damaged(self.path, f"{WEIGHTS} is no file of tensors and numbers") from error
        return weights

    def training_state(self) -> dict[str, Any]:
        """{"learner": ..., "loop": ...} with tensors on the CPU; no class in the file is ever built or called."""
        try:
            _check_size(self.files[TRAINING])
            state = torch.load(io.BytesIO(self.files[TRAINING]), map_location="cpu", weights_only=True)
        except Exception as error:
            raise _damaged(self.path, f"{TRAINING} is not plain tensors and values") from error
        if not isinstance(state, dict) or "learner" not in state or not isinstance(state.get("loop"), dict):
            raise _damaged(self.path, f"{TRAINING} lacks the learner's or the loop's state")
        return state


def save(
    directory: Path,
    step: int,
    learner: Learner,
    metadata: Mapping[str, Any],
    loop_state: Mapping[str, Any] | None = None,
) -> Path:
    """Write the checkpoint of `step` under `directory`, then delete all but the last two; returns its folder.

    metadata: JSON values (config, identity, spec). Raises UserError when the disk refuses; older checkpoints stay.
    """
    state = {"learner": learner.training_state(), "loop": dict(loop_state or {})}
    _check_plain(state, "training_state()")
    buffer = io.BytesIO()
    torch.save(state, buffer)
    weights = {name: value.detach().cpu().contiguous().clone() for name, value in learner.weights().items()}
    files = {WEIGHTS: safetensors.torch.save(weights), TRAINING: buffer.getvalue()}
    meta = {"schema": SCHEMA, "step": step, **metadata, "sha256": {name: _sha(data) for name, data in files.items()}}
    meta["sha256"][META] = _meta_sha(meta)
    target = directory / folder_name(step)
    temporary = directory / f".{target.name}.tmp"
    try:
        with durable.disk_errors("write checkpoint", target):
            temporary.mkdir(parents=True)
            for name, data in {**files, META: json.dumps(meta, indent=2).encode()}.items():
                durable.write(temporary / name, data)
            durable.sync_directory(temporary)
            os.rename(temporary, target)
            durable.sync_directory(directory)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    with durable.disk_errors("delete what is older than", target):
        for old in _folders(directory)[:-KEPT]:
            _delete(old)
    return target


def read(path: Path) -> Checkpoint:
    """Read and verify one checkpoint folder; raises UserError saying what is wrong with it. Executes nothing."""
    try:
        files = {name: stored.read_bytes(path / name) for name in (META, WEIGHTS, TRAINING)}
    except OSError as error:
        raise _damaged(path, f"{Path(error.filename or path).name}: {error.strerror}") from error
    try:
        meta = stored.parse_json(files.pop(META))
        recorded, schema, step = meta["sha256"], meta["schema"], meta["step"]
        digests = {META: _meta_sha(meta), **{name: _sha(data) for name, data in files.items()}}
        if not type(schema) is type(step) is int:
            raise TypeError("not whole numbers")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(path, f"{META} is not a checkpoint's") from error
    if schema != SCHEMA:
        raise UserError(f"{path} has format {schema}", "checkpoint", f"format {SCHEMA}, which this version reads")
    for name, digest in digests.items():
        if recorded.get(name) != digest:
            raise _damaged(path, f"{name} does not match its SHA-256")
    if path.name != folder_name(step):
        raise _damaged(path, f"{META} says step {step}")
    return Checkpoint(path, meta, files)


def latest(directory: Path, notify: Any = print) -> Checkpoint | None:
    """The newest checkpoint that verifies; None where none was ever written. `notify` is told of each damaged one.

    Raises UserError when there are checkpoints and all are damaged: starting anew must be the user's decision.
    """
    folders = _folders(directory)
    for path in reversed(folders):
        try:
            return read(path)
        except UserError as error:
            notify(f"ignored: {error}")
    if folders:
        raise UserError(
            f"no checkpoint in {directory} is intact", "run_dir", "another run_dir, or delete that folder to start anew"
        )
    return None


def load(checkpoint: Checkpoint | Path, learner: Learner) -> dict[str, Any]:
    """Put a checkpoint's weights and training state into `learner`; returns the loop's own state."""
    checkpoint = checkpoint if isinstance(checkpoint, Checkpoint) else read(checkpoint)
    weights, state = checkpoint.weights(), checkpoint.training_state()
    try:
        learner.load_weights(weights)
        learner.load_training_state(state["learner"])
    except (RuntimeError, LookupError, ValueError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{checkpoint.path} does not fit this learner ({reason})", "checkpoint", "the settings it was trained with"
        ) from error
    return state["loop"]


def load_weights(path: Path) -> dict[str, Tensor]:
    """The weights of one checkpoint folder, on the CPU."""
    return read(path).weights()


def clean(directory: Path, step: int) -> None:
    """Remove what killed writes left, and every checkpoint after `step` (damaged ones: sound ones are loaded)."""
    if not directory.is_dir():
        return
    with durable.disk_errors("clean", directory):
        for path in directory.glob(".step-*.tmp"):
            shutil.rmtree(path)
        for path in _folders(directory):
            if path.name > folder_name(step):
                _delete(path)


def folder_name(step: int) -> str:
    """Nine digits, so that names sort as steps do."""
    return f"step-{step:09d}"


def _folders(directory: Path) -> list[Path]:
    """Checkpoint folders, oldest first."""
    return sorted(path for path in directory.glob("step-*") if re.fullmatch(r"step-\d{9}", path.name))


def _delete(path: Path) -> None:
    # Renamed first: a kill half-way then leaves a temporary folder, never a damaged checkpoint.
    temporary = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    os.rename(path, temporary)
    shutil.rmtree(temporary)


def _check_plain(value: Any, where: str) -> None:
    """Refuse, while saving, what the safe loader would refuse when resuming."""
    if isinstance(value, dict):
        for key, item in value.items():
            _check_plain(key, where)
            _check_plain(item, f"{where}[{key!r}]")
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            _check_plain(item, f"{where}[{i}]")
    elif type(value) not in (bool, int, float, str, bytes, type(None)) and not isinstance(value, Tensor):
        raise TypeError(f"{where} is a {type(value).__name__}; checkpoints hold tensors, numbers, strings and None")


def _check_size(archive: bytes) -> None:
    """Refuse what torch.save never writes and torch.load would unpack: members that are larger than the file."""
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        if sum(member.file_size for member in opened.infolist()) > len(archive):
            raise ValueError("claims more than the file holds")


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _meta_sha(meta: Mapping[str, Any]) -> str:
    """Of everything in meta.json but this digest itself."""
    others = {name: digest for name, digest in meta["sha256"].items() if name != META}
    return _sha(json.dumps({**meta, "sha256": others}, sort_keys=True).encode())


def _damaged(path: Path, reason: str) -> UserError:
    return UserError(f"{path} is damaged or not a checkpoint ({reason})", "checkpoint")
