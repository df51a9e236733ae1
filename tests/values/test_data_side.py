"""Reward scale, joint encoding and single steps, against a reading of the episodes in Python."""

import numpy as np
import pytest
import torch

from madiff.data.encoding import ObservationEncoder
from madiff.data.store import EpisodeStore
from madiff.interfaces import EnvironmentSpec, UserError
from madiff.values import JointEncoder, RewardScale, Transitions, transition_source

CPU = torch.device("cpu")


def episode(steps: int, seed: int, ends: bool, agents: int = 2) -> dict:
    rng = np.random.default_rng(seed)
    actions = rng.integers(4, size=(steps, agents))
    legal = rng.random((steps + 1, agents, 4)) < 0.5
    np.put_along_axis(legal[:-1], actions[..., None], True, -1)
    return {
        "observations": rng.normal(size=(steps + 1, agents, 3)), "state": rng.normal(2.0, 5.0, size=(steps + 1, 6)),
        "actions": actions, "rewards": rng.normal(1.0, 3.0, size=(steps, agents)), "available_actions": legal,
        "terminated": ends, "truncated": not ends,
    }  # fmt: skip


EPISODES = [episode(5, 0, True), episode(3, 1, False), episode(1, 2, True)]


def spec(state_size: int) -> EnvironmentSpec:
    return EnvironmentSpec("toy", "toy", 2, 3, 4, True, state_size, 9)


@pytest.mark.parametrize("discount", [0.9, 1.0])
@pytest.mark.parametrize("ends", [True, False])
def test_scaled_returns_have_unit_deviation(discount, ends):
    """Where nothing terminates the mean reward is taken off first."""
    episodes = [episode(5, 0, ends), episode(3, 1, False), episode(1, 2, ends)]
    scale = RewardScale()
    scale.fit(EpisodeStore.from_arrays(episodes), discount)
    mean = 0.0 if ends else np.concatenate([source["rewards"] for source in episodes]).mean()
    returns = [
        sum(discount ** (k - t) * (source["rewards"][k, agent] - mean) for k in range(t, len(source["rewards"])))
        for source in episodes for t in range(len(source["rewards"])) for agent in range(2)
    ]  # fmt: skip
    assert float(scale(torch.tensor(mean))) == pytest.approx(0.0, abs=1e-6)
    assert float(scale(torch.tensor(mean + 1.0))) == pytest.approx(1 / np.std(returns), rel=1e-4)


def test_the_mean_reward_taken_off_is_that_of_the_episodes_as_they_are_drawn():
    episodes, scale = [episode(5, 0, False), episode(3, 1, False)], RewardScale()
    scale.fit(EpisodeStore.from_arrays(episodes), 0.9, torch.tensor([1.0, 3.0]))
    drawn = np.concatenate([episodes[0]["rewards"], *[episodes[1]["rewards"]] * 3])
    assert float(scale.shift) == pytest.approx(drawn.mean(), rel=1e-5)


@pytest.mark.parametrize(("reward", "ends", "scaled"), [(4.0, True, 10.0), (-4.0, True, -10.0), (4.0, False, 0.0)])
def test_returns_that_do_not_differ_are_not_blown_up(reward, ends, scaled):
    scale = RewardScale()
    scale.fit(EpisodeStore.from_arrays([{**episode(1, 2, ends), "rewards": np.full((1, 2), reward)}]), 0.9)
    assert float(scale(torch.tensor(reward))) == pytest.approx(scaled)


def test_joint_encoding_is_the_normalised_state_or_all_observations():
    store = EpisodeStore.from_arrays(EPISODES)
    state, observations = JointEncoder(spec(6)), JointEncoder(spec(0))
    state.fit(store)
    observations.fit(store)
    rows = np.concatenate([source["state"] for source in EPISODES])
    expected = (rows - rows.mean(0)) / rows.std(0)
    seen = state.encode(torch.zeros(len(rows), 2, 5), store.state)
    assert np.allclose(seen.numpy(), expected, atol=1e-5) and state.features == 6 and state.extras == ("state",)
    encoded = torch.cat([torch.eye(2).expand(7, 2, 2), torch.arange(42.0).view(7, 2, 3)], -1)
    assert torch.equal(observations.encode(encoded, None), torch.arange(42.0).view(7, 6))
    assert observations.features == 6 and observations.extras == ()


def test_data_without_the_global_state_is_refused():
    bare = EpisodeStore.from_arrays([{k: v for k, v in source.items() if k != "state"} for source in EPISODES])
    with pytest.raises(UserError, match="0 state values"):
        JointEncoder(spec(6)).fit(bare)


def test_transitions_are_those_of_the_episodes():
    store, scale = EpisodeStore.from_arrays(EPISODES), RewardScale()
    scale.fit(store, 0.9)
    encoder = ObservationEncoder(2, 3, "none")
    source = transition_source(store, encoder, 4, CPU)
    steps = Transitions.of(source.gather(torch.arange(9)), scale)
    row = 0
    for source in EPISODES:
        last = len(source["actions"]) - 1
        for t in range(last + 1):
            assert np.allclose(steps.observations[row, :, 2:], source["observations"][t])
            assert np.allclose(steps.next_observations[row, :, 2:], source["observations"][t + 1])
            assert np.array_equal(steps.actions[row], source["actions"][t])
            assert np.allclose(steps.rewards[row] * scale.scale, source["rewards"][t], atol=1e-5)
            assert bool(steps.terminated[row]) == (source["terminated"] and t == last)
            assert np.array_equal(steps.available[row], source["available_actions"][t])
            assert np.array_equal(steps.next_available[row], source["available_actions"][t + 1])
            row += 1


def test_continuous_transitions_have_no_masks():
    continuous = {**EPISODES[0], "actions": np.zeros((5, 2, 4), np.float32)}
    del continuous["available_actions"]
    source = transition_source(EpisodeStore.from_arrays([continuous]), ObservationEncoder(2, 3, "gaussian"), 4, CPU)
    steps = Transitions.of(source.sample(torch.Generator()), RewardScale())
    assert steps.available is None and steps.next_available is None and steps.actions.shape == (4, 2, 4)
