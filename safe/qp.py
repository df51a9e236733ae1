"""Batches of quadratic programs, solved exactly and differentiably: `solve(P, q, G, h)`.

minimise 1/2 x'Px + q'x subject to Gx <= h (and, where given, Ax = b).

Three routes, chosen by the sizes alone: up to 5 rows every subset of rows is tried, up to 20 rows the active set is
found by principal pivots (both in `safe.dual`), beyond that by an interior point (`safe.interior`). All run in float64
with a fixed number of operations, whatever the data: no synchronisation, no branch, no row that delays another. The
derivative is the implicit one of the KKT conditions on the active rows (OptNet, arXiv 1703.00443, section 3).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from madiff.interfaces import UserError
from safe import dual, interior

METHODS = ("auto", "active-set", "interior")
PIVOTED = 20  # most rows for which pivoting on (rows x rows) tableaus is the faster route


class QPSolution(NamedTuple):
    """What `solve` returns, per problem.

    x (..., n), or (..., N, d) of N robots, and multipliers (..., m) >= 0 of the rows of G: both differentiable.
    feasible (...,) bool: whether a point meets all rows. Where none does, x has the least sum of squared violations
    (rows at unit length in the metric of P^-1 on the null space of A, or in the Euclidean one for the interior point)
    and, among those, the least objective, up to 1e-7 of the violation; its multipliers are huge and mean nothing.
    residual (...,): largest of |P x + q + G'multipliers + A'y|, |min(multipliers, h - Gx)| and |Ax - b|; where not
    feasible, of the problem with h raised to what x attains, the first term relative to the largest multiplier.
    violation (...,): largest entry of Gx - h and |Ax - b|, 0 where all rows hold.
    """

    x: Float[Tensor, "*batch n"] | Float[Tensor, "*batch N d"]
    multipliers: Float[Tensor, "*batch m"]
    feasible: Bool[Tensor, "*batch"]
    residual: Float[Tensor, "*batch"]
    violation: Float[Tensor, "*batch"]


def solve(
    P: Float[Tensor, "*#batch n n"] | None,
    q: Float[Tensor, "*#batch n"],
    G: Float[Tensor, "*#batch m n"],
    h: Float[Tensor, "*#batch m"],
    A: Float[Tensor, "*#batch e n"] | None = None,
    b: Float[Tensor, "*#batch e"] | None = None,
    *,
    method: str = "auto",
    steps: int | None = None,
) -> QPSolution:
    """Solve a batch of quadratic programs; differentiable once in all six arguments.

    P (..., n, n) symmetric positive definite (on the null space of A; semi-definite will do for method="interior"),
    None for the identity; q (..., n); G (..., m, n); h (..., m); A (..., e, n) of full row rank; b (..., e). Leading
    axes broadcast; a P or A without them is factored once. Any device, float32 or float64.
    method: auto, active-set or interior. steps: pivots or interior-point steps, default by size.
    Raises UserError for shapes that do not fit or an unknown method.
    """
    sizes = _sizes(P, q, G, h, A, b)
    if method not in METHODS:
        raise UserError(f"unknown method {method!r}", "safe.qp.solve", METHODS)
    if G.shape[-2] == 0:  # one row that always holds stands for none
        G, h = q.new_zeros(1, q.shape[-1]), q.new_ones(1)
    if method == "auto":
        method = "active-set" if G.shape[-2] <= PIVOTED else "interior"
    shape, flat = _flattened(P, q, G, h, A, b)
    x, multipliers, feasible, violation, residual = _QP.apply(*flat, method, steps)
    return QPSolution(
        x.reshape(*shape, sizes[0]), multipliers[:, : sizes[1]].reshape(*shape, sizes[1]),
        feasible.reshape(shape), residual.reshape(shape), violation.reshape(shape),
    )  # fmt: skip


def _sizes(
    P: Tensor | None, q: Tensor, G: Tensor, h: Tensor, A: Tensor | None, b: Tensor | None
) -> tuple[int, int]:
    """(n, m), or a UserError naming the argument that does not fit."""
    n, m = q.shape[-1], G.shape[-2]
    e = 0 if A is None else A.shape[-2]
    wanted = {"P": (P, (n, n)), "G": (G, (m, n)), "h": (h, (m,)), "A": (A, (e, n)), "b": (b, (e,))}
    if (A is None) != (b is None):
        raise UserError("one of A and b without the other", "safe.qp.solve", "both or neither")
    for name, (tensor, shape) in wanted.items():
        if tensor is not None and tuple(tensor.shape[-len(shape) :]) != shape:
            what = f"{name} has shape {tuple(tensor.shape)} beside q {tuple(q.shape)} and G {tuple(G.shape)}"
            raise UserError(what, "safe.qp.solve", f"(..., {', '.join(map(str, shape))})")
    return n, m


def _flattened(*tensors: Tensor | None) -> tuple[tuple[int, ...], list[Tensor | None]]:
    """The common leading shape, and the tensors with one batch axis: P and A keep length 1 where they are shared."""
    cores = (2, 1, 2, 1, 2, 1)
    leads = [t.shape[: t.ndim - c] for t, c in zip(tensors, cores, strict=True) if t is not None]
    shape = torch.broadcast_shapes(*leads)
    flat = []
    for tensor, core, shared in zip(tensors, cores, (True, False, False, False, True, False), strict=True):
        if tensor is None:
            flat.append(None)
        elif shared and tensor.ndim == core:
            flat.append(tensor[None])
        else:
            trailing = tensor.shape[tensor.ndim - core :]
            flat.append(tensor.expand(*shape, *trailing).reshape(-1, *trailing))
    return tuple(shape), flat


def _last(tensor: Tensor) -> Tensor:
    """Batch first to batch last, in float64."""
    return tensor.detach().double().movedim(0, -1).contiguous()


def _first(tensor: Tensor) -> Tensor:
    return tensor.movedim(-1, 0)


class _QP(torch.autograd.Function):
    """Solution forward, the KKT system of the active rows backward; all arguments have one batch axis, first."""

    @staticmethod
    def forward(
        ctx: Any, P: Tensor | None, q: Tensor, G: Tensor, h: Tensor, A: Tensor | None, b: Tensor | None,
        method: str, steps: int | None,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        dtype = q.dtype
        ctx.active_set = method == "active-set"
        run = _by_active_set if ctx.active_set else _by_interior
        ctx.solved, ctx.scale, x, multipliers, violation, residual = run(P, q, G, h, A, b, steps)
        ctx.inputs = [None if t is None else (t.detach(), t.shape[0]) for t in (P, G, A)]
        ctx.types = [None if t is None else t.dtype for t in (P, q, G, h, A, b)]
        ctx.mark_non_differentiable(ctx.solved.feasible, violation, residual)
        return (
            x.to(dtype, copy=True, memory_format=torch.contiguous_format),
            multipliers.to(dtype, copy=True, memory_format=torch.contiguous_format),
            ctx.solved.feasible, violation, residual,
        )  # fmt: skip

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dx: Tensor, dm: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        solved = ctx.solved
        dx, dm = dx.double(), dm.double()
        if ctx.active_set:
            a, b, c = solved.adjoint(_last(dx), _last(dm), None)
            x, multipliers, a, b = (_first(t) for t in (solved.x, solved.multipliers, a, b))
            equality, c = (None if t is None else _first(t) for t in (solved.equality, c))
        else:
            a, b, c = solved.adjoint(dx, dm * ctx.scale, None)
            x, multipliers, equality, b = solved.x, solved.multipliers * ctx.scale, solved.equality, b * ctx.scale
        P, G, A = (ctx.needs_input_grad[i] for i in (0, 2, 4))
        grads = gradients(x, multipliers, equality, a, b, c, P, G, A)
        for i, kept in zip((0, 2, 4), ctx.inputs, strict=True):
            if (grad := grads[i]) is not None and kept is not None and kept[1] == 1:
                grads[i] = grad.sum(0, keepdim=True)
        cast = [
            g.to(t) if g is not None and t is not None else None for g, t in zip(grads, ctx.types, strict=True)
        ]
        return *cast, None, None


def gradients(
    x: Tensor, multipliers: Tensor, equality: Tensor | None, a: Tensor, b: Tensor, c: Tensor | None,
    P: bool = True, G: bool = True, A: bool = True,
) -> list[Tensor | None]:  # fmt: skip
    """Gradients with respect to (P, q, G, h, A, b) from the adjoint (a, b, c) (arXiv 1703.00443, eq. 8).

    x, a (batch, n); multipliers, b (batch, m); equality, c (batch, e) or None. P, G, A: whether they are wanted.
    """
    dP = dG = dA = None
    if P:
        outer = a[..., :, None] * x[..., None, :]
        dP = -0.5 * (outer + outer.mT)
    if G:
        dG = -(multipliers[..., None] * a[..., None, :] + b[..., None] * x[..., None, :])
    if A and equality is not None and c is not None:
        dA = -(equality[..., None] * a[..., None, :] + c[..., None] * x[..., None, :])
    return [dP, -a, dG, b, dA, c]


Result = tuple[Any, Tensor | None, Tensor, Tensor, Tensor, Tensor]


def _by_active_set(
    P: Tensor | None, q: Tensor, G: Tensor, h: Tensor, A: Tensor | None, b: Tensor | None, steps: int | None
) -> Result:
    q, G, h = map(_last, (q, G, h))
    P, A, b = (None if t is None else _last(t) for t in (P, A, b))
    solved = dual.solve(P, q, G, h, A, b, steps)
    return solved, None, _first(solved.x), _first(solved.multipliers), *solved.measured(q, h, b)


def _by_interior(
    P: Tensor | None, q: Tensor, G: Tensor, h: Tensor, A: Tensor | None, b: Tensor | None, steps: int | None
) -> Result:
    q, G, h = (t.detach().double() for t in (q, G, h))
    P, A, b = (None if t is None else t.detach().double() for t in (P, A, b))
    n = q.shape[-1]
    P = torch.eye(n, dtype=q.dtype, device=q.device)[None] if P is None else P
    A, b = (q.new_zeros(1, 0, n), q.new_zeros(len(q), 0)) if A is None or b is None else (A, b)
    rows, scale = interior.DenseRows(G).scaled()
    problem = interior.Problem(P, q, rows, h * scale, interior.DenseRows(A), b)
    solved = interior.solve(problem, interior.STEPS if steps is None else steps)
    return solved, scale, solved.x, solved.multipliers * scale, *solved.measured(scale)
