"""MuJoCo bodies moved by several agents, after MA-MuJoCo (arXiv 2003.06709), on Gymnasium's v5 bodies."""

from __future__ import annotations

from functools import partial

import torch

from envs.parallel_view import ParallelView
from envs.workers import WorkerEnvironment
from madiff.interfaces import UserError

from .behaviours import behaviour
from .body import LIMIT, SCENARIOS, make

NAME = "mamujoco"
EPISODES = 250


def parallel(
    scenario: str | None = None, agents: int | None = None, limit: int = LIMIT, render_mode: str | None = None
) -> ParallelView:
    """One body as a PettingZoo `ParallelEnv`."""
    return ParallelView(batched(1, scenario=scenario, agents=agents, limit=limit), None, render_mode, render_fps=20)


def batched(
    copies: int = 1,
    device: str | torch.device = "cpu",
    scenario: str | None = None,
    agents: int | None = None,
    limit: int = LIMIT,
    workers: int | None = None,
) -> WorkerEnvironment:
    """Many bodies; scenario: a key of SCENARIOS, by default the first with this number of agents."""
    name = resolve(scenario, agents)
    options = {"scenario": name, "limit": limit}
    return WorkerEnvironment(
        NAME, name, partial(make, name, limit), copies, device, workers=workers, limit=limit, options=options,
        preload=["envs.mamujoco.body"],
    )  # fmt: skip


def resolve(scenario: str | None, agents: int | None) -> str:
    """The scenario's name; UserError where there is none or it has another number of agents."""
    if scenario is None:
        fitting = [name for name, known in SCENARIOS.items() if agents in (None, known.agents)]
        if not fitting:
            raise UserError(f"{agents} agents", "agents", sorted({known.agents for known in SCENARIOS.values()}))
        return fitting[0]
    if scenario not in SCENARIOS:
        raise UserError(f"no scenario is called {scenario!r}", "scenario", list(SCENARIOS))
    if agents not in (None, SCENARIOS[scenario].agents):
        raise UserError(f"{agents} disagrees with scenario {scenario}", "agents", [SCENARIOS[scenario].agents])
    return scenario


__all__ = ["behaviour", "batched", "parallel"]
