"""AdaptDiffuser: when rounds come, which plans are kept, and what is learnt of them."""

import copy

import pytest
import torch

from tests.planners.survey import learner, train


def counted(method):
    """At which updates rounds come."""
    rounds = []
    method.round = lambda generator: rounds.append(method.updates)
    return rounds


def test_rounds_come_when_they_are_due():
    method = learner("adaptdiffuser", first_round=2, round_every=3, rounds=2)
    rounds = counted(method)
    train(method, 0, 10)
    assert rounds == [2, 5]


def test_the_dynamics_surprise_against_a_loop():
    method = learner("adaptdiffuser", agents=2)
    plans, _ = method.plans(method.source.gather(torch.arange(6)), torch.Generator())
    found = method.surprise(plans, method.networks["dynamics"])
    assert found.shape == (6, 7)
    for b in range(6):
        for k in range(7):
            rows = [plans[b, t] for t in (k, k + 1)]
            observed = [torch.cat([row[agent, 4:] for agent in range(2)]) for row in rows]
            acted = torch.cat([rows[0][agent, :2] for agent in range(2)])
            told = observed[0] + method.networks["dynamics"](torch.cat([acted, observed[0]]))
            assert torch.allclose(found[b, k], (observed[1] - told).square().mean().sqrt(), atol=1e-5)


@pytest.mark.parametrize(("reach", "gain"), [(0.05, 0.0), (0.02, 0.3), (0.1, 0.0), (0.0, 0.0)])
def test_the_filter_keeps_exactly_what_is_reachable_and_worth_more(reach, gain):
    method = learner("adaptdiffuser", reach=reach, gain=gain)
    batch = method.source.gather(torch.arange(0, 108, 2))
    real, _ = method.plans(batch, torch.Generator())
    generator = torch.Generator().manual_seed(0)
    # some plans leave the data by little and some by much; and a critic that likes what is far to the right
    plans = real + torch.tensor([0.0, 0.02, 1.0]).repeat(18)[:, None, None, None] * torch.randn(
        real.shape, generator=generator
    )
    estimates = method.values.estimates

    def right(x, level, elapsed):
        found = estimates(x, level, elapsed)["return"]
        return {"return": found._replace(mean=x[:, :, 0, -6].mean(1) + elapsed)}

    method.values.estimates = right
    dynamics = method.ema.model["dynamics"]
    largest, steps = [], []
    for b in range(54):
        valid = batch["transition_valid"][b, :-1]
        surprise, seen = method.surprise(real[b : b + 1], dynamics)[0], real[b, :, 0, 2:]
        largest.append(max([float(surprise[k]) for k in range(7) if valid[k]], default=0.0))
        steps += [float(((seen[k + 1] - seen[k]) ** 2).mean()) for k in range(7) if valid[k]]
    bar = torch.tensor(largest).quantile(0.95) + reach * (sum(steps) / len(steps)) ** 0.5
    unit = float(method.values.unit("return"))
    expected = []
    for b in range(54):
        reachable = float(method.surprise(plans[b : b + 1], dynamics).max()) <= bar
        better = float(plans[b, :, 0, -6].mean()) > float(real[b, :, 0, -6].mean()) + gain * unit
        expected.append(bool(reachable and better))
    assert method.kept(plans, batch).tolist() == expected
    if gain == 0 and reach > 0.01:
        assert any(expected) and not all(expected)


def test_a_round_draws_from_states_of_the_data_and_keeps_the_latest():
    method = learner("adaptdiffuser", agents=2, generate=5, capacity=8)
    method.kept = lambda plans, batch: torch.tensor([True, True, False, True, True])
    for step in range(3):
        method.round(torch.Generator().manual_seed(step))
        assert len(method.synthetic) == min(8, 4 * (step + 1))
        generator = torch.Generator().manual_seed(step)
        batch = method.source.gather(torch.randint(method.source.transitions, (5,), generator=generator))
        present = method.preprocessing.observations(method.synthetic[-4:, 0])
        assert torch.allclose(present, batch["observations"][[0, 1, 3, 4], 0], atol=1e-5)
    assert method.synthetic.abs().max() <= 1


def test_kept_plans_take_the_place_of_their_share_of_a_batch():
    method = learner("adaptdiffuser", synthetic_share=0.5)
    batch = method.source.gather(torch.arange(8))
    before = method.task(batch, torch.Generator().manual_seed(0))
    method.synthetic = torch.rand(3, 8, 1, method.plan_features)
    after = method.task(batch, torch.Generator().manual_seed(0))
    for row in range(4):
        assert any(torch.equal(after["x0"][row], plan) for plan in method.synthetic)
        assert (after["weight"][row, 0, :, :2] == method.config.action_weight).all()
        assert (after["weight"][row, 1:, :, 3:] == 1).all() and (after["weight"][row, 0, :, 2:] == 0).all()
    for name in ("x0", "known_mask", "weight"):
        assert torch.equal(after[name][4:], before[name][4:])


def test_rounds_before_and_after_a_break_are_those_of_an_unbroken_training():
    def keep_some(method):
        method.kept = lambda plans, batch: torch.arange(len(plans)) % 3 == 0
        return method

    whole, first, second = (keep_some(learner("adaptdiffuser", seed=seed)) for seed in (0, 0, 5))
    train(whole, 0, 6)
    train(first, 0, 3)
    assert len(first.synthetic) == 4
    second.load_weights(first.weights())
    second.load_training_state(copy.deepcopy(first.training_state()))
    metrics = train(second, 3, 6)
    assert float(metrics["synthetic_plans"]) == 8 and torch.equal(whole.synthetic, second.synthetic)
    assert all(torch.equal(value, second.weights()[key]) for key, value in whole.weights().items())
