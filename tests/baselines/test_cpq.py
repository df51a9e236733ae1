"""CPQ: every loss by loops, what unknown actions get, and what an unsafe future is worth."""

import math

import pytest
import torch

from baselines import cpq
from tests.baselines.constrained_toys import learner
from tests.baselines.toys import ACTIONS, AGENTS, batch_of


def prepared(monkeypatch, **options):
    made, source = learner(cpq, **options)
    generator = torch.Generator().manual_seed(0)
    for target in made.targets.values():
        for parameter in target.model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    fixed = torch.rand(10, 16, AGENTS, ACTIONS, generator=generator) * 2 - 1
    monkeypatch.setattr(made, "draw", lambda o, g, samples=1: fixed[:samples])
    return made, batch_of(source), fixed


def put_limit_at_the_middle(monkeypatch, made, costs):
    lower, upper = costs.detach().flatten().sort().values[costs.numel() // 2 - 1 :][:2]
    limit = (lower + upper) / 2  # between two costs, so that rounding decides for none
    monkeypatch.setattr(made, "limit", lambda share=1.0: share * limit)
    return float(limit)


@torch.no_grad()
def test_losses_by_loops(monkeypatch):
    made, batch, drawn = prepared(monkeypatch)
    steps, costs = made.constrained_steps(batch)
    slow = {name: made.targets[name].model for name in ("critic", "cost_critic")}
    limit = put_limit_at_the_middle(monkeypatch, made, slow["cost_critic"](steps.next_observations, drawn[0]).amin(0))
    made.floor.value.fill_(-0.3)
    made.push.logarithm.fill_(math.log(0.7))
    errors, cost_errors, safe = [], [], []
    for b in range(16):
        for i in range(AGENTS):
            seen = steps.next_observations[b, i], drawn[0, b, i]
            cost, value = (float(slow[name](*seen).min()) for name in ("cost_critic", "critic"))
            safe.append(cost <= limit)
            goes_on = 0.0 if steps.terminated[b] else 0.99
            aim = float(steps.rewards[b, i]) + goes_on * (value if cost <= limit else -0.3)
            cost_aim = float(costs[b, i]) + goes_on * cost
            now = steps.observations[b, i], steps.actions[b, i]
            errors += [(float(v) - aim) ** 2 for v in made.networks["critic"](*now)]
            cost_errors += [(float(v) - cost_aim) ** 2 for v in made.networks["cost_critic"](*now)]
    assert any(safe) and not all(safe)
    losses, unknown = made.critic_losses(steps, costs, torch.Generator())
    assert math.isclose(float(losses["critic"]), 2 * sum(errors) / len(errors), rel_tol=1e-4)
    expected = 2 * sum(cost_errors) / len(cost_errors) - 0.7 * float(unknown)
    assert math.isclose(float(losses["cost_critic"]), expected, rel_tol=1e-4)


@torch.no_grad()
def test_unknown_actions_are_the_quarter_that_diverges_most(monkeypatch):
    made, batch, drawn = prepared(monkeypatch)
    observations = batch["observations"][:, 0]
    rows = []
    for k in range(10):
        for b in range(16):
            for i in range(AGENTS):
                seen = observations[b, i], drawn[k, b, i]
                mean, log_std = made.networks["vae"].encode(*seen)
                divergence = float(-0.5 * (1 + 2 * log_std - mean**2 - torch.exp(log_std) ** 2).mean())
                rows.append((divergence, float(made.networks["cost_critic"](*seen).min())))
    rows.sort(reverse=True)
    quarter = [cost for _, cost in rows[: len(rows) // 4]]
    found = made.unknown_cost(observations, torch.Generator())
    assert math.isclose(float(found), sum(quarter) / len(quarter), rel_tol=1e-4, abs_tol=1e-5)


def test_the_push_raises_the_cost_of_unknown_actions(monkeypatch):
    made, batch, _ = prepared(monkeypatch)
    observations = batch["observations"][:, 0]
    before = made.unknown_cost(observations, torch.Generator())
    made.gradient_step("cost_critic", -made.push() * before, 10.0)
    assert made.unknown_cost(observations, torch.Generator()) > before


def test_the_push_s_weight_in_closed_form():
    push = cpq.PushWeight(rate=0.1)
    logarithm = 0.0
    for lack in (1.0, 2.0, -3.0):
        push.follow(torch.tensor(lack))
        logarithm += 0.1 * math.exp(logarithm) * lack
        assert math.isclose(float(push()), math.exp(logarithm), rel_tol=1e-5)
    push.follow(torch.tensor(1e6))
    assert math.isclose(float(push()), math.exp(5.0), rel_tol=1e-5)


@pytest.mark.parametrize("truncated", [True, False])
def test_an_unsafe_future_is_worth_the_least(truncated):
    """No return of the data, continued by its worst reward where it may go on, is below the floor."""
    made, source = learner(cpq, truncated=truncated)
    rewards = made.scale(source.fields["rewards"])
    worst = float(rewards.min())
    if truncated:
        assert math.isclose(float(made.floor.value), sum(0.99**t * worst for t in range(5000)), rel_tol=1e-4)
    else:
        assert worst >= 0 and float(made.floor.value) == 0.0


@pytest.mark.parametrize("recovery", [0.0, 0.5])
def test_the_actor_climbs_where_it_is_safe_and_recovers_or_stands_still_elsewhere(monkeypatch, recovery):
    made, batch, drawn = prepared(monkeypatch, recovery=recovery)
    steps, _ = made.constrained_steps(batch)
    actions = drawn[:1].clone().requires_grad_()
    monkeypatch.setattr(made, "draw", lambda o, g, samples=1: actions)
    costs = made.networks["cost_critic"](steps.observations, actions[0]).amin(0)
    limit = put_limit_at_the_middle(monkeypatch, made, costs)
    loss, _ = made.actor_loss(steps, torch.Generator())
    moved = torch.autograd.grad(loss, actions, retain_graph=True)[0][0]
    dearer = torch.autograd.grad(costs.mean(), actions)[0][0]
    value = made.networks["critic"](steps.observations, actions[0]).amin(0)
    better = torch.autograd.grad(value.mean(), actions)[0][0]
    expected, total = torch.zeros_like(moved), 0.0
    for b in range(16):
        for i in range(AGENTS):
            excess = float(costs[b, i].detach()) - limit
            expected[b, i] = recovery * dearer[b, i] if excess > 0 else -better[b, i]
            gain = float(value[b, i].detach() - made.floor.value)
            total += (recovery * excess if excess > 0 else -gain) / (16 * AGENTS)
    assert torch.allclose(moved, expected, atol=1e-6) and bool((moved[costs <= limit] != 0).any())
    assert math.isclose(float(loss.detach()), total, rel_tol=1e-4, abs_tol=1e-6)


def test_samples_are_a_squashed_normal_distribution():
    head = cpq.SquashedGaussian(torch.ones(1, 1, dtype=torch.bool))
    output = torch.tensor([0.3, math.log(0.5)]).expand(20_000, 2)
    uniform = torch.rand(20_000, 1, generator=torch.Generator().manual_seed(0))
    raw = torch.atanh(head.sample(output, None, uniform))
    assert abs(float(raw.mean()) - 0.3) < 0.02 and abs(float(raw.std()) - 0.5) < 0.02
    assert torch.allclose(head.greedy(output[:1], None), torch.tanh(torch.tensor(0.3)))
