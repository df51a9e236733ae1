"""What critics regress on: slow copies of networks and bootstrapped returns."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class Target:
    """`model` follows the given module: m <- m + rate (source - m) at every `every`-th update.

    rate < 1: Polyak averaging (arXiv 1509.02971); rate = 1 with every > 1: the periodic copy of DQN.
    """

    def __init__(self, source: nn.Module, rate: float = 0.005, every: int = 1) -> None:
        if not 0 < rate <= 1:
            raise ValueError(f"target rate {rate} does not follow; allowed: 0 < rate <= 1")
        self.source, self.rate, self.every = source, rate, every
        self.model = copy.deepcopy(source).requires_grad_(False)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Follow the source after training step `step`, counted from 1."""
        if step % self.every == 0:
            torch._foreach_lerp_(list(self.model.parameters()), list(self.source.parameters()), self.rate)


def td_target(rewards: Tensor, terminated: Tensor, next_values: Tensor, discount: float) -> Tensor:
    """r + discount V(s') where the episode goes on, r where it terminated; truncation is not termination.

    rewards, next_values (..., agent); terminated (...) bool, without the agent axis.
    """
    return rewards + discount * torch.where(terminated[..., None], 0.0, next_values)


def lambda_returns(
    rewards: Tensor, terminated: Tensor, next_values: Tensor, valid: Tensor, discount: float, decay: float
) -> Tensor:
    """TD(lambda) returns of every step of a sequence (Sutton and Barto, eq. 12.20), lambda = `decay`.

    G_t = r_t + discount ((1 - decay) V(s_{t+1}) + decay G_{t+1}), with G_{t+1} = V(s_{t+1}) past the last valid step
    and no future after a termination. rewards, next_values (B, T, ...): next_values[:, t] = V(s_{t+1});
    terminated, valid (B, T) bool. Entries that are not valid are meaningless but finite.
    """
    returns, following = torch.empty_like(next_values), next_values[:, -1]
    trailing = (...,) + (None,) * (rewards.ndim - 2)
    goes_on = torch.cat([valid[:, 1:], torch.zeros_like(valid[:, :1])], dim=1)
    for t in reversed(range(rewards.shape[1])):
        value = next_values[:, t]
        future = torch.where(goes_on[:, t][trailing], torch.lerp(value, following, decay), value)
        following = rewards[:, t] + discount * torch.where(terminated[:, t][trailing], 0.0, future)
        returns[:, t] = following
    return returns
