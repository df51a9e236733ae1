"""Acting, shared by all baselines: the agents' network, what its output says about actions, and the policy of both.

One network serves all agents; its input tells it which agent it acts for (`ObservationEncoder`). A head turns the
network's output into an action: `Categorical`, `Deterministic` or `Gaussian`.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor, nn

from madiff.data.encoding import ObservationEncoder
from madiff.diffusion.networks.action_head import greedy_action, legal_logits
from madiff.interfaces import EnvironmentSpec, UserError

ACTING = ("greedy", "sample")
LOG_STD = (-4.0, 0.0)  # of a Gaussian over actions in [-1, 1]
SMALLEST_UNIFORM = 1e-7


class AgentNetwork(nn.Module):
    """Two hidden layers shared by all agents: (B, T, agent, inputs) -> (B, T, agent, outputs).

    recurrent: a GRU between the layers, over each agent's own time steps.
    """

    def __init__(self, inputs: int, outputs: int, width: int, recurrent: bool = False) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(inputs, width), nn.ReLU())
        self.memory = nn.GRU(width, width, batch_first=True) if recurrent else None
        self.last = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, outputs))

    def forward(self, x: Tensor, hidden: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """hidden (1, B * agent, width): the memory so far, None to start anew."""
        x = self.first(x)
        if self.memory is not None:
            batch, agents = x.shape[0], x.shape[2]
            y, hidden = self.memory(x.transpose(1, 2).flatten(0, 1), hidden)
            x = y.unflatten(0, (batch, agents)).transpose(1, 2)
        return self.last(x), hidden


class Head(Protocol):
    """What a network's output (..., outputs) says about an action; available (..., n) bool or None.

    outputs: how many numbers the network gives; draws: how many uniform numbers a sampled action takes.
    """

    outputs: int
    draws: int

    def greedy(self, output: Tensor, available: Tensor | None) -> Tensor: ...

    def sample(self, output: Tensor, available: Tensor | None, uniform: Tensor) -> Tensor:
        """uniform (..., draws) in [0, 1), broadcast over agents: equal numbers make equal agents act equally."""
        ...


class Categorical:
    """Logits, or values, of n discrete actions; actions are (...) int64."""

    def __init__(self, actions: int) -> None:
        self.outputs = self.draws = actions

    def greedy(self, output: Tensor, available: Tensor | None) -> Tensor:
        return greedy_action(output, available, discrete=True)

    def sample(self, output: Tensor, available: Tensor | None, uniform: Tensor) -> Tensor:
        gumbel = -torch.log(-torch.log(uniform.clamp(min=1e-20)))
        return (legal_logits(output, available) + gumbel).argmax(-1)

    def log_prob(self, output: Tensor, actions: Tensor, available: Tensor | None) -> Tensor:
        """(...) log-probability among legal actions."""
        return torch.log_softmax(legal_logits(output, available), -1).gather(-1, actions[..., None])[..., 0]


class Deterministic:
    """The tanh of the output is the action (..., A); a sample of it is the same."""

    def __init__(self, actions: int) -> None:
        self.outputs = self.draws = actions

    def greedy(self, output: Tensor, available: Tensor | None) -> Tensor:
        return torch.tanh(output)

    def sample(self, output: Tensor, available: Tensor | None, uniform: Tensor) -> Tensor:
        return torch.tanh(output)


class Gaussian:
    """A normal distribution about tanh(mean) in each dimension, clipped to [-1, 1]; output = [mean, log std].

    Not squashed, as in IQL (arXiv 2110.06169, released code): the density at actions of exactly -1 and 1 stays finite.
    sizes: dimensions each agent really has, empty where all have all; others are padding, 0 and without density.
    """

    def __init__(self, actions: int, sizes: tuple[int, ...] = ()) -> None:
        self.outputs, self.draws = 2 * actions, actions
        self.real = torch.arange(actions) < torch.tensor(sizes or [actions])[:, None]  # (agent or 1, A)

    def split(self, output: Tensor) -> tuple[Tensor, Tensor]:
        """Mean in (-1, 1) and logarithm of the standard deviation, (..., A) each."""
        mean, spread = output.chunk(2, dim=-1)
        low, high = LOG_STD
        return torch.tanh(mean) * self.real.to(mean.device), low + (high - low) * torch.sigmoid(spread)

    def greedy(self, output: Tensor, available: Tensor | None) -> Tensor:
        return self.split(output)[0]

    def sample(self, output: Tensor, available: Tensor | None, uniform: Tensor) -> Tensor:
        mean, log_std = self.split(output)
        normal = torch.special.ndtri(uniform.clamp(SMALLEST_UNIFORM, 1 - SMALLEST_UNIFORM))
        return (mean + log_std.exp() * normal * self.real.to(mean.device)).clamp(-1, 1)

    def log_prob(self, output: Tensor, actions: Tensor, available: Tensor | None = None) -> Tensor:
        """(..., agent) logarithm of the density of actions (..., agent, A) before clipping."""
        mean, log_std = self.split(output)
        density = -0.5 * ((actions - mean) / log_std.exp()).square() - log_std - 0.5 * math.log(2 * math.pi)
        return torch.where(self.real.to(actions.device), density, 0.0).sum(-1)


def stochastic_head(spec: EnvironmentSpec) -> Categorical | Gaussian:
    """The head of a policy whose density is trained."""
    return Categorical(spec.action_size) if spec.discrete else Gaussian(spec.action_size, spec.action_sizes)


def deterministic_head(spec: EnvironmentSpec) -> Categorical | Deterministic:
    """The head of a policy that is trained to give one action; logits or values where actions are discrete."""
    return Categorical(spec.action_size) if spec.discrete else Deterministic(spec.action_size)


class NetworkPolicy:
    """Acts step by step with a network (x, hidden) -> (output, hidden), whose memory it carries along.

    acting: greedy (the most probable action, or the mean) or sample. common_noise: sampled actions of all agents of
    one environment copy come from the same uniform numbers, which costs no communication; other copies have others.
    """

    network_calls_per_decision = 1

    def __init__(
        self, encoder: ObservationEncoder, network: nn.Module, head: Head, acting: str = "greedy",
        common_noise: bool = False,
    ) -> None:  # fmt: skip
        if acting not in ACTING:
            raise UserError(f"unknown value {acting!r}", "algo.acting", ACTING)
        self.encoder, self.network, self.head = encoder, network, head
        self.acting, self.common_noise = acting, common_noise
        self.parameters = sum(p.numel() for p in network.parameters())

    def reset(self, seed: int, n: int) -> None:
        self.generator = torch.Generator(next(self.network.parameters()).device).manual_seed(seed)
        self.hidden: Tensor | None = None

    @torch.no_grad()
    def act(self, observations: Tensor, masks: Tensor | None, active: Tensor | None = None) -> Tensor:
        output, self.hidden = self.network(self.inputs(observations)[:, None], self.hidden)
        return self.choose(output[:, 0], masks)

    def inputs(self, observations: Tensor) -> Tensor:
        """What the network reads of observations (n, agent, O): (n, agent, inputs)."""
        return self.encoder.encode(observations)

    def choose(self, output: Tensor, masks: Tensor | None) -> Tensor:
        """output (n, agent, outputs) -> actions (n, agent) int64 or (n, agent, A)."""
        if self.acting == "greedy":
            return self.head.greedy(output, masks)
        rows, agents = output.shape[:2]
        shape = (rows, 1 if self.common_noise else agents, self.head.draws)
        uniform = torch.rand(shape, generator=self.generator, device=output.device)
        return self.head.sample(output, masks, uniform)
