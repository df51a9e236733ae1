"""CFCQL (arXiv 2309.12696): conservatism about one agent's action at a time, the others' actions as in the data.

Adds to the error of a centralised value sum_i share_i (log sum_{a_i} exp Q(s, a_i, a_-i) - Q(s, a)), a_-i the data's.
Shares sum to 1: equal ones, or with `share_temperature` a softmax over agents of how far an agent's policy has moved
from the data's, which is cloned beside it. Discrete actions: on QMIX, over all legal actions. Continuous: twin critics
of the state and all actions, uniform samples, deterministic actors.

Deviations: those of `qmix`; continuous: the actor improves its own action with the others' as in the data (as
released), without OMAR's search, and the penalty is measured on a part of the batch; the data's policy is a cloned
network, not a variational autoencoder. The released discrete code gives the largest share to the agent farthest from
the data, the continuous code to the nearest: a temperature below 0.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from baselines import qmix
from baselines.acting import AgentNetwork, Deterministic, NetworkPolicy, stochastic_head
from baselines.team import SequenceConfig, TeamLearner
from madiff.data.store import EpisodeStore
from madiff.data.windows import WindowSampler
from madiff.diffusion.networks.action_head import legal_logits
from madiff.interfaces import EnvironmentSpec
from madiff.values import (
    ActionCritic,
    conservative_penalty,
    lambda_returns,
    masked_mean,
    real_dimensions,
    uniform_actions,
)

NAME = "cfcql"


@dataclass
class Config(SequenceConfig):
    """Only with continuous actions: conservative_samples, actor_every, action_penalty, and conservative_batch, the
    transitions that the penalty is measured on."""

    conservative_weight: float = field(default=0.1, metadata={"minimum": 0})
    share_temperature: float = 0.0
    conservative_samples: int = 10
    conservative_batch: int = 32
    actor_every: int = 2
    action_penalty: float = field(default=1e-3, metadata={"minimum": 0})


class Behaviour(nn.Module):
    """The data's policy, cloned: an agent network and what its output says about actions."""

    def __init__(self, inputs: int, spec: EnvironmentSpec, config: Config) -> None:
        super().__init__()
        self.head = stochastic_head(spec)
        self.network = AgentNetwork(inputs, self.head.outputs, config.width, config.recurrent)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        """(B, T, agent, outputs)."""
        return self.network(batch["observations"][:, :-1])[0]

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        log_prob = self.head.log_prob(self(batch), batch["actions"], batch.get("available_actions"))
        return -masked_mean(log_prob, batch["transition_valid"][..., None])


def shares(distance: Tensor, temperature: float) -> Tensor:
    """Softmax over agents of temperature times the distance from the data's policy: (..., agent)."""
    return torch.softmax(temperature * distance.detach(), dim=-1)


class DiscreteCFCQL(qmix.QMIX):
    """Learner for discrete actions."""

    config: Config

    def make_networks(self) -> dict[str, nn.Module]:
        networks = super().make_networks()
        if self.config.share_temperature:
            networks["behaviour"] = Behaviour(self.encoder.features, self.spec, self.config)
        return networks

    def update(self, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        if "behaviour" in self.networks:
            self.gradient_step("behaviour", self.networks["behaviour"].loss(batch), self.config.gradient_clip)
        return super().update(batch, generator)

    def penalty(
        self, values: Tensor, taken: Tensor, total: Tensor, state: Tensor, batch: dict[str, Tensor],
        generator: torch.Generator,
    ) -> Tensor:  # fmt: skip
        available = batch.get("available_actions")
        others = self.others(values, taken, state)
        exceeds = conservative_penalty(others, total[..., None], available=available)
        share = shares(self.distance(others, batch), self.config.share_temperature)
        return self.config.conservative_weight * (share * exceeds).sum(-1)

    def others(self, values: Tensor, taken: Tensor, state: Tensor) -> Tensor:
        """Q_tot with one agent's action exchanged for each of its others: (..., agent, n).

        values (..., agent, n); taken (..., agent): those of the data's actions; state (..., S).
        """
        agents, actions = values.shape[-2:]
        own = torch.eye(agents, dtype=torch.bool, device=values.device)[:, None]
        joint = torch.where(own, values[..., None], taken[..., None, None, :])  # (..., agent, n, agent)
        return self.network.mixer.many(joint.flatten(-3, -2), state).unflatten(-1, (agents, actions))

    @torch.no_grad()
    def distance(self, others: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """KL divergence of the softmax over an agent's actions from the data's policy: (..., agent)."""
        if "behaviour" not in self.networks:
            return torch.zeros_like(others[..., 0])
        available = batch.get("available_actions")
        logits = torch.stack([others, self.networks["behaviour"](batch)])
        ours, data = torch.log_softmax(legal_logits(logits, available), -1)
        return torch.where(ours > float("-inf"), ours.exp() * (ours - data), 0.0).sum(-1)


class ContinuousCFCQL(TeamLearner):
    """Learner for continuous actions."""

    config: Config

    def make_networks(self) -> dict[str, nn.Module]:
        inputs, size, config = self.encoder.features, self.spec.action_size, self.config
        networks = {
            "actor": AgentNetwork(inputs, size, config.width, config.recurrent),
            "critic": ActionCritic(self.joint.features, self.spec.agents * size, config.width),
        }
        if config.share_temperature:
            networks["behaviour"] = Behaviour(inputs, self.spec, config)
        self.real = real_dimensions(self.spec).to(self.device)
        return networks

    def batches(self, store: EpisodeStore) -> WindowSampler:
        return self.sequences(store, self.config.sequence)

    def update(self, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        state = self.states(batch)
        td, penalty = self.critic_losses(state, batch, generator)
        losses = {"critic": td + self.config.conservative_weight * penalty}
        if "behaviour" in self.networks:
            losses["behaviour"] = self.networks["behaviour"].loss(batch)
        norms = {f"{k}_gradient_norm": self.gradient_step(k, v, self.config.gradient_clip) for k, v in losses.items()}
        metrics = {"td_loss": td, "penalty": penalty}
        if self.updates % self.config.actor_every == 0:
            metrics["actor_loss"] = actor = self.actor_loss(state[:, :-1], batch)
            norms["actor_gradient_norm"] = self.gradient_step("actor", actor, self.config.gradient_clip)
        self.finish_update()
        return {name: value.detach() for name, value in metrics.items()} | norms

    def actions(self, actor: nn.Module, observations: Tensor) -> Tensor:
        """What an actor does: (B, T, agent, F) -> (B, T, agent, D), padded dimensions 0."""
        return torch.tanh(actor(observations)[0]) * self.real

    def critic_losses(
        self, state: Tensor, batch: dict[str, Tensor], generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Squared error and penalty, each a mean over steps, summed over critics."""
        critic, valid = self.networks["critic"], batch["transition_valid"]
        data = critic(state[:, :-1], batch["actions"].flatten(-2))
        td = (data - self.returns(state, batch)).square()
        rows = slice(0, max(1, self.config.conservative_batch // self.config.sequence))
        few = {name: value[rows] for name, value in batch.items()}
        samples, log_density = uniform_actions(few["actions"], self.config.conservative_samples, generator, self.real)
        seen = state[rows, :-1, None].expand(-1, -1, self.spec.agents, -1)
        candidates = critic.many(seen, replaced(few["actions"], samples).flatten(-2)).movedim(1, -1)
        exceeds = conservative_penalty(candidates, data[:, rows, :, None], log_density=log_density.movedim(0, -1))
        penalty = (shares(self.distance(few), self.config.share_temperature) * exceeds).sum(-1)
        members = critic.critics
        return members * masked_mean(td, valid), members * masked_mean(penalty, few["transition_valid"])

    @torch.no_grad()
    def returns(self, state: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """(B, T) TD(lambda) returns with the slow actors and the lesser slow critic."""
        actions = self.actions(self.targets["actor"].model, batch["observations"])[:, 1:]
        following = self.targets["critic"].model(state[:, 1:], actions.flatten(-2)).amin(0)
        return lambda_returns(
            self.team_rewards(batch), batch["terminated"], following, batch["transition_valid"],
            self.config.discount, self.config.td_lambda,
        )  # fmt: skip

    def actor_loss(self, state: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """-Q_1 with one agent's action from its actor and the others' from the data, and a penalty on its size."""
        actions = self.actions(self.networks["actor"], batch["observations"])[:, :-1]
        joint = replaced(batch["actions"], actions).flatten(-2)
        values = self.networks["critic"](state[:, :, None].expand(-1, -1, self.spec.agents, -1), joint, members=1)[0]
        loss = self.config.action_penalty * actions.square().mean(-1) - values
        return masked_mean(loss, batch["transition_valid"][..., None])

    @torch.no_grad()
    def distance(self, batch: dict[str, Tensor]) -> Tensor:
        """-log density of the actor's own action under the data's policy: (B, T, agent)."""
        if "behaviour" not in self.networks:
            return torch.zeros(batch["actions"].shape[:-1], device=self.device)
        behaviour = self.networks["behaviour"]
        actions = self.actions(self.networks["actor"], batch["observations"])[:, :-1]
        return -behaviour.head.log_prob(behaviour(batch), actions)

    def policy(self) -> NetworkPolicy:
        return self.acting_with(self.targets["actor"].model, Deterministic(self.spec.action_size))


def replaced(data: Tensor, other: Tensor) -> Tensor:
    """All ways to exchange one agent's entry of data (..., agent, D) for that of other (..., agent, D).

    Returns (..., agent, agent, D): in row i, entry i is other's and all else the data's.
    """
    own = torch.eye(data.shape[-2], dtype=torch.bool, device=data.device)[..., None]
    return torch.where(own, other[..., :, None, :], data[..., None, :, :])


def make(config: Config, spec: EnvironmentSpec, device: torch.device, seed: int) -> TeamLearner:
    return (DiscreteCFCQL if spec.discrete else ContinuousCFCQL)(config, spec, device, seed)
