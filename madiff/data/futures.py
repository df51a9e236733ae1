"""Training batches with one later observation for every window, at a distance that is geometrically distributed."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from madiff.data.store import EpisodeStore
from madiff.data.windows import WindowSampler


def geometric_distances(share: Float[Tensor, "*rows"], discount: float) -> Int64[Tensor, "*rows"]:
    """Distances k >= 1 (...) int64 with P(k) = (1 - discount) discount^(k - 1), for shares uniform in [0, 1).

    The inverse of P(distance <= k) = 1 - discount^k. Raises ValueError for a discount outside [0, 1).
    """
    if not 0 <= discount < 1:
        raise ValueError(f"discount={discount} has no geometric distances; allowed: 0 <= discount < 1")
    if discount == 0:
        return torch.ones_like(share, dtype=torch.int64)
    return torch.ceil(torch.log1p(-share.double()) / math.log(discount)).clamp(min=1).long()


class FutureSampler:
    """The batches of a source of windows, and for each what is seen `distance` steps after its "now".

    Episodes that terminate go on for ever where they ended (`over`); of those that were cut off only what was seen is
    known, and their distances are drawn from the part of the law that lies within. A `BatchSource`.
    observations: (sum(T+1), A, any) in place of the store's own.
    """

    def __init__(self, source: WindowSampler, store: EpisodeStore, observations: Tensor, discount: float) -> None:
        self.source, self.discount, device = source, discount, source.steps.device
        self.observations = observations.to(device)
        self.lengths, self.terminated = store.lengths.to(device), store.terminated.to(device)
        self.first = (store.offsets + torch.arange(store.episodes)).to(device)

    def sample(self, generator: torch.Generator) -> dict[str, Tensor]:
        batch = self.source.sample(generator)
        share = torch.rand(len(batch["time"]), generator=generator, device=generator.device, dtype=torch.float64)
        return batch | self.ahead(batch["episode"], batch["time"], share.to(batch["time"].device))

    def ahead(
        self, episode: Int64[Tensor, " B"], time: Int64[Tensor, " B"], share: Float[Tensor, " B"]
    ) -> dict[str, Tensor]:
        """ahead (B, A, F), distance (B,) int64 >= 1, over (B,) bool; share (B,) in [0, 1) decides the distance."""
        ends, left = self.terminated[episode], self.lengths[episode] - time
        within = 1 - self.discount ** left.double()
        distance = geometric_distances(torch.where(ends, share, share * within), self.discount)
        distance = torch.where(ends, distance, torch.minimum(distance, left))
        row = self.first[episode] + time + torch.minimum(distance, left)
        return {"ahead": self.observations[row], "distance": distance, "over": ends & (distance >= left)}
