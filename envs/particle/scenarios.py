"""The scenarios of OMAR's fork of multiagent-particle-envs (arXiv 2111.11188) and one with many equal solutions."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from madiff.interfaces import UserError

from .bodies import Body, separations
from .scene import Plan, Scene, ring

LANDMARK_SIZE = 0.05
SPREAD_FORCE = 5.0
PREDATORS = 3
PREDATOR_FORCE, PREDATOR_SPEED, PREDATOR_SIZE = 9.0, 1.0, 0.075
"""The fork multiplies a predator's action by its acceleration, 3, once as sensitivity and once as force."""
PREY_FORCE, PREY_SPEED = 16.0, 1.3
CLOSEST = 10.0
"""Largest payment for one covered landmark, reached at a distance of 1/10."""
MANY = 3
"""More agents than this start in a square twice as large."""
SMALL, START_RADIUS, RING_RADIUS = 0.05, 0.12, 0.7
RING_TURN = math.pi / 12
"""Largest turn of the ring either way; the agents' own ring is turned at random."""


@dataclass(frozen=True)
class Shift:
    """Changes of the dynamics to test what a method learnt under the ordinary ones; 1 leaves a thing as it is.

    speed: factor of the agents' force and largest speed; size: of the agents' size; start: of the distances from the
    centre at which everything starts.
    """

    speed: float = 1.0
    size: float = 1.0
    start: float = 1.0

    def agent(self, size: float, force: float, max_speed: float = math.inf, spread: float = 1.0) -> Body:
        return Body("agent", size * self.size, force * self.speed, max_speed * self.speed, spread * self.start)


class Spread(Scene):
    """N agents cover N landmarks; each landmark pays all by its nearest agent, a collision costs both agents 5."""

    def features(self, mover: int) -> list[tuple[int, int]]:
        others = self.others(mover)
        silence = [(self.table.zero, self.table.zero)] * (2 * len(others))
        landmarks = self.plan.rows("landmark")
        return self.own(mover) + self.relative(mover, landmarks) + self.relative(mover, others) + silence

    def rewards(self, position: Tensor) -> Tensor:
        nearest, collisions = coverage(self, position)
        return (1 / nearest).clamp(max=CLOSEST).sum(0) - 5 * collisions


def coverage(scene: Scene, position: Tensor) -> tuple[Tensor, Tensor]:
    """Each landmark's distance to its nearest agent (landmark, copies); others each agent touches (agent, copies)."""
    agents = scene.plan.controlled
    between = separations(position[:, :agents], position)[1]
    touching = (between[:, :agents] < scene.mechanics.reach[:, :agents]).sum(1)
    return between[:, agents:].amin(0), touching - 1


class Multimodal(Spread):
    """Spread from the middle of a ring of landmarks: each of the N! assignments is as good as any other."""

    def begin(self, key: Tensor, episode: Tensor) -> Tensor:
        agents = self.plan.controlled
        drawn = self.uniforms(key, episode, 2)
        turn = math.pi / 2 + RING_TURN * (2 * drawn[1] - 1)
        places = [ring(2 * math.pi * drawn[0], agents, START_RADIUS), ring(turn, agents, RING_RADIUS)]
        return torch.cat(places, 1) * self.spread


class Tag(Scene):
    """Three predators chase a faster prey; each contact pays all of them, distance to the prey costs them."""

    contact = 10.0

    @property
    def prey(self) -> int:
        return self.plan.rows("prey")[0]

    def features(self, mover: int) -> list[tuple[int, int]]:
        still = list(range(self.plan.movers, len(self.plan.bodies)))
        seen = self.own(mover) + self.relative(mover, still) + self.relative(mover, self.others(mover))
        if mover != self.prey:
            seen += [(row, self.table.zero) for row in self.table.velocity(self.prey)]
        return seen

    def rewards(self, position: Tensor) -> Tensor:
        distance, contacts = self.chase(position)
        paid = self.contact * contacts - 0.1 * distance.sum(0)
        return paid.expand(self.prey, -1)

    def chase(self, position: Tensor) -> tuple[Tensor, Tensor]:
        """The predators' distances from the prey, (predator, copies), and how many of them touch it, (copies,)."""
        prey = self.prey
        distance = separations(position[:, :prey], position[:, prey : prey + 1])[1][:, 0]
        return distance, (distance < self.mechanics.reach[:prey, prey]).sum(0)


class World(Tag):
    """Tag with food and forests, and flags for the forests the observer stands in; a contact pays 5."""

    contact = 5.0
    flags = 2 * (PREDATORS + 1)

    def features(self, mover: int) -> list[tuple[int, int]]:
        inside = [(self.table.flag(mover * 2 + forest), self.table.zero) for forest in range(2)]
        return super().features(mover) + inside

    def flag_rows(self, position: Tensor) -> list[Tensor]:
        movers, forests = self.plan.movers, self.plan.rows("forest")
        size = self.mechanics.size
        distance = separations(position[:, :movers], position[:, forests])[1]
        inside = distance < size[:movers, None] + size[forests]
        return [(2.0 * inside - 1.0).to(self.dtype).flatten(0, 1)]


def spread_plan(agents: int, shift: Shift) -> Plan:
    side = 2.0 if agents > MANY else 1.0
    bodies = [shift.agent(0.15, SPREAD_FORCE, spread=side)] * agents
    bodies += [Body("landmark", LANDMARK_SIZE, spread=side * shift.start)] * agents
    return Plan(bodies, agents, agents, agent_names(agents))


def multimodal_plan(agents: int, shift: Shift) -> Plan:
    bodies = [shift.agent(SMALL, SPREAD_FORCE)] * agents
    bodies += [Body("landmark", LANDMARK_SIZE, spread=shift.start)] * agents
    return Plan(bodies, agents, agents, agent_names(agents))


def tag_plan(agents: int, shift: Shift) -> Plan:
    return _chase(0.05, [Body("obstacle", 0.2, spread=0.9 * shift.start)] * 2, 2, shift)


def world_plan(agents: int, shift: Shift) -> Plan:
    side = 0.9 * shift.start
    still = [Body("obstacle", 0.2, spread=side)]
    still += [Body("food", 0.03, spread=side)] * 2 + [Body("forest", 0.3, spread=side)] * 2
    return _chase(0.045, still, 1, shift)


def _chase(prey_size: float, still: list[Body], obstacles: int, shift: Shift) -> Plan:
    predators = [shift.agent(PREDATOR_SIZE, PREDATOR_FORCE, PREDATOR_SPEED)] * PREDATORS
    prey = Body("prey", prey_size, PREY_FORCE, PREY_SPEED, shift.start)
    return Plan([*predators, prey, *still], PREDATORS, PREDATORS + 1 + obstacles, [*agent_names(PREDATORS), "prey"])


def agent_names(count: int) -> list[str]:
    return [f"agent_{i}" for i in range(count)]


@dataclass(frozen=True)
class Scenario:
    """A scenario by name: its scene, its plan for so many agents, how many there may be, whether a prey is chased."""

    name: str
    scene: type[Scene]
    plan: Callable[[int, Shift], Plan]
    agents: tuple[int, ...]
    prey: bool


SOME = (3, 2, 4, 5, 6)
"""Numbers of agents, the usual one first; all assignments of six are still searched by brute force."""
SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("spread", Spread, spread_plan, SOME, False),
        Scenario("tag", Tag, tag_plan, (PREDATORS,), True),
        Scenario("world", World, world_plan, (PREDATORS,), True),
        Scenario("multimodal", Multimodal, multimodal_plan, SOME, False),
    )
}


def find(name: str | None, agents: int | None) -> tuple[Scenario, int]:
    """The scenario of this name (default spread) and its number of agents; UserError where there is none such."""
    scenario = SCENARIOS.get("spread" if name is None else name)
    if scenario is None:
        raise UserError(f"no scenario is called {name!r}", "scenario", list(SCENARIOS))
    agents = scenario.agents[0] if agents is None else agents
    if agents not in scenario.agents:
        raise UserError(f"{agents!r} agents do not fit {scenario.name}", "agents", sorted(scenario.agents))
    return scenario, agents
