"""MA-TD3+BC: TD3+BC (arXiv 2106.06860) for every agent on its own observation, independent critics Q_i(o_i, a_i).

Deviations: agents share parameters and are told who they are; rewards are scaled; widths, learning rates, discount and
target rate are this suite's; the averaged actor acts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from baselines.deterministic import DeterministicActorCritic, IndependentConfig
from madiff.interfaces import EnvironmentSpec, within
from madiff.values import Transitions

NAME = "ma-td3-bc"


@dataclass
class Config(IndependentConfig):
    """alpha: weight of the value against imitation; noise, noise_clip: of the smoothed target policy."""

    actor_learning_rate: float = within(0.0, math.inf, 3e-3)
    alpha: float = within(0.0, math.inf, 2.5)
    noise: float = within(0.0, math.inf, 0.2)
    noise_clip: float = within(0.0, math.inf, 0.5)
    actor_every: int = 2


class TD3BC(DeterministicActorCritic):
    """Learner of MA-TD3+BC."""

    config: Config

    def update(self, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        steps = Transitions.of(batch, self.scale)
        critic = self.critic_loss(steps, generator)
        norm = self.gradient_step("critic", critic, self.config.gradient_clip)
        metrics = {"critic_loss": critic, "critic_gradient_norm": norm}
        if self.updates % self.config.actor_every == 0:
            metrics["actor_loss"] = actor = self.actor_loss(steps)
            metrics["actor_gradient_norm"] = self.gradient_step("actor", actor, self.config.gradient_clip)
        self.finish_update()
        return {name: value.detach() for name, value in metrics.items()}

    def critic_loss(self, steps: Transitions, generator: torch.Generator) -> Tensor:
        """sum_j mean (Q_j - y)^2 with target policy smoothing (TD3, arXiv 1802.09477, eq. 14)."""
        with torch.no_grad():
            actions = self.actions(self.targets["actor"].model, steps.next_observations)
            noise = self.config.noise * torch.randn(actions.shape, generator=generator, device=self.device)
            noise = noise.clamp(-self.config.noise_clip, self.config.noise_clip) * self.real
            target = self.td_target(steps, (actions + noise).clamp(-1, 1))
        return (self.critic(steps.observations, steps.actions) - target).square().mean((1, 2)).sum()

    def actor_loss(self, steps: Transitions) -> Tensor:
        """-alpha Q_1 / mean |Q_1| + squared error to the data's action (eq. 5 of TD3+BC)."""
        actions = self.actions(self.actor, steps.observations)
        value = self.value(steps.observations, actions)
        imitation = (actions - steps.actions).square().mean()
        return imitation - self.config.alpha * value.mean() / value.detach().abs().mean()


def make(config: Config, spec: EnvironmentSpec, device: torch.device, seed: int) -> TD3BC:
    return TD3BC(config, spec, device, seed)
