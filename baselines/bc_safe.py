"""BC-Safe: behaviour cloning of the episodes within the cost budget (arXiv 2306.09303).

Raises UserError where no episode of the data is within the budget. The cost of an episode is not discounted, and the
team's is the mean over agents. Deviations: those of `bc`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from baselines import bc
from baselines.constrained import check_budget, within_budget
from madiff.data.store import EpisodeStore
from madiff.data.windows import WindowSampler
from madiff.interfaces import EnvironmentSpec, within

NAME = "bc-safe"


@dataclass
class Config(bc.Config):
    """cost_limit: the largest cost an imitated episode has."""

    cost_limit: float = within(0.0, math.inf, 20.0)


class BCSafe(bc.BC):
    """Learner of BC on safe episodes."""

    config: Config

    def batches(self, store: EpisodeStore) -> WindowSampler:
        return super().batches(within_budget(store, self.config.cost_limit))


def make(config: Config, spec: EnvironmentSpec, device: torch.device, seed: int) -> BCSafe:
    check_budget(config.cost_limit)
    return BCSafe(config, spec, device, seed)
