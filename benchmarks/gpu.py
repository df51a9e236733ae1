"""What one GPU makes of it: `make bench-gpu` (`python -m benchmarks.gpu [out=gpu.json]`).

Training windows per second with the share of the GPU's bf16 peak, plans per second at several batches, smac-like steps
per second, and the time of one decision. Float32 products are TF32, as in training. gpu.json is written anew after
every row. Without a GPU: one line and exit code 2.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import environment
from benchmarks.against_reference import situation
from benchmarks.planning import MODELS, SPEC, learner, milliseconds, team_episodes
from benchmarks.timing import computing, in_turns
from madiff.diffusion import capture
from madiff.diffusion.computing import Recorder
from madiff.experiment import durable, runtime
from madiff.interfaces import UserError
from madiff.planners.madiff import MADiff
from madiff.planners.madiff_policy import MADiffPolicy

ROUNDS = 5
UPDATES, CALLS = 20, 3  # in a timed chunk
BATCHES = (1, 64, 1024)
COPIES, STEPS = 65536, 40
PRECISIONS = ("float32", "bf16")
# Dense bf16 operations per second by name, with those parts of a name that mean another product (vendor's data sheets).
PEAKS = (("H100", ("PCIe", "NVL"), 989e12), ("A100", (), 312e12))


def peak(name: str) -> float | None:
    """Of the device called so; None where it is not known."""
    fits = (value for part, others, value in PEAKS if part in name and not any(other in name for other in others))
    return next(fits, None)


def row(name: str, ours: float, unit: str, **more: object) -> dict[str, Any]:
    return {"name": name, "ours": ours, "peer": "none", "ratio": None, "unit": unit, **more}


def rows(device: str, most: float | None) -> Iterator[dict[str, Any]]:
    for model in MODELS:
        yield from training_rows(model, device, most)
    for model in MODELS:
        yield from planning_rows(model, device)
    chunk = environment.stepper("3m", COPIES, STEPS, compile=True, device=device)
    rates = in_turns({"steps": chunk}, ROUNDS)["steps"]
    yield row(f"smac-like 3m, {COPIES} copies, compiled", statistics.median(rates), "steps/s")
    for model in MODELS:
        for way, how in ways(device).items():
            with computing(*how):
                yield row(f"decision, model={model}, 1 battle, {way}", decision(model, device), "ms")


def made(model: str, device: str) -> MADiff:
    return learner("algo=madiff-c", f"model={model}", device=device)


def acting(method: MADiff, battles: int) -> MADiffPolicy:
    policy = method.policy()
    policy.reset(seed=0, n=battles)
    return policy


def training_rows(model: str, device: str, most: float | None) -> Iterator[dict[str, Any]]:
    """Updates with their batches drawn; the share is of arithmetic that the network needs, nothing recomputed."""
    method = made(model, device)
    source, generator = method.batches(team_episodes()), torch.Generator(device).manual_seed(0)
    size = method.config.batch_size

    def update() -> None:
        method.update(source.sample(generator), generator)

    with FlopCounterMode(display=False) as counter:
        update()
    flops = counter.get_total_flops() / size
    chunks = {precision: repeated(update, UPDATES, size, precision) for precision in PRECISIONS}
    for precision, rates in in_turns(chunks, ROUNDS).items():
        found = statistics.median(rates)
        share = found * flops / most if most and precision == "bf16" else None
        name = f"training, model={model}, {size} windows, {precision}"
        yield row(name, found, "windows/s", gflop_per_window=flops / 1e9, share_of_bf16_peak=share)


def repeated(
    work: Callable[[], object], times: int, units: int, precision: str, recorder: Recorder | None = None
) -> Callable[[], int]:  # fmt: skip
    """A chunk: the work, worth so many units, so many times."""

    def chunk() -> int:
        with computing(precision, recorder):
            for _ in range(times):
                work()
        return times * units

    return chunk


def ways(device: str) -> dict[str, tuple[str, Recorder | None]]:
    """How a plan is made, by name: the precision, and on CUDA also its sampling loop recorded as a graph."""
    plainly: dict[str, tuple[str, Recorder | None]] = {precision: (precision, None) for precision in PRECISIONS}
    if device != "cuda":
        return plainly
    recorder = capture.Recorder()
    return plainly | {f"{precision}, recorded": (precision, recorder) for precision in PRECISIONS}


def planning_rows(model: str, device: str) -> Iterator[dict[str, Any]]:
    """Plans of whole teams, with guidance."""
    method = made(model, device)
    for battles in BATCHES:
        work = planner(method, battles, device)
        chunks = {way: repeated(work, CALLS, battles, *how) for way, how in ways(device).items()}
        for way, rates in in_turns(chunks, ROUNDS).items():
            yield row(f"plan, model={model}, {battles} battles, {way}", statistics.median(rates), "plans/s")


def planner(method: MADiff, battles: int, device: str) -> Callable[[], torch.Tensor]:
    """Plans for so many battles at once."""
    policy = acting(method, battles)
    history, noise, returns = (x.to(device) for x in situation(method, battles))
    ego = torch.zeros(battles, dtype=torch.long, device=device)
    return torch.no_grad()(lambda: policy.plan(history, ego, noise, returns))


def decision(model: str, device: str) -> float:
    """Milliseconds from one battle's observations to its actions."""
    policy = acting(made(model, device), 1)
    seen = torch.rand(1, SPEC.agents, SPEC.observation_size, device=device)
    masks = torch.ones(1, SPEC.agents, SPEC.action_size, dtype=torch.bool, device=device)
    return milliseconds(lambda: policy.act(seen, masks))


def parse(arguments: Sequence[str]) -> Path:
    told = dict(a.split("=", 1) if "=" in a else (a, "") for a in arguments)
    if unknown := set(told) - {"out"}:
        raise UserError(f"unknown argument {sorted(unknown)[0]!r}", "gpu", "out")
    if not torch.cuda.is_available():
        raise UserError(f"torch {torch.__version__} sees no GPU", "gpu", "a machine with CUDA")
    out = Path(told.get("out", "gpu.json"))
    durable.check_place(out, "gpu out")
    return out


def run(device: str, name: str, out: Path) -> None:
    """All rows, shown and written one by one."""
    found: list[dict[str, Any]] = []
    out.parent.mkdir(parents=True, exist_ok=True)
    head = {"device": name, "bf16_peak_flops": peak(name), "versions": {"torch": torch.__version__}}
    for each in rows(device, peak(name)):
        found.append(each)
        share = each.get("share_of_bf16_peak")
        part = "" if share is None else f"  {share:.1%} of the bf16 peak"
        print(f"{each['name']:<52} {each['ours']:>12,.4g} {each['unit']}{part}", flush=True)
        durable.replace(out, (json.dumps({**head, "rows": found}, indent=2) + "\n").encode())
    print(f"rows in {out}")


def main(arguments: Sequence[str]) -> int:
    try:
        out = parse(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    runtime.setup("cuda")
    run("cuda", torch.cuda.get_device_name(), out)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
