"""Small files that claim, or unpack to, what no machine holds: refused by what they say, before the memory is taken."""

import io
import resource
import zipfile
import zlib
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from madiff.data import EpisodeStore
from madiff.experiment import checkpoint, run_directory
from madiff.experiment.run_directory import RunDirectory
from madiff.interfaces import UserError
from safe import constraints
from tests.data import test_d4rl, test_dsrl, test_minari, test_vault
from tests.experiment.test_checkpoint import rewritten
from tests.experiment.training_job import Regression

ROOM = 2**28
"""Bytes that a refusal may take, four times as much as any of these files would fill."""
UNPACKED = 2**26
LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60))


@contextmanager
def little_room():
    """No more than ROOM bytes above what this process has."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + ROOM, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def swollen(file, name, rows):
    """An array of few rows in one chunk that unpacks to more than is allowed."""
    with h5py.File(file, "r+") as target:
        del target[name]
        options = {"chunks": (UNPACKED // 4,), "maxshape": (None,), "compression": "gzip", "dtype": "f4"}
        made = target.create_dataset(name, shape=(rows,), **options)
        made.id.write_direct_chunk((0,), zlib.compress(bytes(UNPACKED), 1))


def dsrl(folder):
    test_dsrl.write(folder / "circle.hdf5", [6, 4])
    swollen(folder / "circle.hdf5", "rewards", 10)
    return folder / "circle.hdf5"


def d4rl(folder):
    test_d4rl.write(folder / test_d4rl.NAME, [6, 4])
    swollen(folder / test_d4rl.NAME, "rewards", 10)
    return folder / test_d4rl.NAME


def minari(folder):
    test_minari.lay(folder / "slow-v0", [test_minari.episode(10)])
    swollen(folder / "slow-v0" / "data" / "main_data.hdf5", "episode_0/rewards", 10)
    return folder / "slow-v0"


@pytest.mark.parametrize("make", [dsrl, d4rl, minari])
def test_a_small_array_in_a_huge_chunk_is_refused(tmp_path, make):
    path = make(tmp_path)
    with little_room(), pytest.raises(UserError, match="rewards: has chunks of .16777216,.; allowed: at most 16,777"):
        EpisodeStore.open(path)


def test_chunks_as_large_as_their_array_are_read(tmp_path, monkeypatch):
    arrays = test_dsrl.write(tmp_path / "circle.hdf5", [6, 4])
    with h5py.File(tmp_path / "circle.hdf5", "r+") as target:
        del target["rewards"]
        target.create_dataset("rewards", data=arrays["rewards"], chunks=(10,), compression="gzip")
    monkeypatch.setattr("madiff.data.readers.arrays.LARGEST_CHUNK", 8)
    assert EpisodeStore.open(tmp_path / "circle.hdf5").transitions == 10


def test_choices_of_all_episodes_together_are_counted(tmp_path, monkeypatch):
    coin = {"type": "Discrete", "n": 5, "start": 0}
    episodes = [test_minari.episode(9, observations=np.zeros(10, np.int64)) for _ in range(3)]
    folder = test_minari.lay(tmp_path / "coins-v0", episodes, coin)
    monkeypatch.setattr("madiff.data.readers.minari.LARGEST_ONE_HOT", 149)
    with pytest.raises(UserError, match="has more than 30 rows of 5 choices"):
        EpisodeStore.open(folder)
    monkeypatch.setattr("madiff.data.readers.minari.LARGEST_ONE_HOT", 150)
    assert EpisodeStore.open(folder).observation_size == 5


def test_vaults_that_are_compressed_beyond_measure_are_refused(tmp_path):
    folder = test_vault.write(tmp_path / "vault", test_vault.content())
    test_vault.claim(folder, "rewards.", compressor={"id": "bz2", "level": 1})
    with pytest.raises(UserError, match="rewards.: is compressed by 'bz2'; allowed: gzip, zlib, blosc"):
        EpisodeStore.open(folder)


def test_a_training_state_that_unpacks_is_refused(tmp_path):
    path = checkpoint.save(tmp_path, 3, Regression(), {})
    state = io.BytesIO()
    torch.save({"learner": torch.zeros(UNPACKED // 4), "loop": {}}, state)
    with zipfile.ZipFile(state) as source, zipfile.ZipFile(path / "train_state.pt", "w") as target:
        for name in source.namelist():
            target.writestr(name, source.read(name), zipfile.ZIP_DEFLATED, compresslevel=1)
    rewritten(path)
    state.close()
    assert (path / "train_state.pt").stat().st_size < UNPACKED / 100
    with little_room(), pytest.raises(UserError, match="train_state.pt is not plain") as caught:
        checkpoint.read(path).training_state()
    assert "claims more than the file holds" in str(caught.value.__cause__)


def test_values_that_are_said_once_and_meant_without_end_are_refused(tmp_path):
    RunDirectory.open(tmp_path / "run", {"a": 1}, {}).close()
    (tmp_path / "run" / "config.yaml").write_text(LAUGHS)
    (tmp_path / "walls.yaml").write_text(LAUGHS)
    with little_room(), pytest.raises(UserError, match="run is not a run directory .names the same values over"):
        run_directory.read(tmp_path / "run")
    with little_room(), pytest.raises(UserError, match="walls.yaml: is not YAML .names the same values over"):
        constraints.load(tmp_path / "walls.yaml", ["x"])


def test_values_that_two_places_share_are_plain_yaml(tmp_path):
    shared = [0.9, 0.999]
    config = {"first": {"betas": shared}, "second": {"betas": shared}}
    with RunDirectory.open(tmp_path / "run", config, {}) as run:
        assert "*id001" in (run.path / "config.yaml").read_text() and run_directory.read(run.path)[0] == config
