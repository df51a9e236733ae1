"""What brings the rewards of any environment to the range critics learn best in."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from madiff.data.store import EpisodeStore
from madiff.data.windows import returns_to_go

LARGEST = 10.0  # root mean square of a scaled return


class RewardScale(nn.Module):
    """Divides rewards so that the discounted returns-to-go of the data have unit standard deviation.

    Where no episode of the data terminates, the mean reward is subtracted first: values then change by a constant,
    which a critic would need thousands of bootstrapped updates to find. Elsewhere subtracting would change what ending
    an episode is worth. The returns' root mean square is at most LARGEST: what hardly differs is not blown up.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.zeros(()))
        self.register_buffer("scale", torch.ones(()))

    def fit(self, store: EpisodeStore, discount: float, weights: Tensor | None = None) -> None:
        """weights (E,): how often each episode's transitions are drawn, if not all alike; they count in the mean."""
        drawn = (torch.ones(store.episodes) if weights is None else weights)[store.episode_of].double()
        mean = float((store.rewards.double().mean(1) * drawn).sum() / drawn.sum())
        shift = 0.0 if bool(store.terminated.any()) else mean
        returns = returns_to_go(store, discount).double() - shift * worth_of_one(store, discount)[:, None]
        scale = max(float(returns.std(correction=0)), float(returns.square().mean().sqrt()) / LARGEST)
        self.shift.fill_(shift)
        self.scale.fill_(scale if scale > 0 else 1.0)

    def forward(self, rewards: Tensor) -> Tensor:
        return (rewards - self.shift) / self.scale


def worth_of_one(store: EpisodeStore, discount: float) -> Tensor:
    """(sum T,) float64: the discounted return-to-go of every transition if all rewards were 1."""
    left = (store.offsets + store.lengths)[store.episode_of] - torch.arange(store.transitions)
    return left.double() if discount == 1 else (1 - discount ** left.double()) / (1 - discount)
