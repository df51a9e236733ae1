"""MPE2's tasks: simple_spread and simple_tag as batched twins, the others run by MPE2 itself."""

from __future__ import annotations

import torch

from envs.parallel_view import ParallelView
from envs.workers import WorkerEnvironment

from . import tasks
from .behaviours import behaviour
from .twins import TWINS, Mpe2

EPISODES = 10000


def parallel(
    scenario: str | None = None,
    agents: int | None = None,
    continuous: bool = False,
    render_mode: str | None = None,
) -> ParallelView:
    """One copy as a PettingZoo `ParallelEnv`, with MPE2's names of the agents."""
    env = batched(1, scenario=scenario, agents=agents, continuous=continuous)
    names = env.scene.plan.names if isinstance(env, Mpe2) else env.layout.agents
    return ParallelView(env, names, render_mode)


def batched(
    copies: int = 1,
    device: str | torch.device = "cpu",
    scenario: str | None = None,
    agents: int | None = None,
    continuous: bool = False,
    workers: int | None = None,
    auto_reset: bool = False,
    float64: bool = False,
    compile: bool = False,
) -> Mpe2 | WorkerEnvironment:
    """Many copies of a task; see `Mpe2` for simple_spread and simple_tag, `WorkerEnvironment` for all others.

    workers: processes for a task without twin. auto_reset, float64, compile: of the twins alone.
    """
    scenario = tasks.find(scenario)
    if scenario not in TWINS:
        return tasks.worker(scenario, copies, device, agents, continuous, workers)
    return Mpe2(
        copies, device, scenario=scenario, agents=agents, continuous=continuous, auto_reset=auto_reset,
        float64=float64, compile=compile,
    )  # fmt: skip


__all__ = ["EPISODES", "Mpe2", "batched", "behaviour", "parallel"]
