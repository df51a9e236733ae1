"""The final comparison: any policy over the same episodes, as one row of numbers and one record an episode."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

import envs
from madiff import build
from madiff.build import Problem, qualities
from madiff.collection import console, opened, progress_bar
from madiff.data.store import EpisodeStore
from madiff.experiment import seeding
from madiff.experiment.rollout import Rollout, evaluate, rollout, wave_sizes
from madiff.experiment.summary import decision_flops, decision_milliseconds, evaluation_metrics
from madiff.interfaces import EnvironmentSpec, Policy, UserError
from madiff.schema import TrainConfig, plain, shown

COPIES = 1024
SIZES = (
    "agents", "observation_size", "action_size", "discrete", "state_size", "observation_sizes", "action_sizes",
)  # fmt: skip


@dataclass(frozen=True)
class Assessment:
    """row: what summary.json says of a policy. records: its lines of episodes.jsonl. frames: pictures of episode 0.

    store: the episodes themselves, where they were to be recorded.
    """

    name: str
    row: dict[str, Any]
    records: list[dict[str, Any]]
    frames: list[np.ndarray]
    store: EpisodeStore | None = None


def assess(
    name: str, problem: Problem, policy: Policy, episodes: int, seed: int, costs: bool, film: bool = False, *,
    record: bool = False, timed: Policy | None = None,
) -> Assessment:  # fmt: skip
    """Run a learned policy for `episodes` episodes and time its decisions; costs: whether cost means anything here.

    record: keep the episodes. timed: the same policy for the timing, where being asked leaves traces.
    """
    with progress_bar(f"evaluating {name}", episodes, console.is_terminal) as advance:
        outcome = evaluate(
            problem.make, policy, episodes, seeding.derive(seed, "evaluation"), copies=COPIES, progress=advance,
            film=0 if film else None, record=record,
        )  # fmt: skip
    start = problem.make(1).reset(seed)
    seen = start.observations, start.available_actions
    policy = policy if timed is None else timed
    speed = {
        "parameters": policy.parameters,
        "network_calls_per_decision": policy.network_calls_per_decision,
        "flops_per_decision": decision_flops(policy, *seen),
        "plan_ms_batch1": decision_milliseconds(policy, *seen),
    }
    return _assessment(name, problem, outcome, costs, speed)


def assess_behaviour(problem: Problem, quality: str, episodes: int, seed: int, costs: bool) -> Assessment:
    """The same of the policy that made the data; the parts of a mixture share the episodes."""
    parts = qualities(quality)
    shares = [episodes // len(parts) + (i < episodes % len(parts)) for i in range(len(parts))]
    outcomes = []
    with progress_bar("evaluating behaviour", episodes, console.is_terminal) as advance:
        for part, share in zip(parts, shares, strict=True):
            for wave, copies in enumerate(wave_sizes(share, COPIES)):
                wave_seed = seeding.derive(seeding.derive(seed, "evaluation"), "wave", wave)
                with opened(problem.make(copies)) as env:
                    outcomes.append(rollout(env, problem.behaviour(env, part), seed=wave_seed, progress=advance))
    return _assessment("behaviour", problem, Rollout.concatenate(outcomes), costs, {})


def changed_problem(
    config: TrainConfig, spec: EnvironmentSpec, changes: Mapping[str, Any], device: torch.device
) -> Problem:
    """The environment of a training with other values for some of its options, for tests under a shift.

    spec: what the policy was made for. Raises UserError for an option the environment does not have, and for a value
    that changes these sizes.
    """
    section = config.env
    for key, value in changes.items():
        if key == "name" or key not in section:
            options = [f"env.{name}" for name in section if name != "name"]
            raise UserError(f"env.{key} is no option of {section['name']}", "env", options or "none")
        if isinstance(section[key], bool) and not isinstance(value, bool):
            raise UserError(f"'{shown(value)}' is not true or false", f"env.{key}")
    problem = build.make_problem({**section, **changes}, config.agents, config.scenario, device)
    for size in SIZES:
        trained, found = plain(getattr(spec, size)), plain(getattr(problem.spec, size))
        if trained != found:
            what = ", ".join(f"env.{key}={shown(value)}" for key, value in changes.items())
            raise UserError(f"{what} makes {size} {found}", "env", f"options that leave it {trained}, as trained")
    return problem


def _assessment(name: str, problem: Problem, outcome: Rollout, costs: bool, speed: dict[str, Any]) -> Assessment:
    metrics = evaluation_metrics(outcome)
    score = envs.score(problem.spec, metrics["return_mean"])
    row = {
        "return_mean": metrics["return_mean"],
        "return_ci95": (metrics["return_ci95_low"], metrics["return_ci95_high"]),
        **({} if score is None else {"score": score}),
        "length_mean": metrics["length_mean"],
        "illegal_actions": int(outcome.illegal.sum()),
        **{name: metrics[name] for name in ("win_rate", "arrival_rate") if name in metrics},
        **({"cost_mean": metrics["cost_mean"]} if costs else {}),
        "evaluation_seconds": outcome.seconds,
        **speed,
    }
    records = [{"policy": name, **record} for record in outcome.records()]
    return Assessment(name, row, records, outcome.frames, outcome.store)
