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
    tolerance = 1e-13 * (1.0 + offset.abs().amax(0, keepdim=True))
    for _ in range(steps):
        violated = values.masked_fill(active, INFINITY).argmin(0, keepdim=True)
        entering = torch.where(pending, entering, violated)
        working = values.gather(0, entering) < -tolerance
        column = _column(tableau, entering)
        length, leaving, blocked = _step_length(values, column, active, entering)
        length = torch.where(working, length, 0.0)
        values = values + length * column
        growth = growth + length
        pending = working & blocked
        changed = torch.where(blocked, leaving, entering)
        _pivot(tableau, changed, working)
        enters = working & ~blocked
        swapped = torch.where(enters, growth, 0.0)  # a row that leaves starts with slack zero
        values.scatter_(0, changed, torch.where(working, swapped, values.gather(0, changed)))
        active.scatter_(0, changed, torch.where(working, enters, active.gather(0, changed)))
        growth = torch.where(pending, growth, 0.0)
    both = active[:, None] & active[None, :]
    return active, torch.where(both, tableau, 0.0)


def _column(tableau: Tensor, index: Tensor) -> Tensor:
    """Column `index` (1, batch) of every tableau -> (rows, batch)."""
    rows, _, batch = tableau.shape
    return tableau.gather(1, index[None].expand(rows, 1, batch))[:, 0]


def _row(tableau: Tensor, index: Tensor) -> Tensor:
    rows, _, batch = tableau.shape
    return tableau.gather(0, index[None].expand(1, rows, batch))[0]


def _step_length(
    values: Tensor, column: Tensor, active: Tensor, entering: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """How far the entering multiplier may grow, the row that would leave, and whether it leaves: all (1, batch)."""
    falling = active & (column < 0)
    limits = torch.where(falling, values.clamp_min(0.0) / -column, INFINITY)
    partial, leaving = limits.min(0, keepdim=True)
    full = -values.gather(0, entering) / column.gather(0, entering)
    return torch.minimum(partial, full), leaving, partial < full


def _pivot(tableau: Tensor, index: Tensor, where: Tensor) -> None:
    """One principal pivot in place on row and column `index` of the problems chosen by `where`, both (1, batch)."""
    rows, _, batch = tableau.shape
    column, row = _column(tableau, index), _row(tableau, index)
    pivot = torch.where(where, row.gather(0, index), 1.0)
    inverse = 1.0 / pivot
    tableau.addcmul_(column[:, None] * torch.where(where, -inverse, 0.0), row)
    new_row, new_column = torch.where(where, -row * inverse, row), torch.where(where, column * inverse, column)
    corner = torch.where(where, inverse, row.gather(0, index))
    new_column.scatter_(0, index, corner)
    tableau.scatter_(0, index[None].expand(1, rows, batch), new_row[None])
    tableau.scatter_(1, index[None].expand(rows, 1, batch), new_column[:, None])
