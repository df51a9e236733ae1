"""COptiDICE: the divergence and its inverse slope, every loss by loops, a bandit's optimal weights by cvxpy."""

import math

import cvxpy
import numpy as np
import pytest
import torch

from baselines import coptidice
from madiff.data.store import EpisodeStore
from madiff.interfaces import EnvironmentSpec
from madiff.values import Transitions
from tests.baselines.constrained_toys import learner
from tests.baselines.toys import AGENTS, CPU, batch_of


def test_the_inverse_slope_is_that_of_the_divergence():
    y = torch.tensor([-8.0, -2.0, -1e-3, 0.0, 1e-3, 0.5, 4.0], dtype=torch.float64)
    x, h = coptidice.inverse_slope(y), 1e-6
    x = x.clamp(min=1e-3)  # where f is too steep for finite differences
    slope = (coptidice.divergence(x * (1 + h)) - coptidice.divergence(x * (1 - h))) / (2 * h * x)
    assert torch.allclose(slope, y.clamp(min=math.log(1e-3)), atol=1e-5)
    assert float(coptidice.divergence(torch.zeros(()))) == 1.0


def test_the_weight_is_the_best_there_is():
    alpha, grid = 0.3, torch.linspace(0, 20, 200_001, dtype=torch.float64)
    for advantage in (-1.0, -0.1, 0.0, 0.2, 2.0):
        gain = grid * advantage - alpha * coptidice.divergence(grid)
        weight = coptidice.inverse_slope(torch.tensor(advantage / alpha, dtype=torch.float64))
        assert abs(float(grid[gain.argmax()] - weight)) < 1e-3


def test_an_advantage_far_below_zero_gives_finite_gradients():
    made, source = learner(coptidice)
    batch = batch_of(source)
    batch["rewards"] = batch["rewards"] - 1e6
    loss, weight = made.nu_loss(*made.flows(batch))
    gradients = torch.autograd.grad(loss, list(made.networks["nu"].parameters()))
    assert float(weight.max()) == 0.0 and all(bool(torch.isfinite(g).all()) for g in gradients)


@pytest.mark.parametrize("bound", [0.0, 0.05])
@torch.no_grad()
def test_losses_by_loops(bound):
    made, source = learner(coptidice, bound=bound, alpha=0.4)
    batch = batch_of(source)
    batch["time"][:4] = 0
    steps, costs, initial = made.flows(batch)
    first = source.transitions / made_episodes(source)
    multiplier, tau = float(made.networks["lambda"]()), float(made.networks["tau"]())
    nu_loss, ell, weights, paid = 0.0, [], [], []
    for b in range(16):
        for i in range(AGENTS):
            now, after = (
                [float(made.networks[name](seen[b, i]).min()) for name in ("nu", "chi")]
                for seen in (steps.observations, steps.next_observations)
            )
            after = [0.0 if steps.terminated[b] else 0.99 * v for v in after]
            cost = float(batch["costs"][b, 0].mean() / made.cost_scale.scale)
            e = float(steps.rewards[b, i]) - multiplier * cost + after[0] - now[0]
            w = math.exp(e / 0.4) if e < 0 else e / 0.4 + 1
            f = w * math.log(w) - w + 1 if w < 1 else 0.5 * (w - 1) ** 2
            starts = first if batch["time"][b] == 0 else 0.0
            nu_loss += (0.01 * now[0] * starts + w * e - 0.4 * f) / (16 * AGENTS)
            ell.append(0.01 * now[1] * starts + w * (cost + after[1] - now[1]))
            weights.append(w)
            paid.append(w * cost)
    found, weight = made.nu_loss(steps, costs, initial)
    assert math.isclose(float(found), nu_loss, rel_tol=1e-3, abs_tol=1e-5)
    assert np.allclose(weight.detach().flatten(), weights, rtol=1e-3)
    losses, cost = made.bound_losses(steps, costs, initial, weight)
    if bound == 0:
        assert losses == {} and math.isclose(float(cost), sum(paid) / len(paid), rel_tol=1e-3)
        return
    total = sum(math.exp(x / tau) for x in ell)
    share = [len(ell) * math.exp(x / tau) / total for x in ell]
    radius = sum(v * math.log(v) - v + 1 for v in share) / len(share)
    assert math.isclose(float(cost), sum(v * c for v, c in zip(share, paid, strict=True)) / len(paid), rel_tol=1e-3)
    assert math.isclose(float(losses["tau"]), tau * (0.05 - radius), rel_tol=1e-3, abs_tol=1e-5)
    expected = sum(v * x for v, x in zip(share, ell, strict=True)) / len(ell)
    assert math.isclose(float(losses["chi"]), expected, rel_tol=1e-3, abs_tol=1e-5)


def made_episodes(source):
    return int(source.episode.max()) + 1


def bandit(costs, rewards, episodes=400):
    """One observation, one step, each action equally often."""
    rows = [
        {"observations": torch.zeros(2, 1, 1), "actions": torch.tensor([[k]]), "rewards": torch.tensor([[rewards[k]]]),
         "costs": torch.tensor([[costs[k]]]), "terminated": True}
        for k in (n % len(costs) for n in range(episodes))
    ]  # fmt: skip
    return EpisodeStore.from_arrays(rows, action_size=len(costs))


@pytest.mark.parametrize("limit", [0.3, 10.0])
def test_a_bandit_s_weights_are_optimal(limit):
    """max E[w r] - alpha E[f(w)] subject to E[w c] <= (1 - g) limit and E[w] = 1 - g, solved by cvxpy."""
    rewards, costs, alpha, discount = [0.0, 0.4, 0.7, 1.0], [0.0, 0.1, 0.5, 1.0], 0.5, 0.5
    spec = EnvironmentSpec("bandit", "bandit", 1, 1, 4, True, 0, 1)
    config = coptidice.Config(
        width=8, batch_size=400, discount=discount, cost_limit=limit, bound=0.0, alpha=alpha, learning_rate=1e-2,
        scalar_learning_rate=2e-2,
    )  # fmt: skip
    made = coptidice.make(config, spec, CPU, 0)
    source = made.batches(bandit(costs, rewards))
    batch = source.gather(torch.arange(400))
    generator = torch.Generator().manual_seed(0)
    for _ in range(700):
        made.update(batch, generator)
    found = made.nu_loss(*made.flows(batch))[1][:4, 0].numpy()

    w = cvxpy.Variable(4)
    f = cvxpy.maximum(-cvxpy.entr(w) - w + 1, 0.5 * cvxpy.square(w - 1))  # soft chi-squared is the greater of the two
    paid = made.scale(torch.tensor(rewards)).numpy()
    problem = cvxpy.Problem(
        cvxpy.Maximize(cvxpy.sum(cvxpy.multiply(paid, w) - alpha * f) / 4),
        [cvxpy.sum(w) / 4 == 1 - discount, np.array(costs) @ w / 4 <= (1 - discount) * limit],
    )
    problem.solve(solver="CLARABEL")
    assert np.allclose(found, w.value, atol=0.05)
    steps = Transitions.of(batch, made.scale)
    output = made.networks["actor"](steps.observations[:, None])[0][0, 0, 0].detach()
    assert np.allclose(torch.softmax(output, -1), w.value / w.value.sum(), atol=0.05)
    cost = float(torch.softmax(output, -1) @ torch.tensor(costs))
    assert cost <= limit + 0.05
