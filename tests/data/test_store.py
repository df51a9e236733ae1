"""EpisodeStore: what goes in comes out, and nothing wrong gets in."""

import numpy as np
import pytest
import torch

from madiff.data import EpisodeStore
from madiff.interfaces import UserError


def episode(steps, rng, agents=2, continuous=False, masks=True, state=True):
    available = rng.random((steps + 1, agents, 4)) < 0.5
    available[..., 0] = True
    actions = available[:-1].argmax(-1)
    entries = {
        "observations": rng.normal(size=(steps + 1, agents, 3)),
        "actions": rng.uniform(-1, 1, (steps, agents, 2)) if continuous else actions,
        "rewards": rng.normal(size=(steps, agents)),
        "costs": rng.random((steps, agents)),
        "terminated": bool(rng.integers(2)),
    }
    if masks and not continuous:
        entries["available_actions"] = available
    if state:
        entries["state"] = rng.normal(size=(steps + 1, 5))
    return entries


def some(lengths=(3, 1, 7, 2), seed=0, **options):
    rng = np.random.default_rng(seed)
    return [episode(steps, rng, **options) for steps in lengths]


@pytest.mark.parametrize("continuous", [False, True])
def test_every_episode_lies_flat_between_its_offsets(continuous):
    episodes = some(continuous=continuous)
    store = EpisodeStore.from_arrays(episodes)
    assert (store.episodes, store.transitions, store.agents, store.observation_size) == (4, 13, 2, 3)
    assert store.discrete is not continuous and store.action_size == (2 if continuous else 4)
    for number, (source, start) in enumerate(zip(episodes, [0, 3, 4, 11], strict=True)):
        steps = len(source["rewards"])
        row = start + number
        assert np.allclose(store.observations[row : row + steps + 1], source["observations"])
        assert np.allclose(store.state[row : row + steps + 1], source["state"])
        assert np.allclose(store.actions[start : start + steps], source["actions"])
        assert np.allclose(store.costs[start : start + steps], source["costs"])
        assert store.terminated[number] == source["terminated"] == (not store.truncated[number])
        assert np.allclose(store.returns()[number], source["rewards"].sum(0), atol=1e-5)
        assert np.isclose(store.team_returns()[number], source["rewards"].sum(0).mean(), atol=1e-5)


def test_card_states_provenance_measures_and_content_hash():
    rewards = [[1.0, 2.0, 3.0], [10.0]]
    episodes = [
        {"observations": np.zeros((len(r) + 1, 2, 1)), "actions": np.zeros((len(r), 2), int), "rewards": r, "costs": r}
        for r in rewards
    ]
    store = EpisodeStore.from_arrays(episodes, card={"env": "walk", "quality": "good"}, action_size=3)
    card = store.card
    assert card["env"] == "walk" and card["quality"] == "good"
    assert (card["episodes"], card["transitions"], card["action_size"]) == (2, 4, 3)
    assert [card[f"return_{k}"] for k in ("mean", "min", "max", "std")] == [8.0, 6.0, 10.0, 2.0]
    assert [card[f"cost_{k}"] for k in ("mean", "min", "max")] == [8.0, 6.0, 10.0]
    changed = EpisodeStore.from_arrays([episodes[0] | {"rewards": [1.0, 2.0, 3.5]}, episodes[1]], action_size=3)
    again = EpisodeStore.from_arrays(episodes, action_size=3)
    assert card["sha256"] == again.sha256 != changed.sha256


def test_subset_and_concatenate_are_inverse():
    store = EpisodeStore.from_arrays(some())
    parts = [store.subset([number]) for number in range(4)]
    assert EpisodeStore.concatenate(parts).sha256 == store.sha256
    shuffled = store.subset([2, 0, 2])
    assert shuffled.lengths.tolist() == [7, 3, 7]
    assert torch.equal(shuffled.observations[8:12], store.observations[:4])
    assert torch.equal(shuffled.actions[10:], shuffled.actions[:7])


def test_concatenate_refuses_other_sizes():
    with pytest.raises(UserError, match="store 1 has 3 agents"):
        EpisodeStore.concatenate([EpisodeStore.from_arrays(some()), EpisodeStore.from_arrays(some(agents=3))])
    with pytest.raises(UserError, match="without availability"):
        EpisodeStore.concatenate([EpisodeStore.from_arrays(some()), EpisodeStore.from_arrays(some(masks=False))])
    with pytest.raises(UserError, match="no stores"):
        EpisodeStore.concatenate([])


def spoil(name, change):
    episodes = some()
    episodes[2][name] = change(np.array(episodes[2][name]))
    return episodes


def put(value, *index):
    def change(array):
        array[index] = value
        return array

    return change


@pytest.mark.parametrize(
    ("episodes", "message"),
    [
        ([], "no episodes"),
        (spoil("observations", put(np.nan, 4, 1, 2)), "observations, episode 2, step 4: holds NaN"),
        (spoil("rewards", put(np.inf, 6, 0)), "rewards, episode 2, step 6: holds NaN or infinity"),
        (spoil("state", put(np.nan, 7, 0)), "state, episode 2, step 7: holds NaN"),
        (spoil("actions", put(4, 1, 1)), "actions, episode 2, step 1: holds an action out of range; allowed: 0 to 3"),
        (spoil("actions", put(-1, 0, 0)), "out of range"),
        (spoil("available_actions", put(False, 5)), "actions, episode 2, step 5: takes an action that is not avail"),
        (spoil("available_actions", lambda a: a[..., :3]), "episode 2, available_actions: has bool of shape"),
        (spoil("observations", lambda a: a[:-1]), "episode 2, observations: has shape .*allowed: 8 rows for 7 rewards"),
        (spoil("observations", lambda a: a[..., :2]), "episode 2, observations: has float32 of shape"),
        (spoil("actions", lambda a: a[:-1]), "episode 2, actions: has shape"),
        (spoil("actions", lambda a: a.astype(float)), "episode 2, actions: has float32"),
        (spoil("actions", lambda a: a.astype(str)), "episode 2, actions: has type"),
        (spoil("rewards", lambda a: a[:0]), "episode 2, observations: has shape"),
        (spoil("rewards", lambda a: None), "episode 2: lacks rewards"),
        (spoil("rewards", lambda a: [[1.0, 2.0], [3.0]]), "episode 2, rewards: is ragged"),
        (spoil("terminated", lambda a: [True, False]), "one truth value"),
        ([{"observations": np.zeros((2, 1, 1))}], "episode 0: lacks actions, rewards"),
        ([episode | {"masks": 1} for episode in some()], "unknown entries masks"),
    ],
)
def test_wrong_episodes_are_refused_by_name(episodes, message):
    with pytest.raises(UserError, match=message):
        EpisodeStore.from_arrays(episodes)


def test_wrong_fields_are_refused():
    good = EpisodeStore.from_arrays(some(continuous=True)).tensors
    with pytest.raises(UserError, match="observations: has type torch.float64"):
        EpisodeStore(**good | {"observations": good["observations"].double()})
    with pytest.raises(UserError, match=r"costs: has shape \(13, 1\); allowed: \(13, 2\)"):
        EpisodeStore(**good | {"costs": good["costs"][:, :1]})
    with pytest.raises(UserError, match="at least one episode"):
        EpisodeStore(**{name: values[:0] for name, values in good.items()})
    with pytest.raises(UserError, match="episode 1: has length 0"):
        EpisodeStore(**good | {"lengths": torch.tensor([4, 0, 7, 2])})
    with pytest.raises(UserError, match="episode 0: has length 9223372036854775807"):
        EpisodeStore(**good | {"lengths": torch.tensor([2**63 - 1, 2**63 - 1, 8, 7])})
    with pytest.raises(UserError, match=r"actions, episode 1, step 0: .*allowed: \[-1, 1\]"):
        EpisodeStore(**good | {"actions": good["actions"].index_fill(0, torch.tensor(3), 1.01)})
    with pytest.raises(UserError, match="action_size 5"):
        EpisodeStore(**good, action_size=5)


def test_subset_refuses_an_index_out_of_range():
    store = EpisodeStore.from_arrays(some())
    with pytest.raises(UserError, match="0 to 3"):
        store.subset([4])
    with pytest.raises(UserError, match="at least one episode"):
        store.subset([])
