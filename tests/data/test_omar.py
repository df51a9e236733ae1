"""OMAR's folders: the same episodes as a plain loop over the files gives, and one clear line for anything odd."""

import os
import pickle
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest

from madiff.data import EpisodeStore
from madiff.interfaces import UserError

FIXTURE = Path(__file__).parent / "formats" / "omar" / "simple_spread" / "random"
FIELDS = ("obs", "acs", "rews", "next_obs", "dones")


@pytest.fixture
def folder(tmp_path):
    return Path(shutil.copytree(FIXTURE / "seed_0_data", tmp_path / "seed_0_data"))


def change(folder, name, how):
    np.save(folder / f"{name}.npy", how(np.load(folder / f"{name}.npy")))


def put(value, *index):
    def how(array):
        array[index] = value
        return array

    return how


def write(folder, agents, episodes, seed=0, dones=()):
    """Episodes of given lengths as OMAR lays them out; agent i observes 3 + i and does 1 + i values."""
    rng, rows = np.random.default_rng(seed), sum(episodes)
    folder.mkdir(parents=True)
    for agent in range(agents):
        parts = [rng.normal(size=(length + 1, 3 + agent)).astype(np.float32) for length in episodes]
        np.save(folder / f"obs_{agent}.npy", np.concatenate([part[:-1] for part in parts]))
        np.save(folder / f"next_obs_{agent}.npy", np.concatenate([part[1:] for part in parts]))
        np.save(folder / f"acs_{agent}.npy", rng.uniform(-1, 1, (rows, 1 + agent)).astype(np.float32))
        np.save(folder / f"rews_{agent}.npy", rng.normal(size=(rows, 1)))
        np.save(folder / f"dones_{agent}.npy", np.isin(np.arange(rows), dones).astype(np.float32))
    return folder


@pytest.mark.parametrize("format", ["auto", "omar"])
@pytest.mark.parametrize("path", [FIXTURE, FIXTURE / "seed_0_data"])
def test_episodes_are_those_a_plain_loop_over_the_files_finds(path, format):
    store = EpisodeStore.open(path, format)
    files = {f"{name}_{i}": np.load(FIXTURE / "seed_0_data" / f"{name}_{i}.npy") for name in FIELDS for i in range(3)}
    assert (store.episodes, store.agents, store.observation_size, store.action_size) == (5, 3, 18, 2)
    assert store.lengths.tolist() == [25] * 5 and bool(store.truncated.all()) and not bool(store.terminated.any())
    for episode in range(5):
        one, first = store.subset([episode]), 25 * episode
        for step in range(25):
            for agent in range(3):
                assert np.array_equal(one.observations[step, agent], files[f"obs_{agent}"][first + step])
                assert np.array_equal(one.observations[step + 1, agent], files[f"next_obs_{agent}"][first + step])
                assert np.array_equal(one.actions[step, agent], files[f"acs_{agent}"][first + step])
                assert one.rewards[step, agent] == files[f"rews_{agent}"][first + step]
    assert store.card["format"] == "omar" and store.card["source"] == path.name.replace("random", "seed_0_data")
    assert str(path.parent) not in str(store.card)


def test_unequal_agents_are_padded_with_zeros_and_the_card_says_so(tmp_path):
    store = EpisodeStore.open(write(tmp_path / "data", agents=3, episodes=[25, 25, 10]))
    assert store.card["observation_sizes"] == [3, 4, 5] and store.card["action_sizes"] == [1, 2, 3]
    assert store.lengths.tolist() == [25, 25, 10]
    assert not store.observations[:, 0, 3:].any() and not store.actions[:, 1, 2:].any()
    assert bool((store.observations[:, 0, :3] != 0).all()) and bool((store.actions[:, 2] != 0).all())


@pytest.mark.parametrize(
    ("episodes", "dones", "terminated"),
    [
        ([7, 25, 3, 25], [6, 34], [True, False, True, False]),
        ([1000, 1000, 400], [], [False] * 3),
        ([600], [], [False]),
        ([1], [0], [True]),
    ],
)
def test_episodes_end_where_dones_or_the_length_of_the_task_say(tmp_path, episodes, dones, terminated):
    store = EpisodeStore.open(write(tmp_path / "data", 2, episodes, dones=dones))
    assert store.lengths.tolist() == episodes and store.terminated.tolist() == terminated
    assert (store.truncated != store.terminated).all()


def test_several_seeds_have_to_be_named(tmp_path, folder):
    shutil.copytree(folder, tmp_path / "seed_3_data")
    (tmp_path / "unrelated").mkdir()
    with pytest.raises(UserError, match="holds 2 data sets: name one; allowed: .*seed_0_data, .*seed_3_data"):
        EpisodeStore.open(tmp_path)
    with pytest.raises(UserError, match="unrelated: holds no OMAR data"):
        EpisodeStore.open(tmp_path / "unrelated", "omar")
    with pytest.raises(UserError, match="obs_0.npy: is not a folder"):
        EpisodeStore.open(folder / "obs_0.npy", "omar")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("name", "how", "message"),
    [
        ("obs_1", put(np.nan, 30, 2), r"obs_1.npy, row 30: holds NaN or infinity"),
        ("rews_2", put(np.inf, 124), r"rews_2.npy, row 124: holds NaN or infinity"),
        ("acs_0", put(1.5, 26, 0), r"actions, episode 1, step 1: holds an action out of range; allowed: \[-1, 1\]"),
        ("rews_0", lambda a: a.astype(float) * 1e300, r"rewards, episode 0, step 0: holds NaN or infinity"),
        ("acs_1", lambda a: a[:-1], r"acs_1.npy: has 124 rows; allowed: 125"),
        ("acs_1", lambda a: a[:, 0], r"acs_1.npy: has shape \(125,\); allowed: \(rows >= 1, values >= 1\)"),
        ("rews_0", lambda a: np.stack([a, a], 1), r"rews_0.npy: has shape \(125, 2\); allowed: \(rows >= 1,\)"),
        ("next_obs_2", lambda a: a[:, :-1], r"next_obs_2.npy: has shape \(125, 17\); allowed: 125, 18"),
        ("obs_0", lambda a: a[:0], r"obs_0.npy: has shape \(0, 18\)"),
        ("obs_0", lambda a: a.astype(complex), r"obs_0.npy: has type complex128"),
        ("obs_0", lambda a: a.astype(str), r"obs_0.npy: has type <U"),
        ("obs_0", lambda a: a.astype([("x", "f4")]), r"obs_0.npy: has type \[\('x'"),
        ("obs_0", lambda a: np.roll(a, 1, axis=0), r"row 0: next_obs is not the following row's obs"),
        ("next_obs_1", put(9.0, 57, 0), r"row 57: next_obs is not the following row's obs"),
    ],
)
def test_arrays_that_are_not_such_data_are_refused_by_file_and_row(folder, name, how, message):
    change(folder, name, how)
    with pytest.raises(UserError, match=message) as caught:
        EpisodeStore.open(folder)
    assert "\n" not in str(caught.value)


def test_episodes_of_another_length_are_refused(tmp_path):
    with pytest.raises(UserError, match="row 24: next_obs is still the following row's obs; allowed: .*25 or 1000"):
        EpisodeStore.open(write(tmp_path / "long", 1, [50, 50]))
    with pytest.raises(UserError, match="row 9: next_obs is not the following row's obs"):
        EpisodeStore.open(write(tmp_path / "short", 1, [10, 10]))


class Trap:
    def __reduce__(self):
        return os.mkdir, ("sprung",)


def test_pickles_are_never_opened(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save(folder / "obs_0.npy", np.array([Trap()], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match="obs_0.npy: has type object"):
        EpisodeStore.open(folder)
    (folder / "obs_0.npy").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(UserError, match="obs_0.npy: damaged, or no .npy array"):
        EpisodeStore.open(folder)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("shape", ["(10**12, 18)", "(1000000000000, 18)", "(9223372036854775807, 2)", "(-1, 18)", "("])
def test_headers_that_claim_what_is_not_there_cost_nothing(folder, shape):
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    (folder / "obs_0.npy").write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + b"\0" * 64)
    with pytest.raises(UserError, match="obs_0.npy: ") as caught:
        EpisodeStore.open(folder)
    assert "\n" not in str(caught.value)


def test_any_truncation_is_noticed(folder):
    whole = (folder / "next_obs_1.npy").read_bytes()
    for size in np.linspace(0, len(whole) - 1, 25).astype(int):
        (folder / "next_obs_1.npy").write_bytes(whole[:size])
        with pytest.raises(UserError, match="next_obs_1.npy: (damaged|is cut short)"):
            EpisodeStore.open(folder)


def test_missing_files_and_what_is_not_a_file(folder):
    (folder / "rews_1.npy").unlink()
    for make in (lambda: None, lambda: os.mkfifo(folder / "rews_1.npy")):
        make()
        with pytest.raises(UserError, match="rews_1.npy: no such file"):
            EpisodeStore.open(folder)
    for name in FIELDS:
        (folder / f"{name}_2.npy").rename(folder / f"{name}_4.npy")
    (folder / "rews_1.npy").unlink()
    np.save(folder / "rews_1.npy", np.zeros(125))
    with pytest.raises(UserError, match="obs_2.npy: no such file"):
        EpisodeStore.open(folder)
