"""Problems that only Python knows: an environment that the user makes, or episodes without any environment.

A run of one is recorded as `env=pettingzoo` without an `env.id`: whoever opens it hands the environment over again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pettingzoo import ParallelEnv

from madiff import collection
from madiff.build import Problem
from madiff.data.store import EpisodeStore
from madiff.interfaces import BatchedEnvironment, EnvironmentSpec, UserError

NAME = "pettingzoo"
SIZES = ("agents", "observation_size", "action_size", "discrete")


@dataclass(frozen=True)
class OwnProblem(Problem):
    """make_one: gives one `ParallelEnv`; None where there are episodes only.

    options: `limit` and `workers` of configs/env/pettingzoo.yaml; without workers all copies live in this process.
    """

    make_one: Callable[[], ParallelEnv] | None = None

    @property
    def playable(self) -> bool:
        return self.make_one is not None

    def make(self, copies: int) -> BatchedEnvironment:
        if self.make_one is None:
            raise UserError("none was given, only episodes", "env", "a name, or what makes your PettingZoo ParallelEnv")
        return batched(self.make_one, self.options, copies, self.device)


def of_environment(make_one: Callable[[], ParallelEnv], env: Mapping[str, Any], device: torch.device) -> OwnProblem:
    """The problem of a function or class that makes a `ParallelEnv`; one is made and closed to see its sizes."""
    options = {key: env.get(key) for key in ("limit", "workers")}
    with collection.opened(batched(make_one, options, 1, device)) as probe:
        return OwnProblem(probe.spec, options, device, make_one)


def of_episodes(store: EpisodeStore, device: torch.device) -> OwnProblem:
    """The problem of episodes alone: sizes and the longest length are theirs."""
    spec = EnvironmentSpec(
        NAME, "episodes", store.agents, store.observation_size, store.action_size, store.discrete, store.state_size,
        int(store.lengths.max()),
    )  # fmt: skip
    return OwnProblem(spec, {}, device)


def batched(
    make_one: Callable[[], ParallelEnv], options: Mapping[str, Any], copies: int, device: torch.device
) -> BatchedEnvironment:
    from envs.workers import WorkerEnvironment

    scenario = getattr(make_one, "__name__", "own").strip("<>")
    return WorkerEnvironment(
        NAME, scenario, make_one, copies, device, workers=options.get("workers") or 0, limit=options.get("limit")
    )


def check_fit(found: EnvironmentSpec, trained: EnvironmentSpec) -> None:
    """Refuse an environment whose sizes are not those that a policy was trained for."""
    for size in SIZES:
        has, needed = getattr(found, size), getattr(trained, size)
        if has != needed:
            raise UserError(f"{found.name} {found.scenario} has {size} {has}", "env", f"{needed}, as in training")
