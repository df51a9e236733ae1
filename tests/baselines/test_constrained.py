"""What the safe baselines share, against closed forms and loops."""

import math
from dataclasses import replace

import pytest
import torch

from baselines import action_vae, bc_safe, bcq_lag, cdt, constrained, coptidice, cpq, fisor
from madiff import build
from madiff.data.store import EpisodeStore
from madiff.interfaces import UserError
from tests.baselines import constrained_toys
from tests.baselines.toys import ACTIONS, AGENTS, CPU, OBSERVATION, batch_of, spec

CONTINUOUS = [bcq_lag, cpq, fisor]
METHODS = [bc_safe, cdt, coptidice, *CONTINUOUS]
EITHER = [(m, False) for m in METHODS] + [(m, True) for m in (bc_safe, cdt, coptidice)]


def test_costs_of_a_team_by_loops():
    store = constrained_toys.store()
    to_go, first = constrained.costs_to_go(store, 0.9), 0
    for episode, length in enumerate(store.lengths.tolist()):
        costs = [float(sum(store.costs[first + t])) / AGENTS for t in range(length)]
        assert math.isclose(float(constrained.episode_costs(store)[episode]), sum(costs), rel_tol=1e-6)
        for t in range(length):
            expected = sum(0.9**k * c for k, c in enumerate(costs[t:]))
            assert math.isclose(float(to_go[first + t]), expected, abs_tol=1e-5)
        first += length


@pytest.mark.parametrize("truncated", [True, False])
def test_scaled_costs_sum_to_scaled_budgets(truncated):
    """Summing scaled costs for ever, or to a termination, gives the scaled sum of the costs."""
    scale, store = constrained.CostScale(), constrained_toys.store(truncated=truncated)
    scale.fit(store, 0.9)
    costs = torch.tensor([2.0, 0.0, 3.0])
    real, scaled = (sum(0.9**t * float(c[t]) for t in range(3)) for c in (costs, scale(costs)))
    ever = float(scale(torch.zeros(()))) * 0.9**3 / (1 - 0.9)  # costs nothing from then on
    assert bool(scale.shift != 0) == truncated
    assert math.isclose(scaled + ever, float(scale.scaled(real, 0.9)), abs_tol=1e-4)
    assert math.isclose(float(scale.real(scale.scaled(real, 0.9), 0.9)), real, rel_tol=1e-4)


def test_multiplier_in_closed_form():
    """A constant excess e: m_n = kp e + n ki e, and kd e once."""
    controller = constrained.PIDMultiplier(0.1, 0.003, 0.001)
    for n in range(1, 20):
        jump = 0.001 * 2 if n == 1 else 0.0
        assert math.isclose(float(controller(torch.tensor(2.0))), 0.1 * 2 + n * 0.003 * 2 + jump, rel_tol=1e-5)


def test_multiplier_falls_to_zero_and_not_below():
    controller = constrained.PIDMultiplier(0.1, 0.5, 0.0)
    controller(torch.tensor(1.0))
    assert math.isclose(float(controller(torch.tensor(-0.4))), 0.5 * 0.6, rel_tol=1e-5)
    assert float(controller(torch.tensor(-5.0))) == 0.0
    assert math.isclose(float(controller(torch.tensor(1.0))), 0.1 + 0.5, rel_tol=1e-5)  # no debt was kept


def test_divergence_of_the_latent_against_torch():
    mean, log_std = torch.randn(7, 4), torch.randn(7, 4)
    normal = torch.distributions.Normal(mean, log_std.exp())
    expected = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0)).mean(-1)
    assert torch.allclose(action_vae.gaussian_divergence(mean, log_std), expected, atol=1e-5)


def test_autoencoder_reconstructs_and_keeps_padding():
    torch.manual_seed(0)
    real = torch.tensor([[True, True, False]])
    made, generator = action_vae.ActionVAE(2, real, 32), torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(made.parameters(), lr=3e-3)
    observations = torch.rand(256, 1, 2, generator=generator) * 2 - 1
    actions = torch.cat([0.8 * observations, torch.zeros(256, 1, 1)], -1)
    for _ in range(200):
        optimizer.zero_grad()
        made.loss(observations, actions, generator, 0.1).backward()
        optimizer.step()
    drawn = made.sample(observations, 4, generator, clip=0.5)
    assert drawn.shape == (4, 256, 1, 3) and bool((drawn[..., 2] == 0).all())
    assert float((drawn - actions).detach().square().mean()) < 0.02


def test_only_episodes_within_the_budget_are_left():
    store = constrained_toys.store()
    costs = constrained.episode_costs(store)
    limit = float(costs.median())
    kept = constrained.within_budget(store, limit)
    assert kept.episodes == int((costs <= limit).sum()) < store.episodes
    assert float(constrained.episode_costs(kept).max()) <= limit
    with pytest.raises(UserError, match=r"algo.cost_limit.*no episode of the data costs 0 or less; allowed: at least"):
        constrained.within_budget(replace(store, costs=store.costs + 1), 0.0)


def test_bc_safe_imitates_the_episodes_within_the_budget_alone():
    store = constrained_toys.store()
    limit = float(constrained.episode_costs(store).median())
    made = bc_safe.make(bc_safe.Config(width=8, cost_limit=limit), spec(False, state=False), CPU, 0)
    source = made.batches(store)
    assert source.transitions == constrained.within_budget(store, limit).transitions < store.transitions


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("limit", [-1.0, math.nan])
def test_a_budget_below_zero_is_refused(method, limit):
    with pytest.raises(UserError, match=r"algo\.cost_limit: is .*; allowed: a cost per episode of at least 0"):
        method.make(method.Config(cost_limit=limit), spec(False), CPU, 0)
    with pytest.raises(UserError, match="cost_limit"):
        build.make_learner({"name": method.NAME, "cost_limit": -1.0}, spec(False), CPU, 0)


@pytest.mark.parametrize("method", CONTINUOUS)
def test_discrete_actions_are_refused_where_they_cannot_be(method):
    with pytest.raises(UserError, match="toy has discrete actions"):
        method.make(method.Config(), spec(True), CPU, 0)


@pytest.mark.parametrize("method, discrete", EITHER)
def test_a_team_learns_and_acts(method, discrete):
    """One update changes what is trained; actions are legal; padded dimensions stay 0; weights travel."""
    sizes = () if discrete else (ACTIONS, 3, 1)
    options = {} if method is bc_safe else {"learning_rate": 1e-2}
    made, source = constrained_toys.learner(method, discrete, sizes, **options)
    before = {name: value.clone() for name, value in made.weights().items()}
    generator = torch.Generator().manual_seed(0)
    for seed in range(3):
        metrics = made.update(batch_of(source, seed), generator)
    assert all(bool(torch.isfinite(value).all()) for value in metrics.values())
    changed = [name for name, value in made.weights().items() if not torch.equal(value, before[name])]
    assert any(name.startswith("trained") for name in changed)
    other = method.make(made.config, made.spec, CPU, 1)
    other.load_weights(made.weights())
    observations, available = torch.rand(4, AGENTS, OBSERVATION), None
    if discrete:
        available = torch.zeros(4, AGENTS, ACTIONS, dtype=torch.bool)
        available[..., 2] = True
    acted = []
    for policy in (made.policy(), other.policy()):
        policy.reset(seed=0, n=4)
        acted.append(torch.stack([step(policy, observations, available) for _ in range(3)]))
    assert torch.equal(*acted)
    if discrete:
        assert bool((acted[0] == 2).all())
    elif method is not bc_safe:  # whose network is trained to give 0 there, not made to
        padded = torch.arange(ACTIONS) >= torch.tensor(sizes)[:, None]
        assert bool((acted[0] * padded == 0).all()) and float(acted[0].abs().max()) <= 1
        assert bool((acted[0] * ~padded != 0).any())


@pytest.mark.parametrize("method", METHODS)
def test_neither_free_data_nor_a_budget_of_zero_is_an_obstacle(method):
    data = constrained_toys.store()
    made = method.make(method.Config(width=16, batch_size=16, cost_limit=0.0), spec(False, state=False), CPU, 0)
    source = made.batches(replace(data, costs=torch.zeros_like(data.costs)))
    metrics = made.update(batch_of(source), torch.Generator().manual_seed(0))
    policy = made.policy()
    policy.reset(seed=0, n=4)
    acted = step(policy, torch.rand(4, AGENTS, OBSERVATION), None)
    assert all(bool(torch.isfinite(value).all()) for value in (*metrics.values(), acted))


@pytest.mark.parametrize("method", METHODS)
def test_an_interrupted_training_goes_on_as_if_nothing_had_happened(method):
    whole, source = constrained_toys.learner(method)
    part = method.make(whole.config, whole.spec, CPU, 0)
    part.load_weights(whole.weights())  # what was fitted to the data
    train(whole, source, range(4))
    train(part, source, range(2))
    weights = {name: value.clone() for name, value in part.weights().items()}
    resumed = method.make(whole.config, whole.spec, CPU, 7)
    resumed.load_weights(weights)
    resumed.load_training_state(part.training_state())
    train(resumed, source, range(2, 4))
    found = resumed.weights()
    assert all(torch.equal(value, found[name]) for name, value in whole.weights().items())


def train(made, source, updates):
    for number in updates:
        generator = torch.Generator().manual_seed(number)
        made.update(source.sample(generator), generator)


def step(policy, observations, available):
    actions = policy.act(observations, available)
    for moment in ("receive", "pay"):
        if hasattr(policy, moment):
            getattr(policy, moment)(torch.ones(observations.shape[:2]))
    return actions


def pairs(costs, returns):
    """One-step episodes of a team of two with these costs and returns."""
    return EpisodeStore.from_arrays(
        [{"observations": torch.zeros(2, 2, OBSERVATION), "actions": torch.zeros(1, 2, ACTIONS),
          "rewards": torch.full((1, 2), float(r)), "costs": torch.tensor([[2.0 * c, 0.0]]), "terminated": True}
         for c, r in zip(costs, returns, strict=True)]
    )  # fmt: skip


def test_the_budget_is_the_team_s():
    assert constrained.episode_costs(pairs([3, 0], [1, 1])).tolist() == [3.0, 0.0]
