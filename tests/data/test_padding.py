"""Agents of different sizes: joined with zeros, and learned from by every kind of network."""

import numpy as np
import pytest
import torch

from madiff import build
from madiff.data import EpisodeStore
from madiff.interfaces import EnvironmentSpec, UserError

SIZES = {"scout": (5, 2), "tank": (3, 4), "medic": (4, 3)}  # observed values, actions


def team(steps, rng, discrete):
    """One episode as PettingZoo users have it; what an agent does is a function of what it sees."""
    seen = {name: rng.normal(size=(steps + 1, size)).astype(np.float32) for name, (size, _) in SIZES.items()}
    if discrete:
        done = {name: seen[name][:-1, : SIZES[name][1]].argmax(1) for name in SIZES}
        done["tank"] = done["tank"] % 3 + 1  # action 3, which no other agent has, is taken too
    else:
        done = {name: np.tanh(seen[name][:-1, [0] * SIZES[name][1]]) for name in SIZES}
    masks = {name: np.ones((steps + 1, actions), bool) for name, (_, actions) in SIZES.items()}
    rewards = {name: rng.normal(size=steps) for name in SIZES}
    return {"observations": seen, "actions": done, "rewards": rewards, "terminated": True} | (
        {"available_actions": masks} if discrete else {}
    )


def some(discrete, episodes=12, seed=0):
    rng = np.random.default_rng(seed)
    return [team(steps, rng, discrete) for steps in rng.integers(2, 9, size=episodes)]


def padded_by_hand(episode):
    joined = {"terminated": True, "rewards": np.stack(list(episode["rewards"].values()), 1)}
    for name, size in (("observations", 5), ("actions", 4), ("available_actions", 4)):
        if name in episode:
            arrays = [np.asarray(array) for array in episode[name].values()]
            full = np.zeros((len(arrays[0]), 3, size), arrays[0].dtype)
            for agent, array in enumerate(arrays):
                if array.ndim == 2:
                    full[:, agent, : array.shape[1]] = array
            joined[name] = full if arrays[0].ndim == 2 else np.stack(arrays, 1)
    return joined


@pytest.mark.parametrize("discrete", [False, True])
def test_agents_by_name_are_padded_as_by_hand(discrete):
    episodes = some(discrete)
    store = EpisodeStore.from_arrays(episodes)
    assert store.sha256 == EpisodeStore.from_arrays([padded_by_hand(episode) for episode in episodes]).sha256
    assert (store.agents, store.observation_size, store.action_size) == (3, 5, 4)
    if discrete:
        assert not store.available_actions[:, 0, 2:].any() and bool((store.actions[:, 1] == 3).any())


def backwards(values):
    return dict(reversed(values.items())) if isinstance(values, dict) else values


def change(name, how, number=1):
    episodes = some(True)
    episodes[number] = episodes[number] | {name: how(episodes[number][name])}
    return episodes


@pytest.mark.parametrize(
    ("episodes", "message"),
    [
        (change("actions", lambda v: {n: v[n] for n in ("scout", "tank")}), "episode 1, actions: has the agents scout"),
        (change("rewards", lambda v: dict(reversed(v.items()))), "rewards: has the agents medic, tank, scout; all"),
        (change("observations", lambda v: {}), "episode 1, observations: has the agents ; allowed: one array"),
        (change("observations", lambda v: v | {"tank": v["tank"][:-1]}), "episode 1, observations, tank: has shape"),
        (change("observations", lambda v: v | {"medic": v["medic"][..., None]}), "observations, medic: has shape"),
        (change("available_actions", lambda v: v | {"scout": "yes"}), "available_actions, scout: has type <U3"),
        (change("actions", lambda v: v | {"scout": v["scout"] + 2}), "actions, episode 1, step 0: takes an action"),
        ([some(True)[0], {name: backwards(values) for name, values in some(True)[1].items()}],
         "episode 1: has other agents, or in another order; allowed: scout, tank, medic"),
    ],
)  # fmt: skip
def test_agents_that_do_not_match_are_refused(episodes, message):
    with pytest.raises(UserError, match=message):
        EpisodeStore.from_arrays(episodes)


@pytest.mark.parametrize("algo", ["bc", "madiff-d"])
@pytest.mark.parametrize("discrete", [False, True])
def test_padded_agents_are_learned_from(algo, discrete):
    store = EpisodeStore.from_arrays(some(discrete, episodes=60))
    spec = EnvironmentSpec("own", "", 3, 5, 4, discrete, 0, 10, {}, (5, 3, 4), (2, 4, 3))
    options = {"width": 32, "batch_size": 64} if algo == "bc" else {"width": 32, "layers": 1, "batch_size": 32}
    learner = build.make_learner({"name": algo, **options}, spec, torch.device("cpu"), 0)
    source, generator = learner.batches(store), torch.Generator().manual_seed(0)
    losses = [float(learner.update(source.sample(generator), generator)["loss"]) for _ in range(150)]
    assert np.isfinite(losses).all() and np.mean(losses[-20:]) < 0.8 * np.mean(losses[:20])
    policy, masks = learner.policy(), None if not discrete else store.available_actions[:40]
    policy.reset(0, 40)
    actions = policy.act(store.observations[:40], masks)
    assert torch.isfinite(actions.float()).all() and actions.shape == ((40, 3) if discrete else (40, 3, 4))
    if discrete:
        assert bool(masks.gather(-1, actions[..., None]).all())
