import io
import json
import os
import signal

import pytest
import torch
from rich.console import Console

from madiff.experiment import checkpoint
from madiff.experiment.loop import fit
from madiff.experiment.run_directory import RunDirectory
from madiff.interfaces import UserError
from tests.experiment.training_job import Regression, Source, train


def final(run_dir):
    """Everything a run leaves that must not depend on interruptions, as bytes."""
    files = ["metrics.jsonl"]
    files += [f"checkpoints/{checkpoint.folder_name(40)}/{name}" for name in ("model.safetensors", "train_state.pt")]
    return {name: (run_dir / name).read_bytes() for name in files}


def records(run_dir):
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    path = tmp_path_factory.mktemp("unbroken") / "run"
    train(path, 40)
    return path


def test_a_run_records_each_due_step_once_with_the_evaluation_in_the_same_record(unbroken):
    steps = {record["step"]: set(record) - {"step"} for record in records(unbroken)}
    both = {"loss", "eval/return_mean"}
    assert steps == {
        **{step: {"loss"} for step in (5, 10, 15, 20, 25, 30, 35)},
        **{step: both for step in (12, 24, 36, 40)},
    }


def test_recorded_losses_are_means_over_the_steps_since_the_last_record(tmp_path):
    train(tmp_path / "each", 10, log_every=1, evaluate=None)
    train(tmp_path / "mean", 10, log_every=4, evaluate=None)
    each = [record["loss"] for record in records(tmp_path / "each")]
    means = {record["step"]: record["loss"] for record in records(tmp_path / "mean")}
    assert means == pytest.approx({4: sum(each[:4]) / 4, 8: sum(each[4:8]) / 4, 10: sum(each[8:]) / 2}, rel=1e-12)


def test_training_lowers_the_loss(unbroken):
    losses = [record["loss"] for record in records(unbroken)]
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("stops", [[14], [1, 2, 23], [12, 24, 36, 39]])
def test_stopping_with_ctrl_c_and_resuming_equals_an_unbroken_run_bit_for_bit(tmp_path, unbroken, stops):
    class Stops(Regression):
        def update(self, batch, generator):
            metrics = super().update(batch, generator)
            if self.updates in stops:
                stops.remove(self.updates)
                os.kill(os.getpid(), signal.SIGINT)
            return metrics

    for _ in range(len(stops)):
        stop = stops[0]
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "run", 40, Stops())
        assert checkpoint.latest(tmp_path / "run" / "checkpoints").step == stop
    report = train(tmp_path / "run", 40, Regression())
    assert report.start_step == stop and report.steps == 40
    assert final(tmp_path / "run") == final(unbroken)


def test_an_interrupted_evaluation_is_made_again_and_recorded_once(tmp_path, unbroken):
    def interrupted(step):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", 40, evaluate=interrupted)
    assert checkpoint.latest(tmp_path / "run" / "checkpoints").step == 12
    assert [record["step"] for record in records(tmp_path / "run")] == [5, 10]
    train(tmp_path / "run", 40)
    assert final(tmp_path / "run") == final(unbroken)


def test_a_damaged_newest_checkpoint_costs_steps_and_nothing_else(tmp_path, unbroken, capsys):
    train(tmp_path / "run", 21)
    newest = tmp_path / "run" / "checkpoints" / checkpoint.folder_name(21)
    (newest / "model.safetensors").write_bytes(b"torn")
    report = train(tmp_path / "run", 40)
    assert report.start_step == 14
    assert "step-000000021 is damaged" in capsys.readouterr().out.replace("\n", "")
    assert final(tmp_path / "run") != {} and records(tmp_path / "run")[-1] == records(unbroken)[-1]


def test_a_finished_run_is_left_as_it_is_and_goes_on_when_steps_grow(tmp_path):
    train(tmp_path / "run", 20)
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    report = train(tmp_path / "run", 20)
    after = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert (report.start_step, report.steps) == (20, 20) and after == before
    report = train(tmp_path / "run", 30)
    assert (report.start_step, report.steps) == (20, 30)
    assert [record["step"] for record in records(tmp_path / "run")] == [5, 10, 12, 15, 20, 24, 25, 30]


def test_runs_with_other_seeds_differ(tmp_path):
    for seed in (0, 1):
        train(tmp_path / str(seed), 10, seed=seed)
    assert records(tmp_path / "0") != records(tmp_path / "1")


def test_ctrl_c_during_the_very_last_step_is_not_lost(tmp_path):
    class Stops(Regression):
        def update(self, batch, generator):
            if self.updates == 9:
                os.kill(os.getpid(), signal.SIGINT)
            return super().update(batch, generator)

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", 10, Stops())
    assert train(tmp_path / "run", 10).start_step == 10


def test_ctrl_c_belongs_to_the_caller_again_afterwards(tmp_path):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    train(tmp_path / "run", 3)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_seconds_add_up_over_sessions(tmp_path):
    first = train(tmp_path / "run", 10, Regression(pause=0.02)).seconds
    second = train(tmp_path / "run", 20, Regression(pause=0.02)).seconds
    assert first >= 0.2 and second >= first + 0.2 and train(tmp_path / "run", 20).seconds == second


class Diverges(Regression):
    """Healthy for nine updates."""

    def __init__(self, what):
        super().__init__()
        self.what = what

    def update(self, batch, generator):
        metrics = super().update(batch, generator)
        if self.updates == 10 and self.what == "weight":
            with torch.no_grad():
                self.network[0].weight[0, 0] = torch.nan
        return {"loss": metrics["loss"] + (float(self.what) if self.updates == 10 and self.what != "weight" else 0.0)}


@pytest.mark.parametrize("what", ["nan", "inf", "weight"])
@pytest.mark.parametrize("log_every", [1, 10, 1000])
def test_divergence_stops_and_keeps_the_last_good_checkpoint(tmp_path, what, log_every):
    with pytest.raises(UserError, match="(loss|weight) became (nan|inf) .* checkpoint of step 7 is kept") as caught:
        train(tmp_path / "run", 40, Diverges(what), log_every=log_every, evaluate=None)
    assert "\n" not in str(caught.value)
    kept = checkpoint.latest(tmp_path / "run" / "checkpoints")
    assert kept.step == 7
    assert all(bool(value.isfinite().all()) for value in kept.weights().values())


def test_divergence_before_any_result_leaves_no_directory(tmp_path):
    with pytest.raises(UserError, match="no checkpoint had been written"):
        train(tmp_path / "new" / "run", 40, Diverges("nan"), log_every=1000, checkpoint_every=1000, evaluate=None)
    assert not (tmp_path / "new").exists()


def test_a_learner_of_another_shape_is_refused_in_one_line(tmp_path):
    train(tmp_path / "run", 10)
    with pytest.raises(UserError, match="does not fit this learner") as caught:
        train(tmp_path / "run", 20, Regression(width=8))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["steps", "log_every", "checkpoint_every"])
def test_intervals_must_be_positive(tmp_path, name):
    with RunDirectory.open(tmp_path / "run", {}, {}) as run, pytest.raises(UserError, match=f"{name}: 0"):
        fit(Regression(), Source(), run, **{"steps": 5, "seed": 0, name: 0})


def test_lines_without_a_terminal_are_few(tmp_path, capsys):
    train(tmp_path / "run", 200, log_every=1, title="practice")
    lines = capsys.readouterr().out.splitlines()
    assert 5 <= len(lines) <= 13
    assert lines[-1].startswith("practice: step 200/200  loss ")


def test_a_terminal_gets_a_bar_with_step_time_left_and_loss(tmp_path):
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=120)
    train(tmp_path / "run", 30, title="practice", console=console)
    bar = out.getvalue().splitlines()[-2]
    assert all(part in bar for part in ("practice", "30/30", "0:00:00", "loss", "return_mean"))
