"""The native file: exact round trips, and one clear line for anything that is not such a file."""

import hashlib
import json
import os

import h5py
import numpy as np
import pytest
import torch

from madiff.data import EpisodeStore
from madiff.data.readers import native
from madiff.interfaces import UserError


def make(continuous=False):
    rng = np.random.default_rng(0)
    episodes = []
    for steps in (3, 5):
        discrete = {"actions": rng.integers(4, size=(steps, 2)), "available_actions": np.ones((steps + 1, 2, 4))}
        episodes.append(
            {
                "observations": rng.normal(size=(steps + 1, 2, 3)),
                "rewards": rng.normal(size=(steps, 2)),
                "state": rng.normal(size=(steps + 1, 4)),
                **({"actions": rng.uniform(-1, 1, (steps, 2, 2))} if continuous else discrete),
            }
        )
    return EpisodeStore.from_arrays(episodes, card={"env": "walk", "options": {"agents": 2}, "action_size": "a lie"})


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "data.h5"
    make().save(path)
    return path


@pytest.mark.parametrize("continuous", [False, True])
@pytest.mark.parametrize("format", ["auto", "native"])
def test_a_saved_store_comes_back_exactly(tmp_path, continuous, format):
    store, path = make(continuous), tmp_path / "new folder" / "a=b, (c).h5"
    store.save(path)
    again = EpisodeStore.open(path, format)
    assert again.card == store.card
    assert again.tensors.keys() == store.tensors.keys()
    for name, values in store.tensors.items():
        assert torch.equal(values, again.tensors[name]) and values.dtype == again.tensors[name].dtype
    assert os.listdir(path.parent) == [path.name]


def test_saving_over_a_file_replaces_it_whole(file):
    make(continuous=True).save(file)
    assert not EpisodeStore.open(file).discrete
    assert os.listdir(file.parent) == [file.name]


def test_a_failed_save_leaves_the_old_file_and_nothing_else(file):
    store = make()
    unwritable = EpisodeStore(**store.tensors, provenance={"env": object()})
    oversized = EpisodeStore(**store.tensors, provenance={"note": "x" * 70_000})
    for bad, message in ((unwritable, "cannot be written as JSON"), (oversized, "at most 60000")):
        with pytest.raises(UserError, match=message):
            bad.save(file)
    assert EpisodeStore.open(file).sha256 == store.sha256
    with pytest.raises(UserError, match="is a directory"):
        store.save(file.parent)
    with pytest.raises(UserError, match="cannot be written"):
        store.save(file / "inside.h5")
    assert os.listdir(file.parent) == [file.name]


def test_wrong_paths_and_formats(file, tmp_path):
    (tmp_path / "text.h5").write_text("observations")
    (tmp_path / "empty.h5").touch()
    for path, message in (
        ("missing.h5", "missing.h5: no such file"),
        ("text.h5", "text.h5: holds no known format"),
        ("empty.h5", "empty.h5: holds no known format"),
        ("", "holds no known format"),
    ):
        with pytest.raises(UserError, match=message):
            EpisodeStore.open(tmp_path / path)
    os.mkfifo(tmp_path / "pipe")
    irregular = "is not a regular file"
    for path, message in (("text.h5", "damaged, or not a native"), ("", irregular), ("pipe", irregular)):
        with pytest.raises(UserError, match=message):
            EpisodeStore.open(tmp_path / path, format="native")
    with pytest.raises(UserError, match="unknown format 'pickle'; allowed: auto, native"):
        EpisodeStore.open(file, format="pickle")


def test_any_truncation_is_noticed(file):
    whole = file.read_bytes()
    for size in np.linspace(0, len(whole) - 1, 40).astype(int):
        file.write_bytes(whole[:size])
        with pytest.raises(UserError) as caught:
            EpisodeStore.open(file)
        assert "\n" not in str(caught.value) and str(file) in str(caught.value)


def test_changed_bytes_never_give_changed_data(file):
    whole, sealed = file.read_bytes(), make().card
    rng, refused = np.random.default_rng(0), 0
    for position in rng.integers(len(whole), size=300):
        changed = bytearray(whole)
        changed[position] ^= int(rng.integers(1, 256))
        file.write_bytes(changed)
        try:
            assert EpisodeStore.open(file).card == sealed
        except UserError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 50


def replace_dataset(file, name, **options):
    with h5py.File(file, "a") as opened:
        del opened[name]
        opened.create_dataset(name, **options)


def seal(file, card):
    text = json.dumps(card).encode()
    with h5py.File(file, "a") as opened:
        opened.attrs["card"] = np.bytes_(text)
        opened.attrs["card_sha256"] = np.bytes_(hashlib.sha256(text).hexdigest())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": np.array([b"pickle"] * 8, dtype=h5py.string_dtype())}, "rewards is not a plain array"),
        ({"data": np.array([[1, 2]] * 8), "dtype": np.int16}, "rewards is not a plain array"),
        ({"data": np.zeros((8, 2), np.float32), "compression": "gzip"}, "not stored in one piece"),
        ({"shape": (8, 10**12), "dtype": np.float32}, "more values than the file holds"),
        ({"shape": (8, 2), "dtype": np.float32, "external": [("/etc/hostname", 0, 64)]}, "not stored in one piece"),
        ({"data": np.zeros((9, 2), np.float32)}, r"rewards: has shape \(9, 2\)"),
        ({"data": np.full((8, 2), np.nan, np.float32)}, "rewards, episode 0, step 0: holds NaN"),
        ({"data": np.zeros((8, 2), np.float32)}, "its SHA-256 differs"),
    ],
)
def test_only_what_writing_makes_is_read(file, options, message):
    replace_dataset(file, "rewards", **options)
    with pytest.raises(UserError, match=message):
        EpisodeStore.open(file)


def test_links_and_missing_fields_are_refused(file):
    with h5py.File(file, "a") as opened:
        del opened["rewards"]
    with pytest.raises(UserError, match="rewards"):
        EpisodeStore.open(file)
    with h5py.File(file, "a") as opened:
        opened["rewards"] = h5py.ExternalLink("/elsewhere.h5", "rewards")
    with pytest.raises(UserError, match="damaged, or not a native"):
        EpisodeStore.open(file)


def test_foreign_files_other_versions_and_changed_cards(file, tmp_path):
    with h5py.File(tmp_path / "foreign.h5", "w") as opened:
        opened["observations"] = np.zeros(3)
    with pytest.raises(UserError, match="not native episode data"):
        EpisodeStore.open(tmp_path / "foreign.h5")
    measured = make().measured
    for wrong in (
        {},
        {"measured": measured, "provenance": []},
        {"measured": {"action_size": "four", "sha256": ""}, "provenance": {}},
        {"measured": measured | {"sha256": "0" * 64}, "provenance": {}},
    ):
        seal(file, wrong)
        with pytest.raises(UserError, match="data.h5"):
            EpisodeStore.open(file)
    with h5py.File(file, "a") as opened:
        opened.attrs["card"] = np.bytes_(b"{}")
    with pytest.raises(UserError, match="its card was changed"):
        EpisodeStore.open(file)
    with h5py.File(file, "a") as opened:
        opened.attrs["version"] = np.bytes_("2")
    with pytest.raises(UserError, match="written in version 2"):
        EpisodeStore.open(file)


def test_interrupted_writing_leaves_no_trace(tmp_path):
    with pytest.raises(KeyboardInterrupt), native.atomic_path(tmp_path / "x.h5") as temporary:
        temporary.write_bytes(b"half")
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []
