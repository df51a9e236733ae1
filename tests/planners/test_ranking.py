"""Candidate plans ranked by a critic of joint actions, and noise that is kept."""

import copy

import pytest
import torch

from madiff.data.store import EpisodeStore
from madiff.interfaces import EnvironmentSpec, UserError
from madiff.planners import madiff_c, madiff_d
from madiff.planners.joint_critic import EXTRAS, JointCritic
from tests.planners.test_madiff import CPU, learner, store


def test_the_critic_learns_the_values_of_a_matrix_game():
    """Uniformly random play of one-step games: Q is the pay-off table, V between its mean and its best."""
    payoff = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.2, 0.0], [0.0, 0.0, 0.6]])
    actions = torch.randint(3, (900, 2), generator=torch.Generator().manual_seed(0))
    episodes = [
        {"observations": torch.zeros(2, 2, 1), "actions": a[None], "rewards": payoff[a[0], a[1]].expand(1, 2),
         "terminated": True} for a in actions
    ]  # fmt: skip
    data = EpisodeStore.from_arrays(episodes, action_size=3)
    game = EnvironmentSpec("game", "matrix", 2, 1, 3, True, 0, 1)
    torch.manual_seed(0)
    critic = JointCritic(game, 3, width=32, discount=0.9, expectile=0.8, device=CPU)
    critic.fit(data)
    always = torch.ones(900, 1, dtype=torch.bool)
    batch = {"observations": torch.zeros(900, 2, 2, 3), "actions": actions[:, None], "terminated": always,
             "rewards": torch.stack([e["rewards"] for e in episodes]), "transition_valid": always}  # fmt: skip
    for _ in range(1500):
        critic.update(batch, now=0)
    every = torch.cartesian_prod(torch.arange(3), torch.arange(3))
    observations = torch.zeros(9, 2, 3)
    q = critic.slow_q.model(critic._joint(observations, every)).amin(0)[:, 0] * critic.rewards.scale
    assert torch.allclose(q, payoff.flatten(), atol=0.06)
    v = critic.slow_v.model(critic._joint(observations))[0, 0, 0] * critic.rewards.scale
    assert payoff.mean() < v < payoff.max()
    advantage = critic.advantage(observations, every) * critic.rewards.scale
    assert torch.allclose(advantage, q - v, atol=1e-5)


@pytest.mark.parametrize("discrete", [True, False])
@pytest.mark.parametrize("room", [madiff_c, madiff_d])
def test_the_plan_with_the_largest_advantage_is_carried_out(room, discrete):
    method = learner(room, discrete=discrete, candidates=6, rank_steps=2)
    policy = method.policy()
    policy.reset(seed=0, n=4)
    asked = []
    ranks = torch.rand(4 if room is madiff_c else 12, 6)

    def rank(plans, available):
        asked.append(plans)
        return ranks

    policy._rank = rank
    policy.act(torch.rand(4, 3, 4), torch.ones(4, 3, 5, dtype=torch.bool) if discrete else None)
    rows = torch.arange(len(ranks))
    environment = rows if room is madiff_c else rows // 3
    ego = torch.zeros_like(rows) if room is madiff_c else rows % 3
    best = policy._best_plan(environment, ego, None)
    assert torch.equal(best, asked[-1][rows, ranks.argmax(1)])
    assert not torch.equal(asked[-1][:, 0], asked[-1][:, 1])


def test_ranks_are_discounted_advantages_of_the_first_planned_steps():
    method = learner(madiff_c, discrete=False, candidates=3, rank_steps=2, critic_discount=0.5)
    policy = method.policy()
    now = policy.config.history
    plans = torch.rand(2, 3, now + 1 + policy.config.horizon, 3, 7)
    expected = torch.zeros(2, 3)
    for step in range(2):
        o, following = plans[:, :, now + step], plans[:, :, now + step + 1]
        actions = torch.tanh(policy.inverse(o, following))
        expected += 0.5**step * method.critic.advantage(o, actions)
    assert torch.allclose(policy._rank(plans, None), expected, atol=1e-6)


def test_illegal_actions_are_not_ranked():
    method = learner(madiff_c, candidates=2)
    policy = method.policy()
    legal = torch.zeros(1, 3, 5, dtype=torch.bool)
    legal[..., 2] = True
    seen = []
    policy.critic.advantage = lambda observations, actions: seen.append(actions) or observations[..., 0, 0]
    policy._rank(torch.rand(1, 2, policy.config.history + 1 + policy.config.horizon, 3, 7), legal)
    assert (seen[0] == 2).all()


def test_candidates_need_a_trained_critic():
    plain, ranked = learner(madiff_c), learner(madiff_c, critic=True)
    several = learner(madiff_c, candidates=4)
    with pytest.raises(UserError, match="candidates need a critic"):
        several.load_weights(plain.weights())
    several.load_weights(ranked.weights())
    plain.load_weights(ranked.weights())  # a critic that nobody asks is left aside
    assert several.policy().parameters > plain.policy().parameters


def test_rank_steps_lie_within_the_plan():
    with pytest.raises(UserError, match="algo.rank_steps"):
        learner(madiff_c, candidates=2, rank_steps=9)


def test_training_with_a_critic_continues_bit_for_bit():
    first, second = learner(madiff_d, critic=True), learner(madiff_d, critic=True)
    batch = first.batches(store()).sample(torch.Generator().manual_seed(1))
    assert set(EXTRAS) <= set(batch)
    second.batches(store())
    first.update(batch, torch.Generator().manual_seed(2))
    second.load_weights(copy.deepcopy(first.weights()))
    second.load_training_state(copy.deepcopy(first.training_state()))
    for method in (first, second):
        method.update(batch, torch.Generator().manual_seed(3))
    before, after = first.weights(), second.weights()
    assert any(key.startswith("critic.") for key in before)
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize(("noise", "kept"), [("step", False), ("episode", True)])
def test_noise_is_kept_for_as_long_as_it_is_told(noise, kept):
    policy = learner(madiff_d, noise=noise).policy()
    policy.reset(seed=0, n=2)
    draws = []
    for _ in range(2):
        policy._draw_noise()
        draws.append(policy.noise)
    assert torch.equal(*draws) == kept
    policy.reset(seed=1, n=2)
    policy._draw_noise()
    assert not torch.equal(draws[-1], policy.noise)


def test_unknown_noise_is_refused():
    with pytest.raises(UserError, match="algo.noise"):
        learner(madiff_d, noise="forever")
