"""Exponential moving average of a model's weights."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class EMA:
    """`model` averages the given module: copied until step `start`, then ema = decay ema + (1 - decay) weights.

    The averaging happens at every `every`-th step. Buffers are copied, not averaged.
    """

    def __init__(self, model: nn.Module, decay: float = 0.995, every: int = 10, start: int = 2000) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay={decay} averages nothing; allowed: 0 <= decay < 1")
        self.source, self.decay, self.every, self.start = model, decay, every, start
        self.model = copy.deepcopy(model).requires_grad_(False).eval()

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the source's weights after training step `step` (counted from 0)."""
        if step >= self.start and step % self.every:
            return
        rate = 1.0 if step < self.start else 1.0 - self.decay
        averaged: list[Tensor] = [*self.model.parameters()]
        newest: list[Tensor] = [*self.source.parameters()]
        # Private, and yet all weights in one call: torch's own optimisers use it.
        torch._foreach_lerp_(averaged, newest, rate)  # pyright: ignore[reportPrivateImportUsage]
        for mine, theirs in zip(self.model.buffers(), self.source.buffers(), strict=True):
            mine.copy_(theirs)

    def state_dict(self) -> dict[str, Tensor]:
        """The averaged weights."""
        return self.model.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from averaged weights saved by `state_dict`."""
        self.model.load_state_dict(state)
