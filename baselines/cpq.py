"""CPQ: Q-learning in which what is unsafe or unknown is worth nothing (arXiv 2107.09003; constants of OSRL's code).

The cost critic is pushed up, with a weight of its own, at actions far from the data: those samples of the policy at
which the latent of an autoencoder diverges most. The reward critic's future, and the actor's gradient, count only where
the cost value is within the discounted budget. As published, an actor that is unsafe everywhere stands still for ever.

Deviations: the push reaches the trained critic and uses actions the policy can take (in OSRL's code it falls on the
slow critic, without effect, at actions before the tanh); it is the mean over the far actions alone (there zeros are
averaged in), of a part of the batch; where the policy is unsafe it goes down the cost value, or stands still with
`recovery=0`; an unsafe future is worth the worst reward for ever, which is the paper's zero where no reward is
negative; rewards and costs are scaled, the limits with them; a termination ends the costs; the weight's rate, widths,
learning rates, batch, updates and target rate are this suite's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from baselines.acting import SMALLEST_UNIFORM, AgentNetwork, NetworkPolicy
from baselines.action_vae import ActionVAE
from baselines.constrained import ConstrainedActorCritic, ConstrainedConfig
from madiff.data.store import EpisodeStore
from madiff.data.windows import WindowSampler
from madiff.interfaces import EnvironmentSpec, within
from madiff.values import ActionCritic, Transitions, td_target

NAME = "cpq"
LOG_STD = (-20.0, 2.0)
LOG_WEIGHT = (-5.0, 5.0)


@dataclass
class Config(ConstrainedConfig):
    """samples: of the policy in every state, among which those beyond the quantile `far` of divergence are unknown.

    unknown_batch: states of the batch that the push is measured on; unknown_limit: the least cost value an unknown
    action should have, in budgets; weight_rate: how fast the push's weight follows; recovery: weight of the excess of
    cost where the policy is unsafe.
    """

    actor_learning_rate: float = within(0.0, math.inf, 3e-4)
    samples: int = 10
    unknown_batch: int = 64
    far: float = within(0.0, 1.0, 0.75)
    unknown_limit: float = within(0.0, math.inf, 1.5)
    weight_rate: float = within(0.0, math.inf, 1e-3)
    divergence_weight: float = within(0.0, math.inf, 0.5)
    recovery: float = within(0.0, math.inf, 1.0)


class SquashedGaussian:
    """The tanh of a normal distribution; output = [mean, log std]. real (agent or 1, D): the others stay 0."""

    def __init__(self, real: Tensor) -> None:
        self.real, self.draws = real, real.shape[-1]
        self.outputs = 2 * self.draws

    def greedy(self, output: Tensor, available: Tensor | None) -> Tensor:
        return torch.tanh(output.chunk(2, -1)[0]) * self.real

    def sample(self, output: Tensor, available: Tensor | None, uniform: Tensor) -> Tensor:
        mean, log_std = output.chunk(2, -1)
        normal = torch.special.ndtri(uniform.clamp(SMALLEST_UNIFORM, 1 - SMALLEST_UNIFORM))
        return torch.tanh(mean + log_std.clamp(*LOG_STD).exp() * normal) * self.real


class PushWeight(nn.Module):
    """alpha, which grows while unknown actions cost less than they should: log alpha += rate alpha (limit - cost)."""

    logarithm: Tensor

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.register_buffer("logarithm", torch.zeros(()))

    def forward(self) -> Tensor:
        return self.logarithm.exp()

    @torch.no_grad()
    def follow(self, lack: Tensor) -> None:
        """lack: limit - cost, in the critic's units."""
        self.logarithm.add_(self.rate * self() * lack).clamp_(*LOG_WEIGHT)


class CPQ(ConstrainedActorCritic):
    """Learner of CPQ."""

    config: Config
    slow = ("actor", "critic", "cost_critic")

    def make_networks(self) -> dict[str, nn.Module]:
        features, actions, width = self.encoder.features, self.spec.action_size, self.config.width
        self.head = SquashedGaussian(self.real)
        return {
            "vae": ActionVAE(features, self.real, width),
            "actor": AgentNetwork(features, self.head.outputs, width),
            "critic": ActionCritic(features, actions, width),
            "cost_critic": ActionCritic(features, actions, width),
        }

    def learning_rate(self, name: str) -> float:
        return self.config.actor_learning_rate if name == "actor" else self.config.learning_rate

    def memory(self) -> Mapping[str, nn.Module]:
        self.push, self.floor = PushWeight(self.config.weight_rate), Floor()
        return {"push": self.push, "floor": self.floor}

    def batches(self, store: EpisodeStore) -> WindowSampler:
        source = super().batches(store)
        self.floor.fit(self.scale(store.rewards.to(self.device)), store, self.config.discount)
        return source

    def update(self, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        steps, costs = self.constrained_steps(batch)
        vae, weight = self.networks["vae"], self.config.divergence_weight
        metrics = self.descend({"vae": vae.loss(steps.observations, steps.actions, generator, weight)})
        losses, unknown = self.critic_losses(steps, costs, generator)
        metrics |= self.descend(losses)
        self.push.follow(self.limit(self.config.unknown_limit) - unknown)
        actor, cost = self.actor_loss(steps, generator)
        metrics |= self.descend({"actor": actor})
        self.finish_update()
        safe = (cost <= self.limit()).float().mean()
        return metrics | {"push_weight": self.push(), "safe": safe, "cost_in_limits": self.cost_in_limits(cost)}

    def critic_losses(
        self, steps: Transitions, costs: Tensor, generator: torch.Generator
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Both critics' losses, and the mean cost value of unknown actions."""
        observations, discount = steps.next_observations, self.config.discount
        with torch.no_grad():
            actions = self.draw(observations, generator)[0]
            cost = self.targets["cost_critic"].model(observations, actions).amin(0)
            value = self.targets["critic"].model(observations, actions).amin(0)
            value = torch.where(cost <= self.limit(), value, self.floor.value)
            target = td_target(steps.rewards, steps.terminated, value, discount)
            cost_target = td_target(costs, steps.terminated, cost, discount)
        error = self.networks["critic"](steps.observations, steps.actions) - target
        cost_error = self.networks["cost_critic"](steps.observations, steps.actions) - cost_target
        unknown = self.unknown_cost(steps.observations[: self.config.unknown_batch], generator)
        pushed = cost_error.square().mean((1, 2)).sum() - self.push() * unknown
        return {"critic": error.square().mean((1, 2)).sum(), "cost_critic": pushed}, unknown.detach()

    def unknown_cost(self, observations: Tensor, generator: torch.Generator) -> Tensor:
        """Mean cost value of those samples of the policy whose latent diverges most from the standard normal."""
        with torch.no_grad():
            actions = self.draw(observations, generator, self.config.samples)
            repeated = observations.expand(len(actions), *observations.shape)
            divergence = self.networks["vae"].divergence(repeated, actions)
            far = (divergence >= torch.quantile(divergence, self.config.far)).float()
        cost = self.networks["cost_critic"].many(observations, actions).amin(0)
        return (far * cost).sum() / far.sum()

    def actor_loss(self, steps: Transitions, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """-mean of Q where Q_c is within the limit, and of recovery (limit - Q_c) elsewhere; and Q_c (B, agent)."""
        actions = self.draw(steps.observations, generator)[0]
        cost = self.networks["cost_critic"](steps.observations, actions).amin(0)
        value = self.networks["critic"](steps.observations, actions).amin(0) - self.floor.value
        excess = cost - self.limit()
        return -torch.where(excess <= 0, value, -self.config.recovery * excess).mean(), cost

    def draw(self, observations: Tensor, generator: torch.Generator, samples: int = 1) -> Tensor:
        """Actions (samples, B, agent, D) of the policy at observations (B, agent, F)."""
        output = self.networks["actor"](observations[:, None])[0][:, 0]
        shape = (samples, *output.shape[:-1], self.head.draws)
        uniform = torch.rand(shape, generator=generator, device=generator.device).to(output.device)
        return self.head.sample(output.expand(samples, *output.shape), None, uniform)

    def policy(self) -> NetworkPolicy:
        return NetworkPolicy(self.encoder, self.targets["actor"].model, self.head)


class Floor(nn.Module):
    """The value of the worst reward of the data for ever; 0 at most where episodes terminate, as ending them is 0."""

    value: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("value", torch.zeros(()))

    def fit(self, rewards: Tensor, store: EpisodeStore, discount: float) -> None:
        """rewards: all of the store's, scaled."""
        worst = rewards.min() / (1 - discount)
        self.value.copy_(worst.clamp(max=0) if bool(store.terminated.any()) else worst)


def make(config: Config, spec: EnvironmentSpec, device: torch.device, seed: int) -> CPQ:
    return CPQ(config, spec, device, seed)
