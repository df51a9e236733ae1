"""Continuous actions that nobody took, for critics that must be told not to overrate them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from madiff.interfaces import EnvironmentSpec


def real_dimensions(spec: EnvironmentSpec) -> Tensor:
    """(agent or 1, D) bool: the action dimensions each agent has; the others are padding, recorded as 0."""
    sizes = torch.tensor(spec.action_sizes or (spec.action_size,))
    return torch.arange(spec.action_size) < sizes[:, None]


def uniform_actions(
    like: Tensor, samples: int, generator: torch.Generator, real: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Actions uniform in [-1, 1]: (samples, ..., D) for like (..., D), and their log-density (samples, ...).

    real: bool, broadcastable to like: dimensions where it is false are padding, get 0 and carry no density.
    """
    actions = 2 * torch.rand((samples, *like.shape), generator=generator, device=like.device) - 1
    real = torch.ones_like(like, dtype=torch.bool) if real is None else real.expand(like.shape)
    log_density = real.sum(-1) * -math.log(2.0)
    return torch.where(real, actions, 0.0), log_density.expand(actions.shape[:-1])
