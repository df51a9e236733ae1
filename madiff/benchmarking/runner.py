"""Works through a benchmark's cells: what is ready and fits the time left, so many at once; all is kept at any end."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from rich import progress as bars
from rich.console import Console

from madiff.benchmarking.board import Board, Estimates
from madiff.benchmarking.launchers import Launcher, Running, stop
from madiff.benchmarking.suite import Cell, Task

TICK = 1.0  # seconds between two looks at the clock


@dataclass
class Runner:
    """Runs `todo` in order, each task's preparation before its first cell.

    minutes: after which nothing is running any more; a cell that would not fit is left for the next call, one longer
    than the whole time is begun when most of it is left and goes on in the next call. A job whose worker is lost is
    started once more, from its last checkpoint; lost again it has failed.
    """

    board: Board
    launcher: Launcher
    todo: list[Cell]
    workers: int
    minutes: float | None
    console: Console
    running: list[tuple[Cell | Task, Running]] = field(default_factory=list)
    lost: set[Cell | Task] = field(default_factory=set)

    def run(self) -> None:
        """Until nothing is left that could be started; KeyboardInterrupt after Ctrl-C or SIGTERM, with all kept."""
        self.began, self.estimates = time.monotonic(), Estimates(self.board)
        self.total = len(self.todo)
        with sigterm_as_interrupt(), progress(self.console, self.total) as self.show:
            try:
                while self.fill():
                    self.launcher.watch([job for _, job in self.running], min(TICK, max(self.left(), 0.05)))
                    self.collect()
                    if self.left() <= 0:
                        self.stop()
                        return
            except BaseException:
                self.stop()
                raise

    def left(self) -> float:
        """Seconds until `minutes` are over."""
        return float("inf") if self.minutes is None else 60 * self.minutes - (time.monotonic() - self.began)

    def fill(self) -> bool:
        """Start jobs while there is room for one and one to start; whether any runs."""
        while len(self.running) < self.workers and (item := self.next()) is not None:
            job = self.board.job_of(item)
            job.record.unlink(missing_ok=True)
            self.running.append((item, self.launcher.start(job)))
        return bool(self.running)

    def next(self) -> Cell | Task | None:
        """The first cell that can start now, taken out of `todo`, or the task that it needs prepared."""
        preparing = [item for item, _ in self.running if isinstance(item, Task)]
        for cell in self.todo:
            if cell.task in preparing or not self.fits(cell):
                continue
            if cell.source is not None and self.board.status(cell.source) != "finished":
                continue
            if not self.board.prepared(cell.task):
                return cell.task
            self.todo.remove(cell)
            return cell
        return None

    def fits(self, cell: Cell) -> bool:
        expected = self.estimates.of(cell) or 0.0
        whole = 60 * (self.minutes or 0.0)
        return expected < self.left() or (expected > whole and self.left() > whole / 2)

    def collect(self, stopped: bool = False) -> None:
        """Note the jobs that have ended, and tell the results anew."""
        ended = [(item, running, how) for item, running in self.running if (how := running.ended()) is not None]
        for item, running, how in ended:
            self.running.remove((item, running))
            if not stopped and self.board.silent(item):
                if item not in self.lost:
                    self.again(item, how)
                    continue
                how += ", for the second time"
            found = self.board.note(item, stopped, how)
            if isinstance(item, Task):
                self.prepared(item, found)
            else:
                self.finished(item, found)
        if ended:
            self.board.write()
        self.show(self.total - len(self.todo) - len(self.running), self.remaining())

    def again(self, item: Cell | Task, how: str) -> None:
        """Let a job whose worker is gone be the next that is started; cells ask for their task's by themselves."""
        self.lost.add(item)
        if isinstance(item, Cell):
            self.todo.insert(0, item)
        self.say(f"{item.name}: {how}; it is started once more")

    def prepared(self, task: Task, found: Any) -> None:
        """A task that cannot be prepared takes its cells with it."""
        if found is not None and found["status"] == "failed":
            lost = [cell for cell in self.todo if cell.task is task]
            self.board.fail(lost, found["reason"])
            self.todo = [cell for cell in self.todo if cell.task is not task]
            self.say(f"{task.name}: {found['reason']}")

    def finished(self, cell: Cell, found: Any) -> None:
        if found is None:
            return
        if found["status"] == "finished":
            self.estimates.add(cell, found["cell_seconds"])
            self.say(f"{cell.name}: return {found['record']['metrics']['return_mean']:.4g}")
        else:
            self.say(f"{cell.name} failed: {found['reason']}")
            lost = [other for other in self.todo if other.source is cell]
            self.board.fail(lost, f"{cell.method.label} failed")
            self.todo = [other for other in self.todo if other.source is not cell]

    def say(self, line: str) -> None:
        done = self.total - len(self.todo) - sum(isinstance(item, Cell) for item, _ in self.running)
        left = self.remaining()
        eta = "" if left is None else f"  (about {minutes(left)} left)"
        self.console.print(f"[{done}/{self.total}] {line}{eta}", markup=False, highlight=False, soft_wrap=True)

    def remaining(self) -> float | None:
        """Seconds until all is done, with every worker busy; None while nothing is known."""
        open_cells = [*self.todo, *(item for item, _ in self.running if isinstance(item, Cell))]
        known = [self.estimates.of(cell) for cell in open_cells]
        return None if None in known else sum(known) / self.workers

    def stop(self) -> None:
        stop([job for _, job in self.running], self.launcher)
        self.collect(stopped=True)


def minutes(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


@contextmanager
def progress(console: Console, total: int) -> Iterator[Any]:
    """A bar on a terminal; yields the function that is told the cells done and the seconds left."""
    eta = bars.TextColumn("{task.fields[eta]}")
    columns = bars.TextColumn("cells"), bars.BarColumn(), bars.MofNCompleteColumn(), eta
    with bars.Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("cells", total=total, eta="")

        def show(done: int, seconds: float | None) -> None:
            bar.update(task, completed=done, eta="" if seconds is None else f"about {minutes(seconds)} left")

        yield show


@contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """Let SIGTERM end the benchmark as Ctrl-C does, where signals can be handled."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
