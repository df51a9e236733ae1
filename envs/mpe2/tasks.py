"""The tasks of MPE2 that have no twin, run by MPE2 itself."""

from __future__ import annotations

from functools import partial
from importlib import import_module

import torch
from pettingzoo import ParallelEnv

from envs.workers import WorkerEnvironment
from madiff.interfaces import UserError

from .twins import NAME

TASKS = {
    "simple_spread": "simple_spread_v3",
    "simple_tag": "simple_tag_v3",
    "simple_world_comm": "simple_world_comm_v3",
    "simple": "simple_v3",
    "simple_adversary": "simple_adversary_v3",
    "simple_crypto": "simple_crypto_v3",
    "simple_push": "simple_push_v3",
    "simple_reference": "simple_reference_v3",
    "simple_speaker_listener": "simple_speaker_listener_v4",
    "simple_formation": "simple_formation_v1",
    "simple_line": "simple_line_v1",
    "collect_treasure": "collect_treasure_v1",
}
"""The package's module of each task; the first is the default."""


def make(scenario: str, continuous: bool) -> ParallelEnv:
    """One copy of a task as MPE2 makes it."""
    return import_module(f"mpe2.{TASKS[scenario]}").parallel_env(continuous_actions=continuous, render_mode="rgb_array")


def worker(
    scenario: str, copies: int, device: str | torch.device, agents: int | None, continuous: bool, workers: int | None
) -> WorkerEnvironment:
    """Copies of a task without twin; its actions are the task's own, numbers in [0, 1] scaled to [-1, 1]."""
    options = {"scenario": scenario} | ({"continuous": True} if continuous else {})
    env = WorkerEnvironment(
        NAME, scenario, partial(make, scenario, continuous), copies, device, workers=workers, options=options,
        preload=[f"mpe2.{TASKS[scenario]}"],
    )  # fmt: skip
    if agents not in (None, env.spec.agents):
        env.close()
        raise UserError(f"{agents!r} agents do not fit {scenario}", "agents", [env.spec.agents])
    return env


def find(scenario: str | None) -> str:
    """The task of this name, simple_spread by default; UserError where there is none such."""
    name = next(iter(TASKS)) if scenario is None else scenario
    if name not in TASKS:
        raise UserError(f"no scenario is called {scenario!r}", "scenario", list(TASKS))
    return name
