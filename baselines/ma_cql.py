"""MA-CQL: conservative Q-learning (arXiv 2006.04779) for every agent on its own observation.

Continuous actions, after the code released with OMAR (arXiv 2111.11188): deterministic actor, twin critics, logsumexp
over uniform actions with importance weights, and a small penalty on the size of actions. Discrete actions: twin
Q-networks, double Q-learning (arXiv 1509.06461), logsumexp over the legal actions; acts greedily.

Deviations: agents share parameters and are told who they are; rewards are scaled; the continuous penalty is measured
on a part of the batch; no policy samples in it; widths, learning rates and target rate are this suite's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from baselines.acting import Categorical, NetworkPolicy
from baselines.deterministic import DeterministicActorCritic, IndependentConfig
from madiff.data.encoding import ObservationEncoder
from madiff.data.store import EpisodeStore
from madiff.data.windows import WindowSampler
from madiff.diffusion.networks.action_head import greedy_action
from madiff.interfaces import EnvironmentSpec, UserError, within
from madiff.values import (
    ActorCritic,
    QEnsemble,
    RewardScale,
    Target,
    Transitions,
    chosen,
    conservative_penalty,
    td_target,
    transition_source,
    uniform_actions,
)

NAME = "ma-cql"


@dataclass
class Config(IndependentConfig):
    """conservative_samples, conservative_batch: uniform actions and transitions that measure a continuous penalty."""

    conservative_weight: float = within(0.0, math.inf, 0.05)
    conservative_samples: int = 10
    conservative_batch: int = 32
    action_penalty: float = within(0.0, math.inf, 1e-3)


class ContinuousCQL(DeterministicActorCritic):
    """Learner for continuous actions."""

    config: Config

    def update(self, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        steps = Transitions.of(batch, self.scale)
        td, penalty = self.critic_losses(steps, generator)
        critic = td + self.config.conservative_weight * penalty
        critic_norm = self.gradient_step("critic", critic, self.config.gradient_clip)
        actor = self.actor_loss(steps, generator)
        actor_norm = self.gradient_step("actor", actor, self.config.gradient_clip)
        self.finish_update()
        metrics = {"td_loss": td, "penalty": penalty, "actor_loss": actor}
        metrics |= {"critic_gradient_norm": critic_norm, "actor_gradient_norm": actor_norm}
        return {name: value.detach() for name, value in metrics.items()}

    def critic_losses(self, steps: Transitions, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """sum_j mean (Q_j - y)^2, and sum_j of the mean penalty over the batch's first transitions."""
        with torch.no_grad():
            target = self.td_target(steps, self.actions(self.targets["actor"].model, steps.next_observations))
        data = self.critic(steps.observations, steps.actions)
        rows = slice(0, self.config.conservative_batch)
        others, density = uniform_actions(
            steps.actions[rows], self.config.conservative_samples, generator, self.real
        )
        candidates = self.critic.many(steps.observations[rows], others).movedim(1, -1)
        penalty = conservative_penalty(candidates, data[:, rows], log_density=density.movedim(0, -1))
        return (data - target).square().mean((1, 2)).sum(), penalty.mean((1, 2)).sum()

    def actor_loss(self, steps: Transitions, generator: torch.Generator) -> Tensor:
        """-mean Q_1(o, pi(o)) + penalty on the size of pi(o)."""
        actions = self.actions(self.actor, steps.observations)
        return self.config.action_penalty * actions.square().mean() - self.value(steps.observations, actions).mean()


class Values(nn.Module):
    """The lesser of the critics' values, as the network of a policy that acts greedily on it."""

    def __init__(self, critic: QEnsemble) -> None:
        super().__init__()
        self.critic = critic

    def forward(self, x: Tensor, hidden: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        return self.critic(x).amin(0), hidden


class DiscreteCQL(ActorCritic):
    """Learner for discrete actions: critics only."""

    def __init__(self, config: Config, spec: EnvironmentSpec, device: torch.device, seed: int) -> None:
        self.config, self.spec, self.device = config, spec, device
        self.encoder = ObservationEncoder(spec.agents, spec.observation_size, config.normalizer).to(device)
        self.scale = RewardScale().to(device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.critic = QEnsemble(self.encoder.features, spec.action_size, config.width).to(device)
        self.target = Target(self.critic, config.target_rate)
        super().__init__(
            {"critic": self.critic}, {"critic": config.critic_learning_rate},
            fixed={"encoder": self.encoder, "scale": self.scale}, targets={"critic": self.target},
        )  # fmt: skip

    def batches(self, store: EpisodeStore) -> WindowSampler:
        self.scale.fit(store, self.config.discount)
        return transition_source(store, self.encoder, self.config.batch_size, self.device)

    def update(self, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        td, penalty = self.losses(Transitions.of(batch, self.scale))
        loss = td + self.config.conservative_weight * penalty
        norm = self.gradient_step("critic", loss, self.config.gradient_clip)
        self.finish_update()
        metrics = {"td_loss": td, "penalty": penalty, "critic_gradient_norm": norm}
        return {name: value.detach() for name, value in metrics.items()}

    def losses(self, steps: Transitions) -> tuple[Tensor, Tensor]:
        """sum_j mean (Q_j - y)^2 and sum_j of the mean penalty; the trained critics choose, the targets judge."""
        with torch.no_grad():
            best = greedy_action(self.critic(steps.next_observations).amin(0), steps.next_available, discrete=True)
            following = chosen(self.target.model(steps.next_observations), best).amin(0)
            target = td_target(steps.rewards, steps.terminated, following, self.config.discount)
        values = self.critic(steps.observations)
        data = chosen(values, steps.actions)
        penalty = conservative_penalty(values, data, available=steps.available)
        return (data - target).square().mean((1, 2)).sum(), penalty.mean((1, 2)).sum()

    def policy(self) -> NetworkPolicy:
        return NetworkPolicy(self.encoder, Values(self.target.model), Categorical(self.spec.action_size))


def make(config: Config, spec: EnvironmentSpec, device: torch.device, seed: int) -> ActorCritic:
    if config.conservative_batch > config.batch_size:
        raise UserError(f"{config.conservative_batch} is too large", "algo.conservative_batch", "at most batch_size")
    return (DiscreteCQL if spec.discrete else ContinuousCQL)(config, spec, device, seed)
