"""Small quadratic programs by their multipliers: minimise 1/2 x'Px + q'x subject to Gx <= h and Ax = b.

Without the rows of G the minimiser is x0; the rows push it to x = x0 - H G'lambda, where H is the inverse of P on the
null space of A. What is left is to find the multipliers, whose matrix is M = G H G' (Boyd and Vandenberghe, Convex
Optimization, 5.5.3 and 10.1). The rows are scaled to unit length in the metric of H, so that one small number
`RELAXATION` added to M's diagonal means the same for all: it lets a row give way at a high price. A problem that has
no feasible point therefore has an answer as well, the point with the least sum of squared violations (in that metric);
where there is a feasible point the relaxation is taken out again by iterating on the active rows.

All tensors have the batch last; a batch axis of length 1 is shared by the batch.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from safe import active_sets
from safe.small_matrices import apply, diagonal, inverse, product, transposed

RELAXATION = 1e-9
FEASIBILITY = 1e-7  # largest violation of a feasible problem, in the metric of H, relative to 1 + the largest slack
ENUMERATED = 5  # most rows whose subsets are all tried
CORRECTIONS = 3


class Free(NamedTuple):
    """The problem without inequalities: P x + q + A'y = 0, A x = b.

    metric: H (n, n, batch), None for the identity; lift: (n, e, batch), the x that answers a change of b.
    """

    P: Tensor | None
    A: Tensor | None
    metric: Tensor | None
    lift: Tensor | None

    def curve(self, x: Tensor) -> Tensor:
        """P x: (n, batch) -> (n, batch)."""
        return x if self.P is None else apply(self.P, x)

    def flow(self, matrix: Tensor) -> Tensor:
        """H times (n, k, batch)."""
        return matrix if self.metric is None else product(self.metric, matrix)

    def point(self, force: Tensor, level: Tensor | None) -> Tensor:
        """The x with P x + A'y = force and A x = level: (n, batch), (e, batch) -> (n, batch)."""
        x = self.flow(force[:, None])[:, 0]
        if self.lift is None:
            return x
        assert level is not None  # what A x is to be
        return x + apply(self.lift, level)

    def pull(self, force: Tensor, x: Tensor) -> Tensor | None:
        """The y of the same equations (e, batch)."""
        if self.lift is None:
            return None
        return apply(transposed(self.lift), force - self.curve(x))


class Solved(NamedTuple):
    """A batch of solved problems, with what the derivative needs.

    x (n, batch), multipliers (m, batch), equality (e, batch) or None; active (m, batch) bool; feasible (batch,) bool.
    pushes: H G' D, scale: D (rows to unit length), matrix: D M D, inverse: of its active block plus the relaxation.
    """

    x: Tensor
    multipliers: Tensor
    equality: Tensor | None
    active: Tensor
    feasible: Tensor
    free: Free
    G: Tensor
    pushes: Tensor
    scale: Tensor
    matrix: Tensor
    inverse: Tensor

    def adjoint(self, dx: Tensor, dm: Tensor | None, de: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Solves the KKT system of the active rows for the right-hand side (dx, dm, de), shaped as the solution.

        The answer (a, b, c) holds the derivatives of a scalar whose gradients are (dx, dm, de): minus those with
        respect to q, and those with respect to h and to the equalities' right-hand side (arXiv 1703.00443, eq. 8).
        """
        if self.free.lift is not None and de is None:
            de = dx.new_zeros(self.free.lift.shape[1], dx.shape[1])
        a = self.free.point(dx, de)
        rows = apply(self.G, a) - (0.0 if dm is None else dm)
        target = torch.where(self.active, rows * self.scale, 0.0)
        relaxation = torch.where(self.feasible, 0.0, RELAXATION)
        b = apply(self.inverse, target)
        for _ in range(CORRECTIONS):
            gap = target - apply(self.matrix, b) - relaxation * b
            b = b + apply(self.inverse, torch.where(self.active, gap, 0.0))
        a = a - apply(self.pushes, b)
        b = b * self.scale
        return a, b, self.free.pull(dx - apply(transposed(self.G), b), a)

    def measured(self, q: Tensor, h: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor]:
        """Largest violation and KKT residual (batch,), as `safe.qp.QPSolution` defines them."""
        slack = h - apply(self.G, self.x)
        violation = (-slack).amax(0).clamp_min(0.0)
        pull = self.free.curve(self.x) + q + apply(transposed(self.G), self.multipliers)
        if self.equality is not None:
            assert self.free.A is not None and b is not None
            pull = pull + apply(transposed(self.free.A), self.equality)
            violation = torch.maximum(violation, (apply(self.free.A, self.x) - b).abs().amax(0))
        pull = pull.abs().amax(0)
        pull = torch.where(self.feasible, pull, pull / (1.0 + self.multipliers.amax(0)))
        kept = torch.where(self.feasible, slack, slack.clamp_min(0.0))
        unmet = torch.where(self.feasible, violation, 0.0)
        return violation, torch.stack((pull, unmet, torch.minimum(self.multipliers, kept).abs().amax(0))).amax(0)


def free(P: Tensor | None, A: Tensor | None) -> Free:
    """P (n, n, batch) symmetric, positive definite on the null space of A (e, n, batch); None for the identity."""
    if A is None or A.shape[0] == 0:
        return Free(P, None, None if P is None else inverse(P), None)
    if P is None:
        P = torch.eye(A.shape[1], dtype=A.dtype, device=A.device)[..., None]
    # A'A changes no solution where Ax = b holds, and makes P definite.
    whole = inverse(P + product(transposed(A), A))
    spread = product(whole, transposed(A))
    lift = product(spread, inverse(product(A, spread)))
    return Free(P, A, whole - product(lift, transposed(spread)), lift)


def solve(
    P: Tensor | None, q: Tensor, G: Tensor, h: Tensor, A: Tensor | None = None, b: Tensor | None = None,
    steps: int | None = None,
) -> Solved:  # fmt: skip
    """Solve a batch: q (n, batch), G (m, n, batch), h (m, batch), A (e, n, batch), b (e, batch).

    steps: pivots of the active-set search, for more rows than are enumerated; default 1.5 m + 4.
    """
    unconstrained = free(P, A)
    x0 = unconstrained.point(-q, b)
    pushes = unconstrained.flow(transposed(G))
    matrix = product(G, pushes)
    scale = _scale(diagonal(matrix))
    matrix = matrix * scale[:, None] * scale
    slack = (h - apply(G, x0)) * scale
    active, active_inverse = _active(matrix, slack, 3 * len(h) // 2 + 4 if steps is None else steps)
    scaled, feasible = _multipliers(matrix, slack, active, active_inverse)
    multipliers = scaled * scale
    x = x0 - apply(pushes, multipliers)
    equality = unconstrained.pull(-q - apply(transposed(G), multipliers), x)
    solved = Solved(
        x, multipliers, equality, active, feasible, unconstrained, G, pushes * scale, scale, matrix, active_inverse
    )
    return _refined(solved, q, h, b)


def _refined(solved: Solved, q: Tensor, h: Tensor, b: Tensor | None) -> Solved:
    """One step of iterative refinement on the KKT system as it was given, not as it was scaled and inverted."""
    free, G, scale = solved.free, solved.G, solved.scale
    pull = -q - apply(transposed(G), solved.multipliers)
    force, level = pull - free.curve(solved.x), None
    if free.A is not None:
        assert solved.equality is not None and b is not None
        force = force - apply(transposed(free.A), solved.equality)
        level = b - apply(free.A, solved.x)
    x = solved.x + free.point(force, level)
    scaled = solved.multipliers / scale
    gap = (apply(G, x) - h) * scale - torch.where(solved.feasible, 0.0, RELAXATION) * scaled
    change = apply(solved.inverse, torch.where(solved.active, gap, 0.0))
    x = x - apply(solved.pushes, change)
    multipliers = (scaled + change).clamp_min(0.0) * scale
    return solved._replace(
        x=x, multipliers=multipliers, equality=free.pull(-q - apply(transposed(G), multipliers), x)
    )


def _scale(lengths: Tensor) -> Tensor:
    """One over the rows' lengths; a row that is zero, or all rounding beside the longest, stays as it is."""
    empty = lengths <= 1e-30 * lengths.amax(0, keepdim=True)
    return torch.where(empty, 1.0, torch.where(empty, 1.0, lengths).rsqrt())


def _active(matrix: Tensor, slack: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Active rows of the relaxed problem and the inverse of their block."""
    identity = torch.eye(len(slack), dtype=slack.dtype, device=slack.device)[..., None]
    relaxed = matrix + RELAXATION * identity
    if len(slack) > ENUMERATED:
        return active_sets.pivoted(relaxed, slack, steps)
    active = active_sets.enumerated(relaxed, slack)
    both = active[:, None] & active[None, :]
    return active, torch.where(both, inverse(torch.where(both, relaxed, identity)), 0.0)


def _multipliers(matrix: Tensor, slack: Tensor, active: Tensor, active_inverse: Tensor) -> tuple[Tensor, Tensor]:
    """Multipliers of the scaled rows and whether the problem is feasible.

    Each correction of `exact` is a proximal step on the active rows that takes the relaxation out; each correction of
    `relaxed` mends rounding only. Where the first still leaves a row violated there is no feasible point, and the
    second is the answer.
    """
    target = torch.where(active, -slack, 0.0)
    exact = relaxed = apply(active_inverse, target)
    for _ in range(CORRECTIONS):
        gap = torch.where(active, target - apply(matrix, exact), 0.0)
        exact = exact + apply(active_inverse, gap)
    gap = torch.where(active, target - apply(matrix, relaxed) - RELAXATION * relaxed, 0.0)
    relaxed = relaxed + apply(active_inverse, gap)
    violation = -(slack + apply(matrix, exact))
    feasible = (violation <= FEASIBILITY * (1.0 + slack.abs().amax(0))).all(0)
    return torch.where(feasible, exact, relaxed).clamp_min(0.0), feasible
