"""BCQ-Lag: BCQ (arXiv 1812.02900) with a cost critic and a PID-controlled Lagrange multiplier (arXiv 2007.03964).

A variational autoencoder proposes actions of the data, an actor moves them by at most `perturbation`; two groups of two
critics each value reward and cost, a group's value is its lesser member's. The actor maximises Q - m Q_c, the
multiplier m follows how far Q_c exceeds the discounted budget. After OSRL (arXiv 2306.09303, released code).

Deviations: rewards and costs are scaled, the gains and the limit with them; the best of `candidates` proposals by
Q - m Q_c acts, as in BCQ's paper (the released code executes one proposal); a termination ends the costs (there they
go on past it); widths, learning rate, batch, updates and target rate are this suite's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from baselines.action_vae import ActionVAE
from baselines.constrained import CandidatePolicy, ConstrainedActorCritic, ConstrainedConfig, PIDMultiplier
from madiff.diffusion.networks.mlp import mlp
from madiff.interfaces import EnvironmentSpec, within
from madiff.values import ActionCritic, Transitions, td_target

NAME = "bcq-lag"
GROUPS, MEMBERS = 2, 2


@dataclass
class Config(ConstrainedConfig):
    """samples: proposals for each following observation; lesser: weight of the lesser group in their value.

    proportional, integral, derivative: the controller's gains. candidates: proposals of which the policy acts on one.
    """

    samples: int = 10
    lesser: float = within(0.0, 1.0, 0.75)
    perturbation: float = within(0.0, 2.0, 0.05)
    divergence_weight: float = within(0.0, math.inf, 0.5)
    latent_clip: float = within(0.0, math.inf, 0.5)
    proportional: float = within(0.0, math.inf, 0.1)
    integral: float = within(0.0, math.inf, 0.003)
    derivative: float = within(0.0, math.inf, 0.001)
    candidates: int = 10

    ACTING: ClassVar[tuple[str, ...]] = ("candidates",)


class Perturbation(nn.Module):
    """a + size tanh(f(o, a)), clipped to [-1, 1]; padded dimensions stay 0."""

    real: Tensor

    def __init__(self, features: int, real: Tensor, width: int, size: float) -> None:
        super().__init__()
        self.size, actions = size, real.shape[-1]
        self.net = mlp((features + actions, width, width, actions), nn.Tanh)
        self.register_buffer("real", real.clone(), persistent=False)

    def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
        observations = observations.expand(*actions.shape[:-1], observations.shape[-1])
        moved = actions + self.size * torch.tanh(self.net(torch.cat([observations, actions], -1)))
        return moved.clamp(-1, 1) * self.real


class BCQLag(ConstrainedActorCritic):
    """Learner of BCQ-Lag."""

    config: Config
    slow = ("actor", "critic", "cost_critic")

    def make_networks(self) -> dict[str, nn.Module]:
        features, width, config = self.encoder.features, self.config.width, self.config

        def critic() -> ActionCritic:
            return ActionCritic(features, self.spec.action_size, width, critics=GROUPS * MEMBERS)

        actor = Perturbation(features, self.real, width, config.perturbation)
        return {"vae": ActionVAE(features, self.real, width), "actor": actor, "critic": critic(),
                "cost_critic": critic()}  # fmt: skip

    def memory(self) -> Mapping[str, nn.Module]:
        config = self.config
        self.controller = PIDMultiplier(config.proportional, config.integral, config.derivative)
        return {"controller": self.controller}

    def update(self, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        steps, costs = self.constrained_steps(batch)
        vae, weight = self.networks["vae"], self.config.divergence_weight
        metrics = self.descend({"vae": vae.loss(steps.observations, steps.actions, generator, weight)})
        metrics |= self.descend(self.critic_losses(steps, costs, generator))
        actor, cost = self.actor_loss(steps, generator)
        metrics |= self.descend({"actor": actor})
        self.finish_update()
        return metrics | {"multiplier": self.controller.multiplier.clone(), "cost_in_limits": self.cost_in_limits(cost)}

    def critic_losses(self, steps: Transitions, costs: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Squared errors summed over the members, of both critics, against the best and the dearest proposal."""
        with torch.no_grad():
            following = self.proposals(self.targets["actor"].model, steps.next_observations, generator)
        losses = {}
        for name, paid in (("critic", steps.rewards), ("cost_critic", costs)):
            with torch.no_grad():
                groups = grouped(self.targets[name].model.many(steps.next_observations, following))
                value = torch.lerp(groups.amax(0), groups.amin(0), self.config.lesser).amax(0)
                target = td_target(paid, steps.terminated, value, self.config.discount)
            error = self.networks[name](steps.observations, steps.actions) - target
            losses[name] = error.square().mean((1, 2)).sum()
        return losses

    def actor_loss(self, steps: Transitions, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """-mean Q + m mean (Q_c - limit), and Q_c (B, agent); the controller sees the mean excess first."""
        actions = self.proposals(self.networks["actor"], steps.observations, generator, samples=1)[0]
        value, cost = self.values(steps.observations, actions)
        excess = (cost - self.limit()).mean()
        return self.controller(excess.detach()) * excess - value.mean(), cost

    def proposals(
        self, actor: nn.Module, observations: Tensor, generator: torch.Generator, samples: int | None = None
    ) -> Tensor:
        """(samples, ..., D): actions of the data as the autoencoder has them, moved by the actor."""
        samples = self.config.samples if samples is None else samples
        with torch.no_grad():
            imitated = self.networks["vae"].sample(observations, samples, generator, self.config.latent_clip)
        return actor(observations, imitated)

    def values(self, observations: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Reward and cost value (...) of actions (..., D): each the lesser group's."""
        critics = (self.networks["critic"], self.networks["cost_critic"])
        reward, cost = (grouped(critic(observations, actions)).amin(0) for critic in critics)
        return reward, cost

    def policy(self) -> CandidatePolicy:
        actor, names = self.targets["actor"].model, ("vae", "critic", "cost_critic")

        def propose(observations: Tensor, generator: torch.Generator) -> Tensor:
            return self.proposals(actor, observations, generator, self.config.candidates)

        def score(observations: Tensor, actions: Tensor) -> Tensor:
            value, cost = self.values(observations.expand(*actions.shape[:-1], observations.shape[-1]), actions)
            return value - self.controller.multiplier * cost

        networks = (actor, *(self.networks[name] for name in names))
        return CandidatePolicy(self.encoder, propose, score, networks, calls=len(networks))


def grouped(values: Tensor) -> Tensor:
    """(groups * members, ...) -> (groups, ...): the lesser member of every group."""
    return values.unflatten(0, (GROUPS, MEMBERS)).amin(1)


def make(config: Config, spec: EnvironmentSpec, device: torch.device, seed: int) -> BCQLag:
    return BCQLag(config, spec, device, seed)
