"""Quadratic programs against brute force, CLARABEL and finite differences, and those that break other solvers."""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from madiff.interfaces import UserError
from safe import active_sets, qp
from tests.safe.programs import DOUBLE, by_clarabel, by_subsets, least_violation, random_programs

BOTH = pytest.mark.parametrize("method", ["active-set", "interior"])


def barrier_programs(reference, rows, limits):
    """The projection of SafeDiffuser: min |d - reference|^2 / 2 subject to rows . d <= limits."""
    return None, -reference, rows, limits


@BOTH
@pytest.mark.parametrize(("n", "m"), [(1, 1), (2, 3), (3, 5), (3, 7)])
def test_solutions_are_the_best_feasible_kkt_points(method, n, m):
    problems = random_programs(40, n, m, seed=n + m)
    solution = qp.solve(*problems, method=method)
    expected = [by_subsets(*(t[i].numpy() for t in problems)) for i in range(40)]
    np.testing.assert_allclose(solution.x, np.stack(expected), atol=1e-8)
    assert solution.feasible.all() and solution.residual.max() <= 1e-8


@BOTH
@pytest.mark.parametrize(("n", "m"), [(8, 16), (20, 20)])
def test_more_variables_agree_with_clarabel(method, n, m):
    problems = random_programs(6, n, m)
    solution = qp.solve(*problems, method=method)
    for i in range(6):
        np.testing.assert_allclose(solution.x[i], by_clarabel(*(t[i].numpy() for t in problems)), atol=1e-6)


@pytest.mark.parametrize("room", [0.3, 1e-3])
def test_thousands_of_problems_meet_their_kkt_conditions(room):
    for n, m, batch in ((2, 3, 4000), (2, 5, 2000), (8, 16, 300), (3, 40, 300)):
        solution = qp.solve(*random_programs(batch, n, m, room=room))
        assert solution.residual.max() <= 1e-8 and solution.feasible.all()


def test_enumerating_and_pivoting_find_the_same_rows():
    P, q, G, h = random_programs(500, 3, 5, room=-0.1)
    matrix = (G @ torch.linalg.solve(P, G.mT)).movedim(0, -1) + 1e-2 * torch.eye(5, dtype=DOUBLE)[..., None]
    offset = (h + (G @ torch.linalg.solve(P, q)[..., None])[..., 0]).T
    active, inverse = active_sets.pivoted(matrix, offset, steps=20)
    assert torch.equal(active, active_sets.enumerated(matrix, offset))
    multipliers = (inverse * -offset).sum(1)
    slack = offset + (matrix * multipliers).sum(1)
    assert multipliers.min() >= 0 and slack.min() >= -1e-9 and (slack * multipliers).abs().max() < 1e-6


def two_rows(reference, rows, limits):
    """The closed form of control barrier functions with two rows, as SafeDiffuser's code solves it (2306.00148)."""
    p = limits - (rows * reference[:, None]).sum(-1)
    gram = rows @ rows.mT
    p1, p2, g11, g12, g22 = p[:, 0], p[:, 1], gram[:, 0, 0], gram[:, 0, 1], gram[:, 1, 1]
    low1, low2 = p1.clamp_max(0), p2.clamp_max(0)
    determinant = g11 * g22 - g12**2
    only2, only1 = g12 * low2 < g22 * p1, g12 * low1 < g11 * p2
    first = ((g22 * p1 - g12 * p2).clamp_max(0)) / determinant
    second = ((g11 * p2 - g12 * p1).clamp_max(0)) / determinant
    first = torch.where(only2, 0.0, torch.where(only1, low1 / g11, first))
    second = torch.where(only2, low2 / g22, torch.where(only1, 0.0, second))
    return reference + first[:, None] * rows[:, 0] + second[:, None] * rows[:, 1]


def test_two_rows_agree_with_the_closed_form_of_barrier_functions():
    g = torch.Generator().manual_seed(0)
    reference = torch.randn(20000, 2, dtype=DOUBLE, generator=g)
    rows = torch.randn(20000, 2, 2, dtype=DOUBLE, generator=g)
    limits = torch.randn(20000, 2, dtype=DOUBLE, generator=g)
    solution = qp.solve(*barrier_programs(reference, rows, limits))
    gap = (solution.x - two_rows(reference, rows, limits)).abs().amax(-1)
    angle = torch.linalg.det(torch.nn.functional.normalize(rows, dim=-1)).abs()
    assert gap[angle > 1e-2].max() < 1e-8 and (angle > 1e-2).float().mean() > 0.98
    assert solution.residual[angle > 1e-2].max() < 1e-8 and torch.isfinite(solution.x).all()


@BOTH
def test_hard_rows_get_the_right_answer_and_flag_and_cost_their_neighbours_nothing(method):
    parallel, opposed, zero = [[1.0, 0.0], [2.0, 0.0]], [[1.0, 0.0], [-1.0, 0.0]], [[0.0, 0.0], [0.0, 1.0]]
    cases = [  # rows, limits, nearest point to (3, 4), feasible
        (parallel, [1.0, 1.0], [0.5, 4.0], True),
        ([[1.0, 0.0], [1.0, 0.0]], [1.0, 1.0], [1.0, 4.0], True),
        (opposed, [1.0, -1.0], [1.0, 4.0], True),
        (opposed, [-1.0, -1.0], [0.0, 4.0], False),
        (zero, [0.5, 2.0], [3.0, 2.0], True),
        (zero, [-0.5, 2.0], [3.0, 2.0], False),
        ([[0.0, 0.0], [0.0, 0.0]], [1.0, 1.0], [3.0, 4.0], True),
        ([[1.0, 0.0], [1.0, 1e-5]], [1.0, 2.0], [1.0, 4.0], True),
        ([[1e-6, 0.0], [0.0, 1e6]], [1e-6, 2e6], [1.0, 2.0], True),
    ]
    rows, limits, expected, feasible = (torch.tensor(c, dtype=DOUBLE) for c in zip(*cases, strict=True))
    reference = torch.tensor([3.0, 4.0], dtype=DOUBLE)
    solution = qp.solve(None, -reference, rows, limits, method=method)
    torch.testing.assert_close(solution.x, expected, atol=1e-6, rtol=0)
    assert torch.equal(solution.feasible, feasible.bool())
    assert (solution.violation[~solution.feasible] > 0.4).all() and solution.violation[solution.feasible].max() < 1e-8
    kept = [i for i, c in enumerate(cases) if c[3]]
    alone = qp.solve(None, -reference, rows[kept], limits[kept], method=method)
    torch.testing.assert_close(alone.x, solution.x[kept], atol=1e-12, rtol=0)


@BOTH
def test_infeasible_problems_get_the_least_sum_of_squared_violations(method):
    _, q, G, h = random_programs(200, 2, 4, seed=3, room=-1.5)
    G = torch.nn.functional.normalize(G, dim=-1)
    solution = qp.solve(None, q, G, h, method=method)
    assert 20 < (~solution.feasible).sum() < 180 and torch.isfinite(solution.x).all()
    for i in (~solution.feasible).nonzero()[:10, 0]:
        least, _ = least_violation(np.eye(2), G[i].numpy(), h[i].numpy())
        found = ((G[i] @ solution.x[i] - h[i]).clamp_min(0) ** 2).sum()
        assert float(found) == pytest.approx(least, rel=1e-5)


@BOTH
def test_derivatives_agree_with_finite_differences(method):
    problems = [t.requires_grad_() for t in random_programs(2, 3, 4)]
    g = torch.Generator().manual_seed(0)
    A = torch.randn(2, 1, 3, dtype=DOUBLE, generator=g).requires_grad_()
    b = torch.zeros(2, 1, dtype=DOUBLE, requires_grad=True)

    def solved(P, *rest):
        return qp.solve((P + P.mT) / 2, *rest, method=method)[:2]

    assert torch.autograd.gradcheck(solved, problems, atol=1e-5, fast_mode=method == "interior")
    assert torch.autograd.gradcheck(solved, [*problems, A, b], atol=1e-5, fast_mode=True)
    tight = qp.solve(*problems, method=method)
    assert (tight.multipliers > 0.1).any() and (tight.multipliers == 0).any()


@BOTH
def test_derivatives_of_infeasible_problems_agree_with_finite_differences(method):
    """At the least-violation point, rows at unit length so that the metric does not move with them."""
    P, q, G, h = random_programs(60, 2, 3, seed=1, room=-3.0)
    infeasible = (~qp.solve(None, q, G, h).feasible).nonzero()[:5, 0]
    q, G, h = q[infeasible], torch.nn.functional.normalize(G[infeasible], dim=-1), h[infeasible]
    assert len(q) >= 3

    def solved(q, angles, h):
        return qp.solve(None, q, torch.stack((angles.cos(), angles.sin()), -1), h, method=method).x

    angles = torch.atan2(G[..., 1], G[..., 0])
    inputs = [t.detach().requires_grad_() for t in (q, angles, h)]
    assert torch.autograd.gradcheck(solved, inputs, eps=1e-4, atol=1e-3, fast_mode=True)


def test_equalities_agree_with_their_own_kkt_system_and_rows_still_hold():
    P, q, G, h = random_programs(20, 4, 3)
    A, b = torch.randn(20, 2, 4, dtype=DOUBLE, generator=torch.Generator().manual_seed(1)), torch.zeros(20, 2).double()
    for method in ("active-set", "interior"):
        slackened = qp.solve(P, q, G, h + 1e3, A, b, method=method)
        kkt = torch.cat((torch.cat((P, A.mT), -1), torch.cat((A, torch.zeros(20, 2, 2).double()), -1)), -2)
        expected = torch.linalg.solve(kkt, torch.cat((-q, b), -1))[:, :4]
        torch.testing.assert_close(slackened.x, expected, atol=1e-9, rtol=0)
        tight = qp.solve(P, q, G, h, A, b, method=method)
        assert tight.residual[tight.feasible].max() < 1e-8


def test_interior_point_solves_programs_whose_objective_is_flat_in_some_directions():
    """min |u - r|^2 / 2 + s with s >= |u|: the slack s has no curvature; the answer is the soft threshold of r."""
    reference = torch.linspace(-3, 3, 13, dtype=DOUBLE)
    q = torch.stack((-reference, torch.ones_like(reference)), -1)
    P = torch.diag(torch.tensor([1.0, 0.0], dtype=DOUBLE))
    G = torch.tensor([[1.0, -1.0], [-1.0, -1.0]], dtype=DOUBLE)
    solution = qp.solve(P, q, G, torch.zeros(2, dtype=DOUBLE), method="interior")
    expected = reference.sign() * (reference.abs() - 1).clamp_min(0)
    torch.testing.assert_close(solution.x[:, 0], expected, atol=1e-7, rtol=0)


@BOTH
def test_a_batch_equals_its_problems_alone(method):
    problems = random_programs(30, 2, 6)
    together = qp.solve(*problems, method=method).x
    alone = torch.cat([qp.solve(*(t[i : i + 1] for t in problems), method=method).x for i in range(30)])
    torch.testing.assert_close(together, alone, atol=1e-12, rtol=0)


@BOTH
def test_leading_axes_broadcast_and_shared_matrices_collect_their_gradients(method):
    P, q, G, h = random_programs(6, 3, 4)
    P, q = P[0].requires_grad_(), q.reshape(2, 3, 3)
    solution = qp.solve(P, q, G[0], h[0], method=method)
    assert solution.x.shape == (2, 3, 3) and solution.multipliers.shape == (2, 3, 4) == (*solution.feasible.shape, 4)
    solution.x.sum().backward()
    copies = P.detach().expand(2, 3, 3, 3).clone().requires_grad_()
    qp.solve(copies, q, G[0], h[0], method=method).x.sum().backward()
    torch.testing.assert_close(P.grad, copies.grad.sum((0, 1)), atol=1e-10, rtol=0)


def test_single_precision_in_single_precision_out_and_no_rows_is_no_constraint():
    problems = [t.float().requires_grad_() for t in random_programs(50, 2, 3)]
    solution = qp.solve(*problems)
    assert solution.x.dtype == torch.float32
    exact = qp.solve(*(t.detach().double() for t in problems)).x
    torch.testing.assert_close(solution.x.double(), exact, atol=1e-5, rtol=1e-5)
    solution.x.sum().backward()
    assert all(t.grad.dtype == torch.float32 for t in problems)
    P, q, G, h = random_programs(4, 3, 2)
    free = qp.solve(P, q, G[:, :0], h[:, :0])
    torch.testing.assert_close(free.x, -torch.linalg.solve(P, q), atol=1e-12, rtol=0)
    assert free.multipliers.shape == (4, 0) and free.feasible.all()


class Watch(TorchDispatchMode):
    """Remembers the names of all operations."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen.append(str(function))
        return function(*args, **(kwargs or {}))


@BOTH
@pytest.mark.parametrize("m", [3, 8])
def test_the_operations_do_not_depend_on_the_data_and_never_wait_for_it(method, m):
    """Easy and infeasible batches run the very same operations, and none brings a number back to Python."""
    seen = []
    for room in (5.0, -1.0):
        problems = [t.requires_grad_() for t in random_programs(4, 2, m, room=room)]
        with Watch() as watch:
            qp.solve(*problems, method=method).x.sum().backward()
        seen.append(watch.seen)
    assert seen[0] == seen[1]
    assert not any(word in name for name in seen[0] for word in ("_local_scalar_dense", "nonzero", "masked_select"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"h": torch.zeros(4)}, "h has shape"),
        ({"P": torch.eye(3)}, "P has shape"),
        ({"method": "simplex"}, "active-set, interior"),
        ({"A": torch.zeros(1, 2)}, "both or neither"),
    ],
)
def test_what_does_not_fit_is_one_clear_line(change, message):
    arguments = {"P": None, "q": torch.zeros(2), "G": torch.zeros(3, 2), "h": torch.zeros(3)} | change
    with pytest.raises(UserError, match=message):
        qp.solve(**arguments)
