"""Which player makes the data of which quality: scripts for the twins, random actions for the other tasks."""

from __future__ import annotations

from torch import Tensor

from envs.particle.aims import Aim, Cover, Hunt
from envs.particle.behaviours import check
from envs.particle.prey import PACE, Flee
from envs.particle.scene import Plan
from envs.particle.scripts import RANDOM, Level, Script, levels_of
from envs.workers import RandomPolicy, WorkerEnvironment
from madiff.interfaces import Policy, UserError

from .twins import Mpe2

FLIGHT = 0.16
"""How far ahead of itself the prey wants to be."""
PREY = Level(1.0, 1.0, 0.0)
"""The prey flees as well as it can in all qualities but random."""
COVERING = {
    "expert": Level(0.98, 1.0, 0.0),
    "good": Level(0.85, 0.7, 0.1),
    "medium": Level(0.6, 0.5, 0.3),
    "poor": Level(0.3, 0.4, 0.6),
}
HUNTING = {
    "expert": Level(0.98, 1.0, 0.0),
    "good": Level(0.95, 0.85, 0.0),
    "medium": Level(0.85, 0.7, 0.1),
    "poor": Level(0.6, 0.6, 0.2),
}


class Chase(Hunt):
    """The adversaries hunt the prey, which flees."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(len(plan.bodies) - plan.movers, plan.movers - 2)
        self.flee, self.fleeing = Flee(plan), plan.rows("prey")

    def __call__(self, observations: Tensor) -> Aim:
        place, velocity = super().__call__(observations)
        away = self.flee(observations[:, self.fleeing]) * (FLIGHT / PACE)
        place, velocity = place.clone(), velocity.clone()
        place[:, self.fleeing], velocity[:, self.fleeing] = away, 0.0
        return Aim(place, velocity)


def behaviour(env: Mpe2 | WorkerEnvironment, quality: str) -> Policy:
    """The policy that makes data of a quality: all qualities where there is a twin, elsewhere random alone."""
    if not isinstance(env, Mpe2):
        if quality != "random":
            raise UserError(f"no quality of {env.spec.scenario} is called {quality!r}", "data.quality", ["random"])
        return RandomPolicy(env.spec, env.device)
    check(quality)
    discrete, plan = env.spec.discrete, env.scene.plan
    if env.spec.scenario == "simple_spread":
        return Script(env.scene, Cover(plan.controlled, env.device), levels_of(quality, COVERING), discrete=discrete)
    prey = RANDOM if quality == "random" else PREY
    levels = levels_of(quality, HUNTING)
    return Script(env.scene, Chase(plan), levels, discrete=discrete, steady={plan.rows("prey")[0]: prey})
