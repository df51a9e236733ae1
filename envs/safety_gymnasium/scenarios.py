"""Safety-Gymnasium's tasks by name: navigation of a robot, velocity of a body, velocity of a body moved by a team."""

from __future__ import annotations

from dataclasses import dataclass

from madiff.interfaces import UserError

ROBOTS = ("Point", "Car", "Doggo", "Racecar", "Ant")
TASKS = tuple(f"{task}{level}" for task in ("Goal", "Circle", "Push", "Button") for level in (1, 2, 0)) + ("Run0",)
BODIES = ("HalfCheetah", "Walker2d", "Hopper", "Swimmer", "Ant", "Humanoid")
TEAMS = {
    "HalfCheetah": ("2x3", "6x1"),
    "Ant": ("2x4", "4x2"),
    "Hopper": ("3x1",),
    "Walker2d": ("2x3",),
    "Swimmer": ("2x1",),
    "Humanoid": ("9|8",),
}
"""The bodies whose joints are split among agents, and how: the splits for which the package has a speed limit."""
SHORT = ("Circle", "Run")
"""Tasks whose episodes have 500 steps in place of 1000."""


@dataclass(frozen=True)
class Scenario:
    """One task; kind: "navigation", "velocity" or "team"; limit: steps of an episode.

    body: the robot or body; task: of a navigating robot; split: of a team's body, as 2x3; id: in the package's
    registry, empty for teams.
    """

    name: str
    kind: str
    body: str
    limit: int
    task: str = ""
    split: str = ""
    id: str = ""

    @property
    def agents(self) -> int:
        return {"9|8": 2}.get(self.split) or int(self.split.partition("x")[0] or 1)


def navigation(robot: str, task: str) -> Scenario:
    name, limit = f"{robot}{task}", 500 if task[:-1] in SHORT else 1000
    return Scenario(name, "navigation", robot, limit, task=task, id=f"Safety{name}-v0")


def velocity(body: str) -> Scenario:
    """Version 1, whose speed limits DSRL's data (arXiv 2306.09303) has."""
    return Scenario(f"{body}Velocity", "velocity", body, 1000, id=f"Safety{body}Velocity-v1")


def team(body: str, split: str) -> Scenario:
    return Scenario(f"{split}{body}", "team", body, 1000, split=split)


_ALL = (
    *(navigation(robot, task) for robot in ROBOTS for task in TASKS),
    *(velocity(body) for body in BODIES),
    *(team(body, split) for body, splits in TEAMS.items() for split in splits),
)
SCENARIOS = {scenario.name: scenario for scenario in _ALL}


def resolve(name: str | None, agents: int | None) -> Scenario:
    """The scenario of this name, by default the first with so many agents; UserError where there is none."""
    if name is None:
        fitting = [scenario for scenario in SCENARIOS.values() if agents in (None, scenario.agents)]
        if not fitting:
            known = sorted({scenario.agents for scenario in SCENARIOS.values()})
            raise UserError(f"{agents} agents", "agents", known)
        return fitting[0]
    if name not in SCENARIOS:
        raise UserError(f"no scenario is called {name!r}", "scenario", list(SCENARIOS))
    if agents not in (None, SCENARIOS[name].agents):
        raise UserError(f"{agents} disagrees with scenario {name}", "agents", [SCENARIOS[name].agents])
    return SCENARIOS[name]
