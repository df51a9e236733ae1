"""How long does one plan take? `python -m benchmarks.plan_time runs=DIR,DIR,... [safe=exact,smooth] [out=DIR]`.

Trained planners of the same method, alone and under safeguards (`safe.KEY=VALUE`: options of those that have them), in
the same states of their own episodes: milliseconds for one plan when one is asked for and when many are at once, and
the safeguard's share of the time that denoising takes without it. A table, OUT/plan_time.json, and OUT/plan_time.png:
time against the number of agents where the runs differ in it, otherwise against the plans asked for at once.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from madiff import build, configuration, safeguards
from madiff.assessment import changed_problem
from madiff.build import TrainedRun
from madiff.collection import opened
from madiff.experiment import durable, plots
from madiff.interfaces import Policy, UserError

DEVICE = torch.device("cpu")
ROUNDS, MOMENTS, WARM = 5, 8, 4
"""Each state is planned in so many times; states of so many moments, so many steps apart."""


@dataclass(frozen=True)
class Request:
    runs: list[Path]
    safeguards: list[str]
    options: dict[str, Any]
    batches: list[int]
    out: Path


def parse(arguments: Sequence[str]) -> Request:
    told, names, options = words(arguments, "plan_time", ("runs", "safe", "safe.OPTION", "batches", "out"))
    batches = told.get("batches", "1,64").split(",")
    if not told.get("runs") or not all(b.isdigit() and int(b) for b in batches):
        asked = "run directories and whole numbers of plans are needed"
        raise UserError(asked, "plan_time", "runs=DIR,DIR batches=1,64")
    return Request([Path(r) for r in told["runs"].split(",")], names, options, [int(b) for b in batches],
                   Path(told.get("out", ".")))  # fmt: skip


def words(
    arguments: Sequence[str], program: str, allowed: Sequence[str]
) -> tuple[dict[str, str], list[str], dict[str, Any]]:
    """Arguments by name, the safeguards among them, and what those are told; UserError for what is not allowed."""
    told = dict(a.split("=", 1) if "=" in a else (a, "") for a in arguments)
    options = {key.removeprefix("safe."): yaml.safe_load(told.pop(key)) for key in list(told) if key[:5] == "safe."}
    if unknown := set(told) - set(allowed):
        raise UserError(f"unknown argument {sorted(unknown)[0]!r}", program, allowed)
    names = [name for name in told.get("safe", "").split(",") if name]
    known = set().union(*(section(name, {}) for name in names))
    if strange := set(options) - known:
        raise UserError(f"no safeguard here has {sorted(strange)[0]!r}", f"{program} safe", sorted(known - {"name"}))
    return told, names, options


def section(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """A safeguard's section: its defaults, and those of the options that it has."""
    composed = configuration.compose("evaluate", build.defaults(), ["run=.", f"safe={name}"])["safe"]
    return {**composed, **{key: value for key, value in options.items() if key in composed}}


def states(run: TrainedRun, policy: Policy, copies: int) -> list[tuple[Tensor, Tensor | None]]:
    """What the copies of the environment show the policy at some moments of their episodes, played with it."""
    with opened(changed_problem(run.config, run.spec, {}, DEVICE).make(copies)) as env:
        step, seen = env.reset(0), []
        policy.reset(seed=0, n=copies)
        for moment in range(MOMENTS * WARM):
            if moment % WARM == 0:
                seen.append((step.observations, step.available_actions))
            step = env.step(policy.act(step.observations, step.available_actions))
    return seen


def seconds(policy: Policy, moments: list[tuple[Tensor, Tensor | None]], copies: int) -> float:
    """Of a first plan from nothing, the mean over the moments."""
    spent = 0.0
    for seen in moments:
        policy.reset(seed=0, n=copies)
        began = time.perf_counter()
        policy.act(*seen)
        spent += time.perf_counter() - began
    return spent / len(moments)


def rows(path: Path, request: Request) -> list[dict[str, Any]]:
    """One run's: every batch, and every safeguard in alternation."""
    run = build.load_run(path, DEVICE, {})
    policies = {"none": run.policy}
    for name in request.safeguards:
        policies[name] = safeguards.safeguard(run, section(name, request.options)).timed
    found = []
    for batch in request.batches:
        moments = states(run, run.policy, batch)
        times: dict[str, list[float]] = {name: [] for name in policies}
        for _ in range(ROUNDS + 1):  # the first warms up
            for name, policy in policies.items():
                times[name].append(seconds(policy, moments, batch))
        middle = {name: statistics.median(spent[1:]) for name, spent in times.items()}
        found += [
            {"run": path.name, "algo": run.config.algo["name"], "agents": run.spec.agents, "batch": batch, "safe": name,
             "ms": 1e3 * spent, "ms_per_plan": 1e3 * spent / batch, "share": spent / middle["none"] - 1}
            for name, spent in middle.items()
        ]  # fmt: skip
    return found


def draw(found: list[dict[str, Any]], out: Path) -> Path:
    """A line a safeguard and, against the number of agents, a batch."""
    across = "agents" if len({row["agents"] for row in found}) > 1 else "batch"
    series: dict[str, plots.Series] = {}
    for name in dict.fromkeys(line(row, across) for row in found):
        points = sorted((row[across], row["ms_per_plan"]) for row in found if line(row, across) == name)
        series[name] = plots.Series(*map(list, zip(*points, strict=True)))
    xlabel = "agents" if across == "agents" else "plans asked for at once"
    return plots.sweep(series, out / "plan_time.png", title="Time of one plan", xlabel=xlabel, ylabel="milliseconds")


def line(row: dict[str, Any], across: str) -> str:
    return f"{row['safe']}, {row['batch']} at once" if across == "agents" else row["safe"]


def show(row: dict[str, Any]) -> None:
    print(f"{row['run']:<32} {row['agents']:>3} agents  {row['batch']:>4} at once  {row['safe']:<16}"
          f" {row['ms_per_plan']:>9.3f} ms a plan  {row['share']:>+7.0%} of denoising", flush=True)  # fmt: skip


def main(arguments: Sequence[str]) -> int:
    try:
        request = parse(arguments)
        durable.check_place(request.out / "plan_time.json", "out")
        found = []
        for path in request.runs:
            for row in rows(path, request):
                show(row)
                found.append(row)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    request.out.mkdir(parents=True, exist_ok=True)
    durable.replace(request.out / "plan_time.json", (json.dumps(found, indent=2) + "\n").encode())
    print(f"drawn in {draw(found, request.out)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
