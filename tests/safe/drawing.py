"""Plans drawn by the one sampler from a distribution known exactly, for tests of hooks.

Data: straight lines through the obstacle, each waypoint with a little noise; the denoiser is the perfect one. Features:
(action_0, action_1, x, y), normalised by a fixed affine map.
"""

from dataclasses import dataclass
from typing import Any

import torch

from madiff.diffusion.parametrization import make_parametrization
from madiff.diffusion.sampler import Sampler
from madiff.diffusion.schedule import make_schedule
from madiff.diffusion.solvers import make_solver

HORIZON, STD = 32, 0.05
SCALE = torch.tensor([1.0, 1.0, 2.0, 4.0])
SHIFT = torch.tensor([0.0, 0.0, 0.5, -1.0])


@dataclass(frozen=True)
class Layout:
    """What `madiff.interfaces.PlanLayout` promises."""

    names: tuple[str, ...] = ("action_0", "action_1", "x", "y")
    history: int = 0
    dt: float = 1.0
    scale: Any = SCALE
    shift: Any = SHIFT

    def denormalize(self, x):
        return x * self.scale.to(x) + self.shift.to(x)

    def normalize(self, x):
        return (x - self.shift.to(x)) / self.scale.to(x)


def mean_plan(agents=1):
    """A line from (-1.5, -0.1) to (1.5, 0.1) in real units, normalised: (HORIZON, agents, 4)."""
    share = torch.linspace(0, 1, HORIZON)[:, None]
    line = torch.cat([torch.zeros(HORIZON, 2), -1.5 + 3 * share, -0.1 + 0.2 * share], dim=-1)
    return Layout().normalize(line)[:, None].expand(-1, agents, -1)


def draw(hooks=(), plans=8, steps=20, solver="ddpm", known=None, seed=0, agents=1, dtype=torch.float32, **options):
    """A `Sample` of plans (plans, HORIZON, agents, 4)."""
    schedule = make_schedule("cosine", 256)
    parametrization = make_parametrization("epsilon", schedule)
    mean = mean_plan(agents)

    def denoiser(x, t, cond):
        (level,) = schedule.levels(t[:1])
        variance = level.alpha**2 * STD**2 + level.sigma**2
        return level.sigma * (x - level.alpha * mean.to(x)) / variance

    sampler = Sampler(schedule, parametrization, make_solver(solver), hooks)
    generator = torch.Generator().manual_seed(seed)
    shape = (plans, HORIZON, agents, 4)
    return sampler.sample(
        denoiser, shape, steps=steps, generator=generator, known=known, dtype=dtype, **options
    )  # fmt: skip
