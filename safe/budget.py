"""What is left of a budget of cost, step by step (TREBI, arXiv 2306.00603), and a policy that plans within it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from madiff.interfaces import CostAware, RewardAware, UserError


class Budget:
    """Of every environment: b_{t+1} = (b_t - c_t) / discount, so b_t = (b_0 - sum_{i<t} discount^i c_i) / discount^t.

    limit: b_0, the team's cost (mean over agents) from now to the end of the episode, discounted if discount < 1; may
    be infinite. What is left may become negative: nothing is feasible then, and the cheapest plan is chosen. The
    caller may change it at any step by `set`. Raises UserError for a limit below zero or a discount outside (0, 1].
    """

    def __init__(self, limit: float, discount: float = 1.0) -> None:
        check_limit(limit)
        if not 0 < discount <= 1:
            raise UserError(f"{discount} discounts nothing", "discount", "above 0, at most 1")
        self.limit, self.discount = float(limit), discount
        self.remaining = torch.empty(0, dtype=torch.float64)

    def reset(self, n: int, device: torch.device | str = "cpu") -> None:
        """Begin n episodes, each with the whole limit."""
        self.remaining = torch.full((n,), self.limit, dtype=torch.float64, device=device)

    def pay(self, costs: Tensor) -> None:
        """costs (n, agent) of one step of every environment."""
        spent = costs.to(self.remaining).mean(1)
        self.remaining = (self.remaining - spent) / self.discount

    def set(self, remaining: float | Sequence[float] | Tensor, environments: Tensor | slice = slice(None)) -> None:
        """Give some environments (indices or a mask; default: all) this much for the rest of their episodes."""
        wanted = torch.as_tensor(remaining, dtype=torch.float64, device=self.remaining.device)
        if bool(wanted.isnan().any()):
            raise UserError("is not a number", "budget")
        changed = self.remaining.clone()
        changed[environments] = wanted
        self.remaining = changed


class Budgeted:
    """A planner's policy whose hooks and chooser are told at every step what is left: `context["budget"]` (n,)."""

    def __init__(self, policy: Any, budget: Budget) -> None:
        self.policy, self.budget = policy, budget
        self.parameters = policy.parameters
        self.network_calls_per_decision = policy.network_calls_per_decision

    def reset(self, seed: int, n: int) -> None:
        self.policy.reset(seed, n)
        self.budget.reset(n)

    def act(self, observations: Tensor, masks: Tensor | None, active: Tensor | None = None) -> Tensor:
        self.policy.context["budget"] = self.budget.remaining.to(observations)
        return self.policy.act(observations, masks, active)

    def receive(self, rewards: Tensor) -> None:
        if isinstance(self.policy, RewardAware):
            self.policy.receive(rewards)

    def pay(self, costs: Tensor) -> None:
        self.budget.pay(costs)
        if isinstance(self.policy, CostAware):
            self.policy.pay(costs)


def check_limit(limit: float) -> None:
    """Refuse a budget that no episode could keep to."""
    if math.isnan(limit) or limit < 0:
        raise UserError(f"a budget of {limit:g} is below zero", "cost_limit", "numbers from 0")
