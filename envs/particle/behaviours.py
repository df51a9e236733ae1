"""Which player makes the data of which quality."""

from __future__ import annotations

from madiff.interfaces import UserError

from .aims import Agree, Aims, Cover, Hunt
from .batched import Particle
from .scripts import Level, Script, levels_of

QUALITIES = ("expert", "good", "medium", "poor", "replay", "random")
COVERING = {
    "expert": Level(1.0, 0.42, 0.0, noise=0.3),
    "good": Level(0.95, 0.26, 0.0, noise=0.3),
    "medium": Level(0.9, 0.13, 0.3, noise=0.3),
    "poor": Level(0.75, 0.065, 0.5, noise=0.3),
}
"""Chosen so that the means of expert and medium are those of OMAR's data, 531 and 273: weak players are slow."""
AGREEING = {
    "expert": Level(1.0, 1.0, 0.0, noise=0.5),
    "good": Level(0.9, 0.6, 0.0),
    "medium": Level(0.5, 0.4, 0.3),
    "poor": Level(0.1, 0.3, 0.7),
}
"""The expert's episodes are all good, so what an imitator loses it loses by not agreeing."""
HUNTING = {
    "expert": Level(0.98, 1.0, 0.0),
    "good": Level(0.9, 0.6, 0.0),
    "medium": Level(0.75, 0.4, 0.1),
    "poor": Level(0.5, 0.3, 0.4),
}
LEVELS = {"spread": COVERING, "multimodal": AGREEING, "tag": HUNTING, "world": HUNTING}


def behaviour(env: Particle, quality: str) -> Script:
    """The policy that makes data of a quality on the environment's scenario.

    expert, good, medium, poor: scripted players of falling skill and pace; replay: from random actions to medium;
    random: uniformly random actions.
    """
    check(quality)
    return Script(env.scene, aims(env), levels_of(quality, LEVELS[env.spec.scenario]))


def aims(env: Particle) -> Aims:
    """What skilled agents of the scenario want."""
    plan = env.scene.plan
    if env.spec.scenario == "spread":
        return Cover(plan.controlled, env.device)
    if env.spec.scenario == "multimodal":
        return Agree(plan.controlled, env.device)
    return Hunt(len(plan.bodies) - plan.movers, plan.controlled - 1)


def check(quality: str) -> None:
    """Refuse an unknown quality."""
    if quality not in QUALITIES:
        raise UserError(f"no quality is called {quality!r}", "data.quality", list(QUALITIES))
