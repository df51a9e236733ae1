"""Mixers: the agents' values to the team's, with weights that depend on the state and are never negative.

Because the team's value grows with every agent's, the agents' own best actions are together the team's best.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from madiff.diffusion.networks.mlp import mlp


class MonotonicMixer(nn.Module):
    """QMIX's mixer (arXiv 1803.11485, section 4.1): Q_tot = |W2(s)| elu(|W1(s)| q + b1(s)) + b2(s).

    features: length of the state; width: of the mixing layer; hyper_width: hidden layer of the networks that give
    W1, W2 and b2.
    """

    def __init__(self, agents: int, features: int, width: int = 32, hyper_width: int = 64) -> None:
        super().__init__()
        self.first_weight = mlp((features, hyper_width, agents * width))
        self.first_bias = nn.Linear(features, width)
        self.last_weight = mlp((features, hyper_width, width))
        self.last_bias = mlp((features, width, 1))

    def forward(self, values: Tensor, state: Tensor) -> Tensor:
        """values (..., agent), state (..., features) -> (...)."""
        return self.many(values[..., None, :], state)[..., 0]

    def many(self, values: Tensor, state: Tensor) -> Tensor:
        """K joint values of every state, which is read once: (..., K, agent) and (..., features) -> (..., K)."""
        first = self.first_weight(state).abs().unflatten(-1, (values.shape[-1], -1))
        hidden = F.elu(values @ first + self.first_bias(state)[..., None, :])
        return (hidden @ self.last_weight(state).abs()[..., None])[..., 0] + self.last_bias(state)


class LinearMixer(nn.Module):
    """Q_tot = sum_i w_i(s) q_i + b(s) with w >= 0 (ICQ, arXiv 2106.03400, section 4.2; OMIGA, arXiv 2307.11620, eq. 6).

    normalised: the weights of every state sum to 1, as ICQ's; otherwise they are free, as OMIGA's.
    """

    def __init__(self, agents: int, features: int, hyper_width: int = 64, normalised: bool = False) -> None:
        super().__init__()
        self.normalised = normalised
        self.hidden = nn.Sequential(nn.Linear(features, hyper_width), nn.ReLU())
        self.weight, self.bias = nn.Linear(hyper_width, agents), nn.Linear(hyper_width, 1)

    def weights(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """state (..., features) -> w (..., agent) and b (...)."""
        hidden = self.hidden(state)
        weight = self.weight(hidden)
        weight = torch.softmax(weight, -1) if self.normalised else weight.abs()
        return weight, self.bias(hidden)[..., 0]

    def forward(self, values: Tensor, state: Tensor) -> Tensor:
        """values (..., agent), state (..., features) -> (...)."""
        weight, bias = self.weights(state)
        return (weight * values).sum(-1) + bias
