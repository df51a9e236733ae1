"""The final comparison: any policy over the same episodes, as one row of numbers and one record an episode."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from madiff.build import Problem, qualities
from madiff.collection import console, progress_bar
from madiff.experiment import seeding
from madiff.experiment.rollout import Rollout, evaluate, rollout, wave_sizes
from madiff.experiment.summary import decision_flops, decision_milliseconds, evaluation_metrics
from madiff.interfaces import Policy

COPIES = 1024


@dataclass(frozen=True)
class Assessment:
    """row: what summary.json says of a policy. records: its lines of episodes.jsonl. frames: pictures of episode 0."""

    name: str
    row: dict[str, Any]
    records: list[dict[str, Any]]
    frames: list[np.ndarray]


def assess(
    name: str, problem: Problem, policy: Policy, episodes: int, seed: int, costs: bool, film: bool = False
) -> Assessment:
    """Run a learned policy for `episodes` episodes and time its decisions; costs: whether cost means anything here."""
    with progress_bar(f"evaluating {name}", episodes, console.is_terminal) as advance:
        outcome = evaluate(
            problem.make, policy, episodes, seeding.derive(seed, "evaluation"), copies=COPIES, progress=advance,
            film=0 if film else None,
        )  # fmt: skip
    start = problem.make(1).reset(seed)
    seen = start.observations, start.available_actions
    speed = {
        "parameters": policy.parameters,
        "network_calls_per_decision": policy.network_calls_per_decision,
        "flops_per_decision": decision_flops(policy, *seen),
        "plan_ms_batch1": decision_milliseconds(policy, *seen),
    }
    return _assessment(name, outcome, costs, speed)


def assess_behaviour(problem: Problem, quality: str, episodes: int, seed: int, costs: bool) -> Assessment:
    """The same of the policy that made the data; the parts of a mixture share the episodes."""
    parts = qualities(quality)
    shares = [episodes // len(parts) + (i < episodes % len(parts)) for i in range(len(parts))]
    outcomes = []
    with progress_bar("evaluating behaviour", episodes, console.is_terminal) as advance:
        for part, share in zip(parts, shares, strict=True):
            for wave, copies in enumerate(wave_sizes(share, COPIES)):
                env = problem.make(copies)
                wave_seed = seeding.derive(seeding.derive(seed, "evaluation"), "wave", wave)
                outcomes.append(rollout(env, problem.behaviour(env, part), seed=wave_seed, progress=advance))
    return _assessment("behaviour", Rollout.concatenate(outcomes), costs, {})


def _assessment(name: str, outcome: Rollout, costs: bool, speed: dict[str, Any]) -> Assessment:
    metrics = evaluation_metrics(outcome)
    row = {
        "return_mean": metrics["return_mean"],
        "return_ci95": (metrics["return_ci95_low"], metrics["return_ci95_high"]),
        "length_mean": metrics["length_mean"],
        "illegal_actions": int(outcome.illegal.sum()),
        **({"win_rate": metrics["win_rate"]} if "win_rate" in metrics else {}),
        **({"cost_mean": metrics["cost_mean"]} if costs else {}),
        **speed,
    }
    records = [{"policy": name, **record} for record in outcome.records()]
    return Assessment(name, row, records, outcome.frames)
