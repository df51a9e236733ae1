"""TREBI: its gate, weights and choice by hand, and the identities that hold bit for bit."""

import math

import pytest
import torch

from madiff.data.store import EpisodeStore
from madiff.diffusion.sampler import Hook
from madiff.experiment.rollout import rollout
from madiff.interfaces import EnvironmentSpec, UserError
from madiff.planners import diffuser, madiff_c, madiff_d
from madiff.values.plan_values import Caution, Estimate, PlanValueConfig, ReturnGuidance
from safe.budget import Budget, Budgeted
from safe.trebi import (
    BudgetGuidance,
    FeasibleFirst,
    cost_weight,
    feasible_first,
    make_chooser,
    make_hook,
)

CPU = torch.device("cpu")
SPEC = EnvironmentSpec("toy", "toy", 2, 3, 2, False, 0, 20)
SMALL = {"batch_size": 8, "width": 16, "ema_start": 0, "ema_every": 1}
CRITICS = PlanValueConfig(width=8, multipliers=(1, 2), held_out=0.5)


def store(costs=True, episodes=24):
    generator = torch.Generator().manual_seed(0)
    rows = []
    for e in range(episodes):
        length = 4 + e % 6
        paid = (torch.rand(length, 2, generator=generator) < 0.5).float()
        rows.append({
            "observations": torch.rand(length + 1, 2, 3, generator=generator),
            "actions": 2 * torch.rand(length, 2, 2, generator=generator) - 1,
            "rewards": torch.rand(length, 2, generator=generator),
            "costs": paid if costs else 0 * paid,
            "terminated": True,
        })  # fmt: skip
    return EpisodeStore.from_arrays(rows)


def learner(room=diffuser, costs=True, **options):
    sizes = {"multipliers": (1, 2), "horizon": 4} if room is diffuser else {"layers": 1, "heads": 2}
    config = room.Config(**{**SMALL, **sizes, "values": CRITICS, **options})
    method = room.make(config, SPEC, CPU, 0)
    source, generator = method.batches(store(costs)), torch.Generator().manual_seed(0)
    with torch.no_grad():  # fresh networks may start as zero; random weights make every dependence visible
        for parameter in method.networks.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * (0.2 if parameter.dim() > 1 else 0.02))
    for _ in range(2):
        method.update(source.sample(generator), generator)
    return method


def actions(policy, budget=None, n=5, steps=3):
    """What a policy does in a few steps, and what it planned."""
    seen = []
    policy.watch = lambda shown: seen.append(shown.plans)
    policy = policy if budget is None else Budgeted(policy, budget)
    policy.reset(seed=1, n=n)
    observations = torch.rand(steps, n, 2, 3, generator=torch.Generator().manual_seed(2))
    acted = []
    for step in range(steps):
        acted.append(policy.act(observations[step], None))
        if budget is not None:
            policy.pay(torch.ones(n, 2))
    return torch.stack(acted), torch.cat(seen)


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("guide_type", [0, 1])
@pytest.mark.parametrize("head", ["quantile", "ensemble", "mean"])
def test_an_infinite_budget_is_the_guided_planner_bit_for_bit(head, guide_type):
    critics = PlanValueConfig(width=8, multipliers=(1, 2), held_out=0.5, head=head)
    options = {"guide_scale": 2.0, "guide_repeats": 2, "candidates": 4, "solver": "ddpm", "values": critics}
    method = learner(**options)
    hook = make_hook(method.values, scale=2.0, repeats=2, stop=0.1, guide_type=guide_type, coverage=0.5)
    chooser = make_chooser(method.values, candidates=4, coverage=0.5)
    guided = actions(method.policy())
    assert same(guided, actions(method.policy(guide=hook, chooser=chooser), Budget(math.inf)))
    assert not same(guided, actions(method.policy(guide=hook, chooser=chooser), Budget(0.0)))
    idle = make_hook(method.values, scale=0.0)
    assert not same(guided, actions(method.policy(guide=idle, chooser=chooser), Budget(math.inf)))


def test_no_guidance_is_the_plain_planner_bit_for_bit():
    plain, method = learner(values=PlanValueConfig(learn="none")), learner(guide_scale=0.0)
    method.ema.model.load_state_dict(plain.ema.model.state_dict())
    expected = actions(plain.policy())
    assert same(expected, actions(method.policy()))
    assert same(expected, actions(method.policy([Hook()])))
    for options in ({"scale": 0.0}, {"scale": 5.0, "stop": 2.0}):
        assert same(expected, actions(method.policy(guide=make_hook(method.values, **options)), Budget(0.0)))


def test_a_guide_without_a_scale_asks_no_critic(monkeypatch):
    method, asked = learner(guide_scale=0.0), []
    estimates = method.values.estimates
    monkeypatch.setattr(method.values, "estimates", lambda *given: asked.append(given) or estimates(*given))
    idle, awake = (method.policy(guide=make_hook(method.values, scale=scale, repeats=2)) for scale in (0.0, 1.0))
    actions(idle, Budget(0.0))
    assert not asked
    assert idle.network_calls_per_decision == method.policy().network_calls_per_decision
    actions(awake, Budget(0.0))
    assert asked and awake.network_calls_per_decision == 3 * idle.network_calls_per_decision


@pytest.mark.parametrize("room", [madiff_c, madiff_d])
def test_madiff_without_hooks_is_as_before_and_with_them_within_budget(room):
    plain, method = learner(room, costs=False), learner(room)
    assert plain.values is None and method.values is not None
    method.ema.model.load_state_dict(plain.ema.model.state_dict())
    expected = actions(plain.policy())
    assert same(expected, actions(method.policy([Hook()])))
    hook, chooser = make_hook(method.values, scale=3.0), make_chooser(method.values, candidates=3)
    assert not same(expected, actions(method.policy(guide=hook, chooser=chooser), Budget(1.0)))
    only_returns = ReturnGuidance(method.values, 3.0)
    infinite = actions(method.policy(guide=hook), Budget(math.inf))
    assert same(actions(method.policy(guide=only_returns)), infinite)


def test_weights_by_hand():
    cost, budget = torch.tensor([1.0, 2.0, 3.0, 9.0, 1.0, 5.0]), torch.tensor([2.0, 2.0, 2.0, 2.0, math.inf, -1.0])
    graded = cost_weight(cost, budget, 5.0, guide_type=0)
    expected = [0, 0, 5 * math.exp(0.5), 5 * math.e, 0, 5 * math.e]
    assert graded.tolist() == pytest.approx(expected, rel=1e-6)
    assert cost_weight(cost, budget, 5.0, guide_type=1).tolist() == [0, 0, 5, 5, 0, 5]


class Readings:
    """Critics whose estimates are read off the plan: return from the first entry, cost from the second."""

    quantities = ("return", "cost")
    clean = None

    def elapsed(self, time):
        return time / 20

    def unit(self, quantity):
        return torch.tensor({"return": 2.0, "cost": 4.0}[quantity])

    def estimates(self, x, level, elapsed):
        squares = x[:, 0, 0] ** 2
        return {name: Estimate(squares[:, i], squares[:, i, None, None]) for i, name in enumerate(self.quantities)}

    def bound(self, estimate, caution):
        return estimate.mean + caution.margin


def test_the_cost_is_climbed_down_only_by_candidates_over_budget():
    """By hand: d(r^2 / 2)/dr = r, and down omega d(c^2 / 4)/dc = omega c / 2 where c^2 exceeds the budget."""
    x = torch.tensor([[1.0, 1.0], [1.0, 2.0], [2.0, 3.0], [0.5, 3.0]]).view(4, 1, 1, 2)
    level = type("Level", (), {"t": 0.5, "sigma": 1.0, "alpha": 0.5})()
    ctx = {"level": level, "next_level": level, "known": None, "candidates": 2, "time": torch.zeros(2),
           "budget": torch.tensor([2.0, 20.0])}  # fmt: skip
    hook = BudgetGuidance(Readings(), scale=0.1, repeats=1, variance="marginal", weight=3.0, guide_type=1)
    moved = (hook.before(x, torch.full((4,), 0.5), ctx) - x)[:, 0, 0]
    expected = [[0.1, 0.0], [0.1, -0.1 * 3 * 2.0 / 2], [0.2, 0.0], [0.05, 0.0]]
    assert torch.allclose(moved, torch.tensor(expected))
    careful = BudgetGuidance(Readings(), scale=0.1, repeats=1, variance="marginal", weight=3.0, guide_type=1,
                             caution=Caution(0.9, 19.0))  # fmt: skip
    moved = (careful.before(x, torch.full((4,), 0.5), ctx) - x)[:, 0, 0]
    assert (moved[:, 1] < 0).all()  # 19 more than the expected cost is too much for either budget


def test_a_candidate_over_budget_is_never_chosen_where_one_fits():
    generator = torch.Generator().manual_seed(0)
    returns, costs = torch.randn(4000, 6, generator=generator), torch.rand(4000, 6, generator=generator)
    costs[::7, 2] = math.nan
    budget = torch.rand(4000, generator=generator) * 1.2 - 0.2
    best = feasible_first(returns, costs, budget)
    fits = 0
    for r, c, b, chosen in zip(returns.tolist(), costs.tolist(), budget.tolist(), best.tolist(), strict=True):
        feasible = [i for i in range(6) if c[i] <= b]
        if feasible:
            fits += 1
            assert chosen == max(feasible, key=lambda i: r[i])
        else:
            assert chosen == min((i for i in range(6) if not math.isnan(c[i])), key=lambda i: c[i])
    assert 1000 < fits < 4000


@pytest.mark.parametrize("discount", [1.0, 0.9])
def test_an_overdrawn_budget_takes_the_cheapest_plan(discount):
    budget = Budget(1.0, discount)
    budget.reset(2)
    x = torch.tensor([[3.0, 0.9], [2.0, 0.4], [1.0, 0.6]]).view(1, 3, 1, 1, 2).expand(2, -1, -1, -1, -1)
    chooser = FeasibleFirst(Readings(), candidates=3)

    def choice():
        return chooser(x, {"time": torch.zeros(2), "budget": budget.remaining.float()}, {}).tolist()

    assert choice() == [0, 0]  # the largest return costs 0.81 < 1
    budget.pay(torch.tensor([[0.5], [0.0]]))
    assert choice() == [1, 0]  # 0.16 is all that 0.5 allows
    budget.pay(torch.tensor([[2.0], [2.0]]))
    assert (budget.remaining < 0).all() and choice() == [1, 1]


def test_budgets_travel_with_their_environments():
    """Plans of a subset of environments meet the budgets of these, candidate by candidate."""
    method, told = learner(guide_scale=0.0), []

    class Spy(Hook):
        def before(self, x, t, ctx):
            if ctx["step"] == 0:
                told.append((ctx["budget"].tolist(), ctx["time"].tolist(), ctx["candidates"], len(x)))
            return x

    policy = Budgeted(method.policy([Spy()], chooser=make_chooser(method.values, candidates=3)), Budget(9.0))
    policy.reset(seed=0, n=4)
    policy.budget.set(torch.arange(4.0))
    policy.act(torch.rand(4, 2, 3), None, torch.tensor([True, False, True, True]))
    policy.pay(torch.ones(4, 2))
    policy.act(torch.rand(4, 2, 3), None)
    assert told == [([0.0, 2.0, 3.0], [0.0] * 3, 3, 9), ([-1.0, 0.0, 1.0, 2.0], [1.0] * 4, 3, 12)]


def test_a_rollout_tells_a_policy_its_costs():
    from envs import make_batched

    env, paid = make_batched("xor", copies=3), []
    policy = type("Payer", (), {
        "reset": lambda self, seed, n: None,
        "act": lambda self, observations, masks, active=None: torch.zeros(observations.shape[:2], dtype=torch.int64),
        "pay": lambda self, costs: paid.append(costs),
    })()  # fmt: skip
    run = rollout(env, policy, seed=0)
    assert len(paid) == run.lengths.max() and paid[0].shape == (3, env.spec.agents)


def test_without_a_critic_of_costs_there_is_no_budget():
    for method in (learner(costs=False), learner(values=PlanValueConfig(learn="none"))):
        with pytest.raises(UserError, match="no critic of costs"):
            make_hook(method.values)
    with pytest.raises(UserError, match="guide_type"):
        make_hook(learner().values, guide_type=2)
    with pytest.raises(UserError, match="held-out"):
        make_chooser(learner().values, candidates=2, coverage=0.99)
