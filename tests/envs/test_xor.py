"""The XOR probe: rules by enumeration, what imitation can get of it, its forms against each other."""

from itertools import product

import numpy as np
import pytest
import torch
from pettingzoo.test import parallel_api_test, parallel_seed_test

import envs
from madiff.experiment.rollout import rollout
from madiff.interfaces import UserError


def joint_actions(agents):
    return torch.tensor(list(product(range(agents + 1), repeat=agents)))


def wins(joint):
    """The rule, counted by hand."""
    return sum(action == 0 for action in joint) == 1


@pytest.mark.parametrize("agents", [2, 3, 4])
def test_a_round_pays_iff_exactly_one_agent_plays_0(agents):
    actions = joint_actions(agents)
    env = envs.make_batched("xor", len(actions), agents=agents, rounds=4)
    env.reset(0)
    step = env.step(actions)
    expected = torch.tensor([0.25 * wins(joint) for joint in actions.tolist()])
    assert torch.equal(step.rewards, expected[:, None].expand(-1, agents))


@pytest.mark.parametrize(
    ("agents", "sampled", "uniform"), [(2, 1 / 2, 4 / 9), (3, 4 / 9, 27 / 64), (4, 27 / 64, 256 / 625)]
)
def test_what_imitation_obtains(agents, sampled, uniform):
    """Enumerate all joint actions: greedy marginals win nothing, sampled ones what the module says, the team all."""
    data = [joint for joint in joint_actions(agents).tolist() if wins(joint)]
    marginals = [np.bincount([joint[i] for joint in data], minlength=agents + 1) / len(data) for i in range(agents)]
    assert all(marginal[0] > marginal[1:].max() + 0.05 for marginal in marginals)
    assert not wins([int(marginal.argmax()) for marginal in marginals])

    def value(chance):
        return sum(np.prod([c[a] for c, a in zip(chance, joint, strict=True)]) for joint in data)

    assert value(marginals) == pytest.approx(sampled)
    assert value([np.full(agents + 1, 1 / (agents + 1))] * agents) == pytest.approx(uniform)


@pytest.mark.parametrize("agents", [2, 3])
def test_demonstrators_draw_all_winning_joint_actions_alike(agents):
    env = envs.make_batched("xor", 4000, agents=agents)
    run = rollout(env, envs.behaviour(env, "good"), seed=1, record=True)
    assert (run.returns == pytest.approx(1.0)) and run.terminated.all()
    _, counts = np.unique(run.store.actions.numpy(), axis=0, return_counts=True)
    assert len(counts) == agents * agents ** (agents - 1)
    share = counts / counts.sum()
    assert np.abs(share - 1 / len(counts)).max() < 4 * np.sqrt(1 / len(counts) / counts.sum())


def test_returns_of_the_qualities():
    env = envs.make_batched("xor", 4000)
    means = {q: rollout(env, envs.behaviour(env, q), seed=2).returns.mean() for q in ("medium", "poor", "random")}
    expected = {"medium": 0.5 + 0.5 * 4 / 9, "poor": 0.2 + 0.8 * 4 / 9, "random": 4 / 9}
    assert means == pytest.approx(expected, abs=0.02)
    replay = rollout(env, envs.behaviour(env, "replay"), seed=2).returns
    assert replay[:1000].mean() == pytest.approx(4 / 9 + 0.0625 * 5 / 9, abs=0.03)
    assert replay[3000:].mean() == pytest.approx(4 / 9 + 0.4375 * 5 / 9, abs=0.03)


def test_observations_show_the_own_action_first():
    env = envs.make_batched("xor", 1, agents=3, rounds=4)
    first = env.reset(0)
    assert not first.observations.any() and not first.state.any()
    step = env.step(torch.tensor([[0, 3, 1]]))
    rows = {0: [1, 0, 0, 0], 3: [0, 0, 0, 1], 1: [0, 1, 0, 0]}
    for agent, order in enumerate(([0, 3, 1], [3, 1, 0], [1, 0, 3])):
        assert step.observations[0, agent].tolist() == sum((rows[action] for action in order), []) + [0.25]
    assert torch.equal(step.state[0], step.observations[0, 0])


def test_a_finished_copy_stands_still_or_starts_anew():
    env = envs.make_batched("xor", 1, rounds=1)
    env.reset(0)
    won = torch.tensor([[0, 1]])
    last = env.step(won)
    still = env.step(torch.tensor([[1, 0]]))
    assert last.terminated.all() and not last.truncated.any() and last.rewards.tolist() == [[1, 1]]
    assert not still.rewards.any() and torch.equal(still.observations, last.observations) and still.terminated.all()
    anew = envs.make_batched("xor", 1, rounds=1, auto_reset=True)
    begun = anew.reset(0)
    for _ in range(2):
        step = anew.step(won)
        assert step.terminated.all() and step.rewards.tolist() == [[1, 1]]
        assert torch.equal(step.observations, begun.observations)
        assert torch.equal(step.info["final_observations"], last.observations)


def test_the_state_repeats_the_next_step():
    env, other = envs.make_batched("xor", 9), envs.make_batched("xor", 9)
    env.reset(0)
    env.step(joint_actions(2))
    other.set_state(env.state)
    for expected, found in zip(env.step(joint_actions(2).flip(0)), other.step(joint_actions(2).flip(0)), strict=True):
        assert expected == found if isinstance(expected, dict) else torch.equal(expected, found)
    with pytest.raises(UserError, match="elapsed has shape"):
        envs.make_batched("xor", 3).set_state(env.state | {"last_actions": torch.zeros(3, 2)})
    with pytest.raises(UserError, match=r"keys \['elapsed'\]"):
        env.set_state({"elapsed": env.state["elapsed"]})


def test_pettingzoo_form():
    parallel_api_test(envs.make("xor", agents=3), num_cycles=30)
    parallel_seed_test(lambda: envs.make("xor"), num_cycles=30)
    env = envs.make("xor", rounds=2, render_mode="rgb_array")
    _, infos = env.reset(seed=0)
    assert infos["agent_1"]["action_mask"].tolist() == [1, 1, 1]
    pictures = [env.render()]
    for actions in ({"agent_0": 0, "agent_1": 2}, {"agent_0": 0, "agent_1": 0}):
        _, rewards, terminations, _, _ = env.step(actions)
        pictures.append(env.render())
        assert rewards == dict.fromkeys(rewards, 0.5 if actions["agent_1"] else 0.0)
    assert all(terminations.values()) and env.agents == []
    assert pictures[0].dtype == np.uint8 and pictures[0].shape == pictures[2].shape
    for before, after in zip(pictures, pictures[1:], strict=False):
        assert (before != after).any()


def test_user_errors():
    env = envs.make_batched("xor", 1)
    for mistake, line in (
        (lambda: envs.make("xor", agents=5), "agents: 5 is not a number of agents; allowed: 2 to 4"),
        (lambda: envs.make("xor", rounds=0), "rounds: 0 is not a number of rounds; allowed: 1 to 1000"),
        (lambda: envs.make("xor", scenario="3m"), "no option is called 'scenario'; allowed: agents, rounds"),
        (lambda: envs.make_batched("xor", 0), "copies: 0 is not a number of copies"),
        (lambda: env.step(torch.tensor([[0, 3]])), "actions: an action is out of range; allowed: 0 to 2"),
        (lambda: env.step(torch.zeros(2, 2)), "actions: shape (2, 2); allowed: (1, 2)"),
        (lambda: envs.behaviour(env, "great"), "allowed: expert, good, medium, poor, random, replay"),
    ):
        with pytest.raises(UserError) as caught:
            mistake()
        assert line in str(caught.value)


def test_spec_makes_the_same_environment():
    spec = envs.make_batched("xor", 2, agents=4, rounds=7).spec
    assert envs.make_batched("xor", 2, **spec.options).spec == spec
    assert (spec.agents, spec.action_size, spec.observation_size, spec.episode_limit) == (4, 5, 21, 7)
