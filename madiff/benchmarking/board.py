"""What is known of every cell of a benchmark, and the files that tell it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from madiff.benchmarking.aggregate import ByEpisode, Results, aggregate
from madiff.benchmarking.answers import answer_tables, answers
from madiff.benchmarking.folder import SUITE, Folder, read
from madiff.benchmarking.suite import Cell, Suite, Task
from madiff.benchmarking.table import Table
from madiff.benchmarking.tables import tables
from madiff.benchmarking.work import CellJob, Evaluation, Job, Preparation, Training
from madiff.experiment import durable
from madiff.interfaces import UserError
from madiff.schema import shown

# Differences between two calls that leave a finished cell what it is.
HARMLESS = ("hardware.threads", "hardware.device", "data.cache")
STEPS = "train.steps"


class Board:
    """Cells with their records, in the order in which they are run.

    A cell is finished, failed (with its reason, and tried again by the next call), waiting, left out by the suite, or
    one whose method does not fit its task. given: the user's own options of every cell.
    """

    def __init__(self, suite: Suite, cells: Sequence[Cell], given: Mapping[str, Any], folder: Folder) -> None:
        self.suite, self.cells, self.given, self.folder = suite, cells, given, folder
        self.records = {cell: read(folder.record(cell)) for cell in cells}
        self.references = {task: read(folder.reference(task)) for task in suite.tasks.values()}
        for cell in cells:
            self.refuse_other_settings(cell)
        for cell in cells:
            if cell.source is not None and self.status(cell.source) != "finished":
                self.records[cell] = None  # what it evaluated is no more, or will be another

    def refuse_other_settings(self, cell: Cell) -> None:
        """Raise UserError where a finished cell was made with options that cannot be caught up with.

        More updates and other shifts can: the cell then goes on from its checkpoint.
        """
        found = self.records[cell]
        if not found or found["status"] != "finished":
            return
        other = differences(found["arguments"], cell.arguments)
        then, now = other.pop(STEPS, (None, None))
        if then is not None and (now is None or int(now) < int(then)):
            other = {STEPS: (then, now)}
        for key, (then, now) in other.items():
            what = f"{cell.name} was run with {key}={shown(then)}, not {shown(now)}"
            raise UserError(f"{self.folder.path}: {what}", "out", "another folder, or the same options")
        if now is not None or found.get("shifts", cell.task.shifts) != cell.task.shifts:
            self.records[cell] = None

    def status(self, cell: Cell) -> str:
        found = self.records[cell]
        return "waiting" if found is None else found["status"]

    def exclude(self, empty: Mapping[Cell, tuple[str, str]]) -> None:
        """Record the cells that stay empty: left out by the suite or not fitting, and why."""
        for cell, (status, reason) in empty.items():
            self.records[cell] = self.leave(self.job(cell), status, reason)

    def prepared(self, task: Task) -> bool:
        """Whether the references of a task are known, for the options it has now."""
        found = self.references[task]
        if not found or found["status"] != "finished":
            return False
        same = (found["zero"]["quality"], found["one"]["quality"]) == (task.zero, task.one)
        return same and not differences(found["arguments"], self.preparation(task).arguments)

    def preparation(self, task: Task) -> Preparation:
        """The job that collects a task's data and measures its references."""
        problem, log = self.suite.problem(task, self.given), self.folder.log(Path(task.name, "reference"))
        record = self.folder.reference(task)
        return Preparation(f"{task.name} data", problem.arguments, record, log, task.zero, task.one)

    def job(self, cell: Cell) -> CellJob:
        """The job that trains and evaluates a cell, or evaluates its source's run again."""
        about = {"task": cell.task.name, "label": cell.method.label, "seed": cell.seed, "command": cell.command,
                 "run_dir": str(self.folder.run(cell).relative_to(self.folder.path)),
                 "cost_limit": cell.cost_limit}  # fmt: skip
        common = (cell.name, cell.arguments, self.folder.record(cell), self.folder.log(cell.place),
                  self.folder.run(cell), about)  # fmt: skip
        if cell.source is None:
            return Training(*common, cell.task.shifts)
        return Evaluation(*common, self.folder.run(cell.source))

    def silent(self, item: Cell | Task) -> bool:
        """Whether a job that has ended left no record."""
        return read(self.job_of(item).record) is None

    def job_of(self, item: Cell | Task) -> Job:
        return self.preparation(item) if isinstance(item, Task) else self.job(item)

    def note(self, item: Cell | Task, stopped: bool, how: str) -> Mapping[str, Any] | None:
        """Read what a job that has ended left; where it left nothing, that is its failure unless it was stopped."""
        job = self.job_of(item)
        found = read(job.record)
        if found is None and not stopped:
            found = self.leave(job, "failed", how)
        (self.references if isinstance(item, Task) else self.records)[item] = found
        return found

    def fail(self, cells: Iterable[Cell], reason: str) -> None:
        for cell in cells:
            self.records[cell] = self.leave(self.job(cell), "failed", reason)

    @staticmethod
    def leave(job: Job, status: str, reason: str) -> dict[str, Any]:
        """Write the record of a job that could not write its own."""
        found = {"arguments": list(job.arguments), "status": status, "reason": reason}
        with durable.disk_errors("write", job.record):
            job.record.parent.mkdir(parents=True, exist_ok=True)
            durable.replace(job.record, json.dumps(found).encode())
        return found

    def results(self) -> Results:
        returns, costs = self.by_episode("return"), self.by_episode("cost")
        references = {task.name: found for task, found in self.references.items()
                      if found and found["status"] == "finished"}  # fmt: skip
        records = [self.record(cell) for cell in self.cells]
        return Results(read(self.folder.path / SUITE) or {}, references, records, returns, costs)

    def by_episode(self, quantity: str) -> ByEpisode:
        """(task, label, shift or None) -> seed -> this quantity of the evaluated episodes, where they have it."""
        told: dict[tuple[str, str, str | None], dict[int, tuple[float, ...]]] = {}
        for cell in self.cells:
            found: dict[str | None, list[float]] = {}
            for episode in self.episodes(cell):
                if quantity in episode:
                    found.setdefault(episode["shift"], []).append(episode[quantity])
            for shift, values in found.items():
                told.setdefault((cell.task.name, cell.method.label, shift), {})[cell.seed] = tuple(values)
        return told

    def episodes(self, cell: Cell) -> list[dict[str, Any]]:
        found = self.records[cell]
        return found["episodes"] if self.status(cell) == "finished" else []

    def record(self, cell: Cell) -> dict[str, Any]:
        """The cell's entry of results.json."""
        found, status = self.records[cell] or {}, self.status(cell)
        head = {"task": cell.task.name, "label": cell.method.label, "seed": cell.seed, "status": status}
        if status == "finished":
            return {**head, "reason": None, **found["record"]}
        given = {"env": cell.options.get("env"), "scenario": cell.options.get("scenario"),
                 "algo": cell.options.get("algo"), "data": cell.options.get("data.quality")}  # fmt: skip
        return {**head, "reason": found.get("reason"), **given, "command": cell.command, "metrics": {}}

    def write(self) -> dict[str, Any]:
        """Write every file that tells the results; returns what `aggregate` and `answers` say of them."""
        results = self.results()
        told = aggregate(results) | answers(results)
        self.folder.write_json("results.json", results.records)
        self.folder.write_lines("episodes.jsonl", [
            {"task": cell.task.name, "label": cell.method.label, "seed": cell.seed, **episode}
            for cell in self.cells for episode in self.episodes(cell)
        ])  # fmt: skip
        self.folder.write_json("aggregates.json", told)
        made = [*tables(results, told), *answer_tables(results, told)]
        title = f"# Benchmark {self.suite.name}\n\n{' '.join(self.suite.about.split())}\n\n"
        self.folder.write("tables.md", title + "\n".join(table.markdown() for table in made))
        with durable.disk_errors("write", self.folder.path / "tables"):
            (self.folder.path / "tables").mkdir(exist_ok=True)
        for table in (*made, long_csv(results)):
            self.folder.write(f"tables/{table.name}.csv", table.csv())
        return told


class Estimates:
    """How long a cell takes, from the cells like it that have finished."""

    def __init__(self, board: Board) -> None:
        self.seconds: dict[tuple[str, ...], list[float]] = {}
        for cell in board.cells:
            if board.status(cell) == "finished":
                self.add(cell, board.records[cell]["cell_seconds"])

    def add(self, cell: Cell, seconds: float) -> None:
        for key in self.keys(cell):
            self.seconds.setdefault(key, []).append(seconds)

    def of(self, cell: Cell) -> float | None:
        """Mean of the same task and method, else of the same method, the same task, of all; None at the beginning."""
        known = next((self.seconds[key] for key in self.keys(cell) if key in self.seconds), None)
        return None if known is None else fmean(known)

    @staticmethod
    def keys(cell: Cell) -> list[tuple[str, ...]]:
        task, label = cell.task.name, cell.method.label
        return [("both", task, label), ("method", label), ("task", task), ()]


def differences(then: Sequence[str], now: Sequence[str]) -> dict[str, tuple[str | None, str | None]]:
    """The options, by key, that two lists of arguments give differently."""
    before, after = (dict(argument.split("=", 1) for argument in arguments) for arguments in (then, now))
    return {
        key: (before.get(key), after.get(key)) for key in {**after, **before}
        if before.get(key) != after.get(key) and key not in HARMLESS
    }  # fmt: skip


def long_csv(results: Results) -> Table:
    """One line a cell, with everything."""
    metrics = list(dict.fromkeys(key for r in results.records for key in r["metrics"] if key != "return_ci95"))
    keys = ["task", "label", "seed", "env", "scenario", "algo", "data", "status", "updates", "seconds",
            "evaluation_seconds", "episodes", "flattened", "reason", "command"]  # fmt: skip

    def row(record: Mapping[str, Any]) -> list[str]:
        measured = record["metrics"]
        low, high = measured.get("return_ci95", ("", ""))
        values = [*(record.get(key) for key in keys), *(measured.get(key) for key in metrics), low, high]
        return ["" if value is None else str(value) for value in values]

    columns = [*keys, *metrics, "return_ci95_low", "return_ci95_high"]
    return Table("cells", "Cells", columns, [row(record) for record in results.records])
