"""Projection of whole plans: safe, held where it must be, and the answer that a convex solver gives."""

import math

import cvxpy as cp
import numpy as np
import torch
from scipy.optimize import minimize

from safe.detours import around
from safe.projection import least_barrier, project, violation
from safe.sets import Box, Ellipse, HalfSpace, Superellipse
from safe.smooth_projection import project_smoothly
from tests.safe.test_dynamics import CIRCLE, SQUARE, lines

SMOOTHNESS = 50.0


def cost(found, plans, smoothness=25.0):
    """(plans,): |e|^2 + smoothness |e_{k+1} - e_k|^2 of the displacements."""
    e = found - plans
    return e.square().sum((1, 2, 3)) + smoothness * e.diff(dim=1).square().sum((1, 2, 3))


def sequential_programs(plan, sets, margin, rounds=8):
    """The same aim by cvxpy, linearised anew each time: (n, 1, 2) -> (n, 1, 2)."""
    found, start = around(plan[None], sets, margin)[0], plan[:, 0].numpy()
    for _ in range(rounds):
        x = cp.Variable(start.shape)
        rows = [s.linearise(found[:, 0]) for s in sets]
        asked = [
            r.b[:, 0].numpy() + cp.sum(cp.multiply(r.gradient[:, 0].numpy(), x - found[:, 0].numpy()), axis=1) >= margin
            for r in rows
        ]  # fmt: skip
        held = [x[0] == start[0]]
        e = x - start
        aim = cp.sum_squares(e) + SMOOTHNESS * cp.sum_squares(e[1:] - e[:-1])
        cp.Problem(cp.Minimize(aim), asked + held).solve(solver="CLARABEL")
        found = torch.tensor(x.value)[:, None]
    return found


def test_a_smooth_projection_is_safe_whole_and_cheap_in_its_own_measure():
    plans = lines([0.05, -0.2, 0.9, 1.5])
    found, info = project_smoothly(plans, [CIRCLE], 0.01, smoothness=25.0)
    assert CIRCLE.b(found).min() >= 0.01 - 1e-12 and info.feasible.all()
    assert torch.equal(found[3], plans[3])
    assert (info.violation_before > 0).any() and not info.violation_after[3].any()
    crude = around(plans, [CIRCLE], 0.01)
    assert (cost(found, plans) < cost(crude, plans))[:3].all()
    assert found.diff(dim=1).norm(dim=-1).max() < 0.5


def test_a_smooth_projection_of_convex_sets_is_the_quadratic_programs_solution():
    plan = lines([0.3], 12)
    plan[0, 6, 0, 1] = 1.0
    sets = [HalfSpace(normal=(0.0, 1.0), offset=0.5)]
    found = project_smoothly(plan, sets, smoothness=4.0, rounds=400)[0][0, :, 0, 1].numpy()
    start = plan[0, :, 0, 1].numpy()

    def cost(y):
        return ((y - start) ** 2).sum() + 4 * (np.diff(y - start) ** 2).sum()

    best = minimize(cost, np.minimum(start, 0.5), bounds=[(None, 0.5)] * 12, tol=1e-14).x
    np.testing.assert_allclose(found, best, atol=1e-4)


def test_held_waypoints_of_a_smooth_projection_stay():
    plans = lines([0.1])
    movable = torch.ones(1, 40, 1, dtype=torch.bool)
    movable[:, [0, 20, 39]] = False
    found = project_smoothly(plans, [CIRCLE], 0.01, movable=movable)[0]
    assert torch.equal(found[~movable], plans[~movable])
    assert CIRCLE.b(found)[movable].min() >= 0.01 - 1e-12


def test_smooth_projections_of_agents_and_other_sets():
    plans = lines([0.05, 0.1, 0.3]).expand(-1, -1, 2, -1).clone()
    plans[:, :, 1, 1] += 0.4
    sets = [CIRCLE, SQUARE, Box(low=(-math.inf, -1.6), high=(math.inf, 1.6))]
    found, info = project_smoothly(plans, sets, 0.01)
    assert info.feasible.all() and least_barrier(found, sets).min() >= 0.01 - 1e-9


def test_it_costs_little_more_than_sequential_programs_and_never_jumps_through():
    g, s = torch.Generator().manual_seed(0), torch.linspace(0, 1, 64, dtype=torch.float64)[:, None]
    sets = [Ellipse(center=(-0.2, -0.5), radii=(1.0, 1.0)), Superellipse(center=(-0.7, 2.5), radii=(1.0, 1.0))]
    ends, bend = torch.randn(2, 16, 1, 2, generator=g, dtype=torch.float64), torch.randn(16, 1, 2, generator=g)
    a, b = 2 * ends + torch.tensor([-0.4, 1.0])
    plans = (a * (1 - s) + b * s + 0.8 * bend * (math.pi * s).sin())[:, :, None]
    plans = plans[(violation(plans, sets, 0.25) > 0)[:, 1:].any(1)[:, 0] & (violation(plans, sets, 0.25)[:, 0, 0] == 0)]
    movable = torch.ones(plans.shape[:3], dtype=torch.bool)
    movable[:, 0] = False
    found = project_smoothly(plans, sets, 0.25, movable=movable, smoothness=SMOOTHNESS)[0]
    best = torch.stack([sequential_programs(plan, sets, 0.25) for plan in plans])
    ratio = cost(found, plans, SMOOTHNESS) / cost(best, plans, SMOOTHNESS)
    assert len(plans) >= 5 and ratio.median() < 1.03 and ratio.max() < 1.25
    assert (found - plans).diff(dim=1).norm(dim=-1).max() < 0.5
    alone = project(plans, sets, 0.25, movable=movable)[0]
    assert (alone - plans).diff(dim=1).norm(dim=-1).max() > 1.0
