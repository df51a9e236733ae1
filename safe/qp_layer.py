"""Quadratic programs stated in cvxpy, solved and differentiated in a batch: `layer(problem, parameters, variables)`.

cvxpylayers' `CvxpyLayer` compiles a parametrised cvxpy problem once and hands its numbers to a solver for every call;
`BatchedQPSolver` plugs the solvers of `safe.qp` in there. One infeasible problem no longer costs the batch its
answers: it gets its point of least violation. `last_feasible` says which problems of the last call had a solution.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import cvxpy as cp
import numpy as np
import torch
from cvxpy.error import DCPError, SolverError
from cvxpylayers.interfaces.base import SolverInterface
from cvxpylayers.torch import CvxpyLayer  # pyright: ignore[reportPrivateImportUsage]  # public, but in no __all__
from torch import Tensor

from madiff.interfaces import UserError
from safe import dual, interior
from safe.qp import METHODS, PIVOTED
from safe.sparse_rows import SparseRows

SPARSE = 4  # times fewer entries in a row than variables: then the rows are stored entry by entry


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
    _linear: Places  # from `setup` on

    def __init__(self, method: str = "auto") -> None:
        if method not in METHODS:
            raise UserError(f"unknown method {method!r}", "safe.qp_layer", METHODS)
        self.method = method
        self.last_feasible: Tensor | None = None
        self.last_violation: Tensor | None = None
        self._quadratic: Places | None = None

    def setup(self, ctx: Any) -> None:
        """Read the problem's structure; called once by `CvxpyLayer`. UserError where it is no quadratic program."""
        if hasattr(self, "_linear"):
            raise UserError("this solver already serves a layer", "safe.qp_layer", "one BatchedQPSolver per layer")
        cones = ctx.cone_dims
        others = [name for name in ("soc", "psd", "exp", "p3d", "pnd") if getattr(cones, name, None)]
        if others:
            what = f"the problem needs cones of type {', '.join(others)}: it is not a quadratic program"
            raise UserError(what, "safe.qp_layer", "quadratic objective, linear equalities and inequalities")
        self._equalities = int(cones.zero)
        self._linear = _places(ctx.reduced_A.problem_data_index)
        index = ctx.reduced_P.problem_data_index
        self._quadratic = quadratic = None if index is None else _places(index)
        self._triangle = quadratic is not None and not bool((quadratic.rows > quadratic.columns).any())
        self._slots, self._columns = self._sparse_structure()
        self._small = self.method == "active-set"
        if self.method == "auto":
            rows = self._linear.shape[0] - self._equalities
            self._small = rows <= PIVOTED and self._definite(ctx.reduced_P.reduced_mat)

    def _sparse_structure(self) -> tuple[Tensor, Tensor]:
        """Per inequality, which stored values it has and in which columns: both (m, k), padded with one past the last.

        k is the largest number of entries in a row, at least 1.
        """
        rows, columns, (height, width) = self._linear
        kept = (rows >= self._equalities) & (columns < width - 1)
        stored, row = kept.nonzero()[:, 0], rows[kept] - self._equalities
        order = torch.argsort(row, stable=True)
        stored, row = stored[order], row[order]
        counts = torch.bincount(row, minlength=height - self._equalities)
        k = max(int(counts.max()) if len(counts) else 0, 1)
        within = torch.arange(len(row)) - (counts.cumsum(0) - counts)[row]
        slots = torch.full((height - self._equalities, k), len(rows))
        slots[row, within] = stored
        return slots, torch.cat((columns, columns.new_zeros(1)))[slots]

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
        e, batch, n = self._equalities, q.shape[0], q.shape[1] - 1
        rows = self._linear.shape[0] - e
        force = q.T[:-1].double().contiguous()
        quadratic = self._symmetric(P, force)
        if rows == 0 or self._small or SPARSE * self._slots.shape[1] > n:
            solution = self._dense(quadratic, force, A.T.double(), batch)
        else:
            solution = self._sparse(quadratic, force, A.T.double())
        self.last_feasible, self.last_violation = solution.feasible, solution.violation
        equality, multipliers = solution.equality, solution.multipliers[:rows]
        dual_values = multipliers if e == 0 or equality is None else torch.cat((equality, multipliers))
        primal = solution.x.T.to(q.dtype, copy=True, memory_format=torch.contiguous_format)
        return primal, dual_values.T.to(q.dtype).contiguous(), (solution, q.dtype)

    def _equality(self, values: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """The equalities' matrix (e, n, batch) and right-hand side (e, batch), None where there are none."""
        e = self._equalities
        if e == 0:
            return None, None
        matrix = self._linear.dense(values)[:e]
        return -matrix[:, :-1], matrix[:, -1]

    def _dense(self, P: Tensor, q: Tensor, values: Tensor, batch: int) -> _Solution:
        matrix = self._linear.dense(values)[self._equalities :]
        G, h = -matrix[:, :-1], matrix[:, -1]
        if len(G) == 0:  # one row that always holds stands for none
            G, h = q.new_zeros(1, len(q), batch), q.new_ones(1, batch)
        A, b = self._equality(values)
        if not self._small:
            return _interior(P, q, interior.DenseRows(G.movedim(-1, 0)), h, A, b)
        solved = dual.solve(P, q, G, h, A, b)
        violation = solved.measured(q, h, b)[0]
        return _Solution(
            solved.x, solved.multipliers, solved.equality, solved.feasible, violation, solved.adjoint
        )

    def _sparse(self, P: Tensor, q: Tensor, values: Tensor) -> _Solution:
        """The interior point on rows stored entry by entry: a large program whose rows touch few variables each."""
        padded = torch.cat((values, values.new_zeros(1, values.shape[1])))
        entries = -padded[self._slots].movedim(-1, 0)
        rows = SparseRows.of(self._columns.to(values.device), entries, len(q))
        last = self._linear.columns == self._linear.shape[1] - 1
        h = values.new_zeros(self._linear.shape[0], values.shape[1])
        h[self._linear.rows[last]] = values[last]
        return _interior(P, q, rows, h[self._equalities :], *self._equality(values))

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
        multipliers = solution.multipliers
        if e:
            multipliers, b = torch.cat((solution.equality, multipliers)), torch.cat((c, b))
        # Stored are -G and h side by side: (arXiv 1703.00443, eq. 8) with a zero below a and a one below x.
        i, j = self._linear.rows, self._linear.columns
        zero, one = torch.zeros_like(a[:1]), torch.ones_like(a[:1])
        a_below, x_below = torch.cat((a, zero)), torch.cat((solution.x, one))
        dA = multipliers[i] * a_below[j] + b[i] * x_below[j]
        dq = torch.cat((-a, zero))
        return self._stored_quadratic(a, solution.x, dtype), dq.T.to(dtype), dA.T.to(dtype)

    def _stored_quadratic(self, a: Tensor, x: Tensor, dtype: torch.dtype) -> Tensor | None:
        if self._quadratic is None:
            return None
        i, j = self._quadratic.rows, self._quadratic.columns
        share = torch.where((i == j) | (not self._triangle), 0.5, 1.0).to(x)[:, None]
        return (-share * (a[i] * x[j] + a[j] * x[i])).T.to(dtype)


class _Solution(NamedTuple):
    """A solved batch with the batch last, whoever solved it: x (n, batch), multipliers (m, batch), equality (e, batch).

    adjoint(dx, dm, de): as `safe.dual.Solved.adjoint`.
    """

    x: Tensor
    multipliers: Tensor
    equality: Tensor | None
    feasible: Tensor
    violation: Tensor
    adjoint: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor | None]]


def _interior(
    P: Tensor, q: Tensor, rows: interior.DenseRows | SparseRows, h: Tensor, A: Tensor | None, b: Tensor | None
) -> _Solution:
    """The interior point for tensors with the batch last."""
    rows, scale = rows.scaled()
    equalities = interior.DenseRows(q.new_zeros(1, 0, len(q)) if A is None else A.movedim(-1, 0))
    b = q.new_zeros(q.shape[1], 0) if b is None else b.T
    solved = interior.solve(interior.Problem(P.movedim(-1, 0), q.T, rows, h.T * scale, equalities, b))

    def adjoint(dx: Tensor, dm: Tensor, de: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        a, b, c = solved.adjoint(dx.T, dm.T * scale, de.T)
        return a.T, (b * scale).T, c.T

    multipliers = (solved.multipliers * scale).T
    return _Solution(
        solved.x.T, multipliers, solved.equality.T, solved.feasible, solved.measured(scale)[0], adjoint
    )


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
    except (ValueError, NotImplementedError, DCPError, SolverError) as error:
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
