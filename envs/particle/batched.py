"""The particle environment: the scenarios of OMAR's fork in many copies."""

from __future__ import annotations

import math
import os
from typing import Any

import torch

from madiff.interfaces import EnvironmentSpec, UserError

from .prey import Flee, Prey, load
from .scenarios import PREDATORS, Scenario, Shift, find
from .scene import HORIZON, Scene
from .simulation import Simulation

NAME = "particle"
SCRIPTED = "scripted"
SMALLEST, LARGEST = 0.25, 4.0
"""Range of the shifts."""
SCORES = {"spread": (159.8, 516.8), "tag": (-4.1, 185.6), "world": (-6.8, 79.5)}
"""Returns that OMAR's normalised score calls 0 and 100."""


class Particle(Simulation):
    """A scenario of OMAR's fork of multiagent-particle-envs (arXiv 2111.11188), or multimodal.

    scenario: spread (default), tag, world or multimodal; agents: how many, 2 to 6, in spread and multimodal; prey:
    scripted, or the file of a trained one, in tag and world; speed, size, start: see Shift, 0.25 to 4; float64: in
    double precision, for comparisons.
    """

    def __init__(
        self,
        copies: int = 1,
        device: str | torch.device = "cpu",
        *,
        scenario: str | None = None,
        agents: int | None = None,
        prey: str = SCRIPTED,
        speed: float = 1.0,
        size: float = 1.0,
        start: float = 1.0,
        auto_reset: bool = False,
        float64: bool = False,
        compile: bool = False,
    ) -> None:
        chosen, count = find(scenario, agents)
        shift = Shift(factor("speed", speed), factor("size", size), factor("start", start))
        scene = chosen.scene(
            chosen.plan(count, shift), torch.device(device), torch.float64 if float64 else torch.float32
        )
        hunted = hunted_by(chosen, scene, prey)
        options = {"scenario": chosen.name} | ({"agents": count} if count != chosen.agents[0] else {})
        options |= {name: value for name, value in vars(shift).items() if value != 1}
        options |= {"prey": os.path.abspath(os.path.expanduser(prey))} if prey != SCRIPTED else {}
        spec = EnvironmentSpec(NAME, chosen.name, count, scene.width, 2, False, 0, HORIZON, options)
        super().__init__(scene, spec, copies, prey=hunted, auto_reset=auto_reset, compile=compile)


def hunted_by(scenario: Scenario, scene: Scene, prey: str) -> Prey | None:
    """Who acts for the prey, None where there is none."""
    if not isinstance(prey, str | os.PathLike):
        raise UserError(f"{prey!r} is not a file", "prey", f"{SCRIPTED}, or the file of a trained prey")
    if not scenario.prey:
        if prey != SCRIPTED:
            raise UserError(f"{scenario.name} has no prey to load", "prey", [SCRIPTED])
        return None
    if prey == SCRIPTED:
        return Flee(scene.plan)
    return load(prey, scene.sizes[PREDATORS], scene.device, scene.dtype)


def factor(name: str, value: Any) -> float:
    """The value as a factor of a shift; UserError for anything else."""
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not good or not SMALLEST <= value <= LARGEST:
        raise UserError(f"{value!r}", name, f"a number from {SMALLEST:g} to {LARGEST:g}")
    return float(value)


def score(spec: EnvironmentSpec, returns: float) -> float | None:
    """OMAR's normalised score of a mean return: 0 as random actions, 100 as its expert (arXiv 2111.11188).

    None for multimodal, another number of agents, shifted dynamics, and for tag and world without the trained prey.
    """
    unusual = set(spec.options) - {"scenario", "prey"}
    if spec.scenario not in SCORES or unusual or (spec.scenario != "spread" and "prey" not in spec.options):
        return None
    random, expert = SCORES[spec.scenario]
    return 100 * (returns - random) / (expert - random)
