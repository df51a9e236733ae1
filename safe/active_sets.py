"""Which rows of a small quadratic program are active at its solution: exactly, for a whole batch at once.

Both searches answer the linear complementarity problem that the multipliers of a QP satisfy,

    slack = offset + matrix @ multipliers,   slack >= 0,   multipliers >= 0,   slack . multipliers = 0,

with a symmetric positive definite matrix (rows, rows, batch), whose solution is unique. They move by principal pivots,
which swap the roles of one slack and its multiplier (Cottle, Pang and Stone, The Linear Complementarity Problem, 2.3).
The number of operations is fixed: nothing depends on the data.
"""

from __future__ import annotations

import torch
from torch import Tensor

INFINITY = float("inf")


def enumerated(matrix: Tensor, offset: Tensor) -> Tensor:
    """The active rows, by trying every subset of the rows: (rows, rows, batch), (rows, batch) -> (rows, batch) bool.

    Row k doubles the list of subsets: each is kept as it is and once more with row k pivoted in. At the end a subset
    is right where all its multipliers and all other slacks are nonnegative; rounding is met by taking the subset whose
    smallest entry is largest. Columns that no later pivot needs are dropped on the way. Cost rows 2^rows.
    """
    rows = offset.shape[0]
    tableau = torch.cat([matrix, offset[:, None]], 1)[:, :, None]
    for k in range(rows):
        column, rest = tableau[:, :1], tableau[:, 1:]
        ratio = rest[k] / tableau[k, 0]
        pivoted = rest - column * ratio
        pivoted[k] = -ratio
        tableau = torch.cat([rest, pivoted], 2)
    best = tableau[:, 0].amin(0).argmax(0)
    bits = torch.arange(rows, device=offset.device)
    return (best >> bits[:, None]) & 1 == 1


def pivoted(matrix: Tensor, offset: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """The active rows and the inverse of their block, by the dual active-set method (Goldfarb and Idnani, 1983).

    From no active row, the most violated row's multiplier grows until its slack is zero (the row enters) or another
    multiplier reaches zero (that row leaves, and the growth goes on): every step is one principal pivot, and the dual
    objective never falls. A problem that is solved stands still while others go on; `steps` pivots are made in all.

    Returns active (rows, batch) bool and inverse (rows, rows, batch): (matrix restricted to the active rows)^-1, zero
    elsewhere.
    """
    rows, batch = offset.shape
    tableau = matrix.expand(rows, rows, batch).clone()
    values = offset.clone()  # multipliers of active rows, slacks of the others
    active = torch.zeros(rows, batch, dtype=torch.bool, device=offset.device)
    pending = torch.zeros(1, batch, dtype=torch.bool, device=offset.device)
    entering = torch.zeros(1, batch, dtype=torch.long, device=offset.device)
    growth = torch.zeros(1, batch, dtype=offset.dtype, device=offset.device)
    tolerance = -1e-13 * (1.0 + offset.abs().amax(0, keepdim=True))
    for _ in range(steps):
        violated = values.masked_fill(active, INFINITY).min(0, keepdim=True).indices
        entering = torch.where(pending, entering, violated)
        slack = values.gather(0, entering)
        working = slack < tolerance
        column = _column(tableau, entering)
        direction = torch.where(active, -column, column)
        shortest, leaving = _first_to_vanish(values, direction, active)
        full = -slack / column.gather(0, entering)
        blocked = shortest < full
        length = torch.where(working, torch.minimum(shortest, full), 0.0)
        values.addcmul_(length, direction)
        growth = growth + length
        changed = torch.where(blocked, leaving, entering)
        _sweep(tableau, changed, working, blocked)
        # The row that enters brings its multiplier; one that leaves starts with slack zero.
        swapped = torch.where(blocked, 0.0, growth)
        values.scatter_(0, changed, torch.where(working, swapped, values.gather(0, changed)))
        active.scatter_(0, changed, torch.where(working, ~blocked, active.gather(0, changed)))
        pending = working & blocked
        growth = torch.where(pending, growth, 0.0)
    both = active[:, None] & active[None, :]
    return active, torch.where(both, -tableau, 0.0)


def _column(tableau: Tensor, index: Tensor) -> Tensor:
    """Column `index` (1, batch) of every tableau, which is symmetric -> (rows, batch)."""
    rows, _, batch = tableau.shape
    return tableau.gather(0, index[None].expand(1, rows, batch))[0]


def _first_to_vanish(values: Tensor, direction: Tensor, active: Tensor) -> tuple[Tensor, Tensor]:
    """How far the direction can be followed until an active multiplier is zero, and whose: both (1, batch)."""
    limits = values.clamp_min(0.0) / -direction
    return limits.masked_fill(~(active & (direction < 0)), INFINITY).min(0, keepdim=True)


def _sweep(tableau: Tensor, index: Tensor, where: Tensor, back: Tensor) -> None:
    """The symmetric sweep of row and column `index`, or its inverse where `back`, in place: all (1, batch).

    Swept rows A hold minus the inverse of their block, M_NA inverse(M_AA) beside it, and the others their Schur
    complement (Beaton's operator; Lange, Numerical Analysis for Statisticians, 7.4).
    """
    rows, _, batch = tableau.shape
    column = _column(tableau, index)
    pivot = column.gather(0, index)
    inverse = torch.where(where, pivot, 1.0).reciprocal()
    tableau.addcmul_((column * torch.where(where, -inverse, 0.0))[:, None], column)
    new = column * torch.where(where, torch.where(back, -inverse, inverse), 1.0)
    new.scatter_(0, index, torch.where(where, -inverse, pivot))
    tableau.scatter_(0, index[None].expand(1, rows, batch), new[None])
    tableau.scatter_(1, index[None].expand(rows, 1, batch), new[:, None])
