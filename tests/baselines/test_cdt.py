"""CDT: sees the past alone, asks for what is left of return and budget, and learns from relabelled episodes."""

import math

import numpy as np
import pytest
import torch

from baselines import cdt, cost_return_frontier
from baselines.constrained import costs_to_go, episode_costs
from tests.baselines.constrained_toys import learner, store
from tests.baselines.toys import ACTIONS, AGENTS, OBSERVATION, batch_of

INPUTS = 6


def network(context=4):
    torch.manual_seed(0)
    return cdt.CDTNetwork(INPUTS, ACTIONS, 7, 16, layers=2, heads=2, context=context, length=20)


def rows(steps, seed=0):
    torch.manual_seed(seed)
    x, actions = torch.randn(2, steps, AGENTS, INPUTS + 3), torch.rand(2, steps, AGENTS, ACTIONS)
    x[..., -1] = torch.arange(steps)[:, None]
    return x, actions


def test_neither_the_future_nor_this_step_s_action_is_seen():
    net, (x, actions) = network(), rows(4)
    changed_x, changed = x.clone(), actions.clone()
    changed_x[:, 3, 1, 0] += 1.0
    changed[:, 2, 1] += 1.0
    before, after = net.heard(x, actions), net.heard(changed_x, changed)
    acting, costing = ((a - b).abs().amax((0, -1)) for a, b in zip(before, after, strict=True))
    assert (acting[:3] == 0).all() and (acting[3, 1] > 0).all() and (acting[3, [0, 2]] == 0).all()
    assert (costing[:2] == 0).all() and (costing[2:, 1] > 0).all()


@pytest.mark.parametrize("entry", range(INPUTS + 3))
def test_everything_seen_matters_now_and_later(entry):
    net, (x, actions) = network(), rows(4)
    changed = x.clone()
    changed[:, 0, :, entry] += 1.0
    difference = (net.heard(x, actions)[0] - net.heard(changed, actions)[0]).abs().amax((0, -1))
    assert (difference > 0).all()


def test_step_by_step_equals_the_whole_sequence_and_forgets_beyond_the_context():
    net, (x, actions) = network(context=3), rows(6)
    before = torch.cat([torch.zeros_like(actions[:, :1]), actions[:, :-1]], 1)
    past, steps = None, []
    for t in range(6):
        output, past = net(torch.cat([x, before], -1)[:, t : t + 1], past)
        steps.append(output[:, 0])
        assert past.shape[1] == min(t + 1, 3)
    assert torch.allclose(torch.stack(steps[:3], 1), net.heard(x[:, :3], actions[:, :3])[0], atol=1e-5)
    assert torch.allclose(steps[5], net.heard(x[:, 3:], actions[:, 3:])[0][:, -1], atol=1e-5)


def test_training_asks_for_what_was_still_to_come():
    made, source = learner(cdt, context=4, augment=0.0)
    data, batch = store(), batch_of(source)
    seen = made.rows(batch, batch["costs"].mean(-1))
    rewards_to_go, cost_to_go = source.windows.returns, costs_to_go(data)
    returns = made.returns.high - made.returns.low
    costs = episode_costs(data).max() - episode_costs(data).min()
    for b in range(len(seen)):
        start = int(data.offsets[batch["episode"][b]] + batch["time"][b])
        for t in range(int(batch["transition_valid"][b].sum())):
            wanted, allowed, time = seen[b, t, :, -3:].unbind(-1)
            assert torch.allclose(wanted, rewards_to_go[start + t] / returns, atol=1e-5)
            assert torch.allclose(allowed, (cost_to_go[start + t] / costs).float().expand(AGENTS), atol=1e-5)
            assert torch.equal(time, torch.full((AGENTS,), float(batch["time"][b] + t)))


def test_relabelled_episodes_ask_for_more():
    made, source = learner(cdt, context=4, augment=1.0)
    extra = len(source.more_cost) - store().episodes
    assert extra > 0 and float(source.more_cost[-extra:].min()) >= 0
    assert bool((source.more_cost[:-extra] == 0).all() and (source.more_return[:-extra] == 0).all())
    last = source.windows.transitions - 1
    batch = source.windows.gather(torch.tensor([last]))
    asked = source.sample  # the same window with its targets
    source.windows.sample = lambda generator: batch
    targets = asked(torch.Generator())
    assert torch.allclose(targets["returns"] - batch["returns"], source.more_return[-1].expand(1, AGENTS), atol=1e-5)
    assert torch.allclose(targets["costs_to_go"][0] - source.to_go[last], source.more_cost[-1], atol=1e-5)


def test_acting_asks_for_what_is_left():
    made, _ = learner(cdt, cost_limit=4.0, target_return=0.5)
    policy, data = made.policy(), store()
    policy.reset(seed=0, n=2)
    returns = made.returns.high - made.returns.low
    costs = episode_costs(data).max() - episode_costs(data).min()
    fits = data.team_returns()[episode_costs(data) <= 4.0]
    target = (float(data.team_returns().min()) + float(fits.max())) / 2
    for step in range(3):
        inputs = policy.inputs(torch.rand(2, AGENTS, OBSERVATION))
        wanted, allowed, time, before = inputs[..., -3 - ACTIONS :].split([1, 1, 1, ACTIONS], -1)
        assert torch.allclose(wanted, ((target - 0.5 * step) / returns).expand_as(wanted), atol=1e-4)
        assert torch.allclose(allowed, ((4.0 - 2.0 * step) / costs).float().expand_as(allowed), atol=1e-5)
        assert bool((time == step).all()) and torch.equal(before, policy.last)
        policy.act(torch.rand(2, AGENTS, OBSERVATION), None)
        policy.receive(torch.full((2, AGENTS), 0.5))
        policy.pay(torch.full((2, AGENTS), 2.0))  # more than is allowed from the second step on


def test_the_frontier_by_brute_force():
    generator = np.random.default_rng(0)
    costs, returns = generator.integers(0, 9, 60) * 1.0, generator.normal(size=60)
    frontier = cost_return_frontier.Frontier()
    frontier.fit(torch.from_numpy(costs), torch.from_numpy(returns))
    for limit in (0.0, 3.0, 3.9, 8.0, 50.0):
        best = max(r for c, r in zip(costs, returns, strict=True) if c <= limit)
        assert math.isclose(float(frontier.within(limit)), best, rel_tol=1e-5)
        assert math.isclose(float(frontier.within(limit, 0.0)), returns.min(), rel_tol=1e-5)
    found = {(costs[i], returns[i]) for i in cost_return_frontier.pareto_optimal(costs, returns)}
    undominated = {
        (c, r) for c, r in zip(costs, returns, strict=True)
        if not any(d <= c and s >= r and (d, s) != (c, r) for d, s in zip(costs, returns, strict=True))
    }  # fmt: skip
    assert found == undominated


def test_where_nothing_is_cheap_enough_the_cheapest_is_asked_for():
    frontier = cost_return_frontier.Frontier()
    frontier.fit(torch.tensor([5.0, 9.0]), torch.tensor([1.0, 3.0]))
    assert float(frontier.within(2.0)) == 1.0


def test_crowded_cells_are_thinned_and_lonely_ones_dropped():
    costs = np.concatenate([np.zeros(30), np.full(5, 1.0), np.full(2, 9.0), np.full(1, 10.0)])
    returns = np.concatenate([np.zeros(30), np.full(5, 1.0), np.full(2, 2.0), np.full(1, 3.0)])
    kept = cost_return_frontier.thinned(costs, returns, np.random.default_rng(0))
    assert (kept < 30).sum() == 10 and set(kept[kept >= 30]) == set(range(30, 35))
    lonely = cost_return_frontier.thinned(np.arange(4.0), np.arange(4.0), np.random.default_rng(0))
    assert list(lonely) == [0, 1, 2, 3]  # rather all than none


def test_targets_lie_above_the_frontier_and_cost_no_less():
    generator = np.random.default_rng(1)
    costs = generator.uniform(0, 50, 400)
    returns = 10 + 0.4 * costs - generator.exponential(3.0, 400)
    found, more_cost, more_return = cost_return_frontier.relabelled(
        costs, returns, share=0.2, degree=1, lowest=1.0, highest=40.0, drop=5.0, generator=np.random.default_rng(2)
    )
    assert len(found) == int(0.2 * len(cost_return_frontier.thinned(costs, returns, np.random.default_rng(2)))) > 20
    asked_cost, asked_return = costs[found] + more_cost, returns[found] + more_return
    assert np.allclose(np.diff(asked_cost), np.diff(asked_cost).mean())  # evenly spaced, over the whole range
    assert (more_cost >= -1e-6).all() and (asked_return <= 40.0 + 1e-9).all()
    # the data's frontier is 10 + 0.4 cost; a line through its Pareto points lies near it
    assert (asked_return > 10 + 0.4 * asked_cost - 1.0).all()


def test_a_target_s_second_bearer_is_drawn_among_those_allowed():
    cost, gain = np.array([0.0, 1.0, 2.0, 5.0]), np.array([0.0, 5.0, 6.0, 9.0])
    chosen = np.full(4000, 2)
    found = cost_return_frontier.redrawn(cost, gain, chosen, 2.0, np.random.default_rng(0))
    distance = math.hypot(1, 1)
    share = (1 / (1 + distance)) / (1 / (1 + distance) + 1.0)  # episode 1 against 2 itself; 0 drops too far, 3 is dear
    assert set(found) == {1, 2} and abs((found == 1).mean() - share) < 0.03


def test_few_or_equal_episodes_are_no_obstacle():
    for costs, returns, relabelled in (([3.0], [1.0], 0), ([2.0] * 20, [1.0] * 20, 5)):  # 10 of the 20 are left
        found, more_cost, more_return = cost_return_frontier.relabelled(
            np.array(costs), np.array(returns), share=0.5, degree=2, lowest=0.1, highest=2.0, drop=0.1,
            generator=np.random.default_rng(0),
        )  # fmt: skip
        assert len(found) == relabelled and np.isfinite(more_return).all() and np.allclose(more_cost, 0)


def test_cheap_episodes_are_seen_more_often():
    made, _ = learner(cdt, ceiling=10.0, cost_limit=1.0)
    costs, lengths = torch.tensor([0.0, 5.0, 12.0]), torch.tensor([2, 4, 4])
    assert torch.allclose(made.weights_of(costs, lengths), torch.tensor([10 / 2, 5 / 4, 0.0]))
    assert torch.allclose(made.weights_of(costs + 10, lengths), 1 / lengths)  # all alike where all are too dear
    made.config.cost_limit = 10.0
    assert torch.allclose(made.weights_of(costs, lengths), torch.tensor([20 / 2, 15 / 4, 8 / 4]))


def test_the_entropy_and_its_bonus_in_closed_form():
    made, _ = learner(cdt, sizes=(ACTIONS, 3, 1))
    output = torch.randn(4, AGENTS, 2 * ACTIONS)
    mean, log_std = made.head.split(output)
    for i, size in enumerate((ACTIONS, 3, 1)):
        normal = torch.distributions.Normal(mean[:, i, :size], log_std[:, i, :size].exp())
        assert torch.allclose(cdt.entropy(made.head, output)[:, i], normal.entropy().sum(-1), atol=1e-5)
    temperature = made.temperature
    assert temperature.least == -3.0
    assert math.isclose(float(temperature(torch.tensor(2.0))), 0.2, rel_tol=1e-5)
    assert math.isclose(float(temperature.logarithm), math.log(0.1) - 1e-4 * 0.1 * 5, rel_tol=1e-5)


@pytest.mark.parametrize("discrete", [True, False])
def test_imitates(discrete):
    options = {"learning_rate": 3e-3, "batch_size": 48, "warm_up": 1, "cost_weight": 1.0}
    made, source = learner(cdt, discrete, context=3, **options)
    batch, generator = batch_of(source), torch.Generator()
    losses = [{k: float(v) for k, v in made.update(batch, generator).items()} for _ in range(150)]
    assert losses[-1]["likelihood"] > losses[0]["likelihood"] + 0.5
    assert losses[-1]["cost_loss"] < 0.5 * losses[0]["cost_loss"]


def test_the_learning_rate_warms_up():
    made, source = learner(cdt, learning_rate=1e-3, warm_up=4)
    rates = []
    for _ in range(6):
        made.update(batch_of(source), torch.Generator())
        rates.append(made.optimizer.param_groups[0]["lr"])
    assert np.allclose(rates, [0.25e-3, 0.5e-3, 0.75e-3, 1e-3, 1e-3, 1e-3])
