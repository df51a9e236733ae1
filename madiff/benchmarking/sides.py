"""What a folder says of its methods, in one form for benchmarks and for runs: a side of a comparison."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import floor
from pathlib import Path
from statistics import fmean
from typing import Any

from madiff.benchmarking.aggregate import Results
from madiff.benchmarking.folder import SUITE, episodes_of, read, read_episodes, told_by
from madiff.configuration import flatten
from madiff.data import stored
from madiff.experiment import run_directory
from madiff.interfaces import UserError
from madiff.schema import shown

Key = tuple[str, str]  # task, method
Options = Mapping[str, str]  # dotted key -> value as it is written on the command line
Values = dict[str, dict[int, tuple[float, ...]]]

EFFORT = ("plan_ms_batch1", "network_calls_per_decision", "parameters", "seconds")
SHARES = ("plans_violating", "episodes_violating")
TRAINED = "the trained method"  # of a run, whatever it is called
PLACES = ("run", "run_dir", "out", "resume", "tracking", "data.cache", "film", "evaluation.film")
RENAMED = {"env": "env.name", "algo": "algo.name", "safe": "safe.name"}
OF_EVALUATION = {"episodes": "evaluation.episodes", "seed": "evaluation.seed"}


@dataclass(frozen=True)
class Row:
    """A method on a task.

    values: quantity -> training seed -> a number an episode; of a run, whose only training it is, under 0. effort:
    means over the seeds. composed: all options, None where their file is gone; given: those of the command line.
    starts: what the episodes begin with, where that is written down.
    """

    name: str
    values: Mapping[str, Mapping[int, tuple[float, ...]]]
    effort: Mapping[str, float | None]
    composed: Options | None
    given: Options
    starts: tuple[Any, ...] | None = None


@dataclass(frozen=True)
class Side:
    """rows: what has numbers. absent: why a row has none. facts: versions, device and the like, by name."""

    path: Path
    kind: str
    rows: Mapping[Key, Row]
    absent: Mapping[Key, str]
    facts: Mapping[str, str]


def side(path: Path) -> Side:
    """The side that a benchmark folder or a run directory is; raises UserError for anything else."""
    allowed = "a folder of madiff.benchmark or of madiff.train"
    if not path.is_dir():
        raise UserError(f"{path} is no folder", "compare", allowed)
    if (path / SUITE).exists():
        return of_benchmark(path)
    if not (path / run_directory.IDENTITY).exists():
        raise UserError(f"{path} is neither a benchmark nor a run", "compare", allowed)
    return of_run(path)


def of_benchmark(path: Path) -> Side:
    results = told_by(path)[0]
    values = by_cell(episodes_of(path, results))
    rows, absent = {}, {}
    for key in ((task, label) for task in results.tasks for label in results.labels):
        finished = [record for record in results.finished(*key) if key in values]
        if finished:
            found = measured(values[key], [r["metrics"] for r in finished])
            found |= shares({r["seed"]: (r["metrics"], r["episodes"]) for r in finished})
            rows[key] = Row(key[1], found, effort(finished), *options(path, finished[0], results))
        else:
            said = [record for record in results.records if (record["task"], record["label"]) == key]
            absent[key] = said[0]["reason"] or said[0]["status"] if said else "not run"
    suite = results.suite
    devices = sorted({record["device"] for record in results.records if "device" in record})
    facts = {"suite": suite["suite"], "training seeds": str(suite["seeds"]), "device": ", ".join(devices)}
    return Side(path, "benchmark", rows, absent, facts | environments(path, results.tasks) | suite["versions"])


def environments(path: Path, tasks: Iterable[str]) -> dict[str, str]:
    """The versions of the environments that made the data, where their cards are kept."""
    cards = {task: (read(path / "records" / task / "reference.json") or {}).get("data") or {} for task in tasks}
    return {f"environment of {task}": f"version {card['env_version']}" for task, card in cards.items()
            if card.get("env_version") is not None}  # fmt: skip


def of_run(path: Path) -> Side:
    config, _ = run_directory.read(path)
    summary = read(path / "summary.json")
    if summary is None:
        raise UserError(f"{path} has no summary yet", "compare", "a finished run")
    episodes, task = read_episodes(path / "episodes.jsonl"), f"{summary['env']} {summary['scenario']}"
    composed = {key: shown(value) for key, value in flatten(config).items() if key not in PLACES}
    told = {summary["algo"]: summary, **summary["baselines"], "behaviour": summary.get("behaviour") or {}}
    rows = {}
    for policy in dict.fromkeys(episode["policy"] for episode in episodes):
        own, of = [e for e in episodes if e["policy"] == policy], told.get(policy, {})
        found = measured(collected((0, episode) for episode in own), [of]) | shares({0: (violations(of), len(own))})
        spent = effort([{"metrics": of, "seconds": of.get("wall_seconds")}])
        starts = tuple((episode["seed"], episode["copy"]) for episode in own)
        rows[task, TRAINED if policy == summary["algo"] else policy] = Row(policy, found, spent, composed, {}, starts)
    facts = {"device": summary["device"], "processes": str(summary.get("world_size", 1))}
    return Side(path, "run", rows, {}, facts | summary["versions"])


def by_cell(episodes: Iterable[Mapping[str, Any]]) -> dict[Key, Values]:
    """The episodes of a benchmark that were met without a shift, by cell."""
    found: dict[Key, list[tuple[int, Mapping[str, Any]]]] = {}
    for episode in episodes:
        if episode["shift"] is None:
            found.setdefault((episode["task"], episode["label"]), []).append((episode["seed"], episode))
    return {key: collected(pairs) for key, pairs in found.items()}


def collected(episodes: Iterable[tuple[int, Mapping[str, Any]]]) -> Values:
    """quantity -> seed -> its numbers, of episodes with the seeds of their trainings."""
    made: dict[str, dict[int, list[float]]] = {}
    for seed, episode in episodes:
        for quantity in ("return", "cost", "won"):
            if episode.get(quantity) is not None:
                made.setdefault(quantity, {}).setdefault(seed, []).append(float(episode[quantity]))
    return {quantity: {seed: tuple(v) for seed, v in seeds.items()} for quantity, seeds in made.items()}


def measured(values: Values, metrics: Iterable[Mapping[str, Any]]) -> Values:
    """What means something here: every environment counts costs, but not in all of them is there any."""
    costly = any(one.get("cost_mean") is not None for one in metrics)
    return {quantity: seeds for quantity, seeds in values.items() if quantity != "cost" or costly}


def violations(told: Mapping[str, Any]) -> dict[str, Any]:
    """The shares of a summary by the names that a benchmark's records have for them."""
    found = {"plans_violating": "plan_violations", "episodes_violating": "rollout_violations"}
    return {name: (told.get(group) or {}).get("violating") for name, group in found.items()}


def shares(told: Mapping[int, tuple[Mapping[str, Any], int]]) -> Values:
    """Shares in violation as numbers of episodes, seed by seed: (metrics, episodes) of each."""
    made: Values = {}
    for seed, (metrics, episodes) in told.items():
        for name in SHARES:
            if metrics.get(name) is not None:
                made.setdefault(name, {})[seed] = spread(metrics[name], episodes)
    return made


def spread(share: float, count: int) -> tuple[float, ...]:
    """`count` numbers from 0 to 1 with this mean that differ as much as such numbers can.

    Of a share in violation the episodes' own are not kept. Whatever they were, they vary no more than these, so that an
    interval of these is no narrower; for episodes, which violate or do not, they are the very same.
    """
    ones = min(floor(share * count + 1e-9), count)
    rest = [share * count - ones] if ones < count else []
    return (*[1.0] * ones, *rest, *[0.0] * (count - ones - len(rest)))


def effort(records: Iterable[Mapping[str, Any]]) -> dict[str, float | None]:
    """Time and size: means over the seeds."""
    flat = [{**record["metrics"], "seconds": record["seconds"]} for record in records]
    known = {key: [one[key] for one in flat if one.get(key) is not None] for key in EFFORT}
    return {key: fmean(values) if values else None for key, values in known.items()}


def options(path: Path, record: Mapping[str, Any], results: Results) -> tuple[Options | None, Options]:
    """The options of a cell, all of them and those of its command; an evaluation's with those of what it evaluates."""
    given, base = command_options(record["command"]), {}
    folder = path / record["run_dir"]
    if "run" in given:
        of = [r for r in results.records if r.get("run_dir") == given["run"]]
        base, folder = command_options(of[0]["command"]) if of else {}, path / given["run"]
        given = {OF_EVALUATION.get(key, key): value for key, value in given.items()}
    try:
        config = {key: shown(value) for key, value in flatten(stored.read_yaml(folder / "config.yaml")).items()}
    except (OSError, ValueError, AttributeError):
        config = None
    alone = ("seed", *PLACES)  # the training seed is a part of the cell
    composed, own = ({key: value for key, value in found.items() if key not in alone}
                     for found in ((config or {}) | given, base | given))  # fmt: skip
    return composed if config is not None else None, own


def command_options(command: str) -> dict[str, str]:
    """The key=value arguments of a line for the shell."""
    found = dict(word.partition("=")[::2] for word in shlex.split(command) if "=" in word)
    return {RENAMED.get(key, key): value for key, value in found.items()}
