"""Tridiagonal systems along the time axis, for all plans at once."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad


class Factored:
    """The matrix of lower_k x_{k-1} + diagonal_k x_k + upper_k x_{k+1} = right_k, ready for many right sides.

    lower, diagonal, upper (..., T), diagonally dominant; entries that reach beyond the ends are ignored. Parallel
    cyclic reduction: log2(T) rounds of elementwise work, no loop over time; differentiable.
    """

    def __init__(self, lower: Tensor, diagonal: Tensor, upper: Tensor) -> None:
        length, reach = diagonal.shape[-1], 1
        lower, upper = pad(lower[..., 1:], (1, 0)), pad(upper[..., :-1], (0, 1))
        self.rounds: list[tuple[int, Tensor, Tensor]] = []
        while reach < length:
            left = -lower / _shifted(diagonal, reach, 1.0)
            across = -upper / _shifted(diagonal, -reach, 1.0)
            self.rounds.append((reach, left[..., None], across[..., None]))
            diagonal = diagonal + left * _shifted(upper, reach) + across * _shifted(lower, -reach)
            lower, upper = left * _shifted(lower, reach), across * _shifted(upper, -reach)
            reach *= 2
        self.inverse = 1 / diagonal[..., None]

    def solve(self, right: Tensor) -> Tensor:
        """x (..., T, d) for a right side (..., T, d)."""
        for reach, left, across in self.rounds:
            earlier = pad(right[..., :-reach, :], (0, 0, reach, 0))
            later = pad(right[..., reach:, :], (0, 0, 0, reach))
            right = right + left * earlier + across * later
        return right * self.inverse


def _shifted(x: Tensor, steps: int, fill: float = 0.0) -> Tensor:
    """(..., T): the entry `steps` earlier at every time; `fill` beyond the ends."""
    if steps > 0:
        return pad(x[..., :-steps], (steps, 0), value=fill)
    return pad(x[..., -steps:], (0, -steps), value=fill)


class Smoother:
    """Makes of displacements (..., T, d) the field e that minimises |e - displacement|^2 + weight |e_{k+1} - e_k|^2.

    weight >= 0: waypoints that a displacement spreads over, squared. Where not movable ((..., T) bool) e is 0.
    """

    def __init__(self, like: Tensor, weight: float, movable: Tensor | None = None) -> None:
        free = torch.ones_like(like[..., 0]) if movable is None else movable.to(like.dtype).expand(like.shape[:-1])
        ends = torch.ones_like(free)
        neighbours = pad(ends[..., 1:], (1, 0)) + pad(ends[..., 1:], (0, 1))
        side = -weight * free
        self.free, self.matrix = free[..., None], Factored(side, 1 + weight * neighbours * free, side)

    def __call__(self, displacement: Tensor) -> Tensor:
        return self.matrix.solve(displacement * self.free)
