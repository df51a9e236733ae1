"""From records and returns to statements: means with intervals, normalised scores, improvements, drops, shares.

Intervals are 95% bootstraps: over training seeds and then their episodes where one task is told, over the runs within
each task where tasks are told together. With one seed an interval says nothing of the luck of training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np

from madiff.experiment import statistics
from madiff.experiment.statistics import Interval

Runs = tuple[tuple[float, ...], ...]  # returns by seed and episode
ByEpisode = Mapping[tuple[str, str, str | None], Mapping[int, tuple[float, ...]]]
POINTS = 61  # of a performance profile
# What a cell tells as its mean over seeds.
OVER_SEEDS = (
    "score", "win_rate", "arrival_rate", "cost_mean", "plan_ms_batch1", "network_calls_per_decision", "parameters",
    "plans_violating", "episodes_violating", "trapped", "infeasible",
)  # fmt: skip


@dataclass(frozen=True)
class Results:
    """Everything a benchmark knows: suite.json, the references by task, and the cells of results.json.

    returns, costs: (task, label, shift or None) -> seed -> those of the evaluated episodes.
    """

    suite: Mapping[str, Any]
    references: Mapping[str, Mapping[str, Any]]
    records: Sequence[Mapping[str, Any]]
    returns: ByEpisode
    costs: ByEpisode = field(default_factory=dict)

    @property
    def tasks(self) -> list[str]:
        return list(self.suite["tasks"])

    @property
    def labels(self) -> list[str]:
        return list(self.suite["methods"])

    def runs(self, task: str, label: str, shift: str | None = None) -> Mapping[int, tuple[float, ...]]:
        return self.returns.get((task, label, shift), {})

    def finished(self, task: str, label: str) -> list[Mapping[str, Any]]:
        return [r for r in self.records if (r["task"], r["label"], r["status"]) == (task, label, "finished")]

    def range(self, task: str) -> tuple[float, float] | None:
        """The returns that become 0 and 1; None where they are unknown or in the wrong order."""
        if task not in self.references:
            return None
        zero, one = (self.references[task][end]["return_mean"] for end in ("zero", "one"))
        return (zero, one) if one > zero else None

    def normalised(self, task: str, label: str) -> list[float]:
        """The normalised score of every seed; empty without a range."""
        ends = self.range(task)
        if ends is None:
            return []
        zero, one = ends
        return [(float(np.mean(run)) - zero) / (one - zero) for run in self.runs(task, label).values()]


def aggregate(results: Results) -> dict[str, Any]:
    """All statements as JSON values, by the names of the tables."""
    return {
        "cells": {task: {label: cell(results, task, label) for label in results.labels
                         if results.runs(task, label)} for task in results.tasks},
        "tasks": {task: reference(results, task) for task in results.tasks},
        "labels": {label: together(results, label) for label in results.labels},
        "improvement": improvements(results),
        "over_best_baseline": {task: over_best_baseline(results, task) for task in results.tasks},
        "profile": profile(results),
        "shifts": {task: drops(results, task) for task in results.tasks if results.suite["tasks"][task]["shifts"]},
        "shares": shares(results),
    }  # fmt: skip


def cell(results: Results, task: str, label: str) -> dict[str, Any]:
    """A method on a task over its seeds."""
    runs, records = results.runs(task, label), results.finished(task, label)
    metrics = [record["metrics"] for record in records]
    scores = results.normalised(task, label)

    def over_seeds(key: str) -> float | None:
        values = [m[key] for m in metrics if m.get(key) is not None]
        return float(np.mean(values)) if values else None

    told = {
        "seeds": len(runs),
        "return_mean": float(np.mean([np.mean(run) for run in runs.values()])),
        "return_ci95": interval(tuple(runs.values())),
        "normalised": float(np.mean(scores)) if scores else None,
        "updates": float(np.mean([record["updates"] for record in records])),
        "seconds": float(np.mean([record["seconds"] for record in records])),
        "not_flattened": sum(record["flattened"] is False for record in records),
    }
    costs = tuple(results.costs.get((task, label, None), {}).values())
    limit = records[0].get("cost_limit")
    told |= {
        "cost_ci95": interval(costs) if costs else None, "cost_limit": limit,
        "over_limit": float(np.mean(np.concatenate(costs) > limit)) if costs and limit is not None else None,
    }  # fmt: skip
    return told | {key: over_seeds(key) for key in OVER_SEEDS}


def reference(results: Results, task: str) -> dict[str, Any]:
    """What the behaviours obtain on a task: the ends of the normalised scale, and the data."""
    found = results.references.get(task)
    behaviour = [r["metrics"]["behaviour_return_mean"] for r in results.records
                 if r["task"] == task and r["metrics"].get("behaviour_return_mean") is not None]  # fmt: skip
    told = {"behaviour": behaviour[0] if behaviour else None}
    if found is None:
        return told
    ends = {end: {key: found[end][key] for key in ("quality", "return_mean")} for end in ("zero", "one")}
    return told | ends | {"data_return_mean": found["data"]["return_mean"], "data_episodes": found["data"]["episodes"]}


def together(results: Results, label: str) -> dict[str, Any]:
    """A method over the tasks it has: interquartile mean and mean of the runs' normalised scores."""
    scores = [score for task in results.tasks if (score := results.normalised(task, label))]
    if not scores:
        return {"tasks": 0}
    every = np.concatenate(scores)
    return {
        "tasks": len(scores),
        "iqm": float(statistics.iqm(every)), "iqm_ci95": stratified("iqm", frozen(scores)),
        "mean": float(every.mean()), "mean_ci95": stratified("mean", frozen(scores)),
    }  # fmt: skip


def improvements(results: Results) -> dict[str, Any]:
    """Each label against the reference: over their common tasks and seeds, how probably it is better."""
    base, told = results.suite["reference"], {}
    for label in results.labels:
        pairs = [pair for task in results.tasks if len((pair := paired(results, task, label, base))[0])]
        if label != base and pairs:
            value, ends = improvement(*(frozen([np.mean(runs, axis=1) for runs in side])
                                        for side in zip(*pairs, strict=True)))  # fmt: skip
            told[label] = {"tasks": len(pairs), "probability": value, "probability_ci95": ends}
    return told


def over_best_baseline(results: Results, task: str) -> dict[str, Any]:
    """Each label's return less that of the best baseline of this task, by the same seeds and episodes.

    The best is chosen by the returns compared, which favours it a little.
    """
    means = {label: float(np.mean([np.mean(run) for run in runs.values()]))
             for label in results.suite["baselines"] if (runs := results.runs(task, label))}  # fmt: skip
    if not means:
        return {}
    best = max(means, key=means.__getitem__)
    told = {label: difference(*paired(results, task, label, best)) for label in results.labels if label != best}
    return {"baseline": best, "labels": {label: value for label, value in told.items() if value}}


def paired(results: Results, task: str, label: str, other: str, shift: str | None = None) -> tuple[Runs, Runs]:
    """The returns of two methods for their common seeds, those of the first under `shift`."""
    ours, theirs = results.runs(task, label, shift), results.runs(task, other)
    common = [seed for seed in ours if seed in theirs]
    return tuple(ours[seed] for seed in common), tuple(theirs[seed] for seed in common)


def difference(ours: Runs, theirs: Runs) -> dict[str, Any] | None:
    """Mean of ours - theirs, episode by episode, as the episodes begin alike; None without common seeds.

    probability: that ours returns more for the same seed in the same episode, ties counted half.
    """
    if not ours:
        return None
    less = np.asarray(ours) - np.asarray(theirs)
    won = (less > 0) + 0.5 * (less == 0)
    return {
        "difference": float(less.mean()), "difference_ci95": interval(frozen(less)),
        "probability": float(won.mean()), "probability_ci95": interval(frozen(won)), "seeds": len(less),
    }  # fmt: skip


def profile(results: Results) -> dict[str, Any]:
    """For each label the share of runs above each normalised score, with bands."""
    scores = {label: [score for task in results.tasks if (score := results.normalised(task, label))]
              for label in results.labels}  # fmt: skip
    scores = {label: tasks for label, tasks in scores.items() if tasks}
    if not scores:
        return {}
    every = np.concatenate([run for tasks in scores.values() for run in tasks])
    thresholds = np.linspace(min(0.0, float(every.min())), max(1.0, float(every.max())), POINTS)
    told: dict[str, Any] = {"thresholds": thresholds.tolist(), "labels": {}}
    for label, tasks in scores.items():
        low, high = band(frozen(tasks), tuple(thresholds))
        share = statistics.performance_profile(np.concatenate(tasks), thresholds)
        told["labels"][label] = {"share": share.tolist(), "low": low, "high": high}
    return told


def drops(results: Results, task: str) -> dict[str, Any]:
    """shift -> label -> what the return loses under it, in returns and in parts of the normalised range."""
    ends = results.range(task)
    told: dict[str, Any] = {}
    for shift in results.suite["tasks"][task]["shifts"]:
        told[shift] = {}
        for label in results.labels:
            lost = difference(*reversed(paired(results, task, label, label, shift)))
            if lost:
                told[shift][label] = {
                    "drop": lost["difference"], "drop_ci95": lost["difference_ci95"], "seeds": lost["seeds"],
                    "relative": lost["difference"] / (ends[1] - ends[0]) if ends else None,
                }  # fmt: skip
    return told


def shares(results: Results) -> dict[str, Any]:
    """family -> label -> points of the return against the share of the data, ascending."""
    told: dict[str, Any] = {}
    tasks = {name: task for name, task in results.suite["tasks"].items() if task["share"] is not None}
    for name, task in sorted(tasks.items(), key=lambda item: item[1]["share"]):
        for label in results.labels:
            if results.runs(name, label):
                point = {key: cell(results, name, label)[key] for key in ("return_mean", "return_ci95", "seeds")}
                told.setdefault(task["family"], {}).setdefault(label, []).append({"share": task["share"], **point})
    return told


# The tables are made again after every cell; what has not changed is not resampled again.


def frozen(values: Any) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(map(float, row)) for row in values)


@cache
def interval(runs: Runs) -> Interval:
    return statistics.bootstrap_ci_over_seeds(runs)


@cache
def stratified(statistic: str, scores: Runs) -> Interval:
    return statistics.stratified_bootstrap_ci(scores, getattr(statistics, statistic))


@cache
def improvement(ours: Runs, theirs: Runs) -> tuple[float, Interval]:
    return statistics.paired_improvement(ours, theirs)


@cache
def band(scores: Runs, thresholds: tuple[float, ...]) -> tuple[list[float], list[float]]:
    low, high = statistics.performance_profile_band(scores, thresholds)
    return low.tolist(), high.tolist()
