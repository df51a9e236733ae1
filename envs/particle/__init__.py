"""Particle worlds: OMAR's fork of multiagent-particle-envs (arXiv 2111.11188) and a multi-modal spread."""

from __future__ import annotations

import torch

from envs.parallel_view import ParallelView

from .batched import SCRIPTED, Particle, score
from .behaviours import behaviour

EPISODES = 10000


def parallel(
    scenario: str | None = None,
    agents: int | None = None,
    prey: str = SCRIPTED,
    speed: float = 1.0,
    size: float = 1.0,
    start: float = 1.0,
    render_mode: str | None = None,
) -> ParallelView:
    """One world as a PettingZoo `ParallelEnv`; `Particle` documents the options."""
    env = Particle(scenario=scenario, agents=agents, prey=prey, speed=speed, size=size, start=start)
    return ParallelView(env, render_mode=render_mode)


def batched(
    copies: int = 1,
    device: str | torch.device = "cpu",
    scenario: str | None = None,
    agents: int | None = None,
    prey: str = SCRIPTED,
    speed: float = 1.0,
    size: float = 1.0,
    start: float = 1.0,
    auto_reset: bool = False,
    float64: bool = False,
    compile: bool = False,
) -> Particle:
    """Many worlds as a `BatchedEnvironment`; `Particle` documents the options."""
    return Particle(
        copies, device, scenario=scenario, agents=agents, prey=prey, speed=speed, size=size, start=start,
        auto_reset=auto_reset, float64=float64, compile=compile,
    )  # fmt: skip


__all__ = ["EPISODES", "Particle", "batched", "behaviour", "parallel", "score"]
