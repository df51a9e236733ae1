"""The one training loop: update, log, evaluate, checkpoint, resume."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from madiff.experiment import checkpoint
from madiff.experiment.processes import ALONE, Processes
from madiff.experiment.progress import Progress, progress
from madiff.experiment.run_directory import RunDirectory
from madiff.experiment.seeding import derive
from madiff.experiment.tracking import Tracker
from madiff.interfaces import BatchSource, Learner, UserError

Together = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True)
class FitReport:
    """start_step: where this call began (0, or the checkpoint's step); steps: training steps done in all.

    seconds: wall time of the whole run's training, evaluations included, earlier sessions included.
    """

    start_step: int
    steps: int
    seconds: float


def fit(
    learner: Learner,
    source: BatchSource,
    run: RunDirectory,
    *,
    steps: int,
    seed: int,
    log_every: int = 100,
    checkpoint_every: int = 1000,
    evaluate_every: int = 0,
    evaluate: Callable[[int], Mapping[str, float]] | None = None,
    tracker: Tracker | None = None,
    title: str = "training",
    device: torch.device | str = "cpu",
    metadata: Mapping[str, Any] | None = None,
    console: Console | None = None,
    crew: Processes = ALONE,
    together: Together = nullcontext,
) -> FitReport:
    """Train `learner` to step `steps`, taking up the latest checkpoint in `run` if there is one.

    Records, evaluations (0: never) and checkpoints come every so many steps and at the last one. A record is one line
    of metrics.jsonl: the learner's metrics averaged since the last record, and `evaluate`'s as "eval/...". Step k draws
    from a generator on `device` seeded by (seed, "train", k), so on a CPU a killed and resumed run equals an unbroken
    one bit for bit. metadata: JSON values for the checkpoints' meta.json (the environment's spec). crew: the processes
    that train together, the others with `assist`; together: what every batch and update is made in.

    Raises UserError when a loss or weight stops being finite, or the disk refuses; KeyboardInterrupt after Ctrl-C or
    SIGTERM, when the step in progress has been finished and a checkpoint written.
    """
    for name, value in (("steps", steps), ("log_every", log_every), ("checkpoint_every", checkpoint_every)):
        if value < 1:
            raise UserError(f"{value} is not positive", name, "an integer >= 1")
    every = _Every(steps, log_every, checkpoint_every, evaluate_every if evaluate else 0)
    meta = {"config": run.config, "identity": run.identity, **(metadata or {})}
    console = console or Console()
    state = _resume(learner, run, console, crew)
    start, began = state.step, time.monotonic() - state.seconds
    if start < steps:
        run.write_config()
    if 0 < start < steps:
        console.print(f"resumed from step {start}", highlight=False)

    def save() -> None:
        state.seconds = time.monotonic() - began
        _save(run, learner, meta, state)

    generator = torch.Generator(device=device)
    with _Interrupt() as interrupt, progress(console, title, start, steps) as show:
        try:
            while True:
                if every.report(state.step) and state.step > state.recorded:
                    _report(run, state, every, evaluate, tracker, show, interrupt)
                if every.save(state.step) and state.step > state.saved:
                    save()
                interrupt.check()
                if state.step >= steps:
                    break
                crew.tell(state.step + 1)
                state.add(_update(learner, source, generator, seed, state.step + 1, together))
                show.advance(state.step)
        except KeyboardInterrupt:
            if state.step > state.saved:
                save()
            console.print(f"stopped at step {state.step}; resume=auto goes on from there", highlight=False)
            raise
    crew.tell(None)
    return FitReport(start, state.step, state.seconds)


def assist(
    learner: Learner,
    source: BatchSource,
    crew: Processes,
    *,
    seed: int,
    device: torch.device | str,
    together: Together,
) -> None:
    """What `fit` is in a process that is not the first: the same updates of its own copy, each when it is told to."""
    found = crew.told()
    if found is not None:
        checkpoint.load(found, learner)
    generator = torch.Generator(device=device)
    while (step := crew.told()) is not None:
        _update(learner, source, generator, seed, step, together)


def _update(
    learner: Learner, source: BatchSource, generator: torch.Generator, seed: int, step: int, together: Together
) -> Mapping[str, Tensor]:
    """Training step `step`, counted from 1; returns the learner's metrics."""
    generator.manual_seed(derive(seed, "train", step))
    with together():
        return learner.update(source.sample(generator), generator)


@dataclass
class _State:
    """Where the loop is: steps done, last step saved and recorded, and the metrics summed since that record."""

    step: int = 0
    saved: int = 0
    recorded: int = 0
    seconds: float = 0.0
    sums: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, metrics: Mapping[str, Tensor]) -> None:
        """Count one finished step; nothing here waits for the device."""
        self.step += 1
        for name, value in metrics.items():
            self.sums[name] = self.sums.get(name, 0) + value.detach().double()
            self.counts[name] = self.counts.get(name, 0) + 1

    def averages(self) -> dict[str, float]:
        """Means over the steps since the last record, in one transfer; raises UserError if a loss is not finite."""
        if not self.sums:
            return {}
        device = next(iter(self.sums.values())).device
        values = torch.stack([(self.sums[name] / self.counts[name]).to(device) for name in self.sums]).tolist()
        averages = dict(zip(self.sums, values, strict=True))
        for name, value in averages.items():
            if "loss" in name and not math.isfinite(value):
                raise _diverged(f"{name} became {value}", self)
        return averages


@dataclass(frozen=True)
class _Every:
    """Which steps are reported and saved; the last one always is, and 0 means never."""

    steps: int
    log: int
    checkpoint: int
    evaluation: int

    def _due(self, step: int, interval: int) -> bool:
        return interval > 0 and (step % interval == 0 or step == self.steps)

    def report(self, step: int) -> bool:
        return self._due(step, self.log) or self.evaluate(step)

    def evaluate(self, step: int) -> bool:
        return self._due(step, self.evaluation)

    def save(self, step: int) -> bool:
        return self._due(step, self.checkpoint)


class _Interrupt:
    """Ctrl-C and SIGTERM wait for the step or checkpoint in progress, but break into an evaluation."""

    def __init__(self) -> None:
        self.asked = self.immediate = False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> _Interrupt:
        # Only the main thread may set handlers; a signal that is ignored, or not handled by Python, is left so.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: object) -> None:
        repeated, self.asked = self.asked, True
        if self.immediate and not repeated:
            raise KeyboardInterrupt

    def check(self) -> None:
        if self.asked:
            raise KeyboardInterrupt

    @contextmanager
    def breaking(self) -> Iterator[None]:
        """Let a signal raise at once: for work that may be thrown away."""
        self.check()
        self.immediate = True
        try:
            yield
        finally:
            self.immediate = False


def _resume(learner: Learner, run: RunDirectory, console: Console, crew: Processes) -> _State:
    """Load the latest checkpoint into `learner`, here and in all processes, and cut the records back to it."""
    found = checkpoint.latest(run.checkpoints, lambda line: console.print(line, highlight=False, markup=False))
    crew.tell(found)
    state = _State()
    if found is not None:
        loop = checkpoint.load(found, learner)
        seconds = found.meta.get("seconds")
        seconds = float(seconds) if isinstance(seconds, int | float) else 0.0
        state = _State(found.step, found.step, 0, seconds, loop.get("sums", {}), loop.get("counts", {}))
    checkpoint.clean(run.checkpoints, state.step)
    state.recorded = run.metrics.rewind(state.step)
    return state


def _report(
    run: RunDirectory,
    state: _State,
    every: _Every,
    evaluate: Callable[[int], Mapping[str, float]] | None,
    tracker: Tracker | None,
    show: Progress,
    interrupt: _Interrupt,
) -> None:
    """Write the one record of this step: averaged training metrics and, when due, the evaluation's."""
    record = state.averages()
    if evaluate is not None and every.evaluate(state.step):
        with interrupt.breaking():
            record |= {f"eval/{name}": float(value) for name, value in evaluate(state.step).items()}
    if record:
        run.metrics.append(state.step, record)
        show.record(state.step, record)
        if tracker is not None:
            tracker.log(state.step, record)
    state.recorded, state.sums, state.counts = state.step, {}, {}


def _save(run: RunDirectory, learner: Learner, meta: Mapping[str, Any], state: _State) -> None:
    """Write a checkpoint, unless what it would hold is no longer numbers."""
    state.averages()
    if any(bool(value.isnan().any()) for value in learner.weights().values() if value.is_floating_point()):
        raise _diverged("a weight became nan", state)
    run.metrics.sync()
    loop_state = {"sums": state.sums, "counts": state.counts}
    checkpoint.save(run.checkpoints, state.step, learner, {**meta, "seconds": state.seconds}, loop_state)
    state.saved = state.step


def _diverged(what: str, state: _State) -> UserError:
    kept = f"the checkpoint of step {state.saved} is kept" if state.saved else "no checkpoint had been written"
    return UserError(
        f"{what} between steps {max(state.recorded, state.saved) + 1} and {state.step}; {kept}",
        "training",
        "a smaller learning rate, or data without extreme values",
    )
