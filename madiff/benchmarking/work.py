"""One job of a benchmark, done in a process of its own: measure a task's references, or train and evaluate a cell.

A job leaves what it found in its record file, in one move; nothing is handed back otherwise, so any launcher will do.
"""

from __future__ import annotations

import json
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock

from madiff import assessment, build, configuration, evaluate, train
from madiff.experiment import durable, run_directory, runtime
from madiff.experiment.statistics import flattened
from madiff.interfaces import UserError
from madiff.schema import EvaluateConfig, TrainConfig, structure

PATIENCE = 120.0  # seconds that a job waits for an orphan of an earlier benchmark to save its cell and end
MEASURED = (
    "return_mean", "return_ci95", "score", "win_rate", "arrival_rate", "cost_mean", "length_mean", "illegal_actions",
    "plan_ms_batch1", "network_calls_per_decision", "flops_per_decision", "parameters", "behaviour_return_mean",
    "data_return_mean",
)  # fmt: skip
VIOLATIONS = {
    "plan_violations": {"violating": "plans_violating", "least_barrier": "plans_least_barrier", "trap_rate": "trapped",
                        "infeasible": "infeasible"},
    "rollout_violations": {"violating": "episodes_violating", "least_barrier": "episodes_least_barrier"},
}  # fmt: skip


def compose(arguments: tuple[str, ...]) -> TrainConfig:
    """The configuration of a cell, as madiff.train makes it of its arguments."""
    return structure(TrainConfig, configuration.compose("train", build.defaults(), arguments))


def compose_evaluation(arguments: tuple[str, ...]) -> EvaluateConfig:
    """The same of madiff.evaluate."""
    return structure(EvaluateConfig, configuration.compose("evaluate", build.defaults(), arguments))


@dataclass(frozen=True)
class Job(ABC):
    """name: shown to people. arguments: of madiff.train, without places. record, log: files to write."""

    name: str
    arguments: tuple[str, ...]
    record: Path
    log: Path

    @abstractmethod
    def work(self) -> dict[str, Any]:
        """Do it; returns what the record says besides its status."""

    def __call__(self) -> None:
        """Do it and leave the record; what goes wrong is recorded too. KeyboardInterrupt leaves none."""
        self.record.parent.mkdir(parents=True, exist_ok=True)
        try:
            with filelock.FileLock(self.record.with_suffix(".lock"), timeout=PATIENCE):
                outcome = {"status": "finished", "reason": None, **self.work()}
        except filelock.Timeout:
            outcome = {"status": "failed", "reason": "in use by another process"}
        except UserError as error:
            outcome = {"status": "failed", "reason": str(error)}
        except Exception as error:
            traceback.print_exc()
            outcome = {"status": "failed", "reason": f"{type(error).__name__}: {error}"}
        durable.replace(self.record, json.dumps({"arguments": self.arguments, **outcome}).encode())


@dataclass(frozen=True)
class Preparation(Job):
    """Collects a task's data into the cache and measures the behaviours of its normalised scale."""

    zero: str
    one: str

    def work(self) -> dict[str, Any]:
        began, config = time.monotonic(), compose(self.arguments)
        machine = runtime.setup(config.hardware.device, config.hardware.threads or 0)
        problem = build.make_problem(config.env, config.agents, config.scenario, machine.device)
        store = build.make_store(config.data, problem)()
        ends = {}
        for end, quality in (("zero", self.zero), ("one", self.one)):
            evaluation = config.evaluation
            result = assessment.assess_behaviour(problem, quality, evaluation.episodes, evaluation.seed, costs=True)
            ends[end] = {"quality": quality, "episodes": evaluation.episodes, **result.row}
        return {**ends, "data": store.card, "cell_seconds": time.monotonic() - began}


@dataclass(frozen=True)
class CellJob(Job):
    """Of a cell: run is its own folder, `about` stands in its record as it is."""

    run: Path
    about: Mapping[str, Any]


@dataclass(frozen=True)
class Evaluation(CellJob):
    """Evaluates the run of another cell, `source`, with options of madiff.evaluate."""

    source: Path

    def work(self) -> dict[str, Any]:
        began = time.monotonic()
        config = compose_evaluation((*self.arguments, f"run={self.source}", f"out={self.run}"))
        evaluate.evaluate(config, behaviour=False)
        report = json.loads((self.run / "evaluation.json").read_text())
        episodes = [told(record) for record in read_lines(self.run / "episodes.jsonl")]
        record = {
            **self.about, **{key: report[key] for key in ("env", "scenario", "algo", "data", "episodes", "device")},
            "updates": report["step"], "seconds": 0.0, "evaluation_seconds": report["evaluation_seconds"],
            "metrics": measured(report), "flattened": None, "curve": [], "shifts": {},
        }  # fmt: skip
        return {"record": record, "episodes": episodes, "cell_seconds": time.monotonic() - began}


@dataclass(frozen=True)
class Training(CellJob):
    """Trains and evaluates a cell, then under every shift."""

    shifts: Mapping[str, Mapping[str, Any]]

    def work(self) -> dict[str, Any]:
        began = time.monotonic()
        config = compose((*self.arguments, f"run_dir={self.run}", "resume=auto"))
        train.train(config)
        summary = json.loads((self.run / "summary.json").read_text())
        episodes = [told(record) for record in read_lines(self.run / "episodes.jsonl")
                    if record["policy"] == summary["algo"]]  # fmt: skip
        shifted = self.evaluate_shifts(config, episodes)
        seconds = max(time.monotonic() - began, summary["wall_seconds"])
        record = {**self.about, **record_of(summary, self.run), "shifts": shifted}
        return {"record": record, "episodes": episodes, "shifts": self.shifts, "cell_seconds": seconds}

    def evaluate_shifts(self, config: TrainConfig, episodes: list[dict[str, Any]]) -> dict[str, Any]:
        """The same episodes with each change to the environment; adds them to `episodes`."""
        if not self.shifts:
            return {}
        device = runtime.setup(config.hardware.device, config.hardware.threads or 0, say=None).device
        run = build.load_run(self.run, device)
        rows = {}
        for shift, changes in self.shifts.items():
            problem = assessment.changed_problem(run.config, run.spec, changes, device)
            result = assessment.assess(
                shift, problem, run.policy, config.evaluation.episodes, config.evaluation.seed, run.costs
            )
            episodes += [told(record, shift) for record in result.records]
            rows[shift] = measured(result.row)
        return rows


def record_of(summary: Mapping[str, Any], run: Path) -> dict[str, Any]:
    """A finished run as the benchmark's record; seconds of training include the points of the learning curve."""
    curve = [r for r in run_directory.read_records(run / "metrics.jsonl") if r.get("eval/return_mean") is not None]
    half_widths = [(r["eval/return_ci95_high"] - r["eval/return_ci95_low"]) / 2 for r in curve]
    return {
        "env": summary["env"], "scenario": summary["scenario"], "algo": summary["algo"], "data": summary["data"],
        "updates": summary["steps"], "seconds": summary["wall_seconds"], "device": summary["device"],
        "evaluation_seconds": summary["evaluation_seconds"], "episodes": summary["episodes"],
        "metrics": measured(summary),
        "flattened": flattened([r["eval/return_mean"] for r in curve], half_widths),
        "curve": [[r["step"], r["eval/return_mean"]] for r in curve],
    }  # fmt: skip


def measured(report: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of a summary or an evaluation; those of plans and of episodes within constraints by names apart."""
    found = {key: report[key] for key in MEASURED if key in report}
    for group, names in VIOLATIONS.items():
        values = report.get(group) or {}
        found |= {name: values[key] for key, name in names.items() if key in values}
    return found


def told(record: Mapping[str, Any], shift: str | None = None) -> dict[str, Any]:
    """What episodes.jsonl keeps of an episode."""
    kept = ("episode", "return", "cost", "length", "won", "arrived")
    return {"shift": shift, **{key: record[key] for key in kept if key in record}}


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
