"""python -m madiff.evaluate: roll out a trained run, with the options it was trained with or others."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from madiff import build, configuration, films, hardware, safeguards
from madiff.assessment import Assessment, assess, assess_behaviour, changed_problem
from madiff.build import TrainedRun
from madiff.collection import opened
from madiff.experiment import durable, rendering, runtime
from madiff.experiment.rollout import write_episodes
from madiff.experiment.summary import print_table
from madiff.interfaces import UserError
from madiff.schema import EvaluateConfig, plain, shown

console = Console()
say = partial(console.print, markup=False, highlight=False, soft_wrap=True)


def main(arguments: Sequence[str] | None = None) -> int:
    return configuration.main(VERB, build.defaults, sys.argv[1:] if arguments is None else arguments)


def evaluate(config: EvaluateConfig, behaviour: bool = True) -> None:
    """The whole job. behaviour: also roll out the policy that made the data, where it can be asked."""
    machine = hardware.setup(config.hardware, say)
    run = safeguards.load(config.run, machine.device, config.algo, config.cost_limit)
    guarded = safeguards.safeguard(run, config.safe, config.cost_limit)
    problem = changed_problem(run.config, run.spec, config.env, machine.device)
    seed = run.config.evaluation.seed if config.seed is None else config.seed
    out = config.out or run.path / "evaluations" / title(config, seed)
    check_target(out)
    name, data = run.config.algo["name"], run.config.data
    if config.env:
        say(f"other than in training: {changes(config)}")
    film = films.prepare(run, guarded, config.cost_limit) if config.film else None
    results = [
        assess(name, problem, film.policy if film else guarded.policy, config.episodes, seed, run.costs, config.film,
               record=bool(guarded.sets or film), timed=guarded.timed)
    ]  # fmt: skip
    if behaviour and data.path is None:
        results.append(assess_behaviour(problem, data.quality, config.episodes, seed, run.costs))
    safety = guarded.report(results[0].store, results[0].records)
    report = summarise(config, run, seed, results) | safety
    write(out, report, results, config.film)
    if film is not None:
        with opened(problem.make(1)) as env:
            film.write(out, results[0].store, env)
    print_table(report, console)
    for line in told(safety):
        say(line)
    say(f"written to {out}")


def check_target(out: Path) -> None:
    """Refuse before the work what could not be written after it."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file", "out", "a folder to write")
    durable.check_place(out / "evaluation.json", "out")


def summarise(config: EvaluateConfig, run: TrainedRun, seed: int, results: list[Assessment]) -> dict[str, Any]:
    behaviour, data = results[1].row if len(results) > 1 else None, run.config.data
    return {
        "run": str(run.path),
        "env": run.spec.name,
        "scenario": run.spec.scenario,
        "algo": run.config.algo["name"],
        "data": data.quality if data.path is None else data.path.stem,
        "device": str(run.learner.device.type),
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


def told(safety: dict[str, Any]) -> list[str]:
    """What the layer did, violations of plans and of episodes, and how many cost more than they may, in a line each."""
    lines = []
    if layer := safety.get("layer"):
        lines.append(f"actions: {layer['moved']:.1%} moved, {layer['infeasible']:.1%} that none could make safe")
    for what, key in (("plans", "plan_violations"), ("episodes", "rollout_violations")):
        if found := safety.get(key):
            least = "-" if found["least_barrier"] is None else f"{found['least_barrier']:.3g}"
            lines.append(f"{what}: {found['violating']:.1%} violate a constraint, least barrier {least}")
    if "over_limit" in safety:
        lines.append(f"episodes: {safety['over_limit']:.1%} cost more than {safety['cost_limit']:g}")
    return lines


def title(config: EvaluateConfig, seed: int) -> str:
    """The name of an evaluation's folder: what was asked for."""
    options = [f"{key}={value}" for key, value in sorted(config.algo.items())]
    options += [f"env.{key}={value}" for key, value in sorted(config.env.items())]
    options += [f"safe={config.safe['name']}"] if config.safe["name"] != "trained" else []
    options += [f"safe.{key}={short(value)}" for key, value in sorted(config.safe.items()) if changed(config, key)]
    options += [f"cost_limit={config.cost_limit:g}"] if config.cost_limit is not None else []
    return "-".join([f"episodes{config.episodes}", f"seed{seed}", *options]).replace("/", "_")


def short(value: Any) -> Any:
    """A file by its name alone: the whole path would be too long for a folder's name."""
    return Path(value).name if isinstance(value, str) else value


def changed(config: EvaluateConfig, key: str) -> bool:
    """Whether an option of the safeguard is another than its default."""
    return key != "name" and config.safe[key] != plain(getattr(safeguards.OPTIONS[config.safe["name"]](), key))


def write(out: Path, report: dict[str, Any], results: list[Assessment], film: bool) -> None:
    with durable.disk_errors("write", out):
        out.mkdir(parents=True, exist_ok=True)
        write_episodes(out / "episodes.jsonl", [record for result in results for record in result.records])
        durable.replace(out / "evaluation.json", (json.dumps(report, indent=2) + "\n").encode())
    if film:
        rendering.write_gif(results[0].frames, out / "rollout.gif")


VERB = configuration.Verb(
    "evaluate",
    "roll out a trained run, with other options where it can bear them (algo.*, env.*)",
    EvaluateConfig,
    evaluate,
    [
        "python -m madiff.evaluate run=DIR episodes=1000 algo.target_return=0.5 env.OPTION=VALUE out=DIR film=true",
        "python -m madiff.evaluate run=DIR safe=exact safe.constraints=FILE.yaml cost_limit=20",
    ],
)

if __name__ == "__main__":
    sys.exit(main())
