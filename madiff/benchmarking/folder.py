"""The folder of a benchmark: what is done, what each cell said, and the files that tell it.

suite.json                              the suite and the machine
records/TASK/reference.json             the returns that become 0 and 1 on this task
records/TASK/LABEL/seedK.json           what a cell said, or why it failed: the benchmark's whole memory
cells/TASK/LABEL/seedK/                 run directories of madiff.train, results of madiff.evaluate
logs/...                                what the workers printed
results.json, episodes.jsonl, tables    made of the records, whole at any time
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import filelock

from madiff.benchmarking.aggregate import ByEpisode, Results
from madiff.benchmarking.suite import RUNS, Cell, Suite, Task
from madiff.experiment import durable, runtime
from madiff.interfaces import UserError

SUITE = "suite.json"
DESCRIBED = {"suite", "about", "leaves_out", "same_for_all", "tasks", "methods", "seeds", "versions"}
RECORDED = {"task", "label", "seed", "status", "reason", "command", "metrics"}


class Folder:
    """An open benchmark folder, held against other processes until `close`."""

    def __init__(self, path: Path, lock: filelock.BaseFileLock) -> None:
        self.path, self._lock = path, lock

    @classmethod
    def open(cls, path: Path, suite: Suite) -> Folder:
        """Make the folder, or take up the benchmark it holds; raises UserError where it holds something else."""
        path = Path(os.path.expanduser(path)).absolute()
        refuse_other(path, suite.name)
        with durable.disk_errors("write", path):
            path.mkdir(parents=True, exist_ok=True)
            lock = filelock.FileLock(path / ".lock")
            try:
                lock.acquire(timeout=0)
            except filelock.Timeout:
                raise UserError(f"{path} is in use by another benchmark", "out", "another folder") from None
        return cls(path, lock)

    def close(self) -> None:
        self._lock.release()

    def run(self, cell: Cell) -> Path:
        return self.path / RUNS / cell.place

    def record(self, cell: Cell) -> Path:
        return self.path / "records" / cell.place.with_suffix(".json")

    def reference(self, task: Task) -> Path:
        return self.path / "records" / task.name / "reference.json"

    def log(self, place: Path) -> Path:
        return self.path / "logs" / place.with_suffix(".log")

    def write_json(self, name: str, value: Any) -> None:
        self.write(name, json.dumps(value, indent=1) + "\n")

    def write_lines(self, name: str, records: Sequence[Mapping[str, Any]]) -> None:
        self.write(name, "".join(json.dumps(record) + "\n" for record in records))

    def write(self, name: str, text: str) -> None:
        with durable.disk_errors("write", self.path / name):
            durable.replace(self.path / name, text.encode())

    def describe(self, suite: Suite, seeds: int, options: Mapping[str, Any]) -> dict[str, Any]:
        """Write suite.json: what is compared, on which machine."""
        told = {
            "suite": suite.name, "about": suite.about, "leaves_out": suite.leaves_out,
            "same_for_all": suite.same_for_all, "reference": suite.reference, "baselines": list(suite.baselines),
            "seeds": seeds, "options": dict(options),
            "tasks": {task.name: {"about": task.about, "zero": task.zero, "one": task.one, "family": task.family,
                                  "share": task.share, "shifts": task.shifts} for task in suite.tasks.values()},
            "methods": {m.label: {"about": m.about, "of": m.of} for m in suite.methods.values()},
            "effects": {effect.name: effect.told for effect in suite.effects.values()},
            "curves": {curve.name: curve.told(suite) for curve in suite.curves.values()},
            "versions": runtime.versions(),
        }  # fmt: skip
        self.write_json(SUITE, told)
        return told


def refuse_other(path: Path, suite: str) -> None:
    """Raise UserError where `path` holds something that is no benchmark of this suite."""
    if not os.path.lexists(path):
        return
    if not path.is_dir():
        raise UserError(f"{path} is a file", "out", "a new folder, or one of an earlier benchmark")
    content = {entry.name for entry in path.iterdir()} - {".lock"}
    held = read(path / SUITE)
    if content and held is None:
        raise UserError(f"{path} holds other files", "out", "a new folder, or one of an earlier benchmark")
    if held is not None and held.get("suite") != suite:
        raise UserError(f"{path} holds suite '{held.get('suite')}', not '{suite}'", "out", "another folder")


def recorded_seeds(path: Path) -> int:
    """How many seeds the benchmark in `path` has been asked for so far."""
    return (read(path / SUITE) or {}).get("seeds", 0)


def read(path: Path) -> dict[str, Any] | None:
    """A JSON object from a file; None where there is none that can be read."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def told_by(path: Path) -> tuple[Results, dict[str, Any]]:
    """What the files of a benchmark tell, without its episodes, and the statements made of it; raises UserError."""
    suite, told, records = read(path / SUITE), read(path / "aggregates.json"), read_list(path / "results.json")
    whole = suite is not None and suite.keys() >= DESCRIBED and told is not None and records is not None
    if not whole or not all(isinstance(record, dict) and record.keys() >= RECORDED for record in records):
        raise UserError(f"{path} holds no results that can be read", "report", "a folder of madiff.benchmark")
    return Results(suite, {}, records, {}), told


def with_episodes(results: Results, path: Path) -> Results:
    """The results with everything that statements are made of: references, and returns and costs by episode."""
    kept = {task: read(path / "records" / task / "reference.json") or {} for task in results.tasks}
    references = {task: found for task, found in kept.items() if found.get("status") == "finished"}
    returns, costs = (by_episode(episodes_of(path, results), quantity) for quantity in ("return", "cost"))
    return replace(results, references=references, returns=returns, costs=costs)


def episodes_of(path: Path, results: Results) -> list[dict[str, Any]]:
    """The evaluated episodes of all cells; none where no cell has finished."""
    finished = any(record["status"] == "finished" for record in results.records)
    return read_episodes(path / "episodes.jsonl") if finished else []


def by_episode(lines: Iterable[Mapping[str, Any]], quantity: str) -> ByEpisode:
    """(task, label, shift or None) -> seed -> this quantity of the episodes, where they have it."""
    found: dict[tuple[str, str, str | None], dict[int, list[float]]] = {}
    for line in lines:
        if line.get(quantity) is not None:
            runs = found.setdefault((line["task"], line["label"], line["shift"]), {})
            runs.setdefault(line["seed"], []).append(float(line[quantity]))
    return {key: {seed: tuple(values) for seed, values in runs.items()} for key, runs in found.items()}


def read_list(path: Path) -> list[dict[str, Any]] | None:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, list) else None


def read_episodes(path: Path) -> list[dict[str, Any]]:
    """The lines of an episodes.jsonl; raises UserError where there are none that can be read."""
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
    except (OSError, ValueError, RecursionError):
        lines = []
    if not lines or not all(isinstance(line, dict) and "return" in line for line in lines):
        raise UserError(f"{path} holds no episodes that can be read", "report", "the file as it was written")
    return lines
