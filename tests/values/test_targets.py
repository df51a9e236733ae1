"""Targets against loops over time, slow copies against their closed form."""

import pytest
import torch
from torch import nn

from madiff.values import Target, lambda_returns, td_target


def test_polyak_is_the_geometric_average():
    source = nn.Linear(1, 1, bias=False)
    source.weight.data.fill_(0.0)
    target = Target(source, rate=0.1)
    source.weight.data.fill_(1.0)
    for step in range(1, 6):
        target.update(step)
        assert float(target.model.weight) == pytest.approx(1 - 0.9**step, abs=1e-6)
    assert not target.model.weight.requires_grad


def test_periodic_copy_comes_at_every_third_update_only():
    source = nn.Linear(1, 1, bias=False)
    target = Target(source, rate=1.0, every=3)
    start = source.weight.item()
    source.weight.data.fill_(start + 1)
    seen = []
    for step in range(1, 5):
        target.update(step)
        seen.append(float(target.model.weight))
    assert seen == pytest.approx([start, start, start + 1, start + 1])


@pytest.mark.parametrize("rate", [0.0, 1.5])
def test_impossible_rates_are_refused(rate):
    with pytest.raises(ValueError, match="target rate"):
        Target(nn.Linear(1, 1), rate)


def test_td_target_stops_at_termination_only():
    rewards, following = torch.randn(5, 2), torch.randn(5, 2)
    terminated = torch.tensor([True, False, False, True, False])
    target = td_target(rewards, terminated, following, 0.9)
    for b in range(5):
        for agent in range(2):
            future = 0.0 if terminated[b] else 0.9 * following[b, agent]
            assert float(target[b, agent]) == pytest.approx(float(rewards[b, agent] + future), abs=1e-6)
    unbounded = td_target(rewards, terminated, torch.full_like(following, float("-inf")), 0.9)
    assert unbounded[terminated].isfinite().all()


def forward_view(rewards, terminated, values, valid, discount, decay):
    """The lambda-return of the first step as its weighted sum of n-step returns (Sutton and Barto, eq. 12.3)."""
    n_step, discounted, end = [], 0.0, False
    for n in range(len(rewards)):
        if not valid[n]:
            break
        discounted += discount**n * rewards[n]
        end = bool(terminated[n])
        n_step.append(discounted + (0.0 if end else discount ** (n + 1) * values[n]))
        if end:
            break
    weights = [(1 - decay) * decay**n for n in range(len(n_step) - 1)] + [decay ** (len(n_step) - 1)]
    return sum(weight * value for weight, value in zip(weights, n_step, strict=True))


@pytest.mark.parametrize("decay", [0.0, 0.8, 1.0])
@pytest.mark.parametrize(("length", "ends"), [(7, False), (7, True), (4, False), (4, True), (1, True)])
def test_lambda_returns_equal_the_forward_view(decay, length, ends):
    rewards, values = torch.randn(3, 7, 2, dtype=torch.float64), torch.randn(3, 7, 2, dtype=torch.float64)
    valid = (torch.arange(7) < length).expand(3, 7)
    terminated = torch.zeros(3, 7, dtype=torch.bool)
    terminated[:, length - 1 :] = ends
    returns = lambda_returns(rewards, terminated, values, valid, 0.95, decay)
    for b in range(3):
        for agent in range(2):
            for t in range(length):
                rest = rewards[b, t:, agent].tolist(), terminated[b, t:], values[b, t:, agent].tolist(), valid[b, t:]
                assert float(returns[b, t, agent]) == pytest.approx(forward_view(*rest, 0.95, decay), abs=1e-10)


def test_lambda_returns_of_a_team_value():
    rewards, values = torch.randn(4, 5), torch.randn(4, 5)
    nothing = torch.zeros(4, 5, dtype=torch.bool)
    team = lambda_returns(rewards, nothing, values, ~nothing, 0.9, 0.7)
    per_agent = lambda_returns(rewards[..., None], nothing, values[..., None], ~nothing, 0.9, 0.7)
    assert torch.equal(team, per_agent[..., 0])
