"""The quadratic program of N robots whose constraints couple two of them at a time, without ever storing the zeros.

minimise 1/2 sum_i w_i |u_i - r_i|^2 subject to, for every row, a . u_first + c . u_second <= limit.

Every two of N robots keeping apart makes N (N - 1) / 2 such rows over N d variables, each touching 2 d of them; a row
of one robot (an obstacle, a wall) has a zero second normal. Products with the rows cost d per row, and the normal
matrix is put together from its d x d blocks.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from madiff.interfaces import UserError
from safe import interior
from safe.qp import QPSolution
from safe.sparse_rows import SparseRows

STEPS, REPAIRS = 12, 3  # enough for crowds of 32 in which 50 of 496 rows are active


def coupled(
    first: Int64[Tensor, " m"], second: Int64[Tensor, " m"], normals: Float[Tensor, "batch m 2 d"], robots: int
) -> SparseRows:
    """Rows over robots: first, second (m,) indices; normals (batch, m, 2, d), of the first and of the second."""
    d = normals.shape[-1]
    within = torch.arange(d, device=first.device)
    columns = torch.cat((first[:, None] * d + within, second[:, None] * d + within), 1)
    return SparseRows.of(columns, normals.flatten(2), robots * d)


def pairs(
    robots: int, device: torch.device | None = None
) -> tuple[Int64[Tensor, " pairs"], Int64[Tensor, " pairs"]]:
    """Indices (first, second) of every two of N robots, first < second: each (N (N - 1) / 2,)."""
    first, second = torch.triu_indices(robots, robots, 1, device=device)
    return first, second


def solve(
    reference: Float[Tensor, "*#batch N d"],
    first: Int64[Tensor, " m"],
    second: Int64[Tensor, " m"],
    normals: Float[Tensor, "*#batch m 2 d"],
    limits: Float[Tensor, "*#batch m"],
    weights: Float[Tensor, "*#batch N"] | None = None,
    *,
    steps: int = STEPS,
) -> QPSolution:
    """Move N robots as little as possible until every row holds; differentiable in all but the indices.

    reference (..., N, d); first, second (m,) int64; normals (..., m, 2, d), of the first and the second robot;
    limits (..., m); weights (..., N) positive, default 1. Returns x (..., N, d) and multipliers (..., m).
    A problem without a feasible point gets the least sum of squared violations, rows at unit length, and is flagged.
    Raises UserError for shapes that do not fit.
    """
    *batch, robots, d = reference.shape
    rows = len(first)
    if normals.shape[-3:] != (rows, 2, d) or limits.shape[-1:] != (rows,) or second.shape != first.shape:
        raise UserError(
            f"normals {tuple(normals.shape)}, limits {tuple(limits.shape)} for {rows} rows over {robots} robots",
            "safe.couples.solve", f"normals (..., {rows}, 2, {d}), limits (..., {rows}), second ({rows},)",
        )  # fmt: skip
    weights = torch.ones_like(reference[..., 0]) if weights is None else weights
    shape = torch.broadcast_shapes(tuple(batch), normals.shape[:-3], limits.shape[:-1], weights.shape[:-1])
    flat = (
        reference.expand(*shape, robots, d).reshape(-1, robots, d),
        normals.expand(*shape, rows, 2, d).reshape(-1, rows, 2, d),
        limits.expand(*shape, rows).reshape(-1, rows),
        weights.expand(*shape, robots).reshape(-1, robots),
    )
    x, multipliers, feasible, violation, residual = _Couples.apply(*flat, first, second, steps)
    return QPSolution(
        x.reshape(*shape, robots, d), multipliers.reshape(*shape, rows), feasible.reshape(shape),
        residual.reshape(shape), violation.reshape(shape),
    )  # fmt: skip


class _Couples(torch.autograd.Function):
    """The interior point on coupled rows forward, the KKT system of its active rows backward."""

    @staticmethod
    def forward(
        ctx: Any, reference: Tensor, normals: Tensor, limits: Tensor, weights: Tensor,
        first: Tensor, second: Tensor, steps: int,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        batch, robots, d = reference.shape
        dtype = reference.dtype
        reference, normals, limits, weights = (t.detach().double() for t in (reference, normals, limits, weights))
        rows, scale = coupled(first, second, normals, robots).scaled()
        strength = weights.repeat_interleave(d, -1)
        problem = interior.Problem(
            torch.diag_embed(strength), -strength * reference.flatten(1), rows, limits * scale,
            interior.DenseRows(reference.new_zeros(1, 0, robots * d)), reference.new_zeros(batch, 0),
        )  # fmt: skip
        ctx.solved = solved = interior.solve(problem, steps, REPAIRS)
        ctx.scale, ctx.reference, ctx.weights, ctx.dtype = scale, reference, weights, dtype
        ctx.touched = torch.stack((first, second), -1)
        multipliers = solved.multipliers * scale
        violation, residual = solved.measured(scale)
        outputs = solved.x.unflatten(-1, (robots, d)).to(dtype, copy=True), multipliers.to(dtype, copy=True)
        ctx.mark_non_differentiable(solved.feasible, violation, residual)
        return *outputs, solved.feasible, violation, residual

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dx: Tensor, dm: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        solved, touched = ctx.solved, ctx.touched
        a, b, _ = solved.adjoint(dx.double().flatten(1), dm.double() * ctx.scale, None)
        points, a = (v.reshape(ctx.reference.shape) for v in (solved.x, a))
        multipliers, b = solved.multipliers * ctx.scale, b * ctx.scale
        normals = -(multipliers[..., None, None] * a[:, touched] + b[..., None, None] * points[:, touched])
        reference = ctx.weights[..., None] * a
        weights = -(a * (points - ctx.reference)).sum(-1)
        return *(g.to(ctx.dtype) for g in (reference, normals, b, weights)), None, None, None
