"""Corrections over the horizon: tridiagonal solves against numpy, ways around obstacles, plans whose parts agree."""


import numpy as np
import pytest
import torch
from scipy.linalg import solve_banded
from scipy.optimize import brentq

from madiff.data.store import EpisodeStore
from madiff.interfaces import UserError
from safe.detours import around, leave
from safe.dynamics import Dynamics, LinearMotion, dynamics_of, fit_dynamics
from safe.projection import project
from safe.sets import Box, Ellipse, Obstacles, Superellipse
from safe.tridiagonal import Factored, Smoother

CIRCLE = Ellipse(center=(0.0, 0.0), radii=(1.0, 1.0))
SQUARE = Superellipse(center=(0.1, -0.1), radii=(0.8, 1.1), power=4)


def lines(offsets, n=40):
    """Straight plans (plans, n, 1, 2) through the circle, at these heights."""
    x = torch.linspace(-2, 2, n, dtype=torch.float64).expand(len(offsets), -1)
    y = torch.tensor(offsets, dtype=torch.float64)[:, None].expand(-1, n)
    return torch.stack([x, y], dim=-1)[:, :, None]


@pytest.mark.parametrize("length", [1, 2, 3, 8, 31, 128])
def test_tridiagonal_systems_are_those_of_scipy(length):
    rng = np.random.default_rng(0)
    lower, upper = rng.uniform(-1, 1, (2, 3, length))
    diagonal, right = 2.5 + rng.uniform(size=(3, length)), rng.normal(size=(3, length, 2))
    found = Factored(*map(torch.tensor, (lower, diagonal, upper))).solve(torch.tensor(right))
    for i in range(3):
        banded = np.stack([np.roll(upper[i], 1), diagonal[i], np.roll(lower[i], -1)])
        np.testing.assert_allclose(found[i], solve_banded((1, 1), banded, right[i]), atol=1e-12)


def test_smoothing_minimises_its_sum_and_holds_what_is_held():
    generator = torch.Generator().manual_seed(0)
    wanted = torch.randn(2, 9, 2, generator=generator, dtype=torch.float64)
    movable = torch.rand(2, 9, generator=generator) < 0.8
    smoother = Smoother(wanted, 3.0, movable)
    field = smoother(wanted)
    assert not field[~movable].any()
    free = field.clone().requires_grad_()
    cost = (free - wanted).square().sum() + 3.0 * free.diff(dim=1).square().sum()
    gradient = torch.autograd.grad(cost, free)[0]
    assert gradient[movable].abs().max() < 1e-12
    assert torch.autograd.gradcheck(smoother, wanted.requires_grad_())


@pytest.mark.parametrize("s", [CIRCLE, SQUARE])
def test_leaving_along_a_way_ends_on_the_boundary(s):
    generator = torch.Generator().manual_seed(0)
    local = torch.rand(50, 2, generator=generator, dtype=torch.float64) - 0.5
    angle = 6.3 * torch.rand(50, generator=generator, dtype=torch.float64)
    way = torch.stack([angle.cos(), angle.sin()], -1)
    found = leave(local, way, s, 0.01)
    for p, w, t in zip(local, way, found[:, 0], strict=True):
        exact = brentq(lambda t, p=p, w=w: float(s.b((p + t * w)[None])) - 0.01, 0, 5, xtol=1e-12)
        assert exact - 1e-9 <= t <= exact + 1e-3


def test_all_waypoints_of_a_plan_leave_on_the_shorter_side():
    plans = lines([0.05, -0.2, 0.9, 1.5])
    found = around(plans, [CIRCLE], 0.01)
    inside = (CIRCLE.b(plans) < 0.01)[..., 0]
    assert torch.equal(found[~inside], plans[~inside])
    assert (found[0, :, 0, 1][inside[0, :, 0]] > 0.2).all() and (found[1, :, 0, 1][inside[1, :, 0]] < -0.2).all()
    assert CIRCLE.b(found).min() >= 0.01 - 1e-12
    torch.testing.assert_close(found[..., 0], plans[..., 0])  # across the motion
    nearest = project(plans, [CIRCLE], 0.01)[0]
    jump = [x[0].diff(dim=0).norm(dim=-1).max() for x in (nearest, found)]
    assert jump[0] > 1.0 and jump[1] < 0.5  # torn apart by more than a radius, or not


def test_ways_around_many_obstacles_and_held_waypoints():
    plans = lines([0.05, -0.2]).expand(-1, -1, 2, -1)
    sets = [Obstacles(centers=((-1.0, 0.0), (1.0, 0.1)), radii=(0.4, 0.5)), Box(low=(-9, -9), high=(9, 9))]
    assert sets[0].b(around(plans, sets, 0.01)).min() >= 0.01 - 1e-12
    movable = torch.ones(2, 40, 2, dtype=torch.bool)
    movable[:, 20] = False
    assert torch.equal(around(plans, [CIRCLE], 0.01, 0.0, movable)[:, 20], plans[:, 20])


A = torch.tensor([[0.1, 0.0, 0.9, 0.0], [0.0, -0.2, 0.05, 0.8]])
B = torch.tensor([[0.5, 0.1], [0.0, 0.7]])
C = torch.tensor([0.01, -0.02])
NAMES = ("action_0", "action_1", "x", "y", "vx", "vy")


def motion_plan(n=15, agents=2):
    """A plan that obeys v' = (x, v) A^T + a B^T + c and x' = x + 0.1 v: (1, n, agents, 6)."""
    actions = 0.3 * torch.randn(n, agents, 2, generator=torch.Generator().manual_seed(1))
    state, rows = torch.zeros(agents, 4), []
    for action in actions:
        rows.append(torch.cat([action, state], dim=-1))
        state = torch.cat([state[:, :2] + 0.1 * state[:, 2:], state @ A.T + action @ B.T + C], dim=-1)
    return torch.stack(rows)[None].double()


def disagreement(plan):
    position, velocity, action = plan[..., 2:4], plan[..., 4:], plan[..., :2]
    drift = position.diff(dim=1)[:, :-1] - 0.1 * velocity[:, :-2]
    free = torch.cat([position, velocity], -1) @ A.T.double() + action @ B.T.double() + C
    return drift.abs().max(), (velocity[:, 1:-1] - free[:, :-2]).abs().max()


def test_a_plan_that_obeys_its_dynamics_still_does_when_its_positions_are_moved():
    plan = motion_plan()
    dynamics = Dynamics((2, 3), (4, 5), (0, 1), 0.1, LinearMotion(A, B, C))
    moved = plan.clone()
    moved[:, 6:9, 0, 2] += torch.tensor([0.01, 0.02, 0.01])
    assert max(disagreement(plan)) < 1e-6 and max(disagreement(moved)) > 0.005
    after = dynamics.agree(plan, moved)
    assert max(disagreement(after)) < 1e-6
    torch.testing.assert_close(after[..., 2:4], moved[..., 2:4])
    assert torch.equal(after[:, :, 1], plan[:, :, 1]) and torch.equal(after[:, 10:], plan[:, 10:])
    assert torch.equal(dynamics.agree(plan, plan), plan)
    held = torch.ones(1, 15, 2, dtype=torch.bool)
    held[:, 5] = False
    assert torch.equal(dynamics.agree(plan, moved, held)[:, 5, :, 4:], plan[:, 5, :, 4:])


def test_actions_stay_within_their_range():
    plan = motion_plan()
    moved = plan.clone()
    moved[:, 7, 0, 2] += 5
    after = Dynamics((2, 3), (4, 5), (0, 1), 0.1, LinearMotion(A, B, C)).agree(plan, moved)
    assert after[..., :2].abs().max() == 1


def test_a_linear_model_is_found_in_data_that_follow_it():
    rng = np.random.default_rng(0)
    episodes = []
    for length in (12, 7, 20):
        actions = rng.uniform(-1, 1, (length, 2, 2))
        state, seen = rng.normal(size=(2, 4)), []
        for action in [*actions, None]:
            seen.append(np.concatenate([state, rng.normal(size=(2, 1))], -1))
            if action is not None:
                speed = state @ A.numpy().T + action @ B.numpy().T + C.numpy()
                state = np.concatenate([state[:, :2] + 0.1 * state[:, 2:], speed], -1)
        episodes.append({"observations": np.stack(seen), "actions": actions, "rewards": np.zeros((length, 2))})
    store = EpisodeStore.from_arrays(episodes)
    found = LinearMotion.fit(store, (0, 1), (2, 3))
    for value, true in zip((found.velocity, found.force, found.constant), (A, B, C), strict=True):
        torch.testing.assert_close(value, true, atol=1e-4, rtol=0)
    dynamics = fit_dynamics(store, ("x", "y", "vx", "vy", "else"), NAMES)
    assert dynamics.dt == pytest.approx(0.1, abs=1e-6) and dynamics.positions == (2, 3)
    torch.testing.assert_close(dynamics.motion.force, B, atol=1e-4, rtol=0)
    assert fit_dynamics(store, ("x", "y", "vx", "vy", "else"), NAMES[2:]).motion is None


def test_positions_and_velocities_are_found_by_name():
    found = dynamics_of(NAMES, 0.1)
    assert (found.positions, found.velocities, found.actions) == ((2, 3), (4, 5), (0, 1))
    with pytest.raises(UserError, match="no position and velocity among x, y"):
        dynamics_of(("x", "y"))
