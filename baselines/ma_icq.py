"""MA-ICQ (arXiv 2106.03400, released code ICQ-MA): values of the actions in the data only, and their weighted cloning.

A critic Q_i(s, o_i, a_i) for every agent, mixed as Q_tot = sum_i w_i(s) Q_i + b(s) with weights that sum to 1, learns
the value of the data's own next joint action, weighted towards good ones by softmax(Q_tot / value_temperature) over the
batch; TD(lambda) over `sequence` steps. The actors clone the data with weights softmax(A_i / temperature) over the
batch, A_i = Q_i(a_i) - E_pi Q_i, times the agent's share w_i. No action is ever valued that is not in the data, except
where an episode was cut off: there the next action is the actor's.

Continuous actions: a normal distribution, E_pi Q is taken at its mean. Deviations: one optimiser step for a whole batch
of sequences, not one per time step; feed-forward unless asked otherwise; Adam and slowly following targets, which also
act, instead of RMSprop and periodic copies; no duelling head; the bias b(s) of the paper, which the code leaves out;
inputs and rewards are normalised, so the temperatures are in units of the returns' spread.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from baselines.acting import AgentNetwork, NetworkPolicy, stochastic_head
from baselines.team import SequenceConfig, StochasticActing, TeamLearner
from madiff.data.store import EpisodeStore
from madiff.data.windows import WindowSampler
from madiff.diffusion.networks.action_head import legal_logits
from madiff.interfaces import EnvironmentSpec
from madiff.values import ActionCritic, QEnsemble, chosen, lambda_returns, masked_mean
from madiff.values.mixing import LinearMixer

NAME = "ma-icq"


@dataclass
class Config(StochasticActing, SequenceConfig):
    sequence: int = 8
    td_lambda: float = field(default=0.8, metadata={"minimum": 0, "maximum": 1})
    temperature: float = field(default=0.5, metadata={"minimum": 1e-3})
    value_temperature: float = field(default=100.0, metadata={"minimum": 1e-3})


class Critic(nn.Module):
    """The agents' values given state, own observation and own action, and their mixer."""

    def __init__(self, inputs: int, joint: int, spec: EnvironmentSpec, width: int) -> None:
        super().__init__()
        self.discrete = spec.discrete
        made = QEnsemble if spec.discrete else ActionCritic
        self.agent = made(inputs + joint, spec.action_size, width, critics=1)
        self.mixer = LinearMixer(spec.agents, joint, normalised=True)

    def forward(self, seen: Tensor, actions: Tensor, policy: Tensor) -> tuple[Tensor, Tensor]:
        """The agents' values of the actions taken, and what the policy's are worth, (..., agent) each.

        seen (..., agent, F + S); actions (..., agent[, A]); policy: probabilities (..., agent, n) or means.
        """
        if self.discrete:
            values = self.agent(seen)[0]
            return chosen(values, actions), (policy * values).sum(-1)
        return self.agent(seen, actions)[0], self.agent(seen, policy)[0]


class MAICQ(TeamLearner):
    """Learner of MA-ICQ."""

    config: Config

    def make_networks(self) -> dict[str, nn.Module]:
        self.head, inputs, width = stochastic_head(self.spec), self.encoder.features, self.config.width
        return {
            "actor": AgentNetwork(inputs, self.head.outputs, width, self.config.recurrent),
            "critic": Critic(inputs, self.joint.features, self.spec, width),
        }

    def batches(self, store: EpisodeStore) -> WindowSampler:
        return self.sequences(store, self.config.sequence, ahead=1)  # for the next action of the last step

    def update(self, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        observations, state = batch["observations"][:, :-1], self.states(batch)[:, :-1]
        seen = torch.cat([observations, state[:, :, None].expand(-1, -1, self.spec.agents, -1)], dim=-1)
        output = self.networks["actor"](observations)[0]
        policy, critic = self.policy_of(output.detach(), batch), self.networks["critic"]
        valid = batch["transition_valid"][:, :-1]
        local, expected = critic(seen, batch["actions"], policy)
        total = critic.mixer(local, state)[:, :-1]
        value_loss = masked_mean((total - self.returns(seen, state, policy, batch)).square(), valid)
        weight = self.weights_of((local - expected).detach()[:, :-1], state[:, :-1], valid)
        log_prob = self.head.log_prob(output, batch["actions"], batch.get("available_actions"))[:, :-1]
        losses = {"critic": value_loss, "actor": -masked_mean(weight * log_prob, valid[..., None])}
        norms = {f"{k}_gradient_norm": self.gradient_step(k, v, self.config.gradient_clip) for k, v in losses.items()}
        self.finish_update()
        return {f"{name}_loss": loss.detach() for name, loss in losses.items()} | norms

    def policy_of(self, output: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """What `Critic` needs of the actor at every step: its probabilities, or the means of its actions."""
        legal = batch.get("available_actions")
        if legal is not None:  # of the last step: it may lie beyond the episode, whose last mask is wanted
            legal = torch.cat([legal[:, :1], batch["next_available_actions"][:, :-1]], dim=1)
        return torch.softmax(legal_logits(output, legal), -1) if self.spec.discrete else self.head.greedy(output, None)

    @torch.no_grad()
    def weights_of(self, advantage: Tensor, state: Tensor, valid: Tensor) -> Tensor:
        """How much each action of the data is cloned, (B, T, agent): 1 in the mean of equal agents."""
        share = self.networks["critic"].mixer.weights(state)[0] * self.spec.agents
        return share * balanced_softmax(advantage / self.config.temperature, valid[..., None])

    @torch.no_grad()
    def returns(self, seen: Tensor, state: Tensor, policy: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """(B, T) TD(lambda) returns of the data's own next actions, good ones weighted up."""
        slow, goes_on = self.targets["critic"].model, batch["transition_valid"]
        following = slow.mixer(torch.where(goes_on[..., None], *slow(seen, batch["actions"], policy)), state)[:, 1:]
        following = following * balanced_softmax(following / self.config.value_temperature, goes_on[:, :-1])
        return lambda_returns(
            self.team_rewards(batch)[:, :-1], batch["terminated"][:, :-1], following, goes_on[:, :-1],
            self.config.discount, self.config.td_lambda,
        )  # fmt: skip

    def policy(self) -> NetworkPolicy:
        return self.acting_with(self.targets["actor"].model, self.head)


def balanced_softmax(values: Tensor, valid: Tensor) -> Tensor:
    """Softmax over all valid entries of batch and time, times their number, so that the mean weight is 1.

    values (B, T, ...), valid broadcastable; trailing axes (agents) are normalised each on their own.
    """
    valid = valid.expand(values.shape)
    rows = values.masked_fill(~valid, float("-inf")).flatten(0, 1)
    count = valid.flatten(0, 1).sum(0)
    return torch.where(valid, (torch.softmax(rows, 0) * count).view(values.shape), 0.0)


def make(config: Config, spec: EnvironmentSpec, device: torch.device, seed: int) -> MAICQ:
    return MAICQ(config, spec, device, seed)
