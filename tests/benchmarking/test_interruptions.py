"""Kills, Ctrl-C and a limit of time: what was done is kept, and the rest goes on as if nothing had happened."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from filelock import FileLock, Timeout

import madiff
from madiff import benchmark
from madiff.benchmarking.folder import read
from madiff.experiment import checkpoint
from tests.benchmarking.test_benchmark import small

ROOT = os.path.dirname(os.path.dirname(madiff.__file__))
STEPS = 800
LONG = {"env": "smac-like", "agents": 2, "data.episodes": 8, "train.steps": STEPS, "train.checkpoint_every": 10,
        "train.evaluate_every": STEPS, "train.evaluate_episodes": 2, "evaluation.episodes": 2,
        "algo.batch_size": 8}  # fmt: skip
CELL = "2m/bc/seed0"


@pytest.fixture
def long(workplace):
    """A suite of one cell that trains for some seconds, and its arguments."""
    return [f"suite={small(workplace, options=LONG)}", f"out={workplace}/bench", "workers=1"]


def start(arguments):
    environment = {**os.environ, "PYTHONPATH": ROOT, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "madiff.benchmark", *arguments]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)


def eventually(condition, alive=lambda: True):
    deadline = time.monotonic() + 90
    while not condition() and alive() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


def wait_for(condition, process):
    assert eventually(condition, lambda: process.poll() is None) and process.poll() is None


def latest(folder):
    return checkpoint.latest(folder / "cells" / CELL / "checkpoints").step


def saved(folder):
    return list((folder / "cells" / CELL / "checkpoints").glob("step-*"))


def free(folder):
    """Whether no process works on the cell any more."""
    try:
        with FileLock(folder / "records" / f"{CELL}.lock", timeout=0):
            return True
    except Timeout:
        return False


def status(folder):
    return [record["status"] for record in json.loads((folder / "results.json").read_text())]


@pytest.mark.learn
def test_ctrl_c_and_kill_9_stop_the_workers_and_the_cell_ends_as_one_never_stopped(long, workplace):
    bench = workplace / "bench"
    process = start(long)
    wait_for(lambda: saved(bench), process)
    process.send_signal(signal.SIGINT)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and error.splitlines()[-1:] == ["interrupted"]
    assert free(bench) and status(bench) == ["waiting"]
    stopped = latest(bench)
    assert f"stopped at step {stopped};" in (bench / "logs" / f"{CELL}.log").read_text()

    process = start(long)
    wait_for(lambda: not free(bench) and latest(bench) > stopped, process)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert eventually(lambda: free(bench)) and status(bench) == ["waiting"]
    reached = latest(bench)
    assert stopped < reached < STEPS

    for arguments in (long, [*long, f"out={workplace}/unbroken"]):
        assert benchmark.main(arguments) == 0
    ours, theirs = (read(folder / "cells" / CELL / "summary.json") for folder in (bench, workplace / "unbroken"))
    assert ours["resumed_from"] == reached and theirs["resumed_from"] is None
    assert ours["return_mean"] == theirs["return_mean"]
    texts = [(folder / "cells" / CELL / "metrics.jsonl").read_bytes() for folder in (bench, workplace / "unbroken")]
    assert texts[0] == texts[1]


def lose_worker(bench, arguments):
    """The exit code of a benchmark whose first cell's worker is killed when it has saved something."""
    codes = []
    thread = threading.Thread(target=lambda: codes.append(benchmark.main(arguments)))
    thread.start()
    assert eventually(lambda: saved(bench))
    assert set(status(bench)) == {"waiting"}  # what there is can be read at any time
    os.kill(json.loads((bench / "cells" / CELL / ".owner.json").read_text())["pid"], signal.SIGKILL)
    thread.join(timeout=120)
    return codes[0]


@pytest.mark.learn
def test_a_worker_that_dies_alone_is_replaced_and_the_others_go_on(long, workplace, capsys):
    bench = workplace / "bench"
    assert lose_worker(bench, [*long, "seeds=2"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("it is started once more") == 1 and "2m bc seed 0: its process ended with signal 9" in said
    assert status(bench) == ["finished", "finished"]
    assert read(bench / "cells" / CELL / "summary.json")["resumed_from"] >= 10


def test_a_second_benchmark_in_the_same_folder_is_refused(long, workplace, capsys):
    (workplace / "bench").mkdir()
    with FileLock(workplace / "bench" / ".lock"):
        assert benchmark.main(long) == 2
    assert "in use by another benchmark" in capsys.readouterr().err
    assert [path.name for path in (workplace / "bench").iterdir()] == [".lock"]


@pytest.mark.learn
def test_when_the_minutes_are_over_the_cell_is_saved_for_the_next_call(long, workplace, capsys):
    bench = workplace / "bench"
    arguments = [*long, "train.steps=1000000"]
    seconds = 6.0
    while not saved(bench) and seconds < 100:  # on a slow machine it needs longer to come to training
        assert benchmark.main([*arguments, f"minutes={seconds / 60}"]) == 0
        seconds *= 2
    assert "1 of 1 cells are left for the next call" in " ".join(capsys.readouterr().out.split())
    assert [r["status"] for r in json.loads((bench / "results.json").read_text())] == ["waiting"]
    assert free(bench) and latest(bench) > 0


@pytest.mark.learn
def test_a_cell_lost_by_submitit_is_submitted_once_more_and_goes_on_where_it_was(long, workplace, capsys):
    bench, arguments = workplace / "bench", [*long, "launcher=submitit", "cluster=local"]
    assert lose_worker(bench, arguments) == 0
    assert "ended without a result" in " ".join(capsys.readouterr().out.split())
    assert benchmark.main(arguments) == 0  # there is nothing to do
    assert status(bench) == ["finished"]
    assert len(list((bench / "submitit").glob("*_submitted.pkl"))) == 3  # the data, the cell, the cell once more
    summary = read(bench / "cells" / CELL / "summary.json")
    assert summary["resumed_from"] >= 10 and summary["steps"] == STEPS
