"""The order and the timing of cells, on a clock of the test's own with jobs that only take time."""

import io
import json
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

from madiff.benchmarking import launchers, runner, suite
from madiff.benchmarking.board import Board, Estimates
from madiff.benchmarking.folder import Folder
from madiff.benchmarking.runner import Runner, minutes
from madiff.benchmarking.suite import Task
from tests.benchmarking import fakes

SECONDS = {"short": 10.0, "long": 100.0, "data": 5.0}


class Clock:
    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now


class Jobs:
    """A launcher whose jobs last SECONDS and then leave a record; keeps what was started when, and interrupted."""

    def __init__(self, clock):
        self.clock, self.started, self.interrupted, self.most = clock, [], [], 0
        self.losses = {}  # by name: how many workers of a job are lost before it leaves a record

    def start(self, job):
        self.started.append((job.name, self.clock.now))
        kind = job.name.split()[1]
        return Running(job, self.clock.now + SECONDS[kind], self)

    def watch(self, running, seconds):
        self.most = max(self.most, len(running))
        self.clock.now = min(self.clock.now + seconds, min((each.end for each in running), default=1e9))


class Running:
    def __init__(self, job, end, jobs):
        self.job, self.end, self.jobs, self.stopped = job, end, jobs, False

    def ended(self):
        if self.stopped:
            return "stopped"
        if self.jobs.clock.now < self.end:
            return None
        if self.jobs.losses.get(self.job.name):
            self.jobs.losses[self.job.name] -= 1
            return "its worker is gone"
        label = self.job.name.split()[1]
        record = fakes.finished("t", label, 0, np.ones(2), 0.0)
        outcome = {
            "arguments": self.job.arguments, "status": "finished", "cell_seconds": SECONDS[label],
            "episodes": [{"shift": None, "return": 1.0}] * 2, "shifts": {}, **fakes.reference(0.0, 1.0),
            "record": {key: record[key] for key in ("metrics", "updates", "seconds", "flattened", "curve", "command")},
        }  # fmt: skip
        self.job.record.parent.mkdir(parents=True, exist_ok=True)
        self.job.record.write_text(json.dumps(outcome))
        return "exit code 0"

    def interrupt(self):
        self.stopped = True
        self.jobs.interrupted.append((self.job.name, self.jobs.clock.now))

    def kill(self):
        raise AssertionError("nothing needs to be killed")


@pytest.fixture
def make(workplace, monkeypatch):
    """A function that makes a runner of a suite with one task and the methods short and long."""
    clock = Clock()
    for module in (runner, launchers):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=clock.monotonic, sleep=None))
    content = {
        "about": "a", "leaves_out": "l", "same_for_all": "s", "seeds": 3, "reference": "short", "baselines": [],
        "tasks": {"t": {"options": {}}}, "methods": {name: {"options": {"algo": "bc"}} for name in ("short", "long")},
    }  # fmt: skip
    loaded = suite.parse("timing", content)
    folder = Folder.open(workplace / "bench", loaded)
    folder.describe(loaded, 3, {})

    def build(limit=None, workers=1):
        cells = loaded.cells(3, {})
        board = Board(loaded, cells, {}, folder)
        todo = [cell for cell in cells if board.status(cell) == "waiting"]
        return Runner(board, Jobs(clock), todo, workers, limit, Console(file=io.StringIO(), width=200))

    yield build
    folder.close()


def names(started):
    return [name for name, _ in started]


def test_the_task_is_prepared_once_then_cells_run_in_order(make):
    run = make()
    run.run()
    expected = [f"t {label} seed {seed}" for seed in range(3) for label in ("short", "long")]
    assert names(run.launcher.started) == ["t data", *expected] and run.launcher.most == 1
    assert [run.board.status(cell) for cell in run.board.cells] == ["finished"] * 6
    times = dict(run.launcher.started)
    assert times["t short seed 0"] == 5.0 and times["t long seed 0"] == 15.0 and times["t short seed 1"] == 115.0
    make().run()  # nothing is left
    assert make().todo == []


def test_a_job_whose_worker_is_lost_is_started_once_more_before_any_other(make):
    run = make()
    run.launcher.losses = {"t data": 1, "t long seed 1": 1}
    run.run()
    started = names(run.launcher.started)
    assert started[:3] == ["t data", "t data", "t short seed 0"] and len(started) == 9
    assert started[5:7] == ["t long seed 1"] * 2
    assert [run.board.status(cell) for cell in run.board.cells] == ["finished"] * 6
    said = run.console.file.getvalue()
    assert said.count("its worker is gone; it is started once more") == 2 and "t long seed 1: its worker" in said


def test_a_job_lost_twice_has_failed_with_its_reason_and_the_others_go_on(make):
    run = make()
    run.launcher.losses = {"t short seed 1": 2}
    run.run()
    assert names(run.launcher.started).count("t short seed 1") == 2
    assert [run.board.status(cell) for cell in run.board.cells] == ["finished"] * 2 + ["failed"] + ["finished"] * 3
    records = json.loads((run.board.folder.path / "results.json").read_text())
    assert records[2]["reason"] == "its worker is gone, for the second time"
    again = make()
    assert names([(cell.name, 0) for cell in again.todo]) == []
    assert again.board.status(again.board.cells[2]) == "failed"  # the verb tries it again in its next call


def test_as_many_cells_at_a_time_as_there_are_workers(make):
    run = make(workers=2)
    run.run()
    assert run.launcher.most == 2
    times = dict(run.launcher.started)
    assert times["t data"] == 0.0 and times["t short seed 0"] == times["t long seed 0"] == 5.0
    assert times["t short seed 1"] == 15.0 and times["t long seed 1"] == 25.0


def test_nothing_is_started_that_would_not_fit_and_shorter_cells_fill_the_time(make):
    run = make(limit=150 / 60)
    run.run()
    assert names(run.launcher.started) == [
        "t data", "t short seed 0", "t long seed 0", "t short seed 1", "t short seed 2",
    ]  # fmt: skip
    assert run.launcher.interrupted == [] and run.launcher.clock.now <= 150
    again = make(limit=250 / 60)
    again.run()
    assert names(again.launcher.started) == ["t long seed 1", "t long seed 2"] and again.launcher.interrupted == []


def test_a_cell_longer_than_the_whole_time_is_begun_and_saved_at_its_end(make):
    first = make(limit=200 / 60)
    first.run()
    run = make(limit=1)
    begun = run.launcher.clock.now
    run.run()
    started = [name for name in names(run.launcher.started) if "long" in name]
    assert len(started) == 1 and run.launcher.interrupted == [(started[0], pytest.approx(begun + 60, abs=1))]
    assert [run.board.status(cell) for cell in run.board.cells].count("waiting") == 2


def test_without_time_nothing_is_started(make):
    run = make(limit=0)
    run.run()
    assert run.launcher.started == []


def test_estimates_come_from_the_most_alike_of_what_has_finished(make):
    run = make()
    estimates = Estimates(run.board)
    task = run.board.cells[0].task
    other = Task("other", {})
    known = {(cell.method.label, cell.seed): cell for cell in run.board.cells}
    assert estimates.of(known["long", 0]) is None
    estimates.add(known["short", 0], 10.0)
    assert estimates.of(known["long", 0]) == 10.0  # of the same task
    estimates.add(known["long", 0], 100.0)
    estimates.add(known["long", 1], 120.0)
    assert (estimates.of(known["long", 2]), estimates.of(known["short", 2])) == (110.0, 10.0)
    elsewhere = suite.Cell(other, known["long", 0].method, 0, {})
    assert estimates.of(elsewhere) == 110.0  # of the same method
    stranger = suite.Cell(other, suite.Method("new", {}), 0, {})
    assert estimates.of(stranger) == pytest.approx(230 / 3) and task is not other


def test_the_time_left_is_that_of_the_open_cells_shared_by_the_workers(make):
    run = make(limit=120 / 60)
    run.run()
    rest = make(workers=2)
    rest.estimates = Estimates(rest.board)
    assert rest.remaining() == pytest.approx(110.0)  # two short and two long ones by two workers


@pytest.mark.parametrize(("seconds", "text"), [(42.4, "42 s"), (600, "10 min"), (7200, "2.0 h")])
def test_times_are_said_in_a_fitting_unit(seconds, text):
    assert minutes(seconds) == text
