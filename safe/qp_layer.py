"""Quadratic programs stated in cvxpy, solved and differentiated in a batch: `layer(problem, parameters, variables)`.

cvxpylayers' `CvxpyLayer` compiles a parametrised cvxpy problem once and hands its numbers to a solver for every call;
`BatchedQPSolver` plugs the solvers of `safe.qp` in there. One infeasible problem no longer costs the batch its
answers: it gets its point of least violation. `last_feasible` says which problems of the last call had a solution.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import cvxpy as cp
import numpy as np
import torch
from cvxpylayers.interfaces.base import SolverInterface
from cvxpylayers.torch import CvxpyLayer
from torch import Tensor

from madiff.interfaces import UserError
from safe import dual, interior
from safe.qp import METHODS, PIVOTED


class Places(NamedTuple):
    """Where the stored values of a sparse matrix lie: rows and columns (nnz,) int64, shape of the matrix."""

    rows: Tensor
    columns: Tensor
    shape: tuple[int, int]

    def dense(self, values: Tensor) -> Tensor:
        """Stored values (nnz, batch) -> (rows, columns, batch)."""
        matrix = values.new_zeros(*self.shape, values.shape[-1])
        matrix[self.rows, self.columns] = values
        return matrix

    def stored(self, matrix: Tensor) -> Tensor:
        """The inverse: (rows, columns, batch) -> (nnz, batch)."""
        return matrix[self.rows, self.columns]


def _places(index: tuple[np.ndarray, np.ndarray, tuple[int, int]]) -> Places:
    """Compressed columns (row indices, column pointers, shape) as pairs of indices."""
    rows, pointers, shape = index
    columns = np.repeat(np.arange(len(pointers) - 1), np.diff(pointers))
    return Places(torch.as_tensor(rows, dtype=torch.long), torch.as_tensor(columns, dtype=torch.long), shape)


class BatchedQPSolver(SolverInterface):
    """The solvers of `safe.qp` behind one `CvxpyLayer`; a second layer needs a second instance.

    cvxpy's canonical form (its CLARABEL form): minimise 1/2 x'Px + q'x with A x + a >= 0 row by row, or = 0 for the
    first rows; P is stored whole or as its upper triangle, A with a as its last column.
    method: auto, active-set or interior. auto sends up to 20 rows to the active-set search, unless P is singular on
    the null space of the equalities, and the rest to the interior point. A P that is a parameter counts as definite
    where its diagonal is stored: choose the interior point if it can become singular.
    last_feasible, last_violation: (batch,) of the last forward call.
    """

    canon_solver = "CLARABEL"
    supports_quad_obj = True

    def __init__(self, method: str = "auto") -> None:
        if method not in METHODS:
            raise UserError(f"unknown method {method!r}", "safe.qp_layer", METHODS)
        self.method = method
        self.last_feasible: Tensor | None = None
        self.last_violation: Tensor | None = None
        self._quadratic: Places | None = None
        self._linear: Places | None = None

    def setup(self, ctx: Any) -> None:
        """Read the problem's structure; called once by `CvxpyLayer`. UserError where it is no quadratic program."""
        if self._linear is not None:
            raise UserError("this solver already serves a layer", "safe.qp_layer", "one BatchedQPSolver per layer")
        cones = ctx.cone_dims
        others = [name for name in ("soc", "psd", "exp", "p3d", "pnd") if getattr(cones, name, None)]
        if others:
            what = f"the problem needs cones of type {', '.join(others)}: it is not a quadratic program"
            raise UserError(what, "safe.qp_layer", "quadratic objective, linear equalities and inequalities")
        self._equalities = int(cones.zero)
        self._linear = _places(ctx.reduced_A.problem_data_index)
        index = ctx.reduced_P.problem_data_index
        self._quadratic = None if index is None else _places(index)
        self._triangle = index is not None and not bool((self._quadratic.rows > self._quadratic.columns).any())
        self._small = self.method == "active-set"
        if self.method == "auto":
            rows = self._linear.shape[0] - self._equalities
            self._small = rows <= PIVOTED and self._definite(ctx.reduced_P.reduced_mat)

    def _definite(self, values: Any) -> bool:
        """Whether P is definite on the null space of equalities with values of no special kind.

        values: (nnz, parameters + 1), the stored values of P as an affine map of the parameters.
        """
        if self._quadratic is None:
            return False
        values = torch.as_tensor(values.toarray(), dtype=torch.float64)
        on_diagonal = (self._quadratic.rows == self._quadratic.columns).to(values)
        constant = not values[:, :-1].any()
        P = self._whole(self._quadratic.dense((values[:, -1] if constant else on_diagonal)[:, None]))[..., 0]
        generator = torch.Generator().manual_seed(0)
        entries = torch.rand(len(self._linear.rows), 1, generator=generator, dtype=torch.float64) + 0.5
        A = self._linear.dense(entries)[: self._equalities, :-1, 0]
        return int(torch.linalg.matrix_rank(P + A.T @ A)) == len(P)

    def solve_torch_batch(
        self, P: Tensor | None, q: Tensor, A: Tensor, dims: Any, solver_args: dict, needs_grad: bool
    ) -> tuple[Tensor, Tensor, Any]:
        """P (batch, nnz) or None, q (batch, n + 1), A (batch, nnz) -> primal, dual and what backward needs."""
        e, batch = self._equalities, q.shape[0]
        matrix = self._linear.dense(A.T.double())
        G, h = -matrix[e:, :-1], matrix[e:, -1]
        equalities, b = (None, None) if e == 0 else (-matrix[:e, :-1], matrix[:e, -1])
        force = q.T[:-1].double().contiguous()
        quadratic = self._symmetric(P, force)
        if G.shape[0] == 0:  # one row that always holds stands for none
            G, h = force.new_zeros(1, len(force), batch), force.new_ones(1, batch)
        solution = (dual.solve if self._small else _interior)(quadratic, force, G, h, equalities, b)
        self.last_feasible = solution.feasible
        self.last_violation = solution.measured(force, h, b)[0]
        multipliers = solution.multipliers[: matrix.shape[0] - e]
        dual_values = multipliers if e == 0 else torch.cat((solution.equality, multipliers))
        primal = solution.x.T.to(q.dtype, copy=True, memory_format=torch.contiguous_format)
        return primal, dual_values.T.to(q.dtype).contiguous(), (solution, q.dtype)

    def _symmetric(self, P: Tensor | None, force: Tensor) -> Tensor:
        """P (n, n, batch) from its stored values."""
        if P is None or self._quadratic is None:
            return force.new_zeros(len(force), len(force), 1)
        return self._whole(self._quadratic.dense(P.T.double()))

    def _whole(self, stored: Tensor) -> Tensor:
        """The symmetric matrix whose entries, or whose upper triangle, are stored: (n, n, batch)."""
        if not self._triangle:
            return 0.5 * (stored + stored.transpose(0, 1))
        diagonal = torch.diag_embed(stored.diagonal(dim1=0, dim2=1)).movedim(0, -1)
        return stored + stored.transpose(0, 1) - diagonal

    def derivative_torch_batch(
        self, dprimal: Tensor, ddual: Tensor, saved_state: Any
    ) -> tuple[Tensor | None, Tensor, Tensor]:
        """Gradients at the stored places; off the diagonal of a triangle an entry stands for two."""
        solution, dtype = saved_state
        e, rows = self._equalities, self._linear.shape[0]
        dm = dprimal.new_zeros(len(dprimal), len(solution.multipliers), dtype=torch.float64)
        dm[:, : rows - e] = ddual[:, e:]
        a, b, c = solution.adjoint(dprimal.T.double(), dm.T, ddual[:, :e].T.double())
        dA = _outer(solution.multipliers, solution.x, a, b)[: rows - e]
        dA = torch.cat((-dA, b[: rows - e, None]), 1)
        if e:
            equalities = torch.cat((-_outer(solution.equality, solution.x, a, c), c[:, None]), 1)
            dA = torch.cat((equalities, dA))
        dq = torch.cat((-a, torch.zeros_like(a[:1])))
        return self._stored_quadratic(a, solution.x, dtype), dq.T.to(dtype), self._linear.stored(dA).T.to(dtype)

    def _stored_quadratic(self, a: Tensor, x: Tensor, dtype: torch.dtype) -> Tensor | None:
        if self._quadratic is None:
            return None
        i, j = self._quadratic.rows, self._quadratic.columns
        share = torch.where((i == j) | (not self._triangle), 0.5, 1.0).to(x)[:, None]
        return (-share * (a[i] * x[j] + a[j] * x[i])).T.to(dtype)


def _outer(multipliers: Tensor, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Gradient of the rows' matrix, batch last (arXiv 1703.00443, eq. 8)."""
    return -(multipliers[:, None] * a + b[:, None] * x)


class _Interior(NamedTuple):
    """An interior-point solution with the batch last and the rows' own scale, as `safe.dual.Solved` shows its own."""

    inner: interior.Solved
    scale: Tensor

    @property
    def x(self) -> Tensor:
        return self.inner.x.T

    @property
    def multipliers(self) -> Tensor:
        return (self.inner.multipliers * self.scale).T

    @property
    def equality(self) -> Tensor:
        return self.inner.equality.T

    @property
    def feasible(self) -> Tensor:
        return self.inner.feasible

    def measured(self, *_: Any) -> tuple[Tensor, Tensor]:
        return self.inner.measured(self.scale)

    def adjoint(self, dx: Tensor, dm: Tensor, de: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        a, b, c = self.inner.adjoint(dx.T, dm.T * self.scale, de.T)
        return a.T, (b * self.scale).T, c.T


def _interior(
    P: Tensor, q: Tensor, G: Tensor, h: Tensor, A: Tensor | None, b: Tensor | None
) -> _Interior:
    """The interior point for tensors with the batch last."""
    rows, scale = interior.DenseRows(G.movedim(-1, 0)).scaled()
    A = interior.DenseRows(G.new_zeros(1, 0, len(q)) if A is None else A.movedim(-1, 0))
    b = q.new_zeros(q.shape[1], 0) if b is None else b.T
    problem = interior.Problem(P.movedim(-1, 0), q.T, rows, h.T * scale, A, b)
    return _Interior(interior.solve(problem), scale)


def layer(
    problem: cp.Problem,
    parameters: Sequence[cp.Parameter],
    variables: Sequence[cp.Variable],
    *,
    method: str = "auto",
) -> CvxpyLayer:
    """A torch module that solves a cvxpy quadratic program for a batch of parameters and differentiates through it.

    Called with one tensor per parameter, (batch, *shape) or *shape, it returns one tensor per variable; its
    `ctx.solver` is the `BatchedQPSolver`. Raises UserError where the problem is not convex in cvxpy's parametrised
    sense (DPP), not quadratic with linear constraints, has integer variables, or names other parameters than these.
    """
    if problem.is_mixed_integer():
        raise UserError("the problem has integer variables", "safe.qp_layer", "continuous variables")
    try:
        return CvxpyLayer(problem, list(parameters), list(variables), solver=BatchedQPSolver(method))
    except UserError:
        raise
    except (ValueError, NotImplementedError, cp.error.DCPError, cp.error.SolverError) as error:
        allowed = "a convex quadratic objective, linear constraints, and all of the problem's parameters"
        raise UserError(str(error).splitlines()[0], "safe.qp_layer", allowed) from error


def barrier_layer(dimensions: int, rows: int) -> CvxpyLayer:
    """SafeDiffuser's quadratic program (arXiv 2306.00148, section 3): minimise |u - reference|^2 subject to every row's
    gradient . u + level >= 0, where level is alpha(b).

    The layer takes reference (batch, dimensions), gradient (batch, rows, dimensions), level (batch, rows) and returns
    (u (batch, dimensions),).
    """
    u = cp.Variable(dimensions)
    reference, level = cp.Parameter(dimensions), cp.Parameter(rows)
    gradient = cp.Parameter((rows, dimensions))
    # |u|^2 / 2 - reference . u has the same minimiser and needs no equality in cvxpy's canonical form.
    objective = cp.Minimize(0.5 * cp.sum_squares(u) - reference @ u)
    problem = cp.Problem(objective, [gradient @ u + level >= 0])
    return layer(problem, [reference, gradient, level], [u])
