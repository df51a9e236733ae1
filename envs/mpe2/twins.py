"""Batched twins of MPE2's simple_spread_v3 and simple_tag_v3: the same numbers, many copies at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from envs.particle import scenarios
from envs.particle.bodies import Body
from envs.particle.scene import HORIZON, Plan, Scene
from envs.particle.simulation import MOVES, Simulation
from madiff.interfaces import EnvironmentSpec, UserError

NAME = "mpe2"
LOCAL_RATIO = 0.5
"""Share of an agent's own collisions in simple_spread's reward; the rest is the landmarks' distance."""
CATCH = 10.0
EDGE, FENCE = 0.9, 1.0


class SimpleSpread(scenarios.Spread):
    """N agents cover N landmarks: all pay each landmark's distance to its nearest agent, each agent its collisions."""

    def rewards(self, position: Tensor) -> Tensor:
        nearest, collisions = scenarios.coverage(self, position)
        return -(1 - LOCAL_RATIO) * nearest.sum(0) - LOCAL_RATIO * collisions


class SimpleTag(scenarios.Tag):
    """Three adversaries and the prey they chase, all agents; every contact pays each adversary and costs the prey 10.

    The prey also pays for leaving the square: 10 for each unit past 0.9 along an axis, exp(2 x - 2) beyond 1, at most
    10.
    """

    def rewards(self, position: Tensor) -> Tensor:
        caught = CATCH * self.chase(position)[1]
        out = position[:, self.prey].abs()
        fence = torch.where(out < FENCE, (out - EDGE).clamp(min=0) * 10, torch.exp(2 * out - 2).clamp(max=10))
        return torch.cat([caught.expand(self.prey, -1), (-caught - fence.sum(0))[None]])


def spread_plan(agents: int) -> Plan:
    bodies = [Body("agent", 0.15, 5.0)] * agents + [Body("landmark", 0.05)] * agents
    return Plan(bodies, agents, agents, scenarios.agent_names(agents), position_first=True)


def tag_plan(agents: int) -> Plan:
    bodies = [Body("agent", 0.075, 3.0, 1.0)] * 3 + [Body("prey", 0.05, 4.0, 1.3)]
    names = [f"adversary_{i}" for i in range(3)] + ["agent_0"]
    return Plan(bodies + [Body("obstacle", 0.2, spread=0.9)] * 2, 4, 6, names, position_first=True)


@dataclass(frozen=True)
class Twin:
    """A task with a twin: its scene, its plan for so many agents, and how many there may be, the usual number first."""

    scene: type[Scene]
    plan: Callable[[int], Plan]
    agents: tuple[int, ...]


TWINS = {
    "simple_spread": Twin(SimpleSpread, spread_plan, scenarios.SOME),
    "simple_tag": Twin(SimpleTag, tag_plan, (4,)),
}


class Mpe2(Simulation):
    """simple_spread or simple_tag of MPE2, every mover an agent.

    Actions are the task's five discrete ones or, with continuous, pushes (x, y) in [-1, 1]: the same forces as MPE2's
    five numbers in [0, 1] of which opposite ones are subtracted. Shorter observations are padded with zeros; the state
    is all observations one after the other, without padding.
    float64: in double precision, as MPE2 itself calculates.
    """

    def __init__(
        self,
        copies: int = 1,
        device: str | torch.device = "cpu",
        *,
        scenario: str = "simple_spread",
        agents: int | None = None,
        continuous: bool = False,
        auto_reset: bool = False,
        float64: bool = False,
        compile: bool = False,
    ) -> None:
        twin = TWINS[scenario]
        count = twin.agents[0] if agents is None else agents
        if count not in twin.agents:
            raise UserError(f"{agents!r} agents do not fit {scenario}", "agents", sorted(twin.agents))
        scene = twin.scene(twin.plan(count), torch.device(device), torch.float64 if float64 else torch.float32)
        options = {"scenario": scenario} | ({"agents": count} if count != twin.agents[0] else {})
        options |= {"continuous": True} if continuous else {}
        sizes = scene.sizes if len(set(scene.sizes)) > 1 else ()
        spec = EnvironmentSpec(
            NAME, scenario, count, scene.width, 2 if continuous else len(MOVES), not continuous, sum(scene.sizes),
            HORIZON, options, sizes,
        )  # fmt: skip
        super().__init__(scene, spec, copies, auto_reset=auto_reset, compile=compile)
