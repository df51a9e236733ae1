"""Collected sets and their cache, with the real simulator."""

import os
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version

import pytest
import torch

import envs
import madiff
from madiff import collection
from madiff.collection import cached, collect
from madiff.data import EpisodeStore
from madiff.experiment.rollout import rollout
from madiff.interfaces import EnvironmentSpec, UserError

TASK = ("smac-like", {"scenario": "3m"})

PROCESS = """
import sys
from madiff.collection import cached
store, path = cached("smac-like", {"scenario": "3m"}, "medium+poor", 41, 5, sys.argv[1], progress=False)
print(store.sha256, path)
"""


def test_collected_episodes_are_whole_and_repeat_with_the_seed():
    store = collect(*TASK, "good", 12, seed=1, progress=False)
    assert store.episodes == 12 and store.agents == 3 and store.discrete
    assert ((store.terminated | store.truncated).all(), store.available_actions is not None) == (True, True)
    card = store.card
    assert (card["env"], card["scenario"], card["quality"], card["seed"]) == ("smac-like", "3m", "good", 1)
    assert card["versions"]["madiff"] == madiff.__version__ and card["versions"]["pettingzoo"] == version("pettingzoo")
    assert "observation_sizes" not in card
    assert card["options"] == {"scenario": "3m"} and card["env_version"] == collection.env_version()
    assert collect(*TASK, "good", 12, seed=1, progress=False).sha256 == store.sha256
    assert collect(*TASK, "good", 12, seed=2, progress=False).sha256 != store.sha256


def test_waves_are_joined(monkeypatch):
    monkeypatch.setattr(collection, "WAVE", 5)
    store = collect(*TASK, "random", 12, seed=1, progress=True)
    first = store.subset(range(5)), store.subset(range(5, 10))
    assert store.episodes == 12 and first[0].sha256 != first[1].sha256


def test_progress_counts_steps_and_every_environment_is_closed(monkeypatch):
    advanced, alive, sizes = [], set(), []
    make = envs.make_batched

    def make_closing(*arguments, **options):
        env = make(*arguments, **options)
        sizes.append(env.copies)
        alive.add(env)
        env.close = lambda: alive.remove(env)
        return env

    @contextmanager
    def noting(label, total, shown):
        yield advanced.append

    monkeypatch.setattr(collection, "PROCESS_WAVE", 4)
    monkeypatch.setattr(envs, "make_batched", make_closing)
    monkeypatch.setattr(collection, "progress_bar", noting)
    collect(*TASK, "good+random", 12, seed=1)
    assert sizes == [1, 4, 2, 4, 2]  # what can be closed runs in small waves
    assert not alive and len(advanced) > 4 * 10 and sum(advanced) == pytest.approx(12) and min(advanced) >= 0
    monkeypatch.setattr(collection, "rollout", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        collect(*TASK, "good", 3, seed=1)
    assert not alive


def test_long_recordings_of_many_agents_run_in_smaller_waves():
    small = EnvironmentSpec("x", "", agents=3, observation_size=30, action_size=9, discrete=True, state_size=48,
                            episode_limit=60)  # fmt: skip
    assert collection.wave_size(small, 1024) == 1024 and collection.wave_size(small, 128) == 128
    large = replace(small, agents=27, observation_size=285, action_size=36, state_size=1000, episode_limit=180)
    copies = collection.wave_size(large, 1024)
    numbers = 27 * (285 + 36) + 1000
    assert copies * 180 * numbers * 4 <= 2**29 < (copies + 1) * 180 * numbers * 4
    assert collection.wave_size(replace(large, episode_limit=10**6), 1024) == 1


def test_more_episodes_than_memory_holds_are_refused_after_the_first_wave(monkeypatch):
    monkeypatch.setattr(collection, "WAVE", 5)
    waves = iter(range(2))
    monkeypatch.setattr(collection, "rollout", lambda *a, **k: [next(waves), rollout(*a, **k)][1])
    with pytest.raises(UserError, match="data.episodes: 1000000000 episodes would take .*at most [0-9]+ on"):
        collect("xor", {}, "random", 10**9, seed=0, progress=False)


def test_a_mixture_alternates_equal_shares():
    mixed = collect(*TASK, "good+random", 9, seed=3, progress=False)
    again = collect(*TASK, "good+random", 8, seed=3, progress=False)
    assert mixed.episodes == 9 and mixed.card["quality"] == "good+random"
    returns = mixed.team_returns()
    assert returns[0::2].mean() > returns[1::2].mean()
    assert again.sha256 == collect(*TASK, "good+random", 8, seed=3, progress=False).sha256


def test_shares_alternate_until_one_runs_out():
    assert collection.alternating([3, 2, 2]).tolist() == [0, 3, 5, 1, 4, 6, 2]


def test_bad_requests_are_refused_and_leave_nothing(tmp_path):
    cache = tmp_path / "cache"
    with pytest.raises(UserError, match="nonsense") as caught:
        cached(*TASK, "medium+nonsense", 10, 0, cache)
    assert "poor" in str(caught.value)
    with pytest.raises(UserError, match="nowhere"):
        cached("nowhere", {}, "good", 10, 0, cache)
    with pytest.raises(UserError, match="data.episodes: is 1; allowed: at least 2"):
        cached(*TASK, "medium+poor", 1, 0, cache)
    assert not [path for path in tmp_path.rglob("*.h5")]
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        cached(*TASK, "good", 3, 0, tmp_path / "file")


def test_the_cache_knows_every_input_apart(tmp_path, monkeypatch):
    monkeypatch.setenv("MADIFF_CACHE", str(tmp_path))
    store, path = cached(*TASK, "poor", 6, 0, progress=False)
    assert path.parent == tmp_path and EpisodeStore.open(path).card == store.card
    written = path.stat().st_mtime_ns
    again, same = cached(*TASK, "poor", 6, 0, progress=False)
    assert (same, path.stat().st_mtime_ns) == (path, written)
    assert again.card == store.card and torch.equal(again.actions, store.actions)
    paths = {path}
    for quality, episodes, seed in (("good", 6, 0), ("poor", 7, 0), ("poor", 6, 1)):
        paths.add(cached(*TASK, quality, episodes, seed, progress=False)[1])
    monkeypatch.setattr(collection, "VERSION", collection.VERSION + 1)
    paths.add(cached(*TASK, "poor", 6, 0, progress=False)[1])
    assert len(paths) == 5


def test_a_damaged_cache_file_is_made_again_with_a_notice(tmp_path, capsys):
    store, path = cached(*TASK, "poor", 6, 0, tmp_path, progress=False)
    whole = bytearray(path.read_bytes())
    position = whole.rindex(store.observations.numpy().tobytes()[:512]) + 100
    whole[position] ^= 0xFF
    path.write_bytes(whole)
    with pytest.raises(UserError):
        EpisodeStore.open(path)
    capsys.readouterr()
    again, _ = cached(*TASK, "poor", 6, 0, tmp_path, progress=False)
    notice = capsys.readouterr().err
    assert notice.count("\n") == 1 and "making this data set again" in notice and path.name in notice
    assert again.sha256 == store.sha256 == EpisodeStore.open(path).sha256


def test_what_a_killed_process_left_half_written_is_cleared_away(tmp_path):
    _, path = cached(*TASK, "poor", 2, 0, tmp_path, progress=False)
    torn, other = tmp_path / f".{path.name}.7-0badcafe.tmp", tmp_path / ".smac-like-other.h5.7-0badcafe.tmp"
    torn.write_bytes(path.read_bytes()[:500])
    other.write_bytes(b"")
    cached(*TASK, "poor", 2, 0, tmp_path, progress=False)
    assert not torn.exists() and other.exists() and path.exists()


def test_two_processes_at_once_make_one_file(tmp_path):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for _ in range(2)
    ]
    answers = [process.communicate(timeout=120) for process in running]
    assert [process.returncode for process in running] == [0, 0], answers
    assert answers[0][0] == answers[1][0]
    assert len(list(tmp_path.glob("*.h5"))) == 1 and not list(tmp_path.glob(".*tmp"))
