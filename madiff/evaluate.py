"""python -m madiff.evaluate: roll out a trained run, with the options it was trained with or others."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from madiff import build, configuration
from madiff.assessment import Assessment, assess, assess_behaviour, changed_problem
from madiff.build import TrainedRun
from madiff.experiment import durable, rendering, runtime
from madiff.experiment.rollout import write_episodes
from madiff.experiment.summary import print_table
from madiff.interfaces import UserError
from madiff.schema import EvaluateConfig, plain, shown

console = Console()
say = partial(console.print, markup=False, highlight=False, soft_wrap=True)


def main(arguments: Sequence[str] | None = None) -> int:
    return configuration.main(VERB, build.defaults, sys.argv[1:] if arguments is None else arguments)


def evaluate(config: EvaluateConfig) -> None:
    machine = runtime.setup(config.hardware.device, config.hardware.threads or 0, say=say)
    run = build.load_run(config.run, machine.device, config.algo)
    problem = changed_problem(run.config, run.spec, config.env, machine.device)
    seed = run.config.evaluation.seed if config.seed is None else config.seed
    out = config.out or run.path / "evaluations" / title(config, seed)
    check_target(out)
    name, data = run.config.algo["name"], run.config.data
    if config.env:
        say(f"other than in training: {changes(config)}")
    results = [assess(name, problem, run.policy, config.episodes, seed, run.costs, config.film)]
    if data.path is None:
        results.append(assess_behaviour(problem, data.quality, config.episodes, seed, run.costs))
    report = summarise(config, run, seed, results)
    write(out, report, results, config.film)
    print_table(report, console)
    say(f"written to {out}")


def check_target(out: Path) -> None:
    """Refuse before the work what could not be written after it."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file", "out", "a folder to write")
    durable.check_place(out / "evaluation.json", "out")


def summarise(config: EvaluateConfig, run: TrainedRun, seed: int, results: list[Assessment]) -> dict[str, Any]:
    behaviour = results[1].row if len(results) > 1 else None
    return {
        "run": str(run.path),
        "env": run.spec.name,
        "scenario": run.spec.scenario,
        "algo": run.config.algo["name"],
        "options": plain(config.algo),
        "env_options": plain(config.env),
        "step": run.step,
        "seed": seed,
        "episodes": config.episodes,
        **results[0].row,
        "behaviour": behaviour,
        "behaviour_return_mean": behaviour["return_mean"] if behaviour else None,
        "baselines": {},
        "versions": runtime.versions(),
    }


def changes(config: EvaluateConfig) -> str:
    return ", ".join(f"env.{key}={shown(value)}" for key, value in config.env.items())


def title(config: EvaluateConfig, seed: int) -> str:
    """The name of an evaluation's folder: what was asked for."""
    options = [f"{key}={value}" for key, value in sorted(config.algo.items())]
    options += [f"env.{key}={value}" for key, value in sorted(config.env.items())]
    return "-".join([f"episodes{config.episodes}", f"seed{seed}", *options]).replace("/", "_")


def write(out: Path, report: dict[str, Any], results: list[Assessment], film: bool) -> None:
    with durable.disk_errors("write", out):
        out.mkdir(parents=True, exist_ok=True)
        write_episodes(out / "episodes.jsonl", [record for result in results for record in result.records])
        durable.replace(out / "evaluation.json", (json.dumps(report, indent=2) + "\n").encode())
    if film:
        rendering.write_gif(results[0].frames, out / "rollout.gif")


VERB = configuration.Verb(
    "evaluate",
    "roll out a trained run; algo.* and env.* may change what a trained policy can bear",
    EvaluateConfig,
    evaluate,
    [
        "python -m madiff.evaluate run=runs/smac-like-3m-madiff-d-good-seed0 episodes=1000",
        "python -m madiff.evaluate run=DIR algo.target_return=0.5 env.OPTION=VALUE out=DIR film=true",
    ],
)

if __name__ == "__main__":
    sys.exit(main())
