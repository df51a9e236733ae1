"""QMIX (arXiv 1803.11485) learnt from a fixed data set: the bar that methods made for such data must clear.

The agents' values of their own actions are mixed, monotonically and depending on the state, into the team's value of
the joint action. Double Q-learning over legal actions, TD(lambda) where `sequence` is longer than one step.

Deviations: feed-forward unless asked otherwise; Adam and slowly following targets, which also act, instead of RMSprop
and periodic copies; inputs and rewards are normalised. TD(lambda) along the data is what keeps the values of untried
actions from running away: with one-step targets QMIX loses every battle on 3m medium.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from baselines.acting import AgentNetwork, Categorical, NetworkPolicy
from baselines.team import SequenceConfig, TeamLearner
from madiff.data.store import EpisodeStore
from madiff.data.windows import WindowSampler
from madiff.diffusion.networks.action_head import greedy_action
from madiff.interfaces import EnvironmentSpec, UserError
from madiff.values import chosen, lambda_returns, masked_mean
from madiff.values.mixing import MonotonicMixer

NAME = "qmix"


@dataclass
class Config(SequenceConfig):
    sequence: int = 8
    td_lambda: float = field(default=0.8, metadata={"minimum": 0, "maximum": 1})


class ValueDecomposition(nn.Module):
    """The agents' values and the mixer, learnt together."""

    def __init__(self, agent: AgentNetwork, mixer: MonotonicMixer) -> None:
        super().__init__()
        self.agent, self.mixer = agent, mixer

    def forward(self, observations: Tensor) -> Tensor:
        """Values of all actions: (B, T, agent, F) -> (B, T, agent, n)."""
        return self.agent(observations)[0]


class QMIX(TeamLearner):
    """Learner of QMIX; those that add conservatism override `penalty`."""

    config: SequenceConfig

    def __init__(self, config: SequenceConfig, spec: EnvironmentSpec, device: torch.device, seed: int) -> None:
        if not spec.discrete:
            raise UserError(f"{spec.name} has continuous actions", "algo", "environments with discrete actions")
        super().__init__(config, spec, device, seed)
        self.network, self.slow = self.networks["values"], self.targets["values"].model

    def make_networks(self) -> dict[str, nn.Module]:
        size, width = self.spec.action_size, self.config.width
        agent = AgentNetwork(self.encoder.features, size, width, self.config.recurrent)
        return {"values": ValueDecomposition(agent, MonotonicMixer(self.spec.agents, self.joint.features))}

    def batches(self, store: EpisodeStore) -> WindowSampler:
        return self.sequences(store, self.config.sequence)

    def update(self, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        values, state = self.network(batch["observations"]), self.states(batch)
        taken = chosen(values[:, :-1], batch["actions"])
        total = self.network.mixer(taken, state[:, :-1])
        error = total - self.returns(values, state, batch)
        td = masked_mean(error.square(), batch["transition_valid"])
        conservative = self.penalty(values[:, :-1], taken, total, state[:, :-1], batch, generator)
        penalty = masked_mean(conservative, batch["transition_valid"])
        norm = self.gradient_step("values", td + penalty, self.config.gradient_clip)
        self.finish_update()
        metrics = {"loss": td + penalty, "td_loss": td, "penalty": penalty, "gradient_norm": norm}
        return {name: value.detach() for name, value in metrics.items()}

    @torch.no_grad()
    def returns(self, values: Tensor, state: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """(B, T) TD(lambda) returns: the trained network chooses among legal actions, the slow one says their worth."""
        best = greedy_action(values[:, 1:], batch.get("next_available_actions"), discrete=True)
        following = self.slow.mixer(chosen(self.slow(batch["observations"])[:, 1:], best), state[:, 1:])
        return lambda_returns(
            self.team_rewards(batch), batch["terminated"], following, batch["transition_valid"],
            self.config.discount, self.config.td_lambda,
        )  # fmt: skip

    def penalty(
        self, values: Tensor, taken: Tensor, total: Tensor, state: Tensor, batch: dict[str, Tensor],
        generator: torch.Generator,
    ) -> Tensor:  # fmt: skip
        """What is added to the squared error of every step, (B, T): nothing.

        values (B, T, agent, n), taken (B, T, agent): the values of the data's actions, total (B, T): mixed.
        """
        return torch.zeros_like(total)

    def policy(self) -> NetworkPolicy:
        return self.acting_with(self.slow.agent, Categorical(self.spec.action_size))


def make(config: Config, spec: EnvironmentSpec, device: torch.device, seed: int) -> QMIX:
    return QMIX(config, spec, device, seed)
