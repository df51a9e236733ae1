"""Random quadratic programs and independent ways to solve one: every subset of rows by least squares, and CLARABEL."""

import itertools

import cvxpy as cp
import numpy as np
import torch

DOUBLE = torch.float64


def random_programs(batch, n, m, seed=0, room=0.3):
    """P, q, G, h with a point that has up to `room` of slack in every row; a negative room makes most infeasible."""
    g = torch.Generator().manual_seed(seed)
    root = torch.randn(batch, n, n, dtype=DOUBLE, generator=g)
    P = root @ root.mT / n + 0.5 * torch.eye(n, dtype=DOUBLE)
    q = 2 * torch.randn(batch, n, dtype=DOUBLE, generator=g)
    G = torch.randn(batch, m, n, dtype=DOUBLE, generator=g)
    inside = 0.5 * torch.randn(batch, n, dtype=DOUBLE, generator=g)
    h = (G @ inside[..., None])[..., 0] + room * torch.rand(batch, m, dtype=DOUBLE, generator=g)
    return P, q, G, h


def by_subsets(P, q, G, h):
    """The minimiser of one problem in NumPy: the best feasible point of all subsets of rows; None if there is none."""
    best, lowest = None, np.inf
    for size in range(min(len(h), len(q)) + 1):
        for rows in map(list, itertools.combinations(range(len(h)), size)):
            kkt = np.block([[P, G[rows].T], [G[rows], np.zeros((size, size))]])
            x = np.linalg.lstsq(kkt, np.concatenate((-q, h[rows])), rcond=None)[0][: len(q)]
            value = 0.5 * x @ P @ x + q @ x
            if (G @ x <= h + 1e-9).all() and value < lowest:
                best, lowest = x, value
    return best


def by_clarabel(P, q, G, h):
    x = cp.Variable(len(q))
    problem = cp.Problem(cp.Minimize(0.5 * cp.quad_form(x, cp.psd_wrap(P)) + q @ x), [G @ x <= h])
    problem.solve(solver="CLARABEL", tol_gap_abs=1e-12, tol_gap_rel=1e-12, tol_feas=1e-12)
    return x.value


def least_violation(P, G, h):
    """The least sum of squared violations, rows at unit length in the metric of P^-1."""
    lengths = np.sqrt(np.einsum("mi,ij,mj->m", G, np.linalg.inv(P), G))
    x = cp.Variable(G.shape[1])
    problem = cp.Problem(cp.Minimize(cp.sum_squares(cp.pos(cp.multiply(1 / lengths, G @ x - h)))))
    return problem.solve(solver="CLARABEL"), lengths
