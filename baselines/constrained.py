"""What the safe offline baselines share: the budget, the team's cost and its scale, and the Lagrange multiplier.

A budget is the largest cost an episode may have, summed over its steps: one budget holds for the team, whose cost is
the mean over agents, as in every report. Rewards are each agent's own. Cost critics bootstrap past a time limit and
not past a termination, as reward critics do.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from madiff.data.dsrl_scores import discounted_limit, normalised_cost
from madiff.data.encoding import ObservationEncoder
from madiff.data.store import EpisodeStore
from madiff.data.windows import WindowSampler, returns_to_go
from madiff.interfaces import EnvironmentSpec, UserError, within
from madiff.values import ActorCritic, RewardScale, Target, Transitions, real_dimensions, transition_source


def team_costs(costs: Tensor) -> Tensor:
    """(..., agent) -> (...): what a step costs the team, the mean over agents."""
    return costs.mean(-1)


def episode_costs(store: EpisodeStore) -> Tensor:
    """(E,) float64: undiscounted sum of the team's costs in each episode."""
    return as_rewards(store).team_returns()


def as_rewards(store: EpisodeStore) -> EpisodeStore:
    """The same episodes with the team's cost in place of every agent's reward."""
    return replace(store, rewards=team_costs(store.costs)[:, None].repeat(1, store.agents))


def costs_to_go(store: EpisodeStore, discount: float = 1.0) -> Tensor:
    """(sum T,) float32: discounted sum of the team's costs from every transition to the end of its episode."""
    return returns_to_go(as_rewards(store), discount)[:, 0]


def check_budget(limit: float) -> None:
    """Raises UserError for a budget below zero, or one that is no number."""
    if not limit >= 0:
        raise UserError(f"is {limit}", "algo.cost_limit", "a cost per episode of at least 0")


def within_budget(store: EpisodeStore, limit: float) -> EpisodeStore:
    """The episodes that cost at most `limit`; raises UserError if there are none."""
    costs = episode_costs(store)
    if not bool((costs <= limit).any()):
        cheapest = f"at least {float(costs.min()):g}, the cost of the cheapest episode"
        raise UserError(f"no episode of the data costs {limit:g} or less", "algo.cost_limit", cheapest)
    return store.subset((costs <= limit).nonzero()[:, 0])


class CostScale(RewardScale):
    """Brings the team's costs to the range critics learn best in, and budgets into the same units."""

    def fit(self, store: EpisodeStore, discount: float, weights: Tensor | None = None) -> None:
        super().fit(as_rewards(store), discount, weights)

    def scaled(self, value: Tensor | float, discount: float) -> Tensor:
        """A discounted sum of costs, in real units, as a critic of scaled costs has it."""
        return (value - self.shift / (1 - discount)) / self.scale

    def real(self, value: Tensor, discount: float) -> Tensor:
        """A value of a critic of scaled costs as a discounted sum of costs in real units."""
        return value * self.scale + self.shift / (1 - discount)


class PIDMultiplier(nn.Module):
    """Lagrange multiplier from a PID controller of how far the cost exceeds its limit (arXiv 2007.03964).

    m = max(0, kp max(0, e) + ki I + kd max(0, e - e_before)) with I <- max(0, I + e). multiplier: the last one.
    """

    integral: Tensor
    before: Tensor
    multiplier: Tensor

    def __init__(self, proportional: float, integral: float, derivative: float) -> None:
        super().__init__()
        self.gains = (proportional, integral, derivative)
        for name in ("integral", "before", "multiplier"):
            self.register_buffer(name, torch.zeros(()))

    @torch.no_grad()
    def forward(self, error: Tensor) -> Tensor:
        """Take in the error of this update, a number, and return the multiplier, at least 0."""
        proportional, integral, derivative = self.gains
        rise = (error - self.before).clamp(min=0)
        self.integral.copy_((self.integral + error).clamp(min=0))
        self.before.copy_(error)
        control = proportional * error.clamp(min=0) + integral * self.integral + derivative * rise
        self.multiplier.copy_(control.clamp(min=0))
        return self.multiplier.clone()


@dataclass
class ConstrainedConfig:
    """Options of every safe baseline with critics. cost_limit: the team's cost budget per episode."""

    steps: int = 4000
    batch_size: int = 256
    learning_rate: float = within(0.0, math.inf, 1e-3)
    gradient_clip: float = within(0.0, math.inf, 10.0)
    width: int = 128
    normalizer: str = "cdf"
    discount: float = within(0.0, 0.9999, 0.99)
    target_rate: float = within(1e-6, 1.0, 0.02)
    cost_limit: float = within(0.0, math.inf, 20.0)


class ConstrainedActorCritic(ActorCritic):
    """Base of the learners: encoder, scales, data and slow copies; a method adds `make_networks` and `update`.

    slow: names of the networks that a Polyak average follows. continuous: whether discrete actions are refused.
    """

    slow: ClassVar[tuple[str, ...]] = ()
    continuous: ClassVar[bool] = True

    def __init__(self, config: ConstrainedConfig, spec: EnvironmentSpec, device: torch.device, seed: int) -> None:
        check_budget(config.cost_limit)
        if spec.discrete and self.continuous:
            raise UserError(f"{spec.name} has discrete actions", "algo", "environments with continuous actions")
        self.config, self.spec, self.device = config, spec, device
        self.encoder = ObservationEncoder(spec.agents, spec.observation_size, config.normalizer).to(device)
        self.scale, self.cost_scale = RewardScale().to(device), CostScale().to(device)
        self.real = real_dimensions(spec).to(device)
        self.budget = discounted_limit(config.cost_limit, config.discount, spec.episode_limit)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            networks = {name: network.to(device) for name, network in self.make_networks().items()}
        fixed = {"encoder": self.encoder, "scale": self.scale, "cost_scale": self.cost_scale}
        super().__init__(
            networks, {name: self.learning_rate(name) for name in networks},
            fixed=fixed | {name: module.to(device) for name, module in self.memory().items()},
            targets={name: Target(networks[name], config.target_rate) for name in self.slow},
        )  # fmt: skip

    @abstractmethod
    def make_networks(self) -> dict[str, nn.Module]:
        """Everything that is trained, by name; `encoder.features` is the size of an observation."""

    def learning_rate(self, name: str) -> float:
        """Of the network `name`."""
        return self.config.learning_rate

    def memory(self) -> Mapping[str, nn.Module]:
        """Modules without gradients whose buffers belong to the weights."""
        return {}

    def batches(self, store: EpisodeStore) -> WindowSampler:
        self.scale.fit(store, self.config.discount)
        self.cost_scale.fit(store, self.config.discount)
        return transition_source(store, self.encoder, self.config.batch_size, self.device, extras=("costs",))

    def constrained_steps(self, batch: dict[str, Tensor]) -> tuple[Transitions, Tensor]:
        """The steps of a batch, and the team's scaled costs, the same for all agents, (B, agent)."""
        steps = Transitions.of(batch, self.scale)
        costs = self.cost_scale(team_costs(batch["costs"][:, 0]))[:, None]
        return steps, costs.expand_as(steps.rewards)

    def limit(self, share: float = 1.0) -> Tensor:
        """This share of the discounted budget, in the units of a critic of scaled costs."""
        return self.cost_scale.scaled(share * self.budget, self.config.discount)

    def cost_in_limits(self, value: Tensor) -> Tensor:
        """Mean of cost values as multiples of the budget, a metric: at most 1 where the budget is expected to hold."""
        return normalised_cost(self.cost_scale.real(value.detach().mean(), self.config.discount), self.budget)

    def descend(self, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """One step of every named network on its loss; the losses and gradient norms as metrics."""
        norms = {f"{k}_gradient_norm": self.gradient_step(k, v, self.config.gradient_clip) for k, v in losses.items()}
        return {f"{name}_loss": loss.detach() for name, loss in losses.items()} | norms


class CandidatePolicy:
    """Every agent draws several actions of its own and executes the one with the highest score.

    propose: encoded observations (n, agent, F) and a generator -> actions (K, n, agent, D); score: of these,
    (K, n, agent). calls: network calls a decision takes.
    """

    def __init__(
        self, encoder: ObservationEncoder, propose: Callable[[Tensor, torch.Generator], Tensor],
        score: Callable[[Tensor, Tensor], Tensor], networks: tuple[nn.Module, ...], calls: int,
    ) -> None:  # fmt: skip
        self.encoder, self.propose, self.score = encoder, propose, score
        self.parameters = sum(p.numel() for network in networks for p in network.parameters())
        self.device = next(networks[0].parameters()).device
        self.network_calls_per_decision = calls

    def reset(self, seed: int, n: int) -> None:
        self.generator = torch.Generator(self.device).manual_seed(seed)

    @torch.no_grad()
    def act(self, observations: Tensor, masks: Tensor | None, active: Tensor | None = None) -> Tensor:
        encoded = self.encoder.encode(observations)
        actions = self.propose(encoded, self.generator)
        best = self.score(encoded, actions).argmax(0)
        return actions.take_along_dim(best[None, ..., None], dim=0)[0]
