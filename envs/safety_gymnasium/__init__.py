"""Safety-Gymnasium (arXiv 2310.12567): robots that should not run into things, bodies that should not run too fast."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from pettingzoo import ParallelEnv

from envs.parallel_view import ParallelView
from envs.workers import WorkerEnvironment
from madiff.interfaces import UserError

from .behaviours import behaviour
from .scenarios import Scenario, resolve

NAME = "safety-gymnasium"
EPISODES = 500
FOLDER = Path(__file__).parent / "constraints"


def parallel(
    scenario: str | None = None,
    agents: int | None = None,
    repeat: int = 1,
    position: bool = False,
    limit: int | None = None,
    render_mode: str | None = None,
) -> ParallelView:
    """One copy as a PettingZoo `ParallelEnv`; `infos[agent]["cost"]` is the cost of the step."""
    env = batched(1, scenario=scenario, agents=agents, repeat=repeat, position=position, limit=limit)
    return ParallelView(env, None, render_mode, render_fps=25)


def batched(
    copies: int = 1,
    device: str | torch.device = "cpu",
    scenario: str | None = None,
    agents: int | None = None,
    repeat: int = 1,
    position: bool = False,
    limit: int | None = None,
    workers: int | None = None,
) -> WorkerEnvironment:
    """Many copies; scenario: a key of `scenarios.SCENARIOS`, PointGoal1 unless so many agents are asked for.

    repeat: steps of the simulator for which an action holds; position: whether a navigating robot also observes where
    it is; limit: steps of the simulator in an episode, by default the task's own, which is also the most.
    """
    chosen = resolve(scenario, agents)
    limit = checked(chosen, repeat, position, limit)
    options = {"scenario": chosen.name, "repeat": repeat, "position": position, "limit": limit}
    return WorkerEnvironment(
        NAME, chosen.name, partial(make, chosen.name, repeat, position, limit), copies, device, workers=workers,
        options=options, preload=["envs.safety_gymnasium.loaded"],
    )  # fmt: skip


def checked(chosen: Scenario, repeat: int, position: bool, limit: int | None) -> int:
    """The limit to use; raises UserError for options that this scenario cannot have."""
    limit = chosen.limit if limit is None else limit
    for key, value in (("repeat", repeat), ("limit", limit)):
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= chosen.limit:
            raise UserError(f"{value!r}", key, f"a whole number from 1 to {chosen.limit}")
    if not isinstance(position, bool):
        raise UserError(f"{position!r}", "position", "true or false")
    if position and chosen.kind != "navigation":
        raise UserError(f"{chosen.name} has no robot that navigates", "position", [False])
    return limit


def make(scenario: str, repeat: int, position: bool, limit: int) -> ParallelEnv:
    """One copy as the workers make it."""
    # Importing these imports the package, or refuses to; only who makes an environment needs it.
    from .robot import SafeRobot
    from .team import SafeTeam

    chosen = resolve(scenario, None)
    if chosen.kind == "team":
        return SafeTeam(chosen, repeat, limit)
    return SafeRobot(chosen, repeat, position, limit)


def constraints(scenario: str | None) -> Path | None:
    """The file of the sets a scenario's robot should stay in, in real units; None where there is none."""
    path = FOLDER / f"{resolve(scenario, None).name}.yaml"
    return path if path.exists() else None


__all__ = ["batched", "behaviour", "constraints", "parallel"]
