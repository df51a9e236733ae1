"""Split-conformal margins: how much to add to an estimate so that it covers the truth as often as asked.

Held-out episodes give scores (truth - estimate) / spread. If a new episode is exchangeable with them, its truth lies
below estimate + margin * spread with at least the probability asked for, however bad the estimate is (Vovk et al. 2005;
Lei et al., arXiv 1604.04173, theorem 2.2; with quantile estimates: Romano et al., arXiv 1905.03222).
"""

from __future__ import annotations

import math

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
    """The scores of the held-out episodes, kept with the weights, so that any coverage can be asked for later."""

    scores: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scores", torch.full((LARGEST,), math.inf))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def fit(self, scores: Tensor) -> None:
        """Keep scores (n,), n <= LARGEST; what is not finite counts as never covered."""
        finite = torch.where(torch.isfinite(scores), scores, math.inf).sort().values
        self.scores.fill_(math.inf)
        self.scores[: len(finite)] = finite.to(self.scores)
        self.count.fill_(len(finite))

    def margin(self, coverage: float | None) -> float:
        """How many spreads to add for this coverage; None: nothing. Raises UserError where the scores are too few."""
        if coverage is None:
            return 0.0
        if not 0 < coverage < 1:
            raise UserError(f"{coverage} is no probability", "safe.coverage", "between 0 and 1, or null")
        count = int(self.count)
        margin = float(conformal_margin(self.scores[:count], coverage))
        if math.isinf(margin):
            needed = math.ceil(coverage / (1 - coverage) - 1e-9)
            what = f"{coverage} cannot be promised from {count} held-out episodes, it takes {needed}"
            raise UserError(what, "safe.coverage", "a smaller one, or null for no margin")
        return margin
