"""Several processes train one learner: they end where one process does, and none is left waiting when another dies."""

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import pytest
import torch

from madiff import build, train
from madiff.diffusion import sharing
from madiff.experiment import checkpoint, processes
from madiff.values.plan_values import PlanValueConfig
from tests.cli.command import ROOT, complaint, run
from tests.planners.test_madiff import spec, store

CPU = torch.device("cpu")
BATCH, UPDATES = 7, 3
PLANS = {"width": 16, "heads": 2, "layers": 1, "inverse_width": 16, "ema_start": 0, "sampler_steps": 2,
         "values": PlanValueConfig(learn="both", width=8, multipliers=(1, 2))}  # fmt: skip
UNET = {**PLANS, "network": "unet", "multipliers": (1, 2)}
ACTIONS = {"width": 16, "ema_start": 0, "sampler_steps": 2}
PARTS = {"value_batch": 5, "conservative_batch": 3, "conservative_samples": 2}
METHODS = {
    "madiff-d": {**PLANS, "critic": True, "distill_every": 1},
    "madiff-c": UNET,
    "diffuser": {**UNET, "horizon": 8, "controller": "inverse"},
    "adaptdiffuser": {**UNET, "horizon": 8, "first_round": 1, "rounds": 1, "generate": 9, "dynamics_width": 8},
    "dom2": {**ACTIONS, **PARTS},
    "diffusion-ql": {**ACTIONS, **PARTS, "backup_candidates": 2},
    "qgpo": {**ACTIONS, "support": 3, "support_batch": 4},
    "diffusion-bc": {**ACTIONS, "network": "transformer"},
}


def learnt(name, crew=None, batch=BATCH):
    """Metrics of a few updates of a learner with random weights, its weights then, and the rows its networks saw."""
    room = build.method(name)
    method = room.make(room.config(**METHODS[name], batch_size=batch), spec(3, discrete=False), CPU, 0)
    networks, generator, rows = method._parts().values(), torch.Generator().manual_seed(0), set()
    with torch.no_grad():  # fresh networks may start as zero; random weights make every dependence visible
        for parameter in (p for network in networks for p in network.parameters() if p.requires_grad):
            scale = 0.2 if parameter.dim() > 1 else 0.02
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    for optimizer in getattr(method, "optimizers", {}).values() or [method.optimizer]:
        # Adam's own eps would blow up the rounding of gradients that are zero in truth.
        optimizer.param_groups[0]["eps"] = 1e-3
    for part in (part for network in networks for part in network.modules() if isinstance(part, sharing.RowWise)):
        part.register_forward_pre_hook(lambda _, given: rows.add(len(given[0])))
    source, metrics = method.batches(store(3, discrete=False)), []
    for step in range(UPDATES):
        generator.manual_seed(step)
        with sharing.among(crew):
            metrics.append(method.update(source.sample(generator), generator))
    return metrics, method.weights(), sorted(rows)


alone = cache(learnt)


def learn_all(folder):
    """What each of several processes does in the test of the learners."""
    with processes.joined(CPU) as crew:
        found = {name: learnt(name, crew) for name in METHODS}
        few = learnt("diffusion-bc", crew, batch=2)
        torch.save({"found": found, "few": few}, folder / f"{crew.rank}.pt")
        if not crew.first:
            crew.told()


def enter(rank, count, port, work, arguments):
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count), MASTER_ADDR="127.0.0.1",
                      MASTER_PORT=str(port), TORCHELASTIC_RUN_ID="test")  # fmt: skip
    sys.exit(work(*arguments))


def together(work, *arguments, count=2):
    """Exit codes of processes that each do work(*arguments), placed as torchrun would have placed them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=enter, args=(rank, count, port, work, arguments)) for rank in range(count)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
        worker.kill()
    return [worker.exitcode for worker in workers]


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """What each of three processes made of every method."""
    folder = tmp_path_factory.mktemp("three")
    alone("diffusion-bc")  # what torch imports at its first step is then there in all of them
    assert together(learn_all, folder, count=3) == [0, 0, 0]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(3)]


def assert_close(ours, theirs, **tolerance):
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], msg=lambda told, name=name: f"{name}: {told}", **tolerance)


@pytest.mark.parametrize("name", METHODS)
def test_three_processes_learn_what_one_does(name, three):
    metrics, weights, _ = alone(name)
    for process in three:
        theirs, their_weights, _ = process["found"][name]
        for ours, others in zip(metrics, theirs, strict=True):
            assert_close(ours, others, rtol=1e-5, atol=1e-5)
        assert_close(weights, their_weights, rtol=1e-5, atol=1e-5)
        for key, value in three[0]["found"][name][1].items():
            assert torch.equal(value, their_weights[key]), key


@pytest.mark.parametrize("name", METHODS)
def test_each_process_computes_its_rows_alone(name, three):
    seen = [process["found"][name][2] for process in three]
    whole = alone(name)[2]
    assert max(whole) >= BATCH and all(max(rows) <= -(-max(whole) // 3) for rows in seen)


def test_a_batch_with_no_row_for_everyone_is_computed_by_all(three):
    metrics, weights, rows = learnt("diffusion-bc", batch=2)
    for process in three:
        assert_close(weights, process["few"][1], rtol=1e-5, atol=1e-5)
        assert process["few"][2] == rows == [2]


class Alone:
    """A crew of one that pretends to be several, for what a process computes without any other."""

    def compute(self, network, given):
        raise AssertionError("divided")

    def average(self, gradients):
        raise AssertionError("averaged")


def test_networks_with_dropout_in_use_are_not_divided():
    network = build.method("idql").make(build.method("idql").config(), spec(3, discrete=False), CPU, 0).actor
    given = torch.zeros(2, 1, 3, 5), torch.zeros(2), {"observation": torch.zeros(2, 3, 7)}
    with sharing.among(Alone()):
        network(*given)
        with pytest.raises(AssertionError, match="divided"):
            network.eval()(*given)
    network.eval()(*given)


SMALL = [
    "env=smac-like", "agents=2", "algo=madiff-d", "algo.width=16", "algo.layers=1", "algo.heads=2",
    "algo.inverse_width=16", "algo.batch_size=5", "data.episodes=8", "train.log_every=1", "train.checkpoint_every=2",
    "train.evaluate_every=1000000", "train.evaluate_episodes=1", "evaluation.episodes=1", "evaluation.film=false",
    "hardware.device=cpu", "hardware.threads=1", "resume=auto",
]  # fmt: skip


def arguments(folder, steps, *more):
    return [*SMALL, f"data.cache={folder.parent}/cache", f"run_dir={folder}", f"train.steps={steps}", *more]


def losses(folder):
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {r["step"]: {k: v for k, v in r.items() if not k.startswith("eval/")} for r in records}


def assert_same_losses(folder, other, steps):
    ours, theirs = losses(folder), losses(other)
    for step in range(1, steps + 1):
        assert ours[step] == pytest.approx(theirs[step], rel=1e-5, abs=1e-6), step


def summary(folder):
    return json.loads((folder / "summary.json").read_text())


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """Six updates by one process, MADiff with BC beside it."""
    folder = tmp_path_factory.mktemp("processes") / "unbroken"
    assert train.main(arguments(folder, 6)) == 0
    return folder


def test_a_run_may_go_on_with_more_or_fewer_processes(unbroken):
    folder = unbroken.parent / "changing"
    assert train.main(arguments(folder, 2)) == 0
    assert together(train.main, arguments(folder, 4)) == [0, 0]
    told = summary(folder)
    assert (told["world_size"], told["resumed_from"], told["steps"]) == (2, 2, 4)
    assert together(train.main, arguments(folder, 4)) == [0, 0]  # nothing is left to do
    assert train.main(arguments(folder, 6)) == 0
    assert (summary(folder)["world_size"], summary(folder)["resumed_from"]) == (1, 4)
    for place in ("", "baselines/bc"):
        assert_same_losses(folder / place, unbroken / place, 6)
        ours, theirs = (checkpoint.latest(run_dir / place / "checkpoints").weights() for run_dir in (folder, unbroken))
        assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_methods_that_cannot_be_divided_are_refused_with_those_that_can(unbroken, workplace, monkeypatch, capfd):
    found = build.registry()
    some = ("bc", "dipo", "dom2", "idql", "madiff-d", "omar")
    monkeypatch.setattr(build, "registry", lambda: {name: found[name] for name in some})
    for algo, why in {"bc": "bc has no network", "idql": "idql has no network", "dipo": "dipo acts while"}.items():
        folder = workplace / algo
        refused = ["env=maze", f"algo={algo}", f"run_dir={folder}", "train.baselines=[]", "hardware.device=cpu"]
        capfd.readouterr()
        assert together(train.main, refused) == [2, 0]
        lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1 and why in lines[0] and lines[0].endswith("allowed: dom2, madiff-d")
        assert not folder.exists()


def test_the_other_verbs_are_refused(monkeypatch, capsys):
    for name, value in {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 2, "TORCHELASTIC_RUN_ID": "test"}.items():
        monkeypatch.setenv(name, str(value))
    assert "torchrun: this command works as one process" in complaint(capsys, "evaluate", "run=any")


def place_of(pid):
    """The rank that torchrun gave a process; None for one that it did not start."""
    try:
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return None
    return next((int(v.removeprefix(b"RANK=")) for v in variables if v.startswith(b"RANK=")), None)


@pytest.mark.learn
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the workers of torchrun through /proc")
def test_torchrun_trains_as_one_process_does_and_ends_when_a_worker_is_killed(unbroken):
    folder = unbroken.parent / "killed"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*torchrun, "-m", "madiff.train", *arguments(folder, 1000000)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and not any(
        path.name >= checkpoint.folder_name(8) for path in folder.glob("checkpoints/step-*")
    ):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(next(int(pid) for pid in workers if place_of(pid) == 1), signal.SIGKILL)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 1 and "Signal 9 (SIGKILL)" in output
    assert "error: torchrun: process 0 cannot reach the others: one has ended" in output and "resume=auto" in output
    assert output.count("processes: 2, which divide the rows of every batch") == 1
    assert_same_losses(folder, unbroken, 6)
    reached = checkpoint.latest(folder / "checkpoints").step
    assert run("train", *arguments(folder, reached + 1, "train.baselines=[]")) == 0
    assert (summary(folder)["resumed_from"], summary(folder)["world_size"]) == (reached, 1)
