"""COptiDICE: the best stationary distribution near the data's whose cost is within the budget (arXiv 2204.08957).

nu(o) is the multiplier of the flow of states, lambda of the budget; with e = r - lambda c + g nu(o') - nu(o) every step
of the data gets the weight w = (f')^-1(e / alpha) > 0 of the optimal distribution, f the soft chi-squared
divergence. The cost held to the budget is an upper bound over distributions near the data, with chi(o) and tau as its
own multipliers. The policy clones the data with weights w. Constants of OSRL's code (arXiv 2306.09303).

Deviations: the cost of a normalised distribution is held to (1 - g) times the discounted budget, the same units (OSRL's
code holds it to the discounted budget itself, a hundred times as much at g = 0.99, so that it hardly ever binds);
rewards and costs are scaled, alpha is in units of the returns' spread; a time limit does not end an episode; the policy
is not squashed, widths, learning rates, batch and updates are this suite's, the averaged policy acts. Agents are
streams of their own which share the team's cost and lambda. Discrete actions work too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from baselines.acting import AgentNetwork, Categorical, NetworkPolicy, stochastic_head
from baselines.constrained import ConstrainedActorCritic, ConstrainedConfig, team_costs
from baselines.team import StochasticActing
from madiff.data.dsrl_scores import normalised_cost
from madiff.data.store import EpisodeStore
from madiff.data.windows import WindowSampler
from madiff.interfaces import EnvironmentSpec, within
from madiff.values import QEnsemble, Transitions

NAME = "coptidice"


@dataclass
class Config(StochasticActing, ConstrainedConfig):
    """alpha: weight of the divergence from the data; bound: KL radius of the cost's upper bound, 0 for the mean.

    scalar_learning_rate: of lambda and tau; noise: on what the policy is fitted to, in standard deviations.
    """

    alpha: float = within(1e-3, math.inf, 0.1)
    bound: float = within(0.0, math.inf, 0.01)
    scalar_learning_rate: float = within(0.0, math.inf, 3e-3)
    noise: float = within(0.0, math.inf, 0.1)


class Scalar(nn.Module):
    """A number above 0 that is learnt: softplus of a parameter that starts at 1."""

    def __init__(self) -> None:
        super().__init__()
        self.raw = nn.Parameter(torch.ones(()))

    def forward(self) -> Tensor:
        return F.softplus(self.raw)


class Starts(nn.Module):
    """Probability that a step of the data is its episode's first."""

    initial: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("initial", torch.ones(()))


def divergence(x: Tensor) -> Tensor:
    """Soft chi-squared f(x) for x >= 0: x ln x - x + 1 below 1, (x - 1)^2 / 2 above."""
    return torch.where(x < 1, torch.xlogy(x, x) - x + 1, 0.5 * (x - 1).square())


def inverse_slope(y: Tensor) -> Tensor:
    """(f')^-1(y): exp(y) below 0, y + 1 above."""
    return torch.where(y < 0, y.clamp(max=0).exp(), y + 1)


class COptiDICE(ConstrainedActorCritic):
    """Learner of COptiDICE."""

    config: Config
    slow = ("actor",)
    continuous = False

    def make_networks(self) -> dict[str, nn.Module]:
        self.head, features, width = stochastic_head(self.spec), self.encoder.features, self.config.width
        return {
            "actor": AgentNetwork(features, self.head.outputs, width),
            "nu": QEnsemble(features, 1, width),
            "chi": QEnsemble(features, 1, width),
            "lambda": Scalar(),
            "tau": Scalar(),
        }

    def learning_rate(self, name: str) -> float:
        return self.config.scalar_learning_rate if name in ("lambda", "tau") else self.config.learning_rate

    def memory(self) -> Mapping[str, nn.Module]:
        self.starts = Starts()
        return {"starts": self.starts}

    def batches(self, store: EpisodeStore) -> WindowSampler:
        source = super().batches(store)
        self.starts.initial.fill_(store.episodes / store.transitions)
        return source

    def update(self, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        steps, costs, initial = self.flows(batch)
        nu, weight = self.nu_loss(steps, costs, initial)
        losses, cost = self.bound_losses(steps, costs, initial, weight)
        losses |= {"nu": nu, "lambda": self.networks["lambda"]() * (self.step_limit() - cost)}
        metrics = self.descend(losses)
        metrics |= self.descend({"actor": self.actor_loss(steps, self.nu_loss(steps, costs, initial)[1], generator)})
        self.finish_update()
        spent = cost * self.cost_scale.scale / (1 - self.config.discount)
        metrics |= {"cost_in_limits": normalised_cost(spent, self.budget), "weight": weight.mean()}
        return metrics | {name: self.networks[name]().detach() for name in ("lambda", "tau")}

    def flows(self, batch: dict[str, Tensor]) -> tuple[Transitions, Tensor, Tensor]:
        """Steps, costs (B, agent) divided by their scale, and the weight (B, 1) of first steps, of mean 1."""
        steps = Transitions.of(batch, self.scale)
        costs = (team_costs(batch["costs"][:, 0]) / self.cost_scale.scale)[:, None].expand_as(steps.rewards)
        return steps, costs, (batch["time"] == 0).float()[:, None] / self.starts.initial

    def step_limit(self) -> Tensor:
        """Mean cost of a step under a discounted distribution that spends the budget, in scaled costs."""
        return (1 - self.config.discount) * self.budget / self.cost_scale.scale

    def following(self, name: str, steps: Transitions) -> tuple[Tensor, Tensor]:
        """The lesser value (B, agent) of network nu or chi now, and discounted at the next step, 0 after the end."""
        now = self.networks[name](steps.observations).amin(0)[..., 0]
        after = self.networks[name](steps.next_observations).amin(0)[..., 0]
        return now, self.config.discount * torch.where(steps.terminated[:, None], 0.0, after)

    def nu_loss(self, steps: Transitions, costs: Tensor, initial: Tensor) -> tuple[Tensor, Tensor]:
        """(1 - g) E[nu(o_0)] + E[w e - alpha f(w)], and the weights w (B, agent), at which its slope in w is 0."""
        now, after = self.following("nu", steps)
        advantage = steps.rewards - self.networks["lambda"]().detach() * costs + after - now
        weight = inverse_slope(advantage.detach() / self.config.alpha)
        gain = weight * advantage - self.config.alpha * divergence(weight)
        return (1 - self.config.discount) * (now * initial).mean() + gain.mean(), weight

    def bound_losses(
        self, steps: Transitions, costs: Tensor, initial: Tensor, weight: Tensor
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Losses of chi and tau, and the upper bound of the mean cost of a step."""
        if self.config.bound == 0:
            return {}, (weight * costs).mean()
        now, after = self.following("chi", steps)
        ell = (1 - self.config.discount) * now * initial + weight * (costs + after - now)
        tau = self.networks["tau"]()
        logarithm = torch.log_softmax((ell / tau).detach().flatten(), 0) + math.log(ell.numel())
        share = logarithm.exp()
        radius = (share * logarithm - share + 1).mean()
        losses = {"chi": (share * ell.flatten()).mean(), "tau": tau * (self.config.bound - radius)}
        return losses, (share * (weight * costs).flatten()).mean()

    def actor_loss(self, steps: Transitions, weight: Tensor, generator: torch.Generator) -> Tensor:
        """-mean of w log pi(a | o), with a little noise on what is seen and done."""
        observations, actions = self.blurred(steps.observations, generator), steps.actions
        if not isinstance(self.head, Categorical):
            actions = self.blurred(actions, generator)
        output = self.networks["actor"](observations[:, None])[0][:, 0]
        return -(weight * self.head.log_prob(output, actions, steps.available)).mean()

    def blurred(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """x (B, agent, features) plus noise; what is the same in the whole batch, as who an agent is, stays so."""
        noise = torch.randn(x.shape, generator=generator, device=generator.device).to(x.device)
        return x + self.config.noise * x.std(0, correction=0) * noise

    def policy(self) -> NetworkPolicy:
        config = self.config
        return NetworkPolicy(
            self.encoder, self.targets["actor"].model, self.head, config.acting, config.common_noise
        )  # fmt: skip


def make(config: Config, spec: EnvironmentSpec, device: torch.device, seed: int) -> COptiDICE:
    return COptiDICE(config, spec, device, seed)
