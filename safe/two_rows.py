"""The nearest point under one or two linear rows, in closed form, with or without slack."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

REGULAR = 1e-9  # determinant, relative to the product of the rows' squares, below which two rows count as parallel


class Nearest(NamedTuple):
    """x (..., D); feasible (...): whether the rows can be met together (always, where there is slack)."""

    x: Float[Tensor, "*batch D"]
    feasible: Bool[Tensor, "*batch"]


def solve(
    reference: Float[Tensor, "*#batch D"],
    rows: Float[Tensor, "*#batch rows D"],
    bound: Float[Tensor, "*#batch rows"],
    slack: float = 0.0,
) -> Nearest:
    """min |x - reference|^2 + |r|^2 with rows x <= bound + slack r (arXiv 2306.00148, section 3; one r per row).

    reference (..., D); rows (..., 1 or 2, D); bound (..., 1 or 2); slack >= 0, 0 for hard rows. The classic
    two-constraint solution: the multipliers of none, one or both rows. Rows that contradict each other are violated
    equally (least squares); a row of zeros moves nothing and is feasible only if its bound is >= 0.
    """
    missing = (rows * reference[..., None, :]).sum(-1) - bound
    gram = rows @ rows.transpose(-1, -2)
    own = gram.diagonal(dim1=-2, dim2=-1)
    null = own <= torch.finfo(own.dtype).tiny ** 0.5
    own = torch.where(null, torch.ones_like(own), own) + slack * slack
    missing_live = torch.where(null, torch.zeros_like(missing), missing)
    if rows.shape[-2] == 1:
        push = missing_live.clamp(min=0) / own
    else:
        push = _two(own, torch.where(null.any(-1), torch.zeros_like(gram[..., 0, 1]), gram[..., 0, 1]), missing_live)
    x = reference - (push[..., None] * rows).sum(-2)
    left = (rows * x[..., None, :]).sum(-1) - bound
    scale = own.sqrt() * (1 + reference.abs().amax(-1, keepdim=True)) + bound.abs()
    met = left <= 100 * torch.finfo(own.dtype).eps ** 0.75 * scale
    return Nearest(x, torch.ones_like(met[..., 0]) if slack else met.all(-1))


def _two(own: Tensor, cross: Tensor, missing: Tensor) -> Tensor:
    """Multipliers (..., 2) >= 0 of two rows with squares own (..., 2), product cross and deficits missing (..., 2)."""
    first, second = missing.unbind(-1)
    a, b = own.unbind(-1)
    alone = missing.clamp(min=0) / own
    one = second - cross * alone[..., 0] <= 0  # the first row's step meets the second row
    two = first - cross * alone[..., 1] <= 0
    zero = torch.zeros_like(first)
    determinant = a * b - cross.square()
    # Parallel rows: the penalty's limit, which shares what is left equally.
    regular = max(REGULAR, 16 * torch.finfo(own.dtype).eps)
    parallel = determinant <= regular * a * b
    a, b = (torch.where(parallel, v * (1 + regular**0.5), v) for v in (a, b))
    determinant = a * b - cross.square()
    both = torch.stack([b * first - cross * second, a * second - cross * first], -1) / determinant[..., None]
    pushes = torch.where(two[..., None], torch.stack([zero, alone[..., 1]], -1), both.clamp(min=0))
    return torch.where(one[..., None], torch.stack([alone[..., 0], zero], -1), pushes)
