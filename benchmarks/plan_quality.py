"""Does a trained MADiff plan, or merely imitate? `python -m benchmarks.plan_quality run=DIR [unaware=DIR]`.

Three questions to one checkpoint, answered with intervals in RUN/plan_quality.json and plots beside it:
what is lost when it acts on no plan, or on another battle's; what return it gets for the return it is asked for; and
how well it predicts its teammates, against "they stay where they are" and against a run trained with
`algo.agent_attention=false` (unaware=DIR), whose plans know nothing of teammates.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from madiff import build, collection
from madiff.assessment import COPIES
from madiff.build import TrainedRun
from madiff.data.windows import WindowSampler
from madiff.experiment import plots, seeding
from madiff.experiment.rollout import evaluate
from madiff.experiment.statistics import bootstrap_ci
from madiff.interfaces import UserError

DEVICE = torch.device("cpu")
ASKED = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
AHEAD = (1, 2, 4)
HELD_OUT_EPISODES, HELD_OUT_SEED = 200, 987654321


def returns(run: Path, episodes: int, **acting: Any) -> dict[str, Any]:
    """Return of a run's policy with other acting options: mean and 95 % interval."""
    trained = build.load_run(run, DEVICE, acting)
    problem = build.make_problem(trained.config.env, trained.config.agents, trained.config.scenario, DEVICE)
    outcome = evaluate(problem.make, trained.policy, episodes, seeding.derive(0, "plan quality"), copies=COPIES)
    return {**acting, "return_mean": float(outcome.returns.mean()), "return_ci95": bootstrap_ci(outcome.returns)}


def held_out(trained: TrainedRun) -> list[dict[str, Tensor]]:
    """Windows of episodes nobody trained on, features encoded as the model sees them."""
    spec, config = trained.spec, trained.config
    store = collection.collect(spec.name, spec.options, config.data.quality, HELD_OUT_EPISODES, HELD_OUT_SEED)
    policy = trained.policy
    sampler = WindowSampler(
        store, history=policy.config.history, horizon=policy.config.horizon, batch_size=1, device=DEVICE,
        observations=policy.preprocessing.encode(store.observations),
    )  # fmt: skip
    return list(sampler.all_windows(policy.config.plan_batch))


def teammate_errors(trained: TrainedRun) -> dict[str, dict[int, float]]:
    """Root mean square error of teammates' normalised observations k steps ahead: planned, and "stays as it is"."""
    policy, agents = trained.policy, trained.spec.agents
    policy.reset(seed=0, n=1)
    now = policy.config.history
    steps = [k for k in AHEAD if k <= policy.config.horizon]
    squares = {name: dict.fromkeys(steps, 0.0) for name in ("plan", "stays")}
    counts = dict.fromkeys(steps, 0)
    for number, batch in enumerate(held_out(trained)):
        x = batch["observations"]
        ego = torch.arange(x.shape[0]) % agents
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(number))
        with torch.no_grad():
            plan = policy.plan(x[:, : now + 1], ego, noise, torch.ones(len(x), agents))
        teammate = (torch.arange(agents) != ego[:, None])[..., None]
        for k in steps:
            counted = teammate & batch["valid"][:, now + k, None, None]
            counts[k] += int(counted.sum()) * (x.shape[-1] - agents)
            for name, guess in (("plan", plan[:, now + k]), ("stays", x[:, now])):
                error = (guess - x[:, now + k])[..., agents:].square()
                squares[name][k] += float((error * counted).sum())
    return {name: {k: (squares[name][k] / counts[k]) ** 0.5 for k in steps} for name in squares}


def report(run: Path, unaware: Path | None, episodes: int) -> dict[str, Any]:
    ablations = {name: returns(run, episodes, plan_ablation=name) for name in ("none", "frozen", "shuffled")}
    sweep = [returns(run, episodes, target_return=asked) for asked in ASKED]
    errors = teammate_errors(build.load_run(run, DEVICE, {"guidance_weight": 0.0}))
    if unaware is not None:
        errors["unaware"] = teammate_errors(build.load_run(unaware, DEVICE, {"guidance_weight": 0.0}))["plan"]
    return {"run": run.name, "episodes": episodes, "ablations": ablations, "asked": sweep, "teammates": errors}


def draw(result: dict[str, Any], folder: Path) -> None:
    bars = [{"method": f"plan: {name}", **row} for name, row in result["ablations"].items()]
    plots.return_bars(bars, folder / "plan_ablation.png", f"{result['run']}: acting on its plan, on none, on another's")
    asked = result["asked"]
    low, high = zip(*(row["return_ci95"] for row in asked), strict=True)
    series = plots.Series([row["target_return"] for row in asked], [row["return_mean"] for row in asked], low, high)
    plots.sweep(
        {"obtained": series}, folder / "return_asked.png", title=f"{result['run']}: return asked and obtained",
        xlabel="return asked for (1 = best in the data)", ylabel="team return",
    )  # fmt: skip
    errors = {name: plots.Series(list(e), list(e.values())) for name, e in result["teammates"].items()}
    plots.sweep(
        errors, folder / "teammates.png", title=f"{result['run']}: predicting teammates",
        xlabel="steps ahead", ylabel="root mean square error, normalised observation",
    )  # fmt: skip


def main(arguments: list[str]) -> int:
    options = dict(a.split("=", 1) if "=" in a else (a, "") for a in arguments)
    try:
        if unknown := set(options) - {"run", "unaware", "episodes"}:
            raise UserError(f"unknown argument {sorted(unknown)[0]!r}", "plan_quality", "run, unaware, episodes")
        if "run" not in options or not options.get("episodes", "300").isdigit():
            raise UserError("a run directory and a whole number of episodes are needed", "plan_quality", "run=DIR")
        run = Path(options["run"])
        unaware = Path(options["unaware"]) if "unaware" in options else None
        result = report(run, unaware, int(options.get("episodes", "300")))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    draw(result, run / "plots")
    (run / "plan_quality.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
