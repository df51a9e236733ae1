"""Projection onto several sets: scipy and dense searches as oracles, gradients, batches, infeasible sets, NaN."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from safe import two_rows
from safe.distance import Distance
from safe.projection import least_barrier, project
from safe.sets import Ball, Box, Ceiling, Ellipse, HalfSpace, Obstacles, Superellipse

MAZE = [
    Ellipse(center=(-0.2, -0.5), radii=(1.0, 1.0)),
    Superellipse(center=(-0.7, 2.5), radii=(1.0, 1.0), power=4),
]
TOUCHING = [Ellipse(center=(-0.6, 0.0), radii=(1.0, 0.8)), Superellipse(center=(0.7, 0.1), radii=(1.0, 1.0), power=4)]
CONVEX = [
    Ball(center=(0.0, 0.0), radius=1.0), Box(low=(-0.5, -math.inf), high=(2.0, 0.4)),
    HalfSpace(normal=(1, 1), offset=0.5),
]  # fmt: skip
INSIDE = [Ellipse(center=(0, 0), radii=(0.4, 1.3), outside=False)]


def points(n=300, spread=1.5, d=2, seed=0):
    return spread * torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def nearest_by_search(x, sets, margin, around=3.0, n=1201):
    """Distance from each x to the safe points of a fine grid."""
    axis = torch.linspace(-around, around, n, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    grid = grid[least_barrier(grid, sets) >= margin]
    return torch.stack([(grid - p).norm(dim=-1).amin() for p in x]), 2 * around / (n - 1)


def test_convex_sets_give_the_nearest_common_point():
    x = points(40)
    found, info = project(x, CONVEX, 0.02)
    assert info.feasible.all()
    for p, z in zip(x.numpy(), found.numpy(), strict=True):
        barrier = {"type": "ineq", "fun": lambda q: least_rows(q) - 0.02}
        answer = minimize(lambda q, p=p: ((q - p) ** 2).sum(), np.zeros(2), constraints=barrier, tol=1e-14).x
        np.testing.assert_allclose(z, answer, atol=2e-5)


def least_rows(q):
    return torch.cat([s.b(torch.as_tensor(q)[None]) for s in CONVEX], -1)[0].numpy()


@pytest.mark.parametrize("sets", [MAZE, TOUCHING], ids=["apart", "touching"])
def test_obstacles_are_left_by_about_the_shortest_way(sets):
    x = points(200, 1.2)
    x = x[least_barrier(x, sets) < 0.01]
    found, info = project(x, sets, 0.01)
    assert info.feasible.all() and len(x) > 50
    shortest, pitch = nearest_by_search(x, sets, 0.01)
    moved = (found - x).norm(dim=-1)
    exact = moved <= shortest + pitch
    # Where obstacles touch, the nearest point may lie beyond one of them, and a local answer may be taken.
    assert exact.all() if sets is MAZE else exact.double().mean() > 0.9
    assert (moved <= 1.5 * shortest + pitch).all()


def test_features_apart_are_projected_apart():
    sets = [
        Ellipse(center=(0.0, 0.0), radii=(1.0, 1.0), dimensions=(0, 1)),
        Box(low=(-0.5,), high=(0.5,), dimensions=(2,)), Ceiling(limit=1.0, velocity_weight=0.5, dimensions=(4, 3)),
    ]  # fmt: skip
    x = points(d=5)
    found, info = project(x, sets, 0.01)
    assert info.feasible.all()
    for s in sets:
        alone = project(x, [s], 0.01)[0]
        torch.testing.assert_close(found[:, s.dimensions], alone[:, s.dimensions])


def test_many_obstacles_are_all_left():
    generator = torch.Generator().manual_seed(3)
    centers = 4 * torch.rand(12, 2, generator=generator, dtype=torch.float64) - 2
    s = Obstacles(centers=tuple(map(tuple, centers.tolist())), radii=(0.35,) * 12)
    x = points(2000)
    found, info = project(x, [s], 0.01)
    assert (s.b(x) < 0).any(-1).sum() > 100
    assert info.feasible.all()
    assert torch.equal(info.feasible, s.b(found).amin(-1) >= 0.01 - 1e-9)


@pytest.mark.parametrize("sets", [MAZE, CONVEX, TOUCHING, [Obstacles(centers=((0, 0), (1, 0.5)), radii=(0.7, 0.9))]])
def test_a_batch_is_projected_as_its_rows_alone(sets):
    """Acceptance: (plans, waypoints, agents, d) at once as each plan, and each point, alone."""
    x = points(120).view(4, 10, 3, 2)
    x[2] += 10  # a plan that needs nothing
    found = project(x, sets, 0.01)[0]
    for i in range(4):
        torch.testing.assert_close(project(x[i], sets, 0.01)[0], found[i], rtol=0, atol=1e-12)
    torch.testing.assert_close(project(x[1, 3, 2], sets, 0.01)[0], found[1, 3, 2], rtol=0, atol=1e-12)
    assert torch.equal(found[2], x[2]) or sets is CONVEX


@pytest.mark.parametrize("sets", [MAZE[:1], MAZE[1:], MAZE, CONVEX, INSIDE])
def test_gradients_match_finite_differences(sets):
    """Acceptance: exact derivatives through Newton and Dykstra, for points that move and points that do not."""
    x = torch.cat([points(12, 1.3), points(4, 0.5) + torch.tensor([-0.7, 2.5])]).requires_grad_()
    assert (least_barrier(x, sets) < 0.01).any()
    assert torch.autograd.gradcheck(lambda x: project(x, sets, 0.01)[0], x, eps=1e-6, atol=2e-4)


def test_gradients_of_pairwise_distances_match_finite_differences():
    x = points(9, 0.4).view(3, 3, 2).requires_grad_()
    s = Distance(minimum=0.5)
    assert (s.b(x) < 0).any()
    assert torch.autograd.gradcheck(lambda x: project(x, [s])[0], x, eps=1e-6, atol=2e-4)


def test_sets_that_cannot_hold_together_are_flagged_and_cost_no_neighbour_its_answer():
    sets = [HalfSpace(normal=(1.0, 0.0), offset=-1.0), HalfSpace(normal=(-1.0, 0.0), offset=-1.0)]  # x <= -1, x >= 1
    x = points(6)
    found, info = project(x, sets)
    assert not info.feasible.any() and found.isfinite().all()
    assert info.violation_after.max() <= 2 + 1e-9 and (found[:, 1] == x[:, 1]).all()
    narrow = Box(low=(-0.004, -math.inf), high=(0.004, math.inf))
    found, info = project(x, [narrow], 0.01)
    assert not info.feasible.any()
    np.testing.assert_allclose(found[:, 0], 0, atol=1e-12)  # the middle violates least
    away = [Ball(center=(3.0, 0.0), radius=1.0, velocity=(1.0, 0.0)), Box(low=(-1.0, -1.0), high=(1.9, 1.0))]
    time = torch.tensor([-2.0, 0.0, -1.0], dtype=torch.float64)
    found, info = project(points(3, 0.1), away, 0.0, time)
    assert info.feasible.tolist() == [True, False, True]


def test_nan_stays_where_it_is():
    x = points(8)
    clean = project(x, MAZE, 0.01)[0]
    spoilt = x.clone()
    spoilt[3, 0] = torch.nan
    found, info = project(spoilt, MAZE, 0.01)
    assert not info.feasible[3] and info.feasible[[0, 1, 2, 4, 5, 6, 7]].all()
    assert torch.equal(found[[0, 1, 2, 4, 5, 6, 7]], clean[[0, 1, 2, 4, 5, 6, 7]])
    team = points(12).view(3, 4, 2)
    team[1, 2] = torch.nan
    found, info = project(team, [Distance(minimum=0.5)])
    assert not info.feasible[1].any() and info.feasible[[0, 2]].all()
    assert found[1, [0, 1, 3]].isfinite().all()


@pytest.mark.parametrize("sets", [MAZE, TOUCHING, CONVEX, [Distance(minimum=0.5), *MAZE]])
def test_fixed_shapes_give_what_work_on_unsafe_rows_gives(sets, monkeypatch):
    """Where shapes may not depend on data (compiled, captured) every row is worked on."""
    x, movable = points(60).view(5, 4, 3, 2), torch.rand(5, 4, 3) < 0.8
    time = torch.rand(4, 1, dtype=torch.float64)
    found = project(x, sets, 0.01, time, movable)[0]
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    everything, info = project(x, sets, 0.01, time, movable)
    torch.testing.assert_close(everything, found, rtol=0, atol=1e-12)


def test_no_sets_and_no_points():
    x = points(4)
    found, info = project(x, [])
    assert found is x and info.feasible.all() and not info.violation_after.any()
    empty, info = project(x[:0], MAZE, 0.01)
    assert empty.shape == (0, 2) and info.feasible.shape == (0,)


def test_points_that_are_held_stay():
    x, movable = points(50), torch.arange(50) % 2 == 0
    found, info = project(x, MAZE, 0.01, movable=movable)
    assert torch.equal(found[~movable], x[~movable])
    assert torch.equal(found[movable], project(x, MAZE, 0.01)[0][movable])
    team = 0.1 * points(20).view(5, 4, 2)
    found, info = project(team, [Distance(minimum=0.5)], movable=torch.tensor([False, True, True, True]))
    assert torch.equal(found[:, 0], team[:, 0]) and info.feasible.all()


@pytest.mark.parametrize("agents, spread", [(2, 0.2), (4, 0.5), (8, 1.0), (16, 1.6), (32, 2.4)])
def test_teams_end_apart_and_outside(agents, spread):
    sets = [Distance(minimum=0.5), Obstacles(centers=((0.0, 0.0), (1.5, 1.0)), radii=(0.4, 0.5))]
    team = points(30 * agents, spread).view(30, agents, 2)
    found, info = project(team, sets, 0.01)
    assert (least_barrier(team, sets) < 0).any(-1).double().mean() > 0.5
    assert info.feasible.all(), info.violation_after.max()


def test_two_agents_and_a_wall_find_the_nearest_pair():
    sets = [Distance(minimum=1.0), HalfSpace(normal=(1.0, 0.0), offset=0.0)]
    team = torch.tensor([[[-0.1, 0.0], [-0.5, 0.1]]], dtype=torch.float64)
    found = project(team, sets)[0][0].numpy()

    def rows(z):
        a, b = z.reshape(2, 2)
        return np.array([((a - b) ** 2).sum() - 1, -a[0], -b[0]])

    start = team.flatten().numpy()
    answer = minimize(lambda z: ((z - start) ** 2).sum(), start, constraints={"type": "ineq", "fun": rows}).x
    shortest = np.linalg.norm(answer - start)
    assert rows(found.ravel()).min() > -1e-9 and np.linalg.norm(found.ravel() - start) < 1.1 * shortest


@pytest.mark.parametrize("count", [1, 2])
def test_the_closed_form_is_the_active_set_solution(count):
    generator = torch.Generator().manual_seed(1)
    reference = torch.randn(300, 3, generator=generator, dtype=torch.float64)
    rows = torch.randn(300, count, 3, generator=generator, dtype=torch.float64)
    bound = torch.randn(300, count, generator=generator, dtype=torch.float64)
    for slack in (0.0, 0.7):
        found, feasible = two_rows.solve(reference, rows, bound, slack)
        assert feasible.all()
        for i in range(0, 300, 10):
            np.testing.assert_allclose(found[i], by_active_sets(reference[i], rows[i], bound[i], slack), atol=1e-9)


def by_active_sets(reference, rows, bound, slack):
    """The best of all points that some subset of rows, taken for equalities, leads to and that meet all rows."""
    d, m = len(reference), len(bound)
    wide = torch.cat([rows, -slack * torch.eye(m, dtype=rows.dtype)], 1).numpy()
    start = np.concatenate([reference.numpy(), np.zeros(m)])
    best, least = None, math.inf
    for chosen in ([], [0], [1], [0, 1]):
        if max(chosen, default=0) >= m:
            continue
        a = wide[chosen]
        z = start - a.T @ np.linalg.pinv(a @ a.T) @ (a @ start - bound.numpy()[chosen]) if chosen else start
        if (wide @ z <= bound.numpy() + 1e-9).all() and ((z - start) ** 2).sum() < least:
            best, least = z[:d], ((z - start) ** 2).sum()
    return best


def test_the_closed_form_survives_parallel_empty_and_contradicting_rows():
    reference = torch.zeros(5, 2, dtype=torch.float64)
    right = [1.0, 0.0]
    left, empty = [-1.0, 0.0], [0.0, 0.0]
    rows = torch.tensor([[right, right], [right, [2.0, 0.0]], [right, left], [empty, right], [empty, right]])
    bound = torch.tensor([[-1.0, -2.0], [-1.0, -1.0], [-1.0, -3.0], [-1.0, -1.0], [1.0, -1.0]])
    found, feasible = two_rows.solve(reference, rows.double(), bound.double())
    np.testing.assert_allclose(found, [[-2, 0], [-1, 0], [1, 0], [-1, 0], [-1, 0]], atol=1e-4)
    assert feasible.tolist() == [True, True, False, False, True]
