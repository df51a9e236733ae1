"""Split-conformal margins: how much to add to an estimate so that it covers the truth as often as asked.

Held-out episodes give scores, truth - bound, for an estimated upper bound. If a new episode is exchangeable with them,
its truth lies below bound + margin with at least the probability asked for, however bad the bound is (Vovk et al. 2005;
Lei et al., arXiv 1604.04173, theorem 2.2; of estimated quantiles: Romano et al., arXiv 1905.03222).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from madiff.interfaces import UserError

LARGEST = 512  # scores that are kept


def conformal_rank(scores: int, coverage: float) -> int:
    """k = ceil((n + 1) coverage): the k-th smallest of n scores is the margin; more than n where n is too few."""
    # a hair less than the product, whose rounding would otherwise ask for one score more than 0.9 of 9 does
    return math.ceil((scores + 1) * coverage - 1e-9)


def conformal_margin(scores: Tensor, coverage: float) -> Tensor:
    """The margin () for finite scores (n,) and a coverage in (0, 1); infinite where n is too few for it."""
    rank = conformal_rank(len(scores), coverage)
    return scores.new_tensor(math.inf) if rank > len(scores) else scores.sort().values[max(rank, 1) - 1]


def held_out(lengths: Tensor, share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Episodes set aside for calibration, at most `LARGEST`, and a random step of each.

    lengths (E,) int64. Returns episode (n,) and time (n,): one step per episode, because steps of the same episode are
    not independent and would count one surprise many times.
    """
    order = torch.randperm(len(lengths), generator=generator)
    chosen = order[: min(LARGEST, int(share * len(lengths)))].sort().values
    time = (torch.rand(len(chosen), generator=generator, dtype=torch.float64) * lengths[chosen]).long()
    return chosen, time


class Calibration(nn.Module):
    """What was estimated of the held-out episodes and what was true, kept with the weights: any coverage can be asked.

    outputs: how many numbers an estimate has.
    """

    estimates: Tensor
    truth: Tensor
    count: Tensor

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.register_buffer("estimates", torch.zeros(LARGEST, outputs))
        self.register_buffer("truth", torch.zeros(LARGEST))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def fit(self, estimates: Tensor, truth: Tensor) -> None:
        """Keep estimates (n, outputs) and truth (n,), n <= LARGEST."""
        for kept, new in ((self.estimates, estimates), (self.truth, truth)):
            kept.zero_()
            kept[: len(new)] = new
        self.count.fill_(len(truth))

    def margin(self, bound: Callable[[Tensor], Tensor], coverage: float) -> float:
        """What to add to bound(estimates (n, outputs)) -> (n,) for this coverage, never less than nothing.

        Raises UserError where the held-out episodes are too few for it.
        """
        if not 0 < coverage < 1:
            raise UserError(f"{coverage} is no probability", "safe.coverage", "between 0 and 1, or null")
        count = int(self.count)
        margin = float(conformal_margin(self.truth[:count] - bound(self.estimates[:count]), coverage))
        if math.isinf(margin):
            needed = math.ceil(coverage / (1 - coverage) - 1e-9)
            what = f"{coverage} cannot be promised from {count} held-out episodes, it takes {needed}"
            raise UserError(what, "safe.coverage", "a smaller one, or null for no margin")
        return max(margin, 0.0)
