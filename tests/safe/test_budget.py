"""Budgets of cost against the sum they stand for."""

import math

import pytest
import torch

from madiff.interfaces import CostAware, RewardAware, UserError
from safe.budget import Budget, Budgeted


@pytest.mark.parametrize("discount", [1.0, 0.9])
def test_what_is_left_is_the_limit_less_what_was_spent_brought_to_the_present(discount):
    costs = torch.rand(15, 3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    budget = Budget(4.0, discount)
    budget.reset(3)
    for t in range(15):
        spent = sum(discount**i * costs[i].mean(1) for i in range(t))
        torch.testing.assert_close(budget.remaining, (4.0 - spent + torch.zeros(3).double()) / discount**t)
        budget.pay(costs[t].float())
        costs[t] = costs[t].float().double()
    assert (budget.remaining < 0).any()  # it may be overdrawn


def test_the_caller_may_change_it_at_any_step():
    budget = Budget(10.0)
    budget.reset(3)
    budget.pay(torch.ones(3, 1))
    budget.set(2.0, torch.tensor([1]))
    assert budget.remaining.tolist() == [9.0, 2.0, 9.0]
    budget.set([5.0, -1.0], torch.tensor([True, False, True]))
    assert budget.remaining.tolist() == [5.0, 2.0, -1.0]
    budget.set(math.inf)
    budget.pay(torch.ones(3, 1))
    assert budget.remaining.tolist() == [math.inf] * 3
    with pytest.raises(UserError):
        budget.set(math.nan)
    budget.reset(2)
    assert budget.remaining.tolist() == [10.0, 10.0]


@pytest.mark.parametrize(("limit", "discount"), [(-1.0, 1.0), (math.nan, 1.0), (1.0, 0.0), (1.0, 1.5)])
def test_impossible_budgets_are_a_users_error(limit, discount):
    with pytest.raises(UserError):
        Budget(limit, discount)


class Recorder:
    """A policy that notes what it is told."""

    parameters, network_calls_per_decision = 3, 2.0

    def reset(self, seed, n):
        self.context, self.told = {}, []

    def act(self, observations, masks, active=None):
        self.told.append(self.context["budget"].clone())
        return observations

    def receive(self, rewards):
        self.rewards = rewards

    def pay(self, costs):
        self.costs = costs


def test_a_policy_is_told_at_every_step_what_is_left():
    inner = Recorder()
    policy = Budgeted(inner, Budget(3.0))
    assert isinstance(policy, CostAware) and isinstance(policy, RewardAware)
    policy.reset(seed=0, n=2)
    policy.act(torch.zeros(2, 1, 1), None)
    policy.receive(torch.ones(2, 1))
    policy.pay(torch.tensor([[1.0], [4.0]]))
    policy.act(torch.zeros(2, 1, 1), None)
    policy.budget.set(7.0)
    policy.act(torch.zeros(2, 1, 1), None)
    assert [told.tolist() for told in inner.told] == [[3.0, 3.0], [2.0, -1.0], [7.0, 7.0]]
    assert inner.rewards.tolist() == [[1.0], [1.0]] and inner.costs.tolist() == [[1.0], [4.0]]
