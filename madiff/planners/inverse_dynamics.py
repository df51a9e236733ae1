"""Inverse dynamics: the action that leads from one observation to the next (MADiff, arXiv 2305.17330, section 3.2)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from madiff.diffusion.networks.mlp import mlp
from madiff.diffusion.sharing import RowWise

SHARING = ("shared", "independent", "joint")


class AgentLinear(nn.Module):
    """One linear layer per agent, all in one batched product: (..., agent, inputs) -> (..., agent, outputs)."""

    def __init__(self, agents: int, inputs: int, outputs: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(inputs)
        self.weight = nn.Parameter(torch.empty(agents, inputs, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(agents, outputs).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("...ai,aio->...ao", x, self.weight) + self.bias


class InverseDynamics(RowWise):
    """Maps (o_t, o_{t+1}) to action logits or means.

    sharing: "shared" one network for all agents; "independent" one per agent; "joint" one network that sees all
    agents' observations. now, then (..., agent, F) -> (..., agent, outputs). shown (F,): what `then` is multiplied by,
    none for all ones.
    """

    def __init__(
        self, features: int, outputs: int, agents: int, width: int, sharing: str, shown: Tensor | None = None
    ) -> None:
        super().__init__()
        self.register_buffer("shown", shown, persistent=False)
        self.sharing, self.outputs = sharing, outputs
        if sharing == "shared":
            self.network = mlp([2 * features, width, width, outputs], nn.ReLU)
        elif sharing == "joint":
            self.network = mlp([2 * features * agents, width, width, outputs * agents], nn.ReLU)
        elif sharing == "independent":
            layers = [AgentLinear(agents, a, b) for a, b in ((2 * features, width), (width, width), (width, outputs))]
            self.network = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])
        else:
            raise ValueError(f"inverse dynamics sharing {sharing!r}; allowed: {', '.join(SHARING)}")

    def forward(self, now: Tensor, then: Tensor) -> Tensor:
        x = torch.cat([now, then if self.shown is None else self.shown * then], dim=-1)
        if self.sharing == "joint":
            return self.network(x.flatten(-2)).unflatten(-1, (x.shape[-2], self.outputs))
        return self.network(x)
