"""Losses of critics that are learnt from data alone."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from madiff.diffusion.networks.action_head import legal_logits


def masked_mean(values: Tensor, valid: Tensor | None = None) -> Tensor:
    """Mean over the entries where valid (bool, broadcastable) holds; 0 if there are none; over all without it."""
    if valid is None:
        return values.mean()
    valid = valid.expand(values.shape)
    return torch.where(valid, values, 0.0).sum() / valid.sum().clamp(min=1)


def expectile_loss(difference: Tensor, expectile: float) -> Tensor:
    """|expectile - 1(u < 0)| u^2 of every difference u = target - estimate (IQL, arXiv 2110.06169, eq. 5)."""
    return torch.where(difference < 0, 1 - expectile, expectile) * difference.square()


def conservative_penalty(
    candidates: Tensor, data: Tensor, *, available: Tensor | None = None, log_density: Tensor | None = None
) -> Tensor:
    """How far a soft maximum over actions exceeds the value of the action taken (CQL, arXiv 2006.04779, eq. 4).

    candidates (..., K): values of K actions; data (...): value of the action taken; returns (...).
    Discrete: candidates are all actions, available (..., K) bool the legal ones: log sum_a exp Q(a) - Q(a_data).
    Continuous: candidates are drawn from proposals with log_density (..., K): the importance-weighted estimate of
    log of the integral of exp Q (same reference, app. F) less Q(a_data).
    """
    if available is not None:
        candidates = legal_logits(candidates, available)
    if log_density is not None:
        candidates = candidates - log_density - math.log(candidates.shape[-1])
    return candidates.logsumexp(-1) - data
