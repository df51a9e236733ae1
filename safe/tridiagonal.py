"""Tridiagonal systems along the time axis, for all plans at once."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad


def solve(lower: Tensor, diagonal: Tensor, upper: Tensor, right: Tensor) -> Tensor:
    """x with lower_k x_{k-1} + diagonal_k x_k + upper_k x_{k+1} = right_k, by parallel cyclic reduction.

    lower, diagonal, upper (..., T), diagonally dominant (entries that reach beyond the ends are ignored); right
    (..., T, d). log2(T) rounds of elementwise work, no loop over time; differentiable.
    """
    length = diagonal.shape[-1]
    lower, upper = _shift(lower[..., 1:], 1, length), _shift(upper[..., :-1], -1, length)
    reach = 1
    while reach < length:
        left = -lower / _shifted(diagonal, reach, 1.0)
        across = -upper / _shifted(diagonal, -reach, 1.0)
        diagonal = diagonal + left * _shifted(upper, reach) + across * _shifted(lower, -reach)
        right = right + left[..., None] * _later(right, reach) + across[..., None] * _later(right, -reach)
        lower, upper = left * _shifted(lower, reach), across * _shifted(upper, -reach)
        reach *= 2
    return right / diagonal[..., None]


def _shift(x: Tensor, steps: int, length: int) -> Tensor:
    """x with zeros in front (steps > 0) or behind, cut to length."""
    return pad(x, (steps, 0) if steps > 0 else (0, -steps))[..., :length]


def _shifted(x: Tensor, steps: int, fill: float = 0.0) -> Tensor:
    """(..., T): the entry `steps` earlier at every time; `fill` beyond the ends."""
    if steps > 0:
        return pad(x[..., :-steps], (steps, 0), value=fill)
    return pad(x[..., -steps:], (0, -steps), value=fill)


def _later(x: Tensor, steps: int) -> Tensor:
    """The same for (..., T, d)."""
    return _shifted(x.movedim(-1, 0), steps).movedim(0, -1)


def smooth(displacement: Tensor, weight: float, movable: Tensor | None = None) -> Tensor:
    """The field e (..., T, d) that minimises |e - displacement|^2 + weight |e_{k+1} - e_k|^2.

    weight >= 0: waypoints that a displacement spreads over, squared. Where not movable ((..., T) bool) e is 0.
    """
    free = torch.ones_like(displacement[..., 0]) if movable is None else movable.to(displacement.dtype)
    free = free.expand(displacement.shape[:-1])
    ends = torch.ones_like(free)
    neighbours = pad(ends[..., 1:], (1, 0)) + pad(ends[..., 1:], (0, 1))
    side = -weight * free
    return solve(side, 1 + weight * neighbours * free, side, displacement * free[..., None])
