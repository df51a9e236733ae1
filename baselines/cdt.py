"""CDT, the constrained decision transformer (arXiv 2302.07351): asked for a return and a cost, it acts to get both.

A causal transformer shared by all agents reads, for each of the agent's own last `context` steps, the return still
wanted, the cost still allowed to the team, the observation and the action. The action is a normal distribution (or one
of the legal ones) cloned from the data, with an entropy bonus of learnt weight; whether a step will cost is predicted
beside it. Cheap episodes are seen more often; some come a second time with targets beyond what they reached. Acting,
cost and reward of every step are taken off what is left (`pay`, `receive`); the cost may fall below zero.

Deviations from OSRL's code (arXiv 2306.09303): the return asked for is not set by hand for each task but the best of
the data's episodes within the budget, times `target_return`; what is to come is in units of the data's range; episodes
are drawn up to twice the budget, if that is more than 70 (there never above 70, even for a budget of 80); relabelled
targets stay with the episodes chosen for them (there the lists are in different orders), their ranges are shares of
the returns' range; no dropout, a mean through a tanh; width, layers, learning rate, batch and updates are this suite's,
with weight averaging; inputs are normalised.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from baselines.acting import Gaussian, NetworkPolicy, stochastic_head
from baselines.constrained import as_rewards, check_budget, episode_costs, team_costs
from baselines.cost_return_frontier import Frontier, TargetedWindows, relabelled
from baselines.madt import CausalBlock, ReturnScale
from madiff.data.encoding import ObservationEncoder
from madiff.data.store import EpisodeStore
from madiff.data.windows import WindowSampler
from madiff.diffusion.ema import EMA
from madiff.diffusion.training import GradientLearner
from madiff.interfaces import EnvironmentSpec, UserError, within
from madiff.values import masked_mean

NAME = "cdt"
TEMPERATURE, TEMPERATURE_RATE = 0.1, 1e-4  # of the entropy bonus, as released


@dataclass
class Config:
    """batch_size: in transitions. augment: share of episodes that come again with other targets; degree: of the
    polynomial through the Pareto points; margin, reach, drop: how far above it targets begin, how far above the best
    return they end, and how much less an episode may return than the one nearest, in shares of the returns' range.
    """

    steps: int = 4000
    batch_size: int = 512
    learning_rate: float = within(0.0, math.inf, 1e-3)
    weight_decay: float = within(0.0, math.inf, 1e-4)
    warm_up: int = within(0, math.inf, 500)
    gradient_clip: float = within(0.0, math.inf, 0.25)
    width: int = 64
    layers: int = 3
    heads: int = 4
    context: int = 10
    cost_weight: float = within(0.0, math.inf, 0.02)
    ceiling: float = within(0.0, math.inf, 70.0)
    augment: float = within(0.0, 1.0, 0.2)
    degree: int = within(0, 6, 1)
    margin: float = within(0.0, math.inf, 0.02)
    reach: float = within(0.0, math.inf, 0.1)
    drop: float = within(0.0, math.inf, 0.15)
    normalizer: str = "cdf"
    ema_decay: float = within(0.0, 1.0, 0.995)
    ema_every: int = 5
    ema_start: int = within(0, math.inf, 500)
    cost_limit: float = within(0.0, math.inf, 20.0)
    target_return: float = 1.0
    acting: str = "greedy"
    common_noise: bool = False

    ACTING: ClassVar[tuple[str, ...]] = ("acting", "common_noise", "target_return", "cost_limit")


class CDTNetwork(nn.Module):
    """Four tokens a step, in this order: return to come, cost to come, observation, action.

    A row of x holds [observation (inputs), return, cost, time]; length: steps that have an embedding of their own.
    """

    def __init__(
        self, inputs: int, actions: int, outputs: int, width: int, layers: int, heads: int, context: int, length: int
    ) -> None:  # fmt: skip
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} does not fit {heads} heads; allowed: multiples of {heads}")
        self.context, self.sizes = context, [inputs, 1, 1, 1]
        self.observation, self.action = nn.Linear(inputs, width), nn.Linear(actions, width)
        self.wanted, self.allowed = nn.Linear(1, width), nn.Linear(1, width)
        self.time, self.embedded = nn.Embedding(length, width), nn.LayerNorm(width)
        self.blocks = nn.Sequential(*(CausalBlock(width, heads) for _ in range(layers)), nn.LayerNorm(width))
        self.outputs, self.costs = nn.Linear(width, outputs), nn.Linear(width, 2)

    def heard(self, x: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, T, agent, inputs + 3) and actions (B, T, agent, A), T <= context.

        Returns what to do (B, T, agent, outputs), blind to this step's action, and logits (B, T, agent, 2) of whether
        the step costs.
        """
        seen, wanted, allowed, time = x.transpose(1, 2).flatten(0, 1).split(self.sizes, -1)
        done = actions.transpose(1, 2).flatten(0, 1)
        clock = self.time(time[..., 0].long().clamp(max=self.time.num_embeddings - 1))
        tokens = (self.wanted(wanted), self.allowed(allowed), self.observation(seen), self.action(done))
        tokens = torch.stack([token + clock for token in tokens], dim=2)
        heard = self.blocks(self.embedded(tokens).flatten(1, 2)).unflatten(1, tokens.shape[1:3])
        acting, costing = self.outputs(heard[:, :, 2]), self.costs(heard[:, :, 3])
        batch = (len(x), -1)
        return acting.unflatten(0, batch).transpose(1, 2), costing.unflatten(0, batch).transpose(1, 2)

    def forward(self, x: Tensor, past: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Step by step, each row of x (B, T, agent, inputs + 3 + A) ending with the action of the step before.

        Returns (B, T, agent, outputs), and the last `context` rows for the next call.
        """
        seen = (x if past is None else torch.cat([past, x], dim=1))[:, -self.context :]
        rows, before = seen.split([sum(self.sizes), seen.shape[-1] - sum(self.sizes)], -1)
        actions = torch.cat([before[:, 1:], torch.zeros_like(before[:, :1])], dim=1)  # the last one is not known yet
        return self.heard(rows, actions)[0][:, -x.shape[1] :], seen


class Temperature(nn.Module):
    """Weight of the entropy bonus, which falls while the entropy is above `least` and rises below it."""

    logarithm: Tensor

    def __init__(self, least: float) -> None:
        super().__init__()
        self.least = least
        self.register_buffer("logarithm", torch.tensor(math.log(TEMPERATURE)))

    def forward(self, entropy: Tensor) -> Tensor:
        """The bonus for an entropy, a number, to which the weight then adapts."""
        weight = self.logarithm.exp()
        self.logarithm.sub_(TEMPERATURE_RATE * weight * (entropy.detach() - self.least))
        return weight * entropy


class CDT(GradientLearner):
    """Learner of the constrained decision transformer."""

    def __init__(self, config: Config, spec: EnvironmentSpec, device: torch.device, seed: int) -> None:
        check_budget(config.cost_limit)
        if config.context < 1:
            raise UserError(f"is {config.context}", "algo.context", "at least 1")
        self.config, self.spec, self.device, self.seed = config, spec, device, seed
        self.head = stochastic_head(spec)
        self.encoder = ObservationEncoder(spec.agents, spec.observation_size, config.normalizer)
        self.returns, self.costs, self.frontier = ReturnScale(), ReturnScale(), Frontier()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.network = CDTNetwork(
                self.encoder.features, spec.action_size, self.head.outputs, config.width, config.layers, config.heads,
                config.context, spec.episode_limit + config.context,
            ).to(device)  # fmt: skip
        sizes = spec.action_sizes or (spec.action_size,)
        self.temperature = Temperature(least=-sum(sizes) / len(sizes))
        fixed = {"encoder": self.encoder, "returns": self.returns, "costs": self.costs, "frontier": self.frontier,
                 "temperature": self.temperature}  # fmt: skip
        parameters, decay = self.network.parameters(), config.weight_decay
        super().__init__(
            self.network, nn.ModuleDict(fixed).to(device),
            torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=decay, fused=True),
            EMA(self.network, config.ema_decay, config.ema_every, config.ema_start),
        )  # fmt: skip

    def batches(self, store: EpisodeStore) -> TargetedWindows:
        config = self.config
        self.encoder.fit(store)
        self.returns.fit(store)
        self.costs.fit(as_rewards(store))
        if self.costs.high <= self.costs.low:
            self.costs.high.copy_(self.costs.low + 1)  # all episodes cost the same: keep the environment's units
        costs, returns = episode_costs(store), store.team_returns()
        self.frontier.fit(costs, returns)
        again, more_cost, more_return = self.relabelled(costs, returns)
        store = EpisodeStore.concatenate([store, store.subset(again)]) if len(again) else store
        before = torch.zeros(store.episodes - len(again))
        more_cost, more_return = torch.cat([before, more_cost]), torch.cat([before, more_return])
        windows = WindowSampler(
            store, history=0, horizon=config.context, batch_size=max(1, config.batch_size // config.context),
            device=self.device, observations=self.encoder.encode(store.observations.to(self.device)),
            extras=("rewards", "costs"), weights=self.weights_of(episode_costs(store) + more_cost, store.lengths),
        )  # fmt: skip
        return TargetedWindows(windows, store, more_cost, more_return)

    def relabelled(self, costs: Tensor, returns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Episodes that come again, and what is added to their costs and returns to come."""
        config, span = self.config, float(returns.max() - returns.min())
        again, more_cost, more_return = relabelled(
            costs.numpy(), returns.numpy(), share=config.augment, degree=config.degree, lowest=config.margin * span,
            highest=float(returns.max()) + config.reach * span, drop=config.drop * span,
            generator=np.random.default_rng(self.seed),
        )  # fmt: skip
        return torch.from_numpy(again), torch.from_numpy(more_cost), torch.from_numpy(more_return)

    def weights_of(self, costs: Tensor, lengths: Tensor) -> Tensor:
        """Episodes are drawn with probability ~ max(ceiling - cost, 0), starts uniformly; all alike where that is 0."""
        ceiling = max(self.config.ceiling, 2 * self.config.cost_limit)
        room = (ceiling - costs).clamp(min=0)
        return (room if bool((room > 0).any()) else torch.ones_like(room)) / lengths

    def update(self, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        costs = team_costs(batch["costs"])
        output, costing = self.network.heard(self.rows(batch, costs), self.before(batch["actions"]))
        valid = batch["transition_valid"][..., None].expand(output.shape[:-1])
        log_prob = self.head.log_prob(output, batch["actions"], batch.get("available_actions"))
        likelihood = masked_mean(log_prob, valid)
        paid = (costs > 0).long()[..., None].expand(output.shape[:-1])
        cost_loss = masked_mean(F.cross_entropy(costing.movedim(-1, 1), paid, reduction="none"), valid)
        loss = self.config.cost_weight * cost_loss - likelihood
        if isinstance(self.head, Gaussian):
            loss = loss - self.temperature(masked_mean(entropy(self.head, output), valid))
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * min(1.0, (self.updates + 1) / max(1, self.config.warm_up))
        norm = self.gradient_step(loss, self.config.gradient_clip)
        metrics = {"loss": loss, "likelihood": likelihood, "cost_loss": cost_loss, "gradient_norm": norm}
        return {name: value.detach() for name, value in metrics.items()}

    def rows(self, batch: dict[str, Tensor], costs: Tensor) -> Tensor:
        """What the network reads of every step: (B, T, agent, inputs + 3)."""
        observations = batch["observations"][:, :-1]
        wanted = batch["returns"][:, None] - (batch["rewards"].cumsum(1) - batch["rewards"])
        allowed = batch["costs_to_go"][:, None] - (costs.cumsum(1) - costs)
        time = batch["time"][:, None] + torch.arange(costs.shape[1], device=costs.device)
        others = [self.returns(wanted), self.costs(allowed)[..., None], time[..., None].float()]
        return torch.cat([observations, *(x.expand_as(wanted)[..., None] for x in others)], dim=-1)

    def before(self, actions: Tensor) -> Tensor:
        """Actions as the network reads them, (..., agent, A)."""
        return F.one_hot(actions, self.spec.action_size).float() if self.spec.discrete else actions

    def policy(self) -> CDTPolicy:
        return CDTPolicy(self, self.encoder, self.ema.model, self.head, self.config.acting, self.config.common_noise)


def entropy(head: Gaussian, output: Tensor) -> Tensor:
    """(...) entropy of the normal distribution over the dimensions that each agent has."""
    log_std = head.split(output)[1]
    return torch.where(head.real.to(output.device), log_std + 0.5 * math.log(2 * math.pi * math.e), 0.0).sum(-1)


class CDTPolicy(NetworkPolicy):
    """Remembers the last steps, and asks for what is left of the return and of the budget."""

    def __init__(self, learner: CDT, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.learner = learner

    def reset(self, seed: int, n: int) -> None:
        super().reset(seed, n)
        learner, config = self.learner, self.learner.config
        target = learner.frontier.within(config.cost_limit, config.target_return)
        self.wanted = target.expand(n, learner.spec.agents)
        self.allowed = torch.full((n,), config.cost_limit, device=learner.device)
        self.last = torch.zeros(n, learner.spec.agents, learner.spec.action_size, device=learner.device)
        self.steps = 0

    def receive(self, rewards: Tensor) -> None:
        """rewards (n, agent) of the last step."""
        self.wanted = self.wanted - rewards

    def pay(self, costs: Tensor) -> None:
        """costs (n, agent) of the last step."""
        self.allowed = self.allowed - team_costs(costs)

    def inputs(self, observations: Tensor) -> Tensor:
        encoded = super().inputs(observations)
        allowed = self.learner.costs(self.allowed)[:, None].expand_as(self.wanted)
        time = torch.full_like(self.wanted, self.steps)
        others = torch.stack([self.learner.returns(self.wanted), allowed, time], dim=-1)
        return torch.cat([encoded, others, self.last], dim=-1)

    def choose(self, output: Tensor, masks: Tensor | None) -> Tensor:
        actions = super().choose(output, masks)
        self.last, self.steps = self.learner.before(actions), self.steps + 1
        return actions


def make(config: Config, spec: EnvironmentSpec, device: torch.device, seed: int) -> CDT:
    return CDT(config, spec, device, seed)
