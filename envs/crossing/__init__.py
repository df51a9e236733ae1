"""Robots crossing an arena with obstacles, 2 to 32 at once, many copies."""

from __future__ import annotations

import torch

from envs.parallel_view import ParallelView

from .batched import Crossing, constraints
from .behaviours import behaviour

EPISODES = 4000


def parallel(
    scenario: str | None = None,
    agents: int | None = None,
    integrator: str = "double",
    render_mode: str | None = None,
) -> ParallelView:
    """One arena as a PettingZoo `ParallelEnv`; `Crossing` documents the options."""
    return ParallelView(Crossing(scenario=scenario, agents=agents, integrator=integrator), render_mode=render_mode)


def batched(
    copies: int = 1,
    device: str | torch.device = "cpu",
    scenario: str | None = None,
    agents: int | None = None,
    integrator: str = "double",
    auto_reset: bool = False,
    float64: bool = False,
) -> Crossing:
    """Many arenas as a `BatchedEnvironment`; `Crossing` documents the options."""
    return Crossing(
        copies, device, scenario=scenario, agents=agents, integrator=integrator, auto_reset=auto_reset,
        float64=float64,
    )  # fmt: skip


__all__ = ["EPISODES", "Crossing", "batched", "behaviour", "constraints", "parallel"]
