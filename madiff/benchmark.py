"""python -m madiff.benchmark: run a suite of tasks and methods, cell by cell, into tables and plots."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console

from madiff import build, configuration
from madiff.benchmarking import drawing, modes, suite
from madiff.benchmarking.board import Board
from madiff.benchmarking.examine import empty
from madiff.benchmarking.folder import Folder, recorded_seeds, refuse_other
from madiff.benchmarking.launchers import Local, Submitit
from madiff.benchmarking.runner import Runner
from madiff.benchmarking.suite import Cell, Suite
from madiff.experiment import runtime
from madiff.interfaces import UserError
from madiff.schema import BenchmarkConfig, Hardware

console = Console()
say = partial(console.print, markup=False, highlight=False, soft_wrap=True)


def main(arguments: Sequence[str] | None = None) -> int:
    return configuration.main(VERB, build.defaults, sys.argv[1:] if arguments is None else arguments)


def benchmark(config: BenchmarkConfig) -> None:
    """The whole job; everything that can be wrong with `config` and the suite is found before the folder is made."""
    chosen_suite = suite.load(config.suite)
    path = config.out or Path("runs") / f"benchmark-{chosen_suite.name}"
    refuse_other(path, chosen_suite.name)
    local = local_launcher(config)
    seeds, options = config.seeds or chosen_suite.seeds, given(config)
    cells = chosen_suite.cells(max(seeds, recorded_seeds(path)), options)
    chosen = choose(cells, chosen_suite, config, seeds)
    without = empty(chosen)
    workers = config.workers or runtime.cores()
    folder = Folder.open(path, chosen_suite)
    try:
        launcher = local or Submitit(folder.path / "submitit", *cluster(config))
        board = Board(chosen_suite, cells, options, folder)
        folder.describe(chosen_suite, max(seeds, recorded_seeds(path)), options)
        board.exclude(without)
        todo = [cell for cell in chosen if cell not in without and board.status(cell) != "finished"]
        say(f"{len(chosen)} cells, {len(todo)} to run, {len(without)} without a number, {workers} at a time, in {path}")
        board.write()
        Runner(board, launcher, todo, workers, config.minutes, console).run()
        drawing.draw(board.results(), board.write(), folder.path / "plots")
        modes.draw(board, folder.path / "plots")
        conclude(board, chosen, path)
    finally:
        folder.close()


def given(config: BenchmarkConfig) -> dict[str, Any]:
    """The user's own options of every cell."""
    sections = {"train": config.train, "evaluation": config.evaluation, "data": config.data}
    options = {f"{section}.{key}": value for section, values in sections.items() for key, value in values.items()}
    machine = {"hardware.threads": config.hardware.threads or 1, "hardware.device": config.hardware.device}
    return {**options, **machine, **{f"hardware.{key}": value for key, value in computed_otherwise(config.hardware)}}


def computed_otherwise(hardware: Hardware) -> list[tuple[str, Any]]:
    """Options of how networks are computed that are not their defaults, which finished cells do not name."""
    found = [(f.name, getattr(hardware, f.name), f.default) for f in fields(hardware)]
    return [(name, value) for name, value, default in found if default is not MISSING and value != default]


def choose(cells: Sequence[Cell], chosen_suite: Suite, config: BenchmarkConfig, seeds: int) -> list[Cell]:
    """The cells that this call is about; a task's name without its share of the data stands for all shares."""
    families = {task.family for task in chosen_suite.tasks.values()}
    labels = config.methods and {*config.methods, *sources(chosen_suite, config.methods)}
    for names, known, where in (
        (config.methods, list(chosen_suite.methods), "methods"),
        (config.tasks, sorted({*chosen_suite.tasks, *families}), "tasks"),
    ):
        for name in names or ():
            if name not in known:
                raise UserError(f"suite '{chosen_suite.name}' has no '{name}'", where, known)
    return [
        cell for cell in cells
        if cell.seed < seeds
        and (labels is None or cell.method.label in labels)
        and (config.tasks is None or {cell.task.name, cell.task.family} & set(config.tasks))
    ]  # fmt: skip


def sources(chosen_suite: Suite, labels: Sequence[str]) -> set[str]:
    """The methods whose runs these methods evaluate."""
    return {chosen_suite.methods[label].of for label in labels if label in chosen_suite.methods} - {""}


def local_launcher(config: BenchmarkConfig) -> Local | None:
    """The launcher of this machine, importing while the cells are checked; None where jobs go to a cluster."""
    if config.launcher == "submitit":
        with TemporaryDirectory() as nowhere:
            Submitit(Path(nowhere), *cluster(config))  # refuses options that the cluster does not know
        return None
    if config.cluster or config.slurm:
        raise UserError("a cluster's options", "launcher", "submitit")
    return Local(config.hardware.threads or 1)


def cluster(config: BenchmarkConfig) -> tuple[str | None, int, Mapping[str, Any]]:
    return config.cluster, config.hardware.threads or 1, config.slurm


def conclude(board: Board, chosen: Sequence[Cell], path: Path) -> None:
    """Say where the tables are; raises UserError when a cell of this call failed."""
    say(f"written to {path}: tables.md, results.json, plots; python -m madiff.report {path} makes one page of it")
    states = [board.status(cell) for cell in chosen]
    if waiting := states.count("waiting"):
        say(f"{waiting} of {len(chosen)} cells are left for the next call")
    if failed := [cell for cell, state in zip(chosen, states, strict=True) if state == "failed"]:
        first = board.record(failed[0])["reason"]
        raise UserError(f"{len(failed)} of {len(chosen)} cells failed, the first, {failed[0].name}: {first}", str(path))


VERB = configuration.Verb(
    "benchmark",
    "run a suite of tasks and methods into tables and plots, cell by cell; call it again to go on",
    BenchmarkConfig,
    benchmark,
    [
        "python -m madiff.benchmark suite=coordination",
        "python -m madiff.benchmark suite=coordination seeds=1 methods=[bc,madiff-d] tasks=[xor] minutes=10 out=DIR",
    ],
)

if __name__ == "__main__":
    sys.exit(main())
