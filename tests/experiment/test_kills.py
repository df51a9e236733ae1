"""A real process is killed at random moments; what it leaves must be sound and go on as if nothing had happened.

MADIFF_KILLS=200 makes it so many kills instead of a few; each takes about the time that Python needs to start.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from safetensors.torch import load_file

from madiff.experiment import checkpoint
from tests.experiment.training_job import Regression, train

JOB = Path(__file__).with_name("training_job.py")
STEPS = 60
KILLS = int(os.environ.get("MADIFF_KILLS", 4))


def start(run_dir, *arguments, script=JOB, steps=STEPS):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(JOB.parents[2])}
    command = [sys.executable, str(script), str(run_dir), str(steps), *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    assert process.stdout.readline() == "ready\n"
    return process


def assert_equal_runs(one, other, last=STEPS):
    assert (one / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()
    steps = [json.loads(line)["step"] for line in (one / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps)) and steps[-1] == last
    name = Path("checkpoints", checkpoint.folder_name(last), "model.safetensors")
    ours, theirs = load_file(one / name), load_file(other / name)
    assert ours.keys() == theirs.keys() and all(bool((ours[key] == theirs[key]).all()) for key in ours)
    assert not list((one / "checkpoints").glob(".*"))


def test_kill_9_at_random_moments_then_resume_equals_an_unbroken_run(tmp_path):
    steps = 15 * KILLS  # a session gets on by no more than some thirty of them, mostly by fewer
    train(tmp_path / "unbroken", steps)
    generator, kills = random.Random(0), 0
    for _ in range(KILLS):
        process = start(tmp_path / "run", 0.01, steps=steps)
        time.sleep(generator.uniform(0.05, 0.35))
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
        process.stdout.close()
        for left in (tmp_path / "run" / "checkpoints").glob("step-*"):
            assert checkpoint.load(left, Regression()).keys() == {"sums", "counts"}
    assert kills >= 0.75 * KILLS
    train(tmp_path / "run", steps)
    assert_equal_runs(tmp_path / "run", tmp_path / "unbroken", steps)


# Dies inside a checkpoint's write, at the file operation whose number is the third argument.
KILLED_WRITING = """
import os, signal, sys
from madiff.experiment import durable
from tests.experiment import training_job
remaining = int(sys.argv[3])
def counted(function):
    def wrapped(*arguments, **named):
        global remaining
        if "step-" in str(arguments[0]):
            remaining -= 1
            if remaining == 0:
                if isinstance(arguments[-1], bytes):
                    function(arguments[0], arguments[1][: len(arguments[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **named)
    return wrapped
durable.write, os.rename = counted(durable.write), counted(os.rename)
print("ready", flush=True)
training_job.train(sys.argv[1], int(sys.argv[2]))
"""


def test_kill_9_inside_a_checkpoints_write_then_resume_equals_an_unbroken_run(tmp_path):
    train(tmp_path / "unbroken", STEPS)
    script = tmp_path / "killed_writing.py"
    script.write_text(KILLED_WRITING)
    # One checkpoint is three writes and a rename; from the third on, another rename takes the oldest away.
    for operation in (1, 3, 8, 9):
        process = start(tmp_path / "run", operation, script=script)
        assert process.wait(timeout=60) == -signal.SIGKILL
        process.stdout.close()
    left = list((tmp_path / "run" / "checkpoints").iterdir())
    assert left, "the kills came too early to test anything"
    train(tmp_path / "run", STEPS)
    assert_equal_runs(tmp_path / "run", tmp_path / "unbroken")


def test_sigterm_saves_the_step_in_progress(tmp_path):
    process = start(tmp_path / "run", 0.05)
    while not (tmp_path / "run" / "run.json").exists():
        time.sleep(0.01)
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode not in (0, -signal.SIGTERM) and "KeyboardInterrupt" in output
    saved = checkpoint.latest(tmp_path / "run" / "checkpoints").step
    assert saved > 0 and f"stopped at step {saved};" in output


def test_a_second_process_is_told_who_holds_the_directory(tmp_path):
    holder = start(tmp_path / "run", 1.0)  # far slower than the second one starts
    try:
        while not (tmp_path / "run" / "run.json").exists():
            time.sleep(0.01)
        second = start(tmp_path / "run")
        output, _ = second.communicate(timeout=60)
        assert second.returncode != 0
        assert f"UserError: run_dir: {tmp_path}/run is in use by process {holder.pid} on " in output
    finally:
        holder.kill()
        holder.communicate()
    # The killed holder's lock dies with it.
    assert train(tmp_path / "run", STEPS).steps == STEPS
