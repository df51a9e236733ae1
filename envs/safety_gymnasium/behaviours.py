"""Behaviour policies: drivers and runners whose recklessness is drawn for each episode."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from envs.workers import RandomPolicy, WorkerEnvironment
from madiff.interfaces import UserError

from .dial import QUALITIES
from .drives import DRIVES
from .gaits import GAITS, Runner
from .manners import MANNERS
from .scenarios import SCENARIOS, Scenario
from .scripts import Driver, Senses

RANDOM = "random"
NOISE = {"navigation": 0.1, "velocity": 0.02, "team": 0.02}
"""Standard deviation of the Gaussian noise on every action, before it is cut to [-1, 1]; runners fall over more."""
HAZARDS = {"Push": 0.3}
BOXES = {"Car": 0.125}
"""Radius of hazards where it is not 0.2 m, and half a side of the box to push where that is not 0.2 m."""
ACTUATORS = {
    ("HalfCheetah", "2x3"): ((0, 1, 2), (3, 4, 5)),
    ("HalfCheetah", "6x1"): ((0,), (1,), (2,), (3,), (4,), (5,)),
    ("Walker2d", "2x3"): ((0, 1, 2), (3, 4, 5)),
}
"""The actuators each agent of a team moves, in order."""
Script = Callable[[Tensor, Tensor], Tensor]  # of observations and dials (n,)


class DialPolicy:
    """A `Policy` that draws a dial for each copy at `reset`, evenly spread, and acts by a script, with noise."""

    def __init__(self, env: WorkerEnvironment, script: Script, dials: tuple[float, float], noise: float) -> None:
        self.env, self.device, self.script, self.dials, self.noise = env, env.device, script, dials, noise

    def reset(self, seed: int, n: int) -> None:
        if n != self.env.copies:
            raise UserError(f"{n} copies", "behaviour", [self.env.copies])
        self.generator = torch.Generator(self.device).manual_seed(seed)
        order = torch.randperm(n, generator=self.generator, device=self.device)
        within = torch.rand(n, generator=self.generator, device=self.device)
        low, high = self.dials
        self.dial = low + (high - low) * (order + within) / n

    def act(self, observations: Tensor, masks: Tensor | None, active: Tensor | None = None) -> Tensor:
        """(n, agent, A) float32 in [-1, 1]."""
        actions = self.script(observations, self.dial)
        noise = torch.randn(actions.shape, generator=self.generator, device=self.device)
        return (actions + self.noise * noise).clamp(-1, 1)


def behaviour(env: WorkerEnvironment, quality: str) -> DialPolicy | RandomPolicy:
    """The policy that makes data of a quality; teams decide from the state of the very environment it is given."""
    if quality == RANDOM:
        return RandomPolicy(env.spec, env.device)
    scenario = SCENARIOS[env.spec.scenario]
    script = find_script(scenario, env)
    known = [*QUALITIES, RANDOM] if script else [RANDOM]
    if script is None or quality not in QUALITIES:
        raise UserError(f"no quality is called {quality!r} in {scenario.name}", "data.quality", known)
    return DialPolicy(env, script, QUALITIES[quality], NOISE[scenario.kind])


def find_script(scenario: Scenario, env: WorkerEnvironment) -> Script | None:
    """What drives this scenario; None where nobody knows how."""
    if scenario.kind == "navigation":
        return find_driver(scenario, env)
    if scenario.body not in GAITS or (scenario.kind == "team" and (scenario.body, scenario.split) not in ACTUATORS):
        return None
    runner = Runner(scenario.body, env.device)
    if scenario.kind == "velocity":
        return lambda observations, dial: runner(observations[:, 0], dial)[:, None]
    actuators = torch.tensor(ACTUATORS[scenario.body, scenario.split], device=env.device)
    return lambda observations, dial: runner(env.last.state, dial)[:, actuators]


def find_driver(scenario: Scenario, env: WorkerEnvironment) -> Script | None:
    kind = scenario.task[:-1]
    if (scenario.body, kind) not in MANNERS:
        return None
    drive, manners, names = DRIVES[scenario.body], MANNERS[scenario.body, kind], env.spec.observation_names
    sizes = HAZARDS.get(kind, 0.2), BOXES.get(scenario.body, 0.2)

    def script(observations: Tensor, dial: Tensor) -> Tensor:
        driver = Driver(drive, manners, dial, *sizes)
        return getattr(driver, kind.lower())(Senses(names, observations[:, 0]))[:, None]

    return script
