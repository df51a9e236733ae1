"""What episodes return for what they cost: the best return within a budget, and episodes relabelled to reach beyond it.

Both are what a policy needs that is asked for a cost and a return at once (CDT, arXiv 2302.07351).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from baselines.constrained import costs_to_go
from madiff.data.store import EpisodeStore
from madiff.data.windows import WindowSampler

LEVELS = 256
GRID = (10, 50)  # cells of cost and of return, within which episodes are thinned out
MOST, FEWEST = 10, 3  # episodes kept of a cell; cells with fewer hold outliers


class Frontier(nn.Module):
    """The best return of the data's episodes within a cost, by cost, and the worst return of all."""

    costs: Tensor
    best: Tensor
    worst: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("costs", torch.zeros(LEVELS))
        self.register_buffer("best", torch.zeros(LEVELS))
        self.register_buffer("worst", torch.zeros(()))

    def fit(self, costs: Tensor, returns: Tensor) -> None:
        """costs, returns (E,) of the episodes."""
        order = costs.argsort()
        ordered, best = costs[order].contiguous(), returns[order].cummax(0).values
        levels = torch.linspace(float(ordered[0]), float(ordered[-1]), LEVELS, dtype=ordered.dtype)
        self.costs.copy_(levels)
        self.best.copy_(best[torch.searchsorted(ordered, levels, right=True).clamp(min=1) - 1])
        self.worst.fill_(float(returns.min()))

    def within(self, limit: float, share: float = 1.0) -> Tensor:
        """A return between the worst of the data (share 0) and the best of what costs at most `limit` (share 1).

        Where nothing is as cheap, of the cheapest.
        """
        level = (self.costs <= limit).sum().clamp(min=1) - 1
        return torch.lerp(self.worst, self.best[level], share)


class TargetedWindows:
    """Windows with the team's cost still to come; relabelled episodes ask for more than they had.

    windows: of a store whose last episodes are the relabelled ones; more_cost, more_return (E,): what is added to the
    targets of every episode.
    """

    def __init__(self, windows: WindowSampler, store: EpisodeStore, more_cost: Tensor, more_return: Tensor) -> None:
        device = windows.steps.device
        self.windows, self.offsets = windows, store.offsets.to(device)
        self.to_go = costs_to_go(store).to(device)
        self.more_cost, self.more_return = more_cost.float().to(device), more_return.float().to(device)

    def sample(self, generator: torch.Generator) -> dict[str, Tensor]:
        """As WindowSampler's; returns (B, agent) and costs_to_go (B,) are those asked for at the window's start."""
        batch = self.windows.sample(generator)
        episode = batch["episode"]
        cost = self.to_go[self.offsets[episode] + batch["time"]] + self.more_cost[episode]
        return batch | {"returns": batch["returns"] + self.more_return[episode][:, None], "costs_to_go": cost}


def thinned(costs: np.ndarray, returns: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Indices of the episodes left after thinning a grid of cost and return; all where nothing would be left."""
    cells = [
        np.minimum((x - x.min()) / max(np.ptp(x), 1e-12) * bins, bins - 1).astype(int)
        for x, bins in zip((costs, returns), GRID, strict=True)
    ]
    order = generator.permutation(len(costs))
    cell = (cells[0] * GRID[1] + cells[1])[order]
    by_cell = np.argsort(cell, kind="stable")
    _, first, counts = np.unique(cell[by_cell], return_index=True, return_counts=True)
    rank = np.arange(len(cell)) - np.repeat(first, counts)
    kept = (rank < MOST) & (np.repeat(counts, counts) >= FEWEST)
    return np.sort(order[by_cell[kept]]) if kept.any() else np.arange(len(costs))


def pareto_optimal(costs: np.ndarray, returns: np.ndarray) -> np.ndarray:
    """Indices of the episodes that no other beats in cost and return, by increasing cost."""
    order = np.lexsort((-returns, costs))
    best = np.maximum.accumulate(returns[order])
    first = np.append(True, best[1:] > best[:-1])
    return order[first]


def relabelled(
    costs: np.ndarray, returns: np.ndarray, *, share: float, degree: int, lowest: float, highest: float, drop: float,
    generator: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """Episodes with other targets: indices (M,), and what to add to their costs and returns to go, (M,) each.

    M = share of the episodes left after thinning. Costs are evenly spaced, returns uniform between the polynomial
    through the Pareto points plus `lowest`, and `highest`. A target goes to the nearest episode that costs no more;
    where several have the same one, all but the first draw theirs anew, with probability ~ 1 / (1 + distance), among
    episodes that cost no more than it and return at most `drop` less. All in the data's units.
    """
    left = thinned(costs, returns, generator)
    cost, gain = costs[left].astype(np.float64), returns[left].astype(np.float64)
    wanted = int(share * len(left))
    if wanted == 0:
        return np.zeros(0, int), np.zeros(0), np.zeros(0)
    best = pareto_optimal(cost, gain)
    curve = np.polynomial.Polynomial.fit(cost[best], gain[best], min(degree, len(np.unique(cost[best])) - 1))
    target_cost = np.linspace(cost.min(), cost.max(), wanted)
    floor = curve(target_cost) + lowest
    target_gain = generator.uniform(floor, np.maximum(highest, floor))
    distance = np.hypot(cost - target_cost[:, None], gain - target_gain[:, None])
    distance[cost > target_cost[:, None] + 1e-9] = np.inf
    chosen = distance.argmin(1)
    repeated = np.setdiff1d(np.arange(wanted), np.unique(chosen, return_index=True)[1])
    chosen[repeated] = redrawn(cost, gain, chosen[repeated], drop, generator)
    return left[chosen], target_cost - cost[chosen], target_gain - gain[chosen]


def redrawn(
    cost: np.ndarray, gain: np.ndarray, chosen: np.ndarray, drop: float, generator: np.random.Generator
) -> np.ndarray:
    """For every chosen episode another, or itself, that costs no more and returns at most `drop` less."""
    distance = np.hypot(cost - cost[chosen, None], gain - gain[chosen, None])
    allowed = (cost <= cost[chosen, None]) & (gain >= gain[chosen, None] - drop)
    cumulative = np.where(allowed, 1 / (1 + distance), 0.0).cumsum(1)
    point = generator.uniform(size=(len(chosen), 1)) * cumulative[:, -1:]
    return (cumulative <= point).sum(1).clip(max=len(cost) - 1)
