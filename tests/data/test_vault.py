"""Vaults: what flashbax wrote, stores made like its own, and one clear line for anything damaged or hostile."""

import json
import os
import shutil
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorstore

from madiff.data import EpisodeStore
from madiff.interfaces import UserError

FIXTURE = Path(__file__).parent / "formats" / "vault" / "3m.vlt"
STEPS, CHUNK = 23, 10  # episodes of 6, 9 and 5 steps, then 3 steps of a fourth
ENDS = (5, 14, 19)


@pytest.fixture
def folder(tmp_path):
    return Path(shutil.copytree(FIXTURE, tmp_path / "3m.vlt")) / "Good"


def base(folder):
    return {"driver": "ocdbt", "base": {"driver": "file", "path": f"{folder}/"}}


def raw(folder, name, steps=None):
    """An array as tensorstore gives it, without the batch axis."""
    opened = tensorstore.open({"driver": "zarr", "kvstore": {**base(folder), "path": name}}).result()
    return opened.read().result() if steps is None else opened[0, :steps].read().result()


def put(folder, name, values):
    """One array as flashbax lays it out: (1, capacity, ...), the batch axis first, compressed in chunks of time."""
    values = np.asarray(values)
    shape = [1, 1000, *values.shape[1:]]
    metadata = {"shape": shape, "chunks": [1, CHUNK, *values.shape[1:]], "dtype": values.dtype.str,
                "compressor": {"id": "gzip", "level": 5}}  # fmt: skip
    spec = {"driver": "zarr", "kvstore": {**base(folder), "path": name}, "metadata": metadata}
    array = tensorstore.open(spec, create=True, delete_existing=True).result()
    array[0, : len(values)] = values


def claim(folder, name, **changes):
    """Change what an array says of itself."""
    told = json.loads(key_values(folder).read(f"{name}/.zarray").result().value)
    key_values(folder).write(f"{name}/.zarray", json.dumps(told | changes).encode()).result()


def count(folder, steps):
    spec = {"driver": "zarr", "kvstore": {**base(folder), "path": "vault_index"},
            "metadata": {"shape": [1], "chunks": [1], "dtype": "<i4"}}  # fmt: skip
    tensorstore.open(spec, create=True, delete_existing=True).result()[0] = steps


def content(continuous=False, agents=2, seed=0):
    rng = np.random.default_rng(seed)
    terminals, truncations = np.zeros((2, STEPS, agents), np.float32)
    terminals[list(ENDS[::2])], truncations[ENDS[1]] = 1, 1
    actions = rng.uniform(-1, 1, (STEPS, agents, 2)) if continuous else rng.integers(4, size=(STEPS, agents))
    return {
        "observations.": rng.normal(size=(STEPS, agents, 5)).astype(np.float32),
        "actions.": actions.astype(np.float32 if continuous else np.int32),
        "rewards.": rng.normal(size=(STEPS, agents)).astype(np.float32),
        "terminals.": terminals,
        "truncations.": truncations,
    }


def write(folder, arrays, steps=STEPS):
    folder.mkdir(parents=True)
    for name, values in arrays.items():
        put(folder, name, values)
    count(folder, steps)
    return folder


def key_values(folder):
    return tensorstore.KvStore.open(base(folder)).result()


@pytest.mark.parametrize("format", ["auto", "vault"])
@pytest.mark.parametrize("path", [FIXTURE, FIXTURE / "Good"])
def test_a_vault_of_flashbax_is_read_step_for_step(path, format):
    store, folder = EpisodeStore.open(path, format), FIXTURE / "Good"
    assert (store.episodes, store.lengths.tolist(), store.agents) == (3, [20] * 3, 3)
    assert (store.observation_size, store.action_size, store.state_size, store.discrete) == (30, 9, 48, True)
    assert bool(store.terminated.all()) and not bool(store.truncated.any())
    observations, state = raw(folder, "observations.", 60), raw(folder, "infos.state.", 60)
    actions, rewards = raw(folder, "actions.", 60), raw(folder, "rewards.", 60)
    for episode in range(3):
        one = store.subset([episode])
        for step in range(20):
            row = 20 * episode + step
            assert np.array_equal(one.observations[step], observations[row])
            assert np.array_equal(one.state[step], state[row])
            assert np.array_equal(one.actions[step], actions[row]) and np.array_equal(one.rewards[step], rewards[row])
        assert np.array_equal(one.observations[20], observations[20 * episode + 19])
    assert store.card["source"] == "3m.vlt/Good" and store.card["final_observation"] == "repeats the last one"
    assert str(FIXTURE.parent) not in str(store.card)


@pytest.mark.parametrize("continuous", [False, True])
def test_the_last_reward_is_kept_and_an_unfinished_episode_is_not(tmp_path, continuous):
    arrays = content(continuous)
    arrays["rewards."][list(ENDS)] = 50.0
    store = EpisodeStore.open(write(tmp_path / "x.vlt" / "Mine", arrays))
    assert store.lengths.tolist() == [6, 9, 5] and store.discrete is not continuous
    assert store.terminated.tolist() == [True, False, True] and store.truncated.tolist() == [False, True, False]
    assert np.array_equal(store.actions, arrays["actions."][:20])
    assert np.array_equal(store.rewards, arrays["rewards."][:20])
    assert store.rewards[store.offsets + store.lengths - 1].eq(50).all()
    assert store.card["dropped"] == "3 steps of an unfinished last episode"
    assert store.available_actions is None and store.state is None


def test_entries_that_are_infinite_throughout_are_padding(tmp_path):
    arrays = content(continuous=True)
    arrays["observations."][:, 1, 3:] = -np.inf
    store = EpisodeStore.open(write(tmp_path / "padded", arrays))
    assert store.card["observation_sizes"] == [5, 3]
    assert not store.observations[:, 1, 3:].any() and bool(store.observations[:, 0].ne(0).all())
    arrays["observations."][:15, 0, 2] = -np.inf
    with pytest.raises(UserError, match="unusable data: observations, episode 0, step 0: holds NaN or infinity"):
        EpisodeStore.open(write(tmp_path / "broken", arrays))


def test_masks_must_allow_what_was_done(tmp_path):
    arrays = content()
    legals = np.zeros((STEPS, 2, 6), np.float32)
    np.put_along_axis(legals, arrays["actions."][..., None].astype(np.int64), 1.0, -1)
    store = EpisodeStore.open(write(tmp_path / "legal", arrays | {"infos.legals.": legals}))
    assert store.action_size == 6 and np.array_equal(store.available_actions[:6], legals[:6] > 0)
    assert np.array_equal(store.available_actions[6], legals[5] > 0)
    legals[7, 1] = np.roll(legals[7, 1], 1)
    with pytest.raises(UserError, match="actions, episode 1, step 1: takes an action that is not available"):
        EpisodeStore.open(write(tmp_path / "illegal", arrays | {"infos.legals.": legals}))


@pytest.mark.parametrize("way", ["../3m.vlt/Good", "./../3m.vlt", "odd %20 #?=[x],y", "link"])
def test_any_way_of_naming_the_folder_will_do(folder, tmp_path, monkeypatch, way):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    shutil.copytree(folder, tmp_path / "here" / "odd %20 #?=[x],y")
    (tmp_path / "here" / "link").symlink_to(folder.parent)
    assert EpisodeStore.open(way).sha256 == EpisodeStore.open(FIXTURE).sha256


def test_several_vaults_have_to_be_named(tmp_path, folder):
    shutil.copytree(folder, folder.parent / "Poor")
    with pytest.raises(UserError, match="3m.vlt: holds 2 data sets: name one; allowed: .*Good, .*Poor"):
        EpisodeStore.open(folder.parent)
    (tmp_path / "empty.vlt").mkdir()
    with pytest.raises(UserError, match="empty.vlt: holds no flashbax vault"):
        EpisodeStore.open(tmp_path / "empty.vlt", "vault")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: count(f, 0), "vault_index: is 0; allowed: at least one step"),
        (lambda f: count(f, -3), "vault_index: is -3"),
        (lambda f: count(f, 45), "damaged, or no flashbax vault"),
        (lambda f: count(f, 5), "terminals, truncations: no episode ever ends"),
        (lambda f: count(f, 1001), r"has shape \(1, 1000, "),
        (lambda f: key_values(f).delete_range(tensorstore.KvStore.KeyRange("rewards.", "rewards/")).result(),
         "rewards.: is missing; allowed: actions., observations."),
        (lambda f: key_values(f).write("observations./0.1.0.0", None).result(), "damaged, or no flashbax vault"),
        (lambda f: key_values(f).write("actions./0.0.0", b"not gzip").result(), "damaged, or no flashbax vault"),
        (lambda f: key_values(f).write("actions./.zarray", b"{").result(), "damaged, or no flashbax vault"),
        (lambda f: key_values(f).write("actions./.zarray", b"[]").result(), "actions.: is not an array of numbers"),
        (lambda f: put(f, "rewards.", np.zeros((STEPS, 3), np.float32)), "rewards.: has 3 agents; allowed: 2"),
        (lambda f: put(f, "rewards.", np.zeros(STEPS, np.float32)), "rewards.: has 2 axes; allowed: 3 axes"),
        (lambda f: put(f, "rewards.", np.full((STEPS, 2), np.nan)), "rewards, episode 0, step 0: holds NaN"),
        (lambda f: put(f, "actions.", np.zeros((STEPS, 2), np.float32)), "actions.: has type float32; allowed: int"),
        (lambda f: put(f, "actions.", np.full((STEPS, 2, 1), 2.0)), "actions, episode 0, step 0: holds an action out"),
        (lambda f: put(f, "actions.", np.full((STEPS, 2), -1)), "actions, episode 0, step 0: holds an action out"),
        (lambda f: put(f, "observations.", np.zeros((STEPS, 2, 5), "<c8")), "observations.: is not an array of num"),
        (lambda f: claim(f, "observations.", chunks=[1, 10**8, 2, 5]), "observations.: has chunks of .1, 100000000"),
        (lambda f: claim(f, "observations.", dtype=[["x", "<f4"]]), "observations.: is not an array of num"),
    ],
)  # fmt: skip
def test_damaged_stores_are_refused_by_field(tmp_path, spoil, message):
    folder = write(tmp_path / "vault", content())
    spoil(folder)
    with pytest.raises(UserError, match=message) as caught:
        EpisodeStore.open(folder)
    assert "\n" not in str(caught.value)


def test_more_data_than_the_files_can_hold_are_refused_before_any_memory_is_taken(tmp_path):
    folder = write(tmp_path / "vault", content())
    for name, values in content().items():
        claim(folder, name, shape=[1, 10**12, *values.shape[1:]])
    count(folder, 2**31 - 1)
    with pytest.raises(UserError, match=r"claims [\d,]{15,} bytes of data in [\d,]{5,7} on disk"):
        EpisodeStore.open(folder)


def test_any_truncation_is_noticed(folder):
    for path in (folder / "manifest.ocdbt", *sorted((folder / "d").iterdir())[::5]):
        whole = path.read_bytes()
        for size in (0, 1, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:size])
            try:
                store = EpisodeStore.open(folder)
            except UserError as error:
                assert "\n" not in str(error)
            else:  # a file of an older version of the store, which nothing refers to any more
                assert store.sha256 == EpisodeStore.open(FIXTURE).sha256 and path.name != "manifest.ocdbt"
        path.write_bytes(whole)


def test_changed_bytes_never_give_changed_data(folder):
    sound, refused = EpisodeStore.open(FIXTURE).sha256, 0
    files = [folder / "manifest.ocdbt", *sorted((folder / "d").iterdir())]
    rng = np.random.default_rng(0)
    for _ in range(150):
        path = files[rng.integers(len(files))]
        whole = path.read_bytes()
        changed = bytearray(whole)
        changed[rng.integers(len(whole))] ^= int(rng.integers(1, 256))
        path.write_bytes(changed)
        try:
            assert EpisodeStore.open(folder).sha256 == sound
        except UserError as error:
            refused += 1
            assert "\n" not in str(error)
        path.write_bytes(whole)
    assert refused > 20


def test_links_and_special_files_are_refused(folder, tmp_path):
    victim = sorted((folder / "d").iterdir())[0]
    victim.rename(tmp_path / "elsewhere")
    for make in (lambda: victim.symlink_to(tmp_path / "elsewhere"), lambda: os.mkfifo(victim)):
        make()
        with pytest.raises(UserError, match="is a link or a special file"):
            EpisodeStore.open(folder)
        victim.unlink()


def crc32c(data):
    """CRC-32C (Castagnoli), bit by bit."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def redirect(path, old, new):
    """Change bytes of a manifest or node of the store and seal it again."""
    body = path.read_bytes()[:-4].replace(old, new)
    path.write_bytes(body + struct.pack("<I", crc32c(body)))


def test_a_store_cannot_point_outside_its_folder(tmp_path):
    folder, outside = tmp_path / "vault", tmp_path / "outside"
    write(folder, content())
    options = {"value_data_prefix": "in/outside/", "btree_node_data_prefix": "nodes/",
               "config": {"max_inline_value_bytes": 0, "compression": None}}  # fmt: skip
    copied, moved = tmp_path / "copy", {**base(tmp_path / "copy"), **options}
    into = tensorstore.KvStore.open(moved).result()
    for key in key_values(folder).list().result():
        into.write(key, key_values(folder).read(key).result().value).result()
    sound = EpisodeStore.open(folder).sha256
    assert EpisodeStore.open(copied).sha256 == sound
    for path in (copied / "manifest.ocdbt", *(copied / "nodes").iterdir()):
        redirect(path, b"in/outside/", b"in/outside/")
    assert EpisodeStore.open(copied).sha256 == sound  # sealed as the library does
    (copied / "in" / "outside").rename(outside)
    for path in (copied / "manifest.ocdbt", *(copied / "nodes").iterdir()):
        redirect(path, b"in/outside/", b"../outside/")
    with pytest.raises(UserError, match="Invalid key"):
        EpisodeStore.open(copied)


def test_without_tensorstore_the_reader_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorstore", None)
    with pytest.raises(UserError, match=r"needs the package tensorstore; allowed: pip install .*\[data\]"):
        EpisodeStore.open(FIXTURE)
