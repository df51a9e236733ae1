"""Behaviour policies by data quality: small mixtures of scripts, as recorded data sets come from several policies.

A quality's level is the skill around which its players lie. `calibration.LEVELS` holds the level that gives each map
its target return; `python -m envs.smac_like.calibrate` finds them.
"""

from __future__ import annotations

from madiff.interfaces import BatchedEnvironment, UserError

from .calibration import LEVELS
from .scenarios import SCENARIOS, Scenario, resolve
from .scripts import Player, Scripted

# Script, and how far its skill lies from the level: lowest and highest.
MIXTURES: dict[str, tuple[tuple[str, float, float], ...]] = {
    "good": (("kite", -0.08, -0.02), ("kite", -0.03, 0.03), ("kite", 0.02, 0.08)),
    "medium": (
        ("kite", -0.1, 0.0),
        ("kite", 0.0, 0.1),
        ("focus-fire", 0.0, 0.1),
        ("attack-nearest", 0.0, 0.2),
    ),
    "poor": (("kite", -0.1, 0.0), ("focus-fire", -0.1, 0.1), ("attack-nearest", 0.0, 0.2)),
}
QUALITIES = ("expert", "good", "medium", "poor", "replay", "random")


def behaviour(env: BatchedEnvironment, quality: str) -> Scripted:
    """The policy that makes data of a quality on the environment's scenario.

    expert: the best script without blunders or nearly so; good, medium, poor: mixtures calibrated to OG-MARL's mean
    returns; replay: every script at any skill up to good; random: random legal actions.
    """
    if quality not in QUALITIES:
        raise UserError(f"no quality is called {quality!r}", "data.quality", list(QUALITIES))
    scenario = resolve(**env.spec.options)
    return Scripted(scenario, players(quality, level(scenario, quality)), env.device)


def players(quality: str, level: float) -> list[Player]:
    """The players of a quality around a level of skill; expert and random need none."""
    if quality == "random":
        return [Player("random", 0.0, 0.0)]
    if quality == "expert":
        return [Player("kite", 1.0, 1.0), Player("kite", 0.96, 1.0)]
    if quality == "replay":
        return [Player(script, 0.0, level) for script in ("kite", "focus-fire", "attack-nearest")]
    return [Player(script, _part(level + low), _part(level + high)) for script, low, high in MIXTURES[quality]]


def level(scenario: Scenario, quality: str) -> float:
    """The calibrated level; numbers of marines without an entry take that of the nearest map that has one."""
    nearest = min(("3m", "8m", "25m"), key=lambda name: abs(SCENARIOS[name].agents - scenario.agents))
    levels = LEVELS.get(scenario.name, LEVELS[nearest])
    return levels.get("good" if quality == "replay" else quality, (1.0, 0.0))[0]


def _part(skill: float) -> float:
    return min(max(skill, 0.0), 1.0)
