"""Sets: barriers against their formulas, gradients against autograd, nearest points against a dense search."""

import math

import numpy as np
import pytest
import torch

from safe.distance import Distance, rounds
from safe.projection import project
from safe.sets import Ball, Box, Ceiling, Ellipse, HalfSpace, Obstacles, Superellipse

INF = math.inf
SETS = {
    "half-space": HalfSpace(normal=(1.0, -2.0), offset=0.3),
    "box": Box(low=(-1.0, -INF), high=(0.7, 0.4)),
    "ball inside": Ball(center=(0.2, -0.1), radius=0.8),
    "ball outside": Ball(center=(0.2, -0.1), radius=0.8, outside=True),
    "ellipse outside": Ellipse(center=(0.1, 0.3), radii=(1.0, 0.4)),
    "ellipse inside": Ellipse(center=(0.1, 0.3), radii=(0.5, 1.4), outside=False),
    "superellipse outside": Superellipse(center=(0.1, 0.3), radii=(1.0, 0.6), power=4),
    "superellipse inside": Superellipse(center=(0.1, 0.3), radii=(0.3, 0.9), power=6, outside=False),
    "superellipse of odd power": Superellipse(center=(-0.3, 0.0), radii=(1.0, 1.0), power=2.5),
    "ceiling": Ceiling(limit=1.4, velocity_weight=0.1),
    "obstacles": Obstacles(centers=((0.0, 0.0), (3.0, 1.0)), radii=(0.5, 1.0)),
}


def points(n=500, spread=1.5, dtype=torch.float64, d=2):
    return spread * torch.randn(n, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


def test_barriers_are_the_formulas():
    x, y = points().T
    expected = {
        "half-space": [0.3 - x + 2 * y],
        "box": [x + 1, 0.7 - x, 0.4 - y],
        "ball inside": [1 - ((x - 0.2) ** 2 + (y + 0.1) ** 2) / 0.64],
        "ellipse outside": [(x - 0.1) ** 2 + ((y - 0.3) / 0.4) ** 2 - 1],
        "superellipse outside": [(x - 0.1) ** 4 + ((y - 0.3) / 0.6) ** 4 - 1],
        "superellipse inside": [1 - ((x - 0.1) / 0.3) ** 6 - ((y - 0.3) / 0.9) ** 6],
        "ceiling": [1.4 - x - 0.1 * y],
        "obstacles": [(x**2 + y**2) / 0.25 - 1, (x - 3) ** 2 + (y - 1) ** 2 - 1],
    }
    for name, rows in expected.items():
        torch.testing.assert_close(SETS[name].b(points()), torch.stack(rows, -1))


@pytest.mark.parametrize("name", SETS)
def test_gradients_are_those_of_autograd(name):
    x = points().requires_grad_()
    rows = SETS[name].linearise(x)
    for k in range(rows.b.shape[-1]):
        gradient = torch.autograd.grad(rows.b[:, k].sum(), x, retain_graph=True)[0]
        kept = gradient.norm(dim=-1) > 2.6  # obstacles lengthen what is shorter than 1 / (largest radius)
        kept |= torch.tensor(name in ("half-space", "box", "ceiling") or "inside" in name)
        assert kept.any()
        torch.testing.assert_close(rows.gradient[kept][:, k], gradient[kept])


def boundary(s, margin, n=20_001):
    """Points all around the curve on which b = margin."""
    level = 1 + margin if s.outside else 1 - margin
    angle = torch.linspace(0, 2 * math.pi, n, dtype=torch.float64)
    way = torch.stack([angle.cos(), angle.sin()], -1)
    radii, center = (torch.tensor(v, dtype=torch.float64) for v in (s.radii, s.center))
    return center + way * (level / ((way / radii).abs() ** s.power).sum(-1, keepdim=True)) ** (1 / s.power)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("margin", [0.0, 0.01])
@pytest.mark.parametrize("name", [name for name in SETS if "ellipse" in name or "ball" in name])
def test_the_nearest_point_of_a_curve_is_the_nearest_of_all_its_points(name, margin, dtype):
    s, x = SETS[name], points(dtype=dtype)
    found, info = project(x, [s], margin)
    unsafe = s.b(x)[:, 0] < margin
    assert info.feasible.all() and (s.b(found) >= margin - (1e-12 if dtype == torch.float64 else 0)).all()
    assert torch.equal(found[~unsafe], x[~unsafe]) and 10 < unsafe.sum() < 490
    nearest = torch.cdist(x[unsafe].double(), boundary(s, margin)).amin(1)
    moved = (found - x)[unsafe].double().norm(dim=-1)
    torch.testing.assert_close(moved, nearest, atol=1e-5, rtol=0)


def test_the_nearest_point_of_an_ellipsoid_meets_the_conditions_of_lagrange():
    s, x = Ellipse(center=(0.0, 0.1, 0.0), radii=(1.0, 0.5, 2.0)), points(d=3, spread=0.6)
    x = x[s.b(x)[:, 0] < 0]
    found = project(x, [s])[0].requires_grad_()
    assert s.b(found).abs().max() < 1e-12 and len(x) > 100
    normal = torch.autograd.grad(s.b(found).sum(), found)[0]
    moved = found - x
    cosine = (moved * normal).sum(-1) / (moved.norm(dim=-1) * normal.norm(dim=-1))
    assert cosine.min() > 1 - 1e-9  # parallel, and outwards
    mirrored = found * torch.tensor([1.0, -1.0, 1.0])  # another point of the curve, mirrored at the centre
    mirrored[:, 1] += 0.2
    assert (moved.norm(dim=-1) <= (mirrored - x).norm(dim=-1) + 1e-12).all()


def test_from_the_very_centre_the_way_out_is_short_and_bounded():
    shapes = [Ellipse(center=(1.0, 2.0), radii=(1.0, 0.5)), Superellipse(center=(1.0, 2.0), radii=(0.5, 0.5))]
    shapes += [Ball(center=(1.0, 2.0), radius=0.5, outside=True), Obstacles(centers=((1.0, 2.0),), radii=(0.5,))]
    for s in shapes:
        for dtype in (torch.float32, torch.float64):
            x = torch.tensor([[1.0, 2.0]], dtype=dtype)
            found, info = project(x, [s], 0.01)
            assert info.feasible.all() and s.b(found).min() >= 0.01 - 1e-9
            assert (found - x).norm() == pytest.approx(0.5 * 1.01 ** (1 / getattr(s, "power", 2)), rel=1e-4)


@pytest.mark.parametrize("s", [SETS["ellipse outside"], SETS["superellipse outside"], SETS["ball outside"]])
def test_one_projection_is_safe_and_bounded_from_anywhere(s):
    """Acceptance: b >= margin in one projection, moved by at most the obstacle's radius and the margin's share."""
    center = torch.tensor(s.center, dtype=torch.float64)
    x = center + torch.tensor(s.radii, dtype=torch.float64) * (2 * torch.rand(4000, 2, dtype=torch.float64) - 1)
    found, info = project(x, [s], 0.01)
    assert (s.b(found) >= 0.01 - 1e-12).all() and info.feasible.all()
    assert (found - x).norm(dim=-1).max() <= min(s.radii) * 1.01 ** (1 / s.power) + 1e-9


@pytest.mark.parametrize("name", ["ellipse outside", "superellipse outside", "ball outside", "obstacles"])
def test_one_step_of_the_linearisation_is_safe_and_bounded(name):
    """b is convex outside of an obstacle: d = gradient (margin - b)+ / |gradient|^2 ends outside, not far away."""
    s = SETS[name]
    x = torch.cat([points(4000, 0.5), torch.tensor([[0.1, 0.3], [0.2, -0.1], [0.0, 0.0]], dtype=torch.float64)])
    rows = s.linearise(x)
    b, gradient = rows.b[:, :1], rows.gradient[:, 0]
    step = gradient * (0.01 - b).clamp(min=0) / gradient.square().sum(-1, keepdim=True)
    assert (s.b(x + step)[:, 0] >= 0.01 - 1e-12).all()
    largest = max(s.radii)
    assert step.norm(dim=-1).max() <= 1.02 * largest


def test_moving_sets_are_where_they_have_moved_to():
    s = Ellipse(center=(0.0, 0.0), radii=(1.0, 0.5), velocity=(0.5, -0.25))
    there = Ellipse(center=(1.0, -0.5), radii=(1.0, 0.5))
    x = points()
    torch.testing.assert_close(s.b(x, 2.0), there.b(x))
    torch.testing.assert_close(project(x, [s], 0.01, 2.0)[0], project(x, [there], 0.01)[0])
    time = torch.linspace(0, 4, 500, dtype=torch.float64)
    each = torch.cat([s.b(x[i], float(time[i])) for i in range(500)])
    torch.testing.assert_close(s.b(x, time)[:, 0], each)


def test_sets_speak_of_some_dimensions_only():
    wide = points(d=5)
    s, narrow = SETS["superellipse outside"], wide[:, [3, 1]]
    chosen = Superellipse(center=s.center, radii=s.radii, power=4, dimensions=(3, 1))
    torch.testing.assert_close(chosen.b(wide), s.b(narrow))
    found = chosen.project(wide, 0.01)
    torch.testing.assert_close(found[:, [3, 1]], s.project(narrow, 0.01))
    assert torch.equal(found[:, [0, 2, 4]], wide[:, [0, 2, 4]])
    gathered = chosen.over((1, 3))
    torch.testing.assert_close(gathered.b(wide[:, [1, 3]]), s.b(narrow))
    gradient = chosen.linearise(wide).gradient
    torch.testing.assert_close(gradient[..., [3, 1]], s.linearise(narrow).gradient)
    assert not gradient[..., [0, 2, 4]].any()


@pytest.mark.parametrize("agents", [1, 2, 3, 4, 7, 32])
def test_rounds_hold_every_pair_once_and_no_agent_twice_at_a_time(agents):
    met = []
    for first, second in rounds(agents):
        assert len(set(first + second)) == 2 * len(first)
        met += [tuple(sorted(pair)) for pair in zip(first, second, strict=True)]
    assert sorted(met) == [(i, j) for i in range(agents) for j in range(i + 1, agents)]


def test_distance_between_agents():
    x = points(40).view(10, 4, 2)
    s = Distance(minimum=0.7)
    b, rows = s.b(x), s.linearise(x)
    assert b.shape == (10, 4, 3) and rows.gradient.shape == (10, 4, 3, 2)
    for i, j, k in [(0, 1, 0), (1, 0, 0), (3, 2, 2), (2, 3, 2), (1, 3, 2)]:
        expected = (x[:, i] - x[:, j]).square().sum(-1) / 0.49 - 1
        torch.testing.assert_close(b[:, i, k], expected)
        far = (x[:, i] - x[:, j]).norm(dim=-1) > 0.35
        torch.testing.assert_close(rows.gradient[far, i, k], (2 * (x[:, i] - x[:, j]) / 0.49)[far])


def test_two_agents_in_one_place_are_parted_and_move_equally():
    x = torch.zeros(1, 2, 2, dtype=torch.float64)
    found, info = project(x, [Distance(minimum=0.5)], 0.0)
    assert info.feasible.all()
    np.testing.assert_allclose(found.sum(1), 0, atol=1e-12)
    assert (found[:, 0] - found[:, 1]).norm() == pytest.approx(0.5, rel=2e-3)
    rows = Distance(minimum=0.5).linearise(x)
    torch.testing.assert_close(rows.gradient[:, 0, 0], -rows.gradient[:, 1, 0])
    assert rows.gradient.norm(dim=-1).min() >= 2 - 1e-12
