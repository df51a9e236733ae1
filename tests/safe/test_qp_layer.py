"""Programs stated in cvxpy: our solver inside CvxpyLayer against the stock layer (DIFFCP), which it must agree with."""

import cvxpy as cp
import pytest
import torch
from cvxpylayers.torch import CvxpyLayer

from madiff.interfaces import UserError
from safe import qp, qp_layer

DOUBLE = torch.float64
BATCH = 4


def values(*shapes, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(BATCH, *shape, dtype=DOUBLE, generator=g) for shape in shapes]


def run(layer, tensors, **options):
    """Outputs, and the gradients of a fixed random scalar of them."""
    inputs = [t.clone().requires_grad_() for t in tensors]
    outputs = layer(*inputs, **options)
    sum((o * w).sum() for o, w in zip(outputs, values(*(o.shape[1:] for o in outputs), seed=9), strict=True)).backward()
    return outputs, [t.grad for t in inputs]


def agree(problem, parameters, variables, tensors, method="auto"):
    ours = qp_layer.layer(problem, parameters, variables, method=method)
    outputs, gradients = run(ours, tensors)
    stock = CvxpyLayer(problem, parameters, variables)
    expected, expected_gradients = run(stock, tensors, solver_args={"eps": 1e-10, "max_iters": 100_000})
    for found, wanted in zip(outputs, expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-7, rtol=1e-7)
    for found, wanted in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    return ours


def planar():
    u, reference = cp.Variable(2), cp.Parameter(2)
    gradient, level = cp.Parameter((3, 2)), cp.Parameter(3)
    tensors = values((2,), (3, 2), (3,))
    tensors[2] = tensors[2].abs()
    return u, [reference, gradient, level], gradient @ u + level >= 0, tensors


def test_the_barrier_program_and_its_multipliers_agree_with_the_stock_layer():
    u, parameters, rows, tensors = planar()
    problem = cp.Problem(cp.Minimize(0.5 * cp.sum_squares(u) - parameters[0] @ u), [rows])
    agree(problem, parameters, [u, rows.dual_variables[0]], tensors)


@pytest.mark.parametrize("method", ["auto", "interior"])
def test_squares_of_affine_terms_bring_equalities_and_agree(method):
    u, parameters, rows, tensors = planar()
    problem = cp.Problem(cp.Minimize(cp.sum_squares(u - parameters[0])), [rows])
    agree(problem, parameters, [u], tensors, method)


def test_equalities_and_absolute_values_agree_with_their_multipliers():
    u, parameters, rows, tensors = planar()
    total = cp.sum(u) == 0.3
    problem = cp.Problem(cp.Minimize(cp.sum_squares(u - parameters[0]) + 0.3 * cp.norm1(u)), [rows, total])
    tensors[2] = tensors[2] + 1
    agree(problem, parameters, [u, total.dual_variables[0]], tensors)


def test_a_parametrised_quadratic_agrees():
    u, parameters, rows, tensors = planar()
    root = cp.Parameter((2, 2))
    problem = cp.Problem(cp.Minimize(cp.sum_squares(root @ u - parameters[0])), [rows, u >= -1, u <= 1])
    agree(problem, [root, *parameters], [u], [*values((2, 2), seed=3), *tensors])


def test_a_quadratic_form_whose_matrix_is_a_parameter():
    """quad_form with a parameter is beyond the stock layer: finite differences, and the solver called directly."""
    u, P, reference = cp.Variable(2), cp.Parameter((2, 2), PSD=True), cp.Parameter(2)
    problem = cp.Problem(cp.Minimize(0.5 * cp.quad_form(u, P) - reference @ u), [cp.sum(u) <= 0.1])
    layer = qp_layer.layer(problem, [P, reference], [u])
    matrix = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=DOUBLE).expand(BATCH, 2, 2).clone().requires_grad_()
    force = values((2,))[0].requires_grad_()
    direct = qp.solve(matrix, -force, torch.ones(1, 2, dtype=DOUBLE), torch.tensor([0.1], dtype=DOUBLE))
    torch.testing.assert_close(layer(matrix, force)[0], direct.x, atol=1e-10, rtol=0)
    assert torch.autograd.gradcheck(lambda m, f: layer((m + m.mT) / 2, f)[0], [matrix, force], atol=1e-5)


def test_slack_variables_without_curvature_go_to_the_interior_point():
    u, parameters, _, tensors = planar()
    slack = cp.Variable(3)
    rows = [parameters[1] @ u + parameters[2] + slack >= 0, slack >= 0]
    problem = cp.Problem(cp.Minimize(cp.sum_squares(u - parameters[0]) + 10 * cp.sum(slack)), rows)
    agree(problem, parameters, [u, slack], tensors)


def test_the_layer_equals_the_solver_called_directly():
    _, _, _, (reference, gradient, level) = planar()
    layer = qp_layer.barrier_layer(2, 3)
    (u,) = layer(reference, gradient, level)
    torch.testing.assert_close(u, qp.solve(None, -reference, -gradient, level).x, atol=1e-12, rtol=0)
    (single,) = layer(reference[0].float(), gradient[0].float(), level[0].float())
    assert single.shape == (2,)
    torch.testing.assert_close(single.double(), u[0], atol=1e-5, rtol=1e-5)


def test_one_infeasible_problem_does_not_cost_the_others_their_answer():
    reference, gradient, level = values((2,), (2, 2), (2,))
    gradient[:], level[:] = torch.tensor([[1.0, 0.0], [-1.0, 0.0]]).double(), 1.0
    level[1] = -1.0  # u_0 >= 1 and u_0 <= -1
    layer = qp_layer.barrier_layer(2, 2)
    (u,) = layer(reference, gradient, level)
    expected = reference.clone()
    expected[:, 0] = reference[:, 0].clamp(-1, 1)
    expected[1, 0] = 0.0
    torch.testing.assert_close(u, expected, atol=1e-6, rtol=0)
    assert layer.ctx.solver.last_feasible.tolist() == [True, False, True, True]
    assert float(layer.ctx.solver.last_violation[1]) == pytest.approx(1.0, abs=1e-6)


def test_what_is_no_quadratic_program_is_one_clear_line():
    u, reference, root = cp.Variable(2), cp.Parameter(2), cp.Parameter((2, 2))
    least = cp.Minimize(cp.sum_squares(u))
    cases = [
        (cp.Problem(cp.Minimize(cp.sum(u)), [cp.norm(u - reference) <= 1]), [reference], "not a quadratic program"),
        (cp.Problem(least, [root @ (root @ u) <= reference]), [root, reference], "DPP"),
        (cp.Problem(cp.Maximize(cp.sum_squares(u)), [u >= reference]), [reference], "DPP"),
        (cp.Problem(least, [u >= reference]), [], "parameters"),
        (cp.Problem(cp.Minimize(cp.sum(cp.Variable(2, boolean=True)) + reference[0])), [reference], "integer"),
    ]
    for problem, parameters, message in cases:
        with pytest.raises(UserError, match=message):
            qp_layer.layer(problem, parameters, [u])
    problem = cp.Problem(least, [u >= reference])
    with pytest.raises(UserError, match="active-set, interior"):
        qp_layer.layer(problem, [reference], [u], method="simplex")
    solver = qp_layer.BatchedQPSolver()
    CvxpyLayer(problem, [reference], [u], solver=solver)
    with pytest.raises(UserError, match="one BatchedQPSolver per layer"):
        CvxpyLayer(problem, [reference], [u], solver=solver)
