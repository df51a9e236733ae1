"""Violations of plans and rollouts, counted by hand."""

import math

import numpy as np
import pytest
import torch

from madiff.data.normalizers import CDF
from madiff.data.store import EpisodeStore
from madiff.interfaces import UserError
from safe.distance import Distance
from safe.sets import Ball, Ellipse, HalfSpace, Obstacles
from safe.violations import measure, of_plans, of_rollouts, trapped
from tests.safe.drawing import Layout

WALL = HalfSpace(normal=(1.0, 0.0), offset=1.0)
DISC = Ball(center=(0.0, 0.0), radius=0.5, outside=True)


def trajectory(*points):
    return torch.tensor([points], dtype=torch.float64)[:, :, None]


def test_barriers_are_counted_at_waypoints():
    plans = torch.cat([trajectory((0, 1), (2, 1), (1.5, 1)), trajectory((0, 1), (0.5, 1), (0, 1))])
    found = measure(plans, [WALL, DISC])
    np.testing.assert_allclose(found.least, [[-1, 3], [0.5, 3]])
    np.testing.assert_allclose(found.unsafe, [2 / 3, 0])
    summary = found.summary()
    assert summary["least_barrier"] == -1 and summary["least_barrier_mean"] == -0.25
    assert summary["violating"] == 0.5 and summary["violating_points"] == pytest.approx(1 / 3)
    assert summary["clamped_unsafe"] == 0


def test_a_segment_through_an_obstacle_is_seen_between_its_waypoints():
    plan = trajectory((-1, 0), (1, 0))
    found = measure(plan, [DISC])
    assert found.least.item() == 3 and found.least_between.item() == -1  # at the middle
    assert measure(plan, [DISC], between=1).least_between.item() == 3
    assert measure(plan, [DISC], between=3).least_between.item() == pytest.approx(4 / 9 - 1)
    assert found.summary()["violating"] == 0 and found.summary()["violating_between"] == 1


def test_held_points_are_counted_apart():
    plan = trajectory((2, 1), (0, 1), (3, 1))
    held = torch.tensor([True, False, False])[:, None]
    found = measure(plan, [WALL], clamped=held)
    assert found.least.item() == -2 and found.unsafe.item() == 0.5
    assert found.least_clamped.item() == -1 and found.unsafe_clamped.item() == 1
    assert measure(plan, [WALL]).least_clamped.item() == math.inf


def test_padding_is_not_counted():
    plan = trajectory((0, 1), (0.5, 1), (9, 1))
    valid = torch.tensor([[True, True, False]])
    found = measure(plan, [WALL], valid=valid)
    assert found.least.item() == 0.5 and found.least_between.item() == 0.5 and found.unsafe.item() == 0


def test_nan_is_unsafe():
    plan = trajectory((0, 1), (math.nan, 1))
    found = measure(plan, [WALL, DISC])
    assert (found.least == -math.inf).all() and found.unsafe.item() == 0.5


def test_moving_sets_and_agents():
    moving = Ellipse(center=(0.0, 0.0), radii=(1.0, 1.0), velocity=(1.0, 0.0))
    plan = trajectory((2, 0), (2, 0), (2, 0))
    found = measure(plan, [moving], torch.tensor([0.0, 1.0, 2.0])[:, None])
    assert found.least.item() == -1 and found.unsafe.item() == pytest.approx(1 / 3)
    team = torch.tensor([[[[0.0, 0], [1, 0], [5, 0]], [[0, 0], [0.25, 0], [5, 0]]]])
    found = measure(team, [Distance(minimum=0.5)])
    assert found.least.item() == -0.75 and found.unsafe.item() == pytest.approx(2 / 6)


def test_traps_are_jumps_of_normalised_positions():
    plans = torch.zeros(3, 4, 2, 2)
    plans[1, 2:, 1, 0] = 0.21
    plans[2, 2:, 1] = 0.19 / math.sqrt(2)
    assert trapped(plans).tolist() == [False, True, False]
    assert trapped(plans, 0.1).tolist() == [False, True, True]
    valid = torch.tensor([[True, True, False, False]]).expand(3, -1)
    assert not trapped(plans, valid=valid).any()


def test_plans_are_judged_in_real_units_from_now_on():
    layout = Layout(history=1)
    points = torch.zeros(1, 4, 1, 4)
    points[..., 2] = torch.tensor([5.0, 0.0, 0.5, 0.9])[:, None]
    sets = [HalfSpace(normal=(1.0,), offset=1.0, dimensions=(2,))]
    known = torch.zeros(1, 4, 1, 4, dtype=torch.bool)
    known[:, :2] = True
    found = of_plans(layout.normalize(points), sets, layout, (2, 3), known=known)
    assert found["violations"].least.item() == pytest.approx(0.1, abs=1e-6)
    assert found["violations"].least_clamped.item() == pytest.approx(1.0, abs=1e-6)
    assert found["trapped"].tolist() == [True]  # 0.5 of real x is 0.25 of normalised x
    assert "trapped" not in of_plans(points, sets, layout)


def test_traps_are_measured_over_the_range_of_the_data_whatever_the_normaliser():
    data = torch.cat([torch.linspace(0, 1, 500), torch.linspace(1, 10, 20)])[:, None].expand(-1, 4)
    fitted = CDF().fit(data)

    class Bent(Layout):
        normalize, denormalize = staticmethod(fitted.normalize), staticmethod(fitted.denormalize)

    steps = torch.tensor([[0.0, 0.9, 0.9], [1.0, 1.9, 2.85]])  # 0.9 is 0.18 of half the range, 0.95 is 0.19
    points = steps[:, :, None, None].expand(-1, -1, 1, 4).clone()
    assert of_plans(fitted.normalize(points), [], Bent(), (2,))["trapped"].tolist() == [False, False]
    points[1, 2] += 0.1
    assert of_plans(fitted.normalize(points), [], Bent(), (2,))["trapped"].tolist() == [False, True]


def test_rollouts_are_judged_at_every_step_they_have():
    episodes = [
        {"observations": np.array([[[0.0, 9]], [[2, 9]]]), "actions": np.zeros((1, 1, 1)), "rewards": np.zeros((1, 1))},
        {"observations": np.zeros((4, 1, 2)), "actions": np.zeros((3, 1, 1)), "rewards": np.zeros((3, 1))},
    ]
    store = EpisodeStore.from_arrays(episodes)
    found = of_rollouts(store, [WALL])
    np.testing.assert_allclose(found.least, [[-1], [1]])
    np.testing.assert_allclose(found.unsafe, [0.5, 0])
    passing = HalfSpace(normal=(1.0, 0.0), offset=1.0, velocity=(-1.0, 0.0))
    assert of_rollouts(store, [passing]).least[1].item() == pytest.approx(-2)  # x + time <= 1 at time 3


def test_nothing_to_measure():
    assert measure(torch.zeros(0, 3, 1, 2), [WALL]).summary() == {}
    assert measure(torch.zeros(2, 3, 1, 2), []).summary() == {}
    found = measure(torch.zeros(2, 1, 1, 2), [Obstacles(centers=((1.0, 0.0),), radii=(0.5,))])
    assert (found.least == found.least_between).all() and (found.least == 3).all()
    with pytest.raises(UserError, match="parts of a segment"):
        measure(torch.zeros(2, 3, 1, 2), [WALL], between=0)
