"""Larger quadratic programs, dense or structured: a batched primal-dual interior point with a fixed number of steps.

minimise 1/2 x'Px + q'x subject to Gx <= h and Ax = b, with P positive semi-definite. Mehrotra's predictor-corrector
(Nocedal and Wright, Numerical Optimization, 16.6) on the elastic problem, in which row i may be violated by
`RELAXATION` times its multiplier: it has a solution whether or not the rows can hold together. One step factors
P + G' D G once, in the number of variables, however many rows there are. Then the active rows are read off and solved
for exactly, which takes the residual from the interior point's 1e-8 or so to rounding, mends rows that were read wrong
(as most infeasible problems have), and takes the relaxation out again wherever the problem is feasible.

The batch comes first here. Rows may be scaled to unit length beforehand (`DenseRows.scaled` does it).
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

RELAXATION = 1e-9
FEASIBILITY = 1e-7  # largest violation of a feasible problem relative to 1 + the largest |h|
PROXIMAL = 1e-11  # relative to the mean diagonal: makes a singular P definite while factoring only
STEPS = 22
TO_BOUNDARY = 0.97  # of the longest step that stays inside; nearer to 1 a few problems in 10,000 cycle
CORRECTIONS = 3
REPAIRS = 4


class Rows(Protocol):
    """The linear map G of a batch of problems, however it is stored."""

    def apply(self, x: Tensor) -> Tensor:
        """G x: (batch, n) -> (batch, m)."""
        ...

    def adjoint(self, multipliers: Tensor) -> Tensor:
        """G' y: (batch, m) -> (batch, n)."""
        ...

    def normal(self, weights: Tensor) -> Tensor:
        """G' diag(weights) G: (batch, m) -> a new (batch, n, n), of which the lower triangle is read."""
        ...


class DenseRows(NamedTuple):
    """Rows stored as a matrix (batch, m, n); the batch may be of length 1."""

    matrix: Tensor

    def apply(self, x: Tensor) -> Tensor:
        return (self.matrix @ x[..., None])[..., 0]

    def adjoint(self, multipliers: Tensor) -> Tensor:
        return (self.matrix.mT @ multipliers[..., None])[..., 0]

    def normal(self, weights: Tensor) -> Tensor:
        return self.matrix.mT @ (weights[..., None] * self.matrix)

    def scaled(self) -> tuple[DenseRows, Tensor]:
        """The same rows at unit length, and what each was multiplied by (batch, m); zero rows stay."""
        length = torch.linalg.vector_norm(self.matrix, dim=-1)
        empty = length <= 1e-15 * length.amax(-1, keepdim=True)
        scale = torch.where(empty, 1.0, 1.0 / torch.where(empty, 1.0, length))
        return DenseRows(self.matrix * scale[..., None]), scale


class Problem(NamedTuple):
    """P (batch or 1, n, n), q (batch, n), rows G with h (batch, m), equalities A (batch or 1, e, n) with b (batch, e).

    An equality is a row with the price of a violated one from the start, and its multiplier carried along.
    """

    P: Tensor
    q: Tensor
    rows: Rows
    h: Tensor
    A: DenseRows
    b: Tensor

    def stationarity(self, x: Tensor, multipliers: Tensor, equality: Tensor) -> Tensor:
        """P x + q + G'multipliers + A'equality (batch, n)."""
        gradient = (self.P @ x[..., None])[..., 0] + self.q
        return gradient + self.rows.adjoint(multipliers) + self.A.adjoint(equality)

    def factor(self, weights: Tensor) -> Tensor:
        """Lower Cholesky factor of P + G' diag(weights) G + A'A / RELAXATION (batch, n, n).

        Positive semi-definite P: the least shift that rounding needs is added; it slows the steps, not the answer.
        """
        matrix = self.rows.normal(weights).add_(self.P)
        if self.A.matrix.shape[1]:
            matrix += self.A.normal(torch.full_like(self.b[:1], 1.0 / RELAXATION))
        diagonal = matrix.diagonal(dim1=-2, dim2=-1)
        diagonal += PROXIMAL * diagonal.mean(-1, keepdim=True)
        return torch.linalg.cholesky_ex(matrix).L


def solve_factored(factor: Tensor, force: Tensor) -> Tensor:
    return torch.cholesky_solve(force[..., None], factor)[..., 0]


class Solved(NamedTuple):
    """x (batch, n), multipliers (batch, m), equality (batch, e), active (batch, m) bool, feasible (batch,) bool."""

    x: Tensor
    multipliers: Tensor
    equality: Tensor
    active: Tensor
    feasible: Tensor
    problem: Problem
    cholesky: Tensor

    def adjoint(self, dx: Tensor, dm: Tensor | None, de: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Solves the KKT system of the active rows for (dx, dm, de), as `safe.dual.Solved.adjoint`."""
        problem = self.problem
        dm = torch.zeros_like(self.multipliers) if dm is None else torch.where(self.active, dm, 0.0)
        de = torch.zeros_like(self.equality) if de is None else de
        linear = problem._replace(q=-dx, h=dm, b=de)
        start = torch.zeros_like(dx), torch.zeros_like(dm), torch.zeros_like(de)
        return _active_solution(linear, self.active, self.cholesky, start, ~self.feasible)

    def measured(self, scale: Tensor) -> tuple[Tensor, Tensor]:
        """Largest violation and KKT residual (batch,), as `safe.qp.QPSolution` defines them; scale of the rows."""
        problem = self.problem
        slack, multipliers = (problem.h - problem.rows.apply(self.x)) / scale, self.multipliers * scale
        gaps = torch.cat((-slack, (problem.A.apply(self.x) - problem.b).abs()), -1)
        violation = gaps.amax(-1).clamp_min(0.0)
        pull = problem.stationarity(self.x, self.multipliers, self.equality).abs().amax(-1)
        pull = torch.where(self.feasible, pull, pull / (1.0 + self.multipliers.amax(-1)))
        kept = torch.where(self.feasible[:, None], slack, slack.clamp_min(0.0))
        unmet = torch.where(self.feasible, violation, 0.0)
        return violation, torch.stack((pull, unmet, torch.minimum(multipliers, kept).abs().amax(-1))).amax(0)


def _active_solution(
    problem: Problem, active: Tensor, cholesky: Tensor, start: tuple[Tensor, Tensor, Tensor], elastic: Tensor,
    corrections: int = CORRECTIONS,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(x, multipliers, equality) that meet the active rows and the equalities with equality.

    Iterative refinement with the relaxed system's factor: of the relaxed system itself where `elastic` (batch,), of the
    system without relaxation elsewhere, to which it converges as RELAXATION over the rows' least singular value.
    """
    x, multipliers, equality = start
    relaxation = torch.where(elastic, RELAXATION, 0.0)[:, None]
    for _ in range(corrections):
        pull = -problem.stationarity(x, multipliers, equality)
        gap = torch.where(active, problem.h - problem.rows.apply(x) + relaxation * multipliers, 0.0)
        level = problem.b - problem.A.apply(x)
        force = pull + (problem.rows.adjoint(gap) + problem.A.adjoint(level)) / RELAXATION
        step = solve_factored(cholesky, force)
        change = (problem.rows.apply(step) - gap) / RELAXATION
        x = x + step
        multipliers = multipliers + torch.where(active, change, 0.0)
        equality = equality + (problem.A.apply(step) - level) / RELAXATION
    return x, multipliers, equality


def solve(problem: Problem, steps: int = STEPS, repairs: int = REPAIRS) -> Solved:
    """Solve a batch in `steps` interior-point steps, then `repairs` times exactly on the rows found active."""
    iterate = _start(problem)
    residuals = _residuals(problem, iterate)
    for _ in range(steps):
        iterate, residuals = _step(problem, iterate, residuals)
    x, slack, multipliers, equality = iterate
    active = multipliers > slack
    everywhere = torch.ones(len(x), dtype=torch.bool, device=x.device)
    for _ in range(repairs):
        # Exactly on the active rows: a row whose multiplier is negative leaves, one that is violated enters.
        cholesky = problem.factor(active / RELAXATION)
        relaxed = x, torch.where(active, multipliers, 0.0), equality
        relaxed = _active_solution(problem, active, cholesky, relaxed, everywhere, 2)
        x, multipliers, equality = relaxed
        found, active = active, torch.where(active, multipliers > 0, problem.rows.apply(x) > problem.h)
    active = found
    exact = _active_solution(problem, active, cholesky, relaxed, ~everywhere)
    tolerance = FEASIBILITY * (1.0 + problem.h.abs().amax(-1))
    feasible = (problem.rows.apply(exact[0]) - problem.h).amax(-1) <= tolerance
    if problem.A.matrix.shape[1]:
        feasible &= (problem.A.apply(exact[0]) - problem.b).abs().amax(-1) <= tolerance
    x, multipliers, equality = (
        torch.where(feasible[:, None], a, b) for a, b in zip(exact, relaxed, strict=True)
    )
    return Solved(x, multipliers.clamp_min(0.0), equality, active, feasible, problem, cholesky)


def _start(problem: Problem) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The least-squares point of Mehrotra's heuristic, moved into the interior (arXiv 1703.00443, section 3)."""
    cholesky = problem.factor(torch.ones_like(problem.h))
    force = -problem.q + problem.rows.adjoint(problem.h) + problem.A.adjoint(problem.b) / RELAXATION
    x = solve_factored(cholesky, force)
    slack = problem.h - problem.rows.apply(x)
    equality = (problem.A.apply(x) - problem.b) / RELAXATION
    return x, _interior(slack), _interior(-slack), equality


def _interior(values: Tensor) -> Tensor:
    lowest = values.amin(-1, keepdim=True)
    return torch.where(lowest > 0, values, values - lowest + 1.0)


def _residuals(problem: Problem, iterate: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Of stationarity (batch, n), of the elastic rows (batch, m) and of the equalities (batch, e)."""
    x, slack, multipliers, equality = iterate
    gap = problem.rows.apply(x) + slack - RELAXATION * multipliers - problem.h
    return problem.stationarity(x, multipliers, equality), gap, problem.A.apply(x) - problem.b


def _step(
    problem: Problem, iterate: tuple[Tensor, ...], residuals: tuple[Tensor, ...]
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """One predictor-corrector step; a problem that is solved to rounding, or cannot be factored, stands still.

    The step shrinks the residuals of linear equations by its length, so that they need no second measurement.
    """
    _, slack, multipliers, _ = iterate
    pull, gap, level = residuals
    weights = multipliers / (slack + RELAXATION * multipliers)
    cholesky = problem.factor(weights)

    def direction(complementarity: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        push = weights * (gap - complementarity / multipliers)
        force = -pull - problem.rows.adjoint(push) - problem.A.adjoint(level) / RELAXATION
        dx = solve_factored(cholesky, force)
        dm = weights * problem.rows.apply(dx) + push
        ds = -(complementarity + slack * dm) / multipliers
        return dx, ds, dm, (problem.A.apply(dx) + level) / RELAXATION

    product = slack * multipliers
    mean = product.mean(-1, keepdim=True)
    _, ds, dm, _ = direction(product)
    length = _longest(slack, ds, multipliers, dm, 1.0)
    aimed = ((slack + length * ds) * (multipliers + length * dm)).mean(-1, keepdim=True)
    centring = (aimed / mean) ** 3 * mean
    # The second-order term holds along the whole affine step only: where that is cut short, so is the term, or small
    # problems can cycle (Colombo and Gondzio, Further development of multiple centrality correctors, 2008).
    second = torch.minimum(torch.maximum(length**2 * ds * dm, -mean), mean)
    change = direction(product + second - centring)
    length = TO_BOUNDARY * _longest(slack, change[1], multipliers, change[2], 1.0 / TO_BOUNDARY)
    moving = (mean > 1e-15) & torch.isfinite(length)
    iterate = tuple(torch.where(moving, a + length * d, a) for a, d in zip(iterate, change, strict=True))
    remaining = torch.where(moving, 1.0 - length, 1.0)
    return iterate, tuple(remaining * r for r in residuals)


def _longest(slack: Tensor, ds: Tensor, multipliers: Tensor, dm: Tensor, most: float) -> Tensor:
    """The longest step up to `most` that keeps slacks and multipliers nonnegative (batch, 1); NaN where ds or dm is."""
    fall = torch.maximum((-ds / slack).amax(-1, keepdim=True), (-dm / multipliers).amax(-1, keepdim=True))
    return 1.0 / fall.clamp_min(1.0 / most)
