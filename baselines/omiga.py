"""OMIGA (arXiv 2307.11620): implicit regularisation of the team's policy, turned into one of every agent's own.

Local values Q_i(o_i, a_i) and V_i(o_i) share a linear mixer, Q_tot = sum_i w_i(s) Q_i + b(s) with w >= 0. Q learns from
V of the next state, so no action outside the data is ever valued; V_i is the soft value at which exp(z_i), with
z_i = w_i (Q_i - V_i) / temperature, has mean 1 under the data; the policy clones the data with weights exp(z_i).

Deviations: rewards are normalised, so the temperature is in units of the returns' spread (10 in the released code, for
raw rewards); where z is too large the exponential goes on as a straight line (the code clips z, so that a V far too low
sinks further); the policy is a normal distribution about tanh(mean), not squashed after sampling; two critics, the
lower counts; inputs are normalised; the slowly following target of the actor acts.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from baselines.acting import AgentNetwork, NetworkPolicy, stochastic_head
from baselines.team import StochasticActing, TeamConfig, TeamLearner
from madiff.data.store import EpisodeStore
from madiff.data.windows import WindowSampler
from madiff.interfaces import EnvironmentSpec
from madiff.values import ActionCritic, QEnsemble, Transitions, chosen, td_target
from madiff.values.mixing import LinearMixer

NAME = "omiga"
LARGEST = 5.0  # z beyond which the exponential goes on as a straight line


@dataclass
class Config(StochasticActing, TeamConfig):
    critics: int = 2
    temperature: float = field(default=0.1, metadata={"minimum": 1e-3})


class Critic(nn.Module):
    """The agents' values of their own actions, and the mixer that also serves the state values."""

    def __init__(self, inputs: int, joint: int, spec: EnvironmentSpec, config: Config) -> None:
        super().__init__()
        self.discrete = spec.discrete
        made = QEnsemble if spec.discrete else ActionCritic
        self.agent = made(inputs, spec.action_size, config.width, critics=config.critics)
        self.mixer = LinearMixer(spec.agents, joint)

    def values(self, observations: Tensor, actions: Tensor) -> Tensor:
        """(..., agent, F) and (..., agent[, A]) -> (critics, ..., agent)."""
        return chosen(self.agent(observations), actions) if self.discrete else self.agent(observations, actions)


class OMIGA(TeamLearner):
    """Learner of OMIGA."""

    config: Config

    def make_networks(self) -> dict[str, nn.Module]:
        self.head, inputs, width = stochastic_head(self.spec), self.encoder.features, self.config.width
        return {
            "actor": AgentNetwork(inputs, self.head.outputs, width),
            "value": QEnsemble(inputs, 1, width, critics=1),
            "critic": Critic(inputs, self.joint.features, self.spec, self.config),
        }

    def batches(self, store: EpisodeStore) -> WindowSampler:
        return self.sequences(store, length=1)

    def update(self, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        steps = Transitions.of(batch, self.scale)
        state, next_state = self.states(batch).unbind(1)
        weight, local = self.slow(steps, state)
        value = self.networks["value"](steps.observations)[0, ..., 0]
        z = weight * (local - value) / self.config.temperature
        losses = {
            "actor": -(z.detach().clamp(max=LARGEST).exp() * self.likelihood(steps)).mean(),
            "value": soft_value_loss(z, weight * value / self.config.temperature),
            "critic": self.critic_loss(steps, state, next_state),
        }
        norms = {f"{k}_gradient_norm": self.gradient_step(k, v, self.config.gradient_clip) for k, v in losses.items()}
        self.finish_update()
        return {f"{name}_loss": loss.detach() for name, loss in losses.items()} | norms

    @torch.no_grad()
    def slow(self, steps: Transitions, state: Tensor) -> tuple[Tensor, Tensor]:
        """The slow mixer's weights and the lower slow value of the data's actions, (B, agent) each."""
        critic = self.targets["critic"].model
        return critic.mixer.weights(state)[0], critic.values(steps.observations, steps.actions).amin(0)

    def likelihood(self, steps: Transitions) -> Tensor:
        """Logarithm of the policy's density at the data's actions, (B, agent)."""
        output = self.networks["actor"](steps.observations[:, None])[0][:, 0]
        return self.head.log_prob(output, steps.actions, steps.available)

    def critic_loss(self, steps: Transitions, state: Tensor, next_state: Tensor) -> Tensor:
        """Squared error of the team's value against reward and slow state value, summed over critics."""
        with torch.no_grad():
            following = self.targets["value"].model(steps.next_observations)[0, ..., 0]
            following = self.targets["critic"].model.mixer(following, next_state)[..., None]
            rewards = steps.rewards.mean(-1, keepdim=True)
            aim = td_target(rewards, steps.terminated, following, self.config.discount)[..., 0]
        total = self.networks["critic"].mixer(self.networks["critic"].values(steps.observations, steps.actions), state)
        return (total - aim).square().mean(-1).sum()

    def policy(self) -> NetworkPolicy:
        return self.acting_with(self.targets["actor"].model, self.head)


def soft_value_loss(z: Tensor, scaled: Tensor) -> Tensor:
    """Mean of exp(z) + scaled, least where exp(z) has mean 1 (arXiv 2307.11620, eq. 14); scaled = w V / temperature.

    Divided by the largest exponential of the batch where that exceeds e^-1, so that gradients stay small.
    """
    largest = z.detach().max().clamp(-1.0, LARGEST)
    beyond = 1 + (z - LARGEST).clamp(min=0.0)  # the tangent at LARGEST
    return ((z.clamp(max=LARGEST) - largest).exp() * beyond + (-largest).exp() * scaled).mean()


def make(config: Config, spec: EnvironmentSpec, device: torch.device, seed: int) -> OMIGA:
    return OMIGA(config, spec, device, seed)
