"""BCQ-Lag: every loss by loops, and the proposal that acts."""

import math

import torch

from baselines import bcq_lag
from tests.baselines.constrained_toys import learner
from tests.baselines.toys import ACTIONS, AGENTS, OBSERVATION, batch_of


def lesser_groups(values):
    """Four members -> two groups."""
    return min(values[0], values[1]), min(values[2], values[3])


def prepared(monkeypatch, samples):
    """A learner whose slow critics differ from the trained ones, and whose proposals are fixed."""
    made, source = learner(bcq_lag, samples=samples)
    for target in made.targets.values():
        for parameter in target.model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    fixed = torch.rand(samples, 16, AGENTS, ACTIONS) * 2 - 1
    monkeypatch.setattr(made, "proposals", lambda actor, o, g, samples=None: fixed[: samples or len(fixed)])
    return made, batch_of(source), fixed


@torch.no_grad()
def test_critic_losses_by_loops(monkeypatch):
    made, batch, proposed = prepared(monkeypatch, samples=3)
    steps, costs = made.constrained_steps(batch)
    losses = made.critic_losses(steps, costs, torch.Generator())
    team = batch["costs"][:, 0].mean(-1)
    for name, paid in (("critic", steps.rewards), ("cost_critic", None)):
        errors = []
        for b in range(16):
            for i in range(AGENTS):
                following = []
                for actions in proposed:
                    seen = steps.next_observations[b, i], actions[b, i]
                    q1, q2 = lesser_groups([float(v) for v in made.targets[name].model(*seen)])
                    following.append(0.75 * min(q1, q2) + 0.25 * max(q1, q2))
                now = paid[b, i] if paid is not None else (team[b] - made.cost_scale.shift) / made.cost_scale.scale
                aim = float(now) + (0.0 if steps.terminated[b] else 0.99) * max(following)
                for value in made.networks[name](steps.observations[b, i], steps.actions[b, i]):
                    errors.append((float(value) - aim) ** 2)
        assert math.isclose(float(losses[name]), 4 * sum(errors) / len(errors), rel_tol=1e-4)


@torch.no_grad()
def test_actor_loss_by_loops(monkeypatch):
    made, batch, proposed = prepared(monkeypatch, samples=1)
    steps, _ = made.constrained_steps(batch)
    values, excesses = [], []
    budget = 5 * (1 - 0.99**12) / (0.01 * 12)  # of episodes of at most 12 steps
    limit = (budget - float(made.cost_scale.shift) / 0.01) / float(made.cost_scale.scale)
    for b in range(16):
        for i in range(AGENTS):
            seen = steps.observations[b, i], proposed[0, b, i]
            values.append(min(lesser_groups([float(v) for v in made.networks["critic"](*seen)])))
            excesses.append(min(lesser_groups([float(v) for v in made.networks["cost_critic"](*seen)])) - limit)
    excess = sum(excesses) / len(excesses)
    multiplier = (0.1 + 0.003 + 0.001) * max(0.0, excess)  # the first step of the controller
    loss, _ = made.actor_loss(steps, torch.Generator())
    assert math.isclose(float(loss), multiplier * excess - sum(values) / len(values), rel_tol=1e-4, abs_tol=1e-5)


@torch.no_grad()
def test_a_move_is_small_and_stays_in_range():
    made, source = learner(bcq_lag, perturbation=0.1)
    observations = batch_of(source)["observations"][:, 0]
    imitated = made.networks["vae"].sample(observations, 4, torch.Generator().manual_seed(0), 0.5)
    moved = made.networks["actor"](observations, imitated)
    assert float((moved - imitated).abs().max()) <= 0.1 + 1e-6
    edge = torch.ones_like(imitated)
    assert float(made.networks["actor"](observations, edge).max()) <= 1.0


def test_only_the_actor_follows_its_own_loss():
    made, source = learner(bcq_lag)
    steps, _ = made.constrained_steps(batch_of(source))
    before = {name: value.clone() for name, value in made.weights().items()}
    loss, _ = made.actor_loss(steps, torch.Generator().manual_seed(0))
    made.gradient_step("actor", loss, 10.0)
    changed = {n for n, value in made.weights().items() if not torch.equal(value, before[n])}
    assert changed and all(n.startswith(("trained.actor.", "fixed.controller.")) for n in changed)


def test_the_multiplier_decides_which_proposal_acts():
    made, _ = learner(bcq_lag, candidates=6)
    observations = torch.rand(5, AGENTS, OBSERVATION)
    for multiplier in (0.0, 100.0):
        made.controller.multiplier.fill_(multiplier)
        policy = made.policy()
        policy.reset(seed=3, n=5)
        acted = policy.act(observations, None)
        encoded = made.encoder.encode(observations)
        proposed = policy.propose(encoded, torch.Generator().manual_seed(3))
        for n in range(5):
            for i in range(AGENTS):
                scores = []
                for actions in proposed:
                    value, cost = made.values(encoded[n, i], actions[n, i])
                    scores.append(float(value - multiplier * cost))
                best = proposed[scores.index(max(scores)), n, i]
                assert torch.allclose(acted[n, i], best, atol=1e-6)
