"""Single steps (o, a, r, o') of all agents, as every one-step critic reads them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from madiff.data.encoding import ObservationEncoder
from madiff.data.store import EpisodeStore
from madiff.data.windows import WindowSampler
from madiff.values.scaling import RewardScale

EXTRAS = ("rewards", "terminated", "next_available_actions")


class Transitions(NamedTuple):
    """A batch of steps of all agents.

    observations, next_observations (B, agent, F) encoded; actions (B, agent) int64 or (B, agent, D); rewards
    (B, agent) scaled; terminated (B,) bool; available, next_available (B, agent, n) bool or None.
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    terminated: Tensor
    next_observations: Tensor
    available: Tensor | None
    next_available: Tensor | None

    @classmethod
    def of(cls, batch: dict[str, Tensor], scale: RewardScale) -> Transitions:
        """The steps of a batch from `transition_source`."""
        available, following = batch.get("available_actions"), batch.get("next_available_actions")
        return cls(
            batch["observations"][:, 0], batch["actions"][:, 0], scale(batch["rewards"][:, 0]),
            batch["terminated"][:, 0], batch["observations"][:, 1],
            None if available is None else available[:, 0], None if following is None else following[:, 0],
        )  # fmt: skip


def transition_source(
    store: EpisodeStore,
    encoder: ObservationEncoder,
    batch_size: int,
    device: torch.device,
    *,
    extras: tuple[str, ...] = (),
    weights: Tensor | None = None,
) -> WindowSampler:
    """Fit the encoder and sample single steps with encoded observations; weights (E,): see WindowSampler."""
    encoder.fit(store)
    return WindowSampler(
        store, history=0, horizon=1, batch_size=batch_size, device=device, extras=(*EXTRAS, *extras), weights=weights,
        observations=encoder.encode(store.observations.to(device)),
    )  # fmt: skip
