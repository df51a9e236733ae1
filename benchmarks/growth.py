"""How do time and memory grow? `python -m benchmarks.growth [of=agents,horizon,...] [out=growth.json]`.

Time of one plan of the default MADiff-C against agents, horizon, candidates and constraints (balls to stay out of, with
every denoising step projected), and training windows per second against batch and network width; all else as by
default. Every point has a process of its own, so that its peak memory is nobody else's. On the GPU where there is one.
Ends within some five minutes on two cores. growth.json is written anew after every point, growth.png drawn at the end.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import picture
from benchmarks.planning import SPEC, learner, milliseconds, stir, team_episodes
from envs.workers.pool import start_method
from madiff.experiment import durable
from madiff.experiment.plots import Series
from madiff.interfaces import UserError
from madiff.planners.madiff import MADiff
from safe import safediffuser
from safe.sets import Ball

COVERED = 0.2  # of the square that positions fill in the data: the share that all obstacles together may take
LONG = 32  # horizon of plans under constraints
MEBI = 2**20
PLAN, TRAIN = "milliseconds a plan", "training windows a second"


@dataclass(frozen=True)
class Growth:
    """values: of what grows; unit: of what is measured; options(value): of the learner, agents apart."""

    values: tuple[int, ...]
    unit: str
    options: Callable[[int], tuple[str, ...]]


GROWTHS: dict[str, Growth] = {
    "agents": Growth((1, 2, 4, 8, 16, 32, 64), PLAN, lambda n: ()),
    "horizon": Growth((8, 16, 32, 64, 128, 256), PLAN, lambda n: (f"algo.horizon={n}",)),
    "candidates": Growth((1, 4, 16, 64, 256), PLAN, lambda n: (f"algo.candidates={n}", "algo.critic=true")),
    "constraints": Growth((1, 2, 4, 8, 16, 32, 64), PLAN, lambda n: (f"algo.horizon={LONG}",)),
    "batch": Growth((16, 64, 256, 1024), TRAIN, lambda n: (f"algo.batch_size={n}",)),
    "width": Growth((32, 64, 128, 256), TRAIN, lambda n: (f"algo.width={n}",)),
}


def parse(arguments: Sequence[str]) -> tuple[list[str], Path]:
    """What grows, and the file to write."""
    told = dict(a.split("=", 1) if "=" in a else (a, "") for a in arguments)
    if unknown := set(told) - {"of", "out"}:
        raise UserError(f"unknown argument {sorted(unknown)[0]!r}", "growth", "of, out")
    chosen = told.get("of", ",".join(GROWTHS)).split(",")
    if strange := [name for name in chosen if name not in GROWTHS]:
        raise UserError(f"{strange[0]!r} is not known", "growth of", list(GROWTHS))
    out = Path(told.get("out", "growth.json"))
    if out.suffix != ".json":
        raise UserError(f"{out} is no JSON file", "growth out", "out=FILE.json")
    durable.check_place(out, "growth out")
    return chosen, out


def alone(work: Callable[..., Any], *given: object) -> Any:
    """What `work` returns in a process of its own, which has imported everything and done nothing yet."""
    context = multiprocessing.get_context(start_method())
    if start_method() == "forkserver":
        context.set_forkserver_preload(["benchmarks.planning"])
    with ProcessPoolExecutor(1, context) as pool:
        return pool.submit(work, *given).result()


def point(name: str, value: int, device: str) -> dict[str, Any]:
    """One measurement in this process, and the most memory it took beyond what the process began with.

    On a CPU that includes the pages of libraries that are read when they are first needed.
    """
    before = memory(device, "VmRSS")
    found = measure(name, value, device)
    peak = memory(device, "VmHWM")
    taken = None if before is None or peak is None else max(peak - before, 0.0)
    unit = GROWTHS[name].unit
    return {"name": name, "value": value, "ours": found, "unit": unit, "peak_mib": taken, "device": device}


def memory(device: str, entry: str) -> float | None:
    """MiB now (VmRSS) or at most so far (VmHWM), of the GPU where one is used; None where the system does not say."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / MEBI if entry == "VmHWM" else torch.cuda.memory_allocated() / MEBI
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    return next(int(line.split()[1]) / 1024 for line in status.read_text().splitlines() if line.startswith(entry))


def measure(name: str, value: int, device: str) -> float:
    spec = replace(SPEC, agents=value) if name == "agents" else SPEC
    method = learner("algo=madiff-c", *GROWTHS[name].options(value), spec=spec, device=device)
    source = method.batches(team_episodes(spec))
    stir(method)
    if GROWTHS[name].unit == TRAIN:
        generator = torch.Generator(device).manual_seed(0)
        took = milliseconds(lambda: method.update(source.sample(generator), generator))
        return 1e3 * method.config.batch_size / took
    return plan_time(method, value if name == "constraints" else 0, device)


def plan_time(method: MADiff, constraints: int, device: str) -> float:
    hooks = [safediffuser.make_hook("exact", obstacles(constraints), method.layout())] if constraints else []
    policy, spec = method.policy(hooks), method.spec
    policy.reset(seed=0, n=1)
    generator = torch.Generator().manual_seed(1)
    seen = torch.rand(1, spec.agents, spec.observation_size, generator=generator).to(device)
    masks = torch.ones(1, spec.agents, spec.action_size, dtype=torch.bool, device=device)
    return milliseconds(lambda: policy.act(seen, masks))


def obstacles(count: int) -> list[Ball]:
    """Equal discs at random in the unit square of the first two observed values; together they cover a fixed share."""
    radius = math.sqrt(COVERED / (count * math.pi))
    centers = torch.rand(count, 2, generator=torch.Generator().manual_seed(count)).tolist()
    place = (SPEC.agents, SPEC.agents + 1)
    return [Ball(dimensions=place, center=tuple(center), radius=radius, outside=True) for center in centers]


def show(row: dict[str, Any]) -> None:
    peak = "-" if row["peak_mib"] is None else f"{row['peak_mib']:,.0f} MiB"
    print(f"{row['name']:<12} {row['value']:>5}  {row['ours']:>12,.4g} {row['unit']:<26} {peak:>12}", flush=True)


def run(chosen: Sequence[str], out: Path) -> list[dict[str, Any]]:
    """All points, each written as soon as it is there."""
    device, rows = "cuda" if torch.cuda.is_available() else "cpu", []
    out.parent.mkdir(parents=True, exist_ok=True)
    for name in chosen:
        for value in GROWTHS[name].values:
            rows.append(alone(point, name, value, device))
            show(rows[-1])
            durable.replace(out, (json.dumps(rows, indent=2) + "\n").encode())
    return rows


def draw(rows: Sequence[dict[str, Any]], out: Path) -> Path:
    """Time of a plan, training throughput, and the peak memory of each."""
    panels: dict[str, dict[str, Series]] = {}
    for unit, task in ((PLAN, "planning"), (TRAIN, "training")):
        for label, key in ((unit, "ours"), (f"peak memory of {task} in MiB", "peak_mib")):
            for name in dict.fromkeys(row["name"] for row in rows if row["unit"] == unit and row[key]):
                points = [(row["value"], row[key]) for row in rows if row["name"] == name and row[key]]
                panels.setdefault(label, {})[name] = Series(*map(list, zip(*points, strict=True)))
    return picture.growth(panels, out)


def main(arguments: Sequence[str]) -> int:
    try:
        chosen, out = parse(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        rows = run(chosen, out)
    except KeyboardInterrupt:
        print(f"stopped; {out} has the points so far", file=sys.stderr)
        return 130
    print(f"points in {out}, drawn in {draw(rows, out.with_suffix('.png'))}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
