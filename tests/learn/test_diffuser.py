"""Diffuser on a point that may cross a costly disc or walk around it: plans, goals, and budgets that are kept.

From the left to the right in 20 steps; a step within the disc costs 1, being far from the goal costs return. A third
of the demonstrators walks straight through (about 4.5 steps inside), the others around, above or below.
"""

import math

import pytest
import torch

from madiff.data.store import EpisodeStore
from madiff.interfaces import EnvironmentSpec
from madiff.planners import diffuser
from safe.budget import Budget, Budgeted
from safe.trebi import make_chooser, make_hook
from tests.learn.training import CPU, taught

pytestmark = [pytest.mark.learn, pytest.mark.usefixtures("one_thread")]
STEPS, SPEED, RADIUS = 20, 0.15, 0.35
GOAL, ABOVE = torch.tensor([0.8, 0.0]), torch.tensor([0.0, 0.65])
SPEC = EnvironmentSpec("disc", "disc", 1, 2, 2, False, 0, STEPS, observation_names=("x", "y"))
SMALL = {
    "horizon": 12, "network": "transformer", "width": 32, "layers": 2, "heads": 4, "diffusion_steps": 50,
    "sampler_steps": 5, "past_end": "stay", "ema_start": 100, "ema_every": 1, "ema_decay": 0.99, "learning_rate": 3e-3,
    "execute": 2,
    "values": {"width": 16, "multipliers": (1, 2), "learning_rate": 3e-3},
}  # fmt: skip


def start(n, generator):
    return torch.tensor([-0.8, 0.0]) + 0.1 * torch.randn(n, 2, generator=generator)


def step(position, action):
    """(n, 2) -> the next position, reward and cost (n,)."""
    position = (position + SPEED * action.clamp(-1, 1)).clamp(-1, 1)
    return position, -0.1 * (position - GOAL).norm(dim=-1), (position.norm(dim=-1) < RADIUS).float()


def demonstrations(episodes=1500):
    generator = torch.Generator().manual_seed(0)
    position, route = start(episodes, generator), torch.randint(3, (episodes,), generator=generator) - 1
    seen, done, paid, cost = [position], [], [], []
    passed = route == 0
    for _ in range(STEPS):
        passed = passed | ((position - route[:, None] * ABOVE).norm(dim=-1) < 0.2)
        aim = torch.where(passed[:, None], GOAL.expand(episodes, -1), route[:, None] * ABOVE) - position
        action = aim / torch.maximum(aim.norm(dim=-1, keepdim=True), torch.tensor(SPEED))
        action = (action + 0.15 * torch.randn(episodes, 2, generator=generator)).clamp(-1, 1)
        position, reward, unsafe = step(position, action)
        for row, value in zip((seen, done, paid, cost), (position, action, reward, unsafe), strict=True):
            row.append(value)
    rows = zip(*(torch.stack(row, 1) for row in (seen, done, paid, cost)), strict=True)
    return EpisodeStore.from_arrays(
        [{"observations": o[:, None], "actions": a[:, None], "rewards": r[:, None], "costs": c[:, None],
          "truncated": True} for o, a, r, c in rows]
    )  # fmt: skip


def learnt(data, updates, **options):
    values = diffuser.PlanValueConfig(**SMALL["values"])
    method = diffuser.make(diffuser.Config(**{**SMALL, "values": values, **options}), SPEC, CPU, 0)
    return taught(method, method.batches(data), updates)


def play(policy, n=40):
    """Mean return, mean cost, and how many end at the goal."""
    policy.reset(seed=1, n=n)
    position = start(n, torch.Generator().manual_seed(1))
    returns, costs = torch.zeros(n), torch.zeros(n)
    for _ in range(STEPS):
        position, reward, cost = step(position, policy.act(position[:, None], None)[:, 0])
        policy.receive(reward[:, None])
        policy.pay(cost[:, None])
        returns, costs = returns + reward, costs + cost
    arrived = ((position - GOAL).norm(dim=-1) < 0.2).float().mean()
    return float(returns.mean()), float(costs.mean()), float(arrived)


@pytest.fixture(scope="module")
def data():
    data = demonstrations()
    assert 1.2 < float(data.team_costs().mean()) < 2.0
    return data


@pytest.fixture(scope="module")
def planner(data):
    return learnt(data, 900)


@pytest.mark.parametrize("options", [{}, {"controller": "inverse"}, {"execute": 6}, {"temperature": 0.5}])
def test_plans_reach_the_goal_as_their_data_does_by_each_way_of_acting(planner, data, options, monkeypatch):
    for key, value in options.items():
        monkeypatch.setattr(planner.config, key, value)
    achieved, _, arrived = play(planner.policy())
    assert arrived >= 0.9 and achieved >= float(data.team_returns().mean()) - 0.3


def within(planner, limit, coverage):
    hook = make_hook(planner.values, scale=0.02, coverage=coverage)
    chooser = make_chooser(planner.values, candidates=8, coverage=coverage)
    return play(Budgeted(planner.policy(guide=hook, chooser=chooser), Budget(limit)))


def test_budgets_are_kept_and_used(planner):
    """With no limit the best return goes straight through; with little to spend, around, and by calibration surely."""
    free, mean, sure = within(planner, math.inf, 0.9), within(planner, 0.9, None), within(planner, 0.9, 0.9)
    assert free[1] >= 3.5 and sure[1] <= 0.9
    assert free[1] > mean[1] > sure[1]
    assert free[0] > sure[0] and sure[2] >= 0.9


def test_one_model_told_the_cost_serves_all_budgets(data):
    """The data's mean cost is 1.7, and its episodes cost 0 or about 5: what is asked for is had, on average."""
    nothing = diffuser.PlanValueConfig(learn="none")
    planner = learnt(data, 900, conditions=("cost",), guidance_weight=2.0, values=nothing)
    costs = []
    for limit in (0.0, 5.0):
        planner.config.cost_limit = limit
        costs.append(play(planner.policy())[1])
    assert costs[0] <= 0.3 and costs[1] >= 4.0


def test_the_goal_decides_the_way(data):
    """The goal is told by its place in the plan alone: one on the upper side is reached from above, and conversely."""
    planner = learnt(data, 600, goal=("x", "y"), values=diffuser.PlanValueConfig(learn="none"))
    planner.config.execute = 11
    for side in (1, -1):
        goal = torch.tensor([0.5, 0.3 * side])
        planner.preprocessing.last.copy_(goal[None])
        policy, position = planner.policy(), start(50, torch.Generator().manual_seed(3))
        policy.reset(seed=0, n=50)
        for k in range(11):
            position = step(position, policy.act(position[:, None], None)[:, 0])[0]
            if k == 5:
                assert float((position[:, 1].sign() == side).float().mean()) >= 0.95
        assert float((position - goal).norm(dim=-1).mean()) < 0.3
