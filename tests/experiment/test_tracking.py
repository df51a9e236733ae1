import os
import subprocess
import sys
from pathlib import Path

import pytest

from madiff.experiment.tracking import make_tracker
from madiff.interfaces import UserError
from tests.experiment.training_job import train

ROOT = str(Path(__file__).parents[2])
ONLINE = """
import sys
from pathlib import Path
from madiff.experiment.tracking import make_tracker
from madiff.interfaces import UserError
try:
    make_tracker("wandb", Path(sys.argv[1]), {}, "test")
except UserError as error:
    print(error)
"""


def test_no_tracking_is_nothing_at_all(tmp_path):
    assert make_tracker("none", tmp_path, {}, "test") is None
    assert list(tmp_path.iterdir()) == []


def test_unknown_modes_are_refused(tmp_path):
    with pytest.raises(UserError, match="allowed: none, wandb-offline, wandb"):
        make_tracker("tensorboard", tmp_path, {}, "test")


def test_wandb_offline_writes_the_metrics_below_the_run_and_is_silent(tmp_path, capfd):
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    for _ in range(2):
        tracker = make_tracker("wandb-offline", run_dir, {"lr": 0.1}, "a-name")
        tracker.log(5, {"loss": 0.5, "eval/return_mean": 2.0})
        tracker.finish()
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""
    written = list(run_dir.glob("wandb/offline-run-*/*.wandb"))
    assert len(written) >= 1
    content = written[0].read_bytes()
    assert b"eval/return_mean" in content and b"a-name" in content and b"lr" in content
    # One identity for the run and its continuation.
    identity = (run_dir / "wandb" / "run-id").read_text()
    assert all(identity in path.name for path in written)


def test_the_loop_tells_the_tracker_what_it_records(tmp_path):
    class Listening:
        heard: list[tuple[int, set[str]]] = []

        def log(self, step, metrics):
            self.heard.append((step, set(metrics)))

        def finish(self):
            """The caller's to call."""

    train(tmp_path / "run", 12, tracker=Listening())
    assert Listening.heard == [(5, {"loss"}), (10, {"loss"}), (12, {"loss", "eval/return_mean"})]


def test_wandb_without_a_login_is_one_line_and_never_a_question(tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    environment |= {"HOME": str(tmp_path), "PYTHONPATH": ROOT, "NETRC": str(tmp_path / "none")}
    command = [sys.executable, "-c", ONLINE, str(tmp_path)]
    output = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, input="")
    assert output.stdout.startswith("tracking: tracking=wandb needs a wandb login; allowed: `wandb login`")
    assert output.stdout.count("\n") == 1 and output.returncode == 0
    assert not (tmp_path / "wandb").exists()
