"""The behaviour that every environment has: uniformly random legal actions."""

from __future__ import annotations

import torch
from torch import Tensor

from madiff.interfaces import EnvironmentSpec, UserError


class RandomPolicy:
    """Uniform over the legal actions, or over [-1, 1] in every dimension an agent has."""

    def __init__(self, spec: EnvironmentSpec, device: torch.device | str = "cpu") -> None:
        self.spec, self.device = spec, torch.device(device)
        sizes = torch.tensor(spec.action_sizes or (spec.action_size,) * spec.agents, device=self.device)
        self.own = torch.arange(spec.action_size, device=self.device) < sizes[:, None]

    def reset(self, seed: int, n: int) -> None:
        self.generator = torch.Generator(self.device).manual_seed(seed)

    def act(self, observations: Tensor, masks: Tensor | None, active: Tensor | None = None) -> Tensor:
        """(n, agent) int64, or (n, agent, A) float32, zero in padded dimensions."""
        size = (len(observations), *self.own.shape)
        draws = torch.rand(size, generator=self.generator, device=self.device)
        if not self.spec.discrete:
            return (2 * draws - 1) * self.own
        if masks is None:
            raise UserError("None", "masks", "the environment's available actions, (n, agent, actions) bool")
        # One more than a draw, so that an illegal action never wins against a draw of exactly 0.
        return ((1 + draws) * masks).argmax(-1)
