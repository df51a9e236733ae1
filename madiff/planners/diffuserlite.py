"""DiffuserLite: plans refined from coarse to fine, in a few denoising steps each (arXiv 2401.15443).

Every level plans states; only the stretch up to the next waypoint is refined, so that far waypoints are never filled
in. The coarsest level is told the return to reach; inverse dynamics leads to the finest plan's next waypoint.

What differs from the official code is listed in docs/deviations.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from madiff.interfaces import EnvironmentSpec, within
from madiff.planners import hierarchy
from madiff.planners.hierarchy import Hierarchy

NAME = "diffuserlite"


@dataclass
class Config(hierarchy.Config):
    """Options of DiffuserLite. The paper's levels over 128 steps are horizon=5 and strides=[32,8,1]."""

    horizon: int = 5
    strides: tuple[int, ...] = (8, 4, 1)
    width: int = 64
    layers: int = 2
    conditions: tuple[str, ...] = ("return",)
    inverse_dynamics: Literal["shared", "independent", "joint"] = "shared"
    controller: Literal["inverse", "track", "preview"] = "inverse"
    sampler_steps: int = 3
    temperature: float = within(0.0, math.inf, 0.5)
    guide_scale: float = within(0.0, math.inf, 0.0)

    action_weight: ClassVar[float] = 1.0
    finest_plans_actions: ClassVar[bool] = False


def make(config: Config, spec: EnvironmentSpec, device: torch.device, seed: int) -> Hierarchy:
    return Hierarchy(config, spec, device, seed)
