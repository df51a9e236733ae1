"""What the terminal shows while a run trains: a bar for people, a few lines for log files."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

from rich import progress as bars
from rich.console import Console

LINES = 10
SHOWN = ("loss", "eval/return_mean")


class Progress(Protocol):
    def advance(self, step: int) -> None:
        """Called after every step; must cost next to nothing."""
        ...

    def record(self, step: int, metrics: Mapping[str, float]) -> None:
        """Called with every record written."""
        ...


@contextmanager
def progress(console: Console, title: str, start: int, steps: int) -> Iterator[Progress]:
    """A bar with time left, step and loss on a terminal; at most about ten lines a run elsewhere."""
    if start >= steps or not console.is_terminal:
        yield _Lines(console, title, start, steps)
        return
    columns = (
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TimeRemainingColumn(),
        bars.TextColumn("{task.fields[metrics]}"),
    )
    with bars.Progress(*columns, console=console, refresh_per_second=4) as bar:
        yield _Bar(bar, bar.add_task(title, total=steps, completed=start, metrics=""))


class _Bar:
    def __init__(self, bar: bars.Progress, task: bars.TaskID):
        self._bar, self._task, self._shown = bar, task, 0.0
        self._metrics: dict[str, float] = {}

    def advance(self, step: int) -> None:
        # The bar is drawn four times a second; telling it of every step would cost more than a small network's update.
        now = time.monotonic()
        if now - self._shown > 0.1:
            self._bar.update(self._task, completed=step)
            self._shown = now

    def record(self, step: int, metrics: Mapping[str, float]) -> None:
        # Evaluations are rarer than losses: the last known value of each stays in sight.
        self._metrics |= metrics
        self._bar.update(self._task, completed=step, metrics=_text(self._metrics))


class _Lines:
    def __init__(self, console: Console, title: str, start: int, steps: int):
        self._console, self._title, self._start, self._steps = console, title, start, steps
        self._next, self._began = start, time.monotonic()

    def advance(self, step: int) -> None:
        """Lines come with records only."""

    def record(self, step: int, metrics: Mapping[str, float]) -> None:
        if step < self._next and step < self._steps:
            return
        self._next = step + self._steps // LINES
        rate = (step - self._start) / max(time.monotonic() - self._began, 1e-9)
        line = f"{self._title}: step {step}/{self._steps}  {_text(metrics)}  {rate:.0f} steps/s"
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)


def _text(metrics: Mapping[str, float]) -> str:
    return "  ".join(f"{name.removeprefix('eval/')} {metrics[name]:.4g}" for name in SHOWN if name in metrics)
