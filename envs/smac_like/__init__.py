"""A battle game in the manner of SMAC (arXiv 1902.04043) that needs no game engine."""

from __future__ import annotations

import torch

from .batched import SmacLike
from .mixtures import behaviour
from .parallel_env import SmacLikeParallel


def parallel(
    scenario: str | None = None, agents: int | None = None, strict: bool = False, render_mode: str | None = None
) -> SmacLikeParallel:
    """One battle as a PettingZoo `ParallelEnv`."""
    return SmacLikeParallel(scenario=scenario, agents=agents, strict=strict, render_mode=render_mode)


def batched(
    copies: int = 1,
    device: str | torch.device = "cpu",
    scenario: str | None = None,
    agents: int | None = None,
    auto_reset: bool = False,
    strict: bool = False,
    compile: bool = False,
) -> SmacLike:
    """Many battles as a `BatchedEnvironment`."""
    return SmacLike(
        copies, device, scenario=scenario, agents=agents, auto_reset=auto_reset, strict=strict, compile=compile
    )


__all__ = ["SmacLike", "SmacLikeParallel", "batched", "behaviour", "parallel"]
