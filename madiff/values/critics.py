"""Ensembles of Q-networks, all members in one batched product."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class QEnsemble(nn.Module):
    """`critics` independent ReLU networks on the same input: (..., inputs) -> (critics, ..., outputs).

    Discrete form: outputs are the values of all actions, see `chosen`. State values: outputs = 1. Each member is
    initialised as `nn.Linear` is.
    """

    def __init__(self, inputs: int, outputs: int = 1, width: int = 128, layers: int = 2, critics: int = 2) -> None:
        super().__init__()
        sizes = (inputs, *[width] * layers, outputs)
        pairs = list(zip(sizes[:-1], sizes[1:], strict=True))
        self.critics = critics
        self.weights = nn.ParameterList(uniform(fan_in, (critics, fan_in, fan_out)) for fan_in, fan_out in pairs)
        self.biases = nn.ParameterList(uniform(fan_in, (critics, 1, fan_out)) for fan_in, fan_out in pairs)

    def forward(self, x: Tensor, members: int | None = None) -> Tensor:
        """members: only the first so many critics, None for all."""
        weights, biases = [w[:members] for w in self.weights], [b[:members] for b in self.biases]
        hidden = torch.baddbmm(biases[0], rows(x, len(weights[0])), weights[0])
        values = above(hidden, weights, biases)
        return values.reshape(len(values), *x.shape[:-1], values.shape[-1])


class ActionCritic(QEnsemble):
    """Continuous form Q(o, a): observations (..., F) and actions (..., D) -> (critics, ...)."""

    def __init__(self, features: int, action_size: int, width: int = 128, layers: int = 2, critics: int = 2) -> None:
        super().__init__(features + action_size, 1, width, layers, critics)

    def forward(self, observations: Tensor, actions: Tensor, members: int | None = None) -> Tensor:
        return super().forward(torch.cat([observations, actions], dim=-1), members)[..., 0]

    def many(self, observations: Tensor, actions: Tensor, members: int | None = None) -> Tensor:
        """Values of K actions for each observation: (..., F) and (K, ..., D) -> (critics, K, ...).

        The first layer reads every observation once, not K times.
        """
        weights, biases = [w[:members] for w in self.weights], [b[:members] for b in self.biases]
        critics, sizes = len(weights[0]), [observations.shape[-1], actions.shape[-1]]
        seen_weight, done_weight = weights[0].split(sizes, dim=1)
        seen = torch.baddbmm(biases[0], rows(observations, critics), seen_weight)
        done = rows(actions, critics) @ done_weight
        hidden = (done.unflatten(1, (len(actions), -1)) + seen[:, None]).flatten(1, 2)
        return above(hidden, weights, biases).reshape(critics, *actions.shape[:-1])


def rows(x: Tensor, critics: int) -> Tensor:
    """(..., F) -> (critics, rows, F), the same for every critic."""
    return x.reshape(-1, x.shape[-1]).expand(critics, -1, -1)


def above(hidden: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
    """All layers above the first, from its output (critics, rows, width) before the activation."""
    for weight, bias in zip(weights[1:], biases[1:], strict=True):
        hidden = torch.baddbmm(bias, torch.relu(hidden), weight)
    return hidden


def chosen(values: Tensor, actions: Tensor) -> Tensor:
    """The values (..., n) of the actions taken (...), int64; leading axes of values may go beyond those of actions."""
    return values.gather(-1, actions.expand(values.shape[:-1])[..., None])[..., 0]


def uniform(fan_in: int, shape: tuple[int, ...]) -> Tensor:
    """Values in +-1 / sqrt(fan_in), as `nn.Linear` starts."""
    return torch.empty(shape).uniform_(-(fan_in**-0.5), fan_in**-0.5)
