"""Robots coupled two by two: the structured solver against the dense one, its derivatives, and crowded scenes."""

import pytest
import torch

from madiff.interfaces import UserError
from safe import couples, qp

DOUBLE = torch.float64


def scene(batch, robots, spread, minimum=0.5, seed=0):
    """Robots to be moved apart along the lines that join them: n . (u_i - u_j) >= minimum."""
    reference = spread * torch.randn(batch, robots, 2, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))
    first, second = couples.pairs(robots)
    lines = torch.nn.functional.normalize(reference[:, first] - reference[:, second], dim=-1)
    limits = torch.full((batch, len(first)), -minimum, dtype=DOUBLE)
    return reference, first, second, torch.stack((-lines, lines), 2), limits


def dense(reference, first, second, normals, limits, weights):
    """The same program with every zero written out."""
    batch, robots, d = reference.shape
    G = torch.zeros(batch, len(first), robots, d, dtype=DOUBLE)
    rows = torch.arange(len(first))
    G[:, rows, first] += normals[:, :, 0]
    G[:, rows, second] += normals[:, :, 1]
    strength = weights.repeat_interleave(d, -1)
    return torch.diag_embed(strength), -strength * reference.flatten(1), G.flatten(2), limits


@pytest.mark.parametrize("robots", [2, 5, 8])
def test_the_structured_solution_is_the_dense_one(robots):
    problem = scene(20, robots, 0.5)
    weights = 0.5 + torch.rand(20, robots, dtype=DOUBLE, generator=torch.Generator().manual_seed(1))
    ours = couples.solve(*problem, weights)
    reference = qp.solve(*dense(*problem, weights), method="interior")
    torch.testing.assert_close(ours.x.flatten(1), reference.x, atol=1e-9, rtol=0)
    torch.testing.assert_close(ours.multipliers, reference.multipliers, atol=1e-7, rtol=0)
    assert ours.residual.max() < 1e-8 and (ours.multipliers > 0).any()


def test_rows_of_one_robot_and_any_order_of_robots_mix_with_couples():
    """A wall for robot 1 beside couples named from the larger index to the smaller."""
    reference, first, second, normals, limits = scene(6, 3, 0.3)
    wall = torch.zeros(6, 1, 2, 2, dtype=DOUBLE)
    wall[..., 0, 0] = 1.0
    swapped = second, first, normals.flip(2), limits
    first, second = torch.cat((swapped[0], torch.tensor([1]))), torch.cat((swapped[1], torch.tensor([1])))
    normals, limits = torch.cat((swapped[2], wall), 1), torch.cat((swapped[3], -torch.ones(6, 1, dtype=DOUBLE)), 1)
    ours = couples.solve(reference, first, second, normals, limits)
    programs = dense(reference, first, second, normals, limits, torch.ones(6, 3, dtype=DOUBLE))
    torch.testing.assert_close(ours.x.flatten(1), qp.solve(*programs).x, atol=1e-9, rtol=0)
    assert ours.x[:, 1, 0].max() <= -1 + 1e-9


def test_crowds_of_32_robots_are_solved_to_rounding():
    for spread in (1.5, 0.6):
        solution = couples.solve(*scene(4, 32, spread))
        assert solution.residual.max() <= 1e-8 and solution.feasible.all()
        assert ((solution.multipliers > 0).sum(-1) > 5).all()


def test_two_robots_that_cannot_be_apart_meet_halfway_and_are_flagged():
    """u_0 - u_1 >= 1 and <= -1 on a line; the next problem of the batch is not touched."""
    reference = torch.tensor([[[0.0], [0.5]], [[0.0], [0.5]]], dtype=DOUBLE)
    first, second = torch.tensor([0, 0]), torch.tensor([1, 1])
    normals = torch.tensor([[[-1.0], [1.0]], [[1.0], [-1.0]]], dtype=DOUBLE).expand(2, 2, 2, 1)
    limits = torch.tensor([[-1.0, -1.0], [-1.0, 3.0]], dtype=DOUBLE)
    solution = couples.solve(reference, first, second, normals, limits)
    assert solution.feasible.tolist() == [False, True]
    torch.testing.assert_close(solution.x[0, :, 0], torch.tensor([0.25, 0.25], dtype=DOUBLE), atol=1e-6, rtol=0)
    torch.testing.assert_close(solution.x[1, :, 0], torch.tensor([0.75, -0.25], dtype=DOUBLE), atol=1e-9, rtol=0)


def test_derivatives_agree_with_finite_differences():
    reference, first, second, normals, limits = scene(2, 3, 0.3)
    weights = 0.5 + torch.rand(2, 3, dtype=DOUBLE, generator=torch.Generator().manual_seed(2))
    inputs = [t.requires_grad_() for t in (reference, normals, limits, weights)]

    def solved(reference, normals, limits, weights):
        return couples.solve(reference, first, second, normals, limits, weights)[:2]

    assert (couples.solve(reference, first, second, normals, limits).multipliers > 1e-2).any()
    assert torch.autograd.gradcheck(solved, inputs, atol=1e-5, fast_mode=True)


def test_leading_axes_are_kept_and_wrong_shapes_are_one_line():
    reference, first, second, normals, limits = scene(6, 3, 0.5)
    flat = couples.solve(reference, first, second, normals, limits)
    folded = couples.solve(reference.reshape(2, 3, 3, 2), first, second, normals.reshape(2, 3, 3, 2, 2), limits[0])
    assert folded.x.shape == (2, 3, 3, 2) and folded.feasible.shape == (2, 3)
    torch.testing.assert_close(folded.x.reshape(6, 3, 2), flat.x, atol=1e-12, rtol=0)
    with pytest.raises(UserError, match="3 rows over 3 robots"):
        couples.solve(reference, first, second, normals[:, :2], limits)
