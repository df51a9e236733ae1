"""From an import path to a trained and evaluated policy."""

import json

import pytest

from madiff.data.store import EpisodeStore
from tests.cli.command import complaint, run

SMALL = ["hardware.device=cpu", "hardware.threads=1", "env.workers=0"]
SHORT = ["train.steps=20", "train.evaluate_every=20", "train.evaluate_episodes=2", "evaluation.episodes=3",
         "train.baselines=[]", "algo.batch_size=4", "data.episodes=6", "data.quality=random"]  # fmt: skip


@pytest.mark.parametrize("id", ["mpe2.simple_speaker_listener_v4", "pettingzoo.classic.rps_v2"])
def test_collect_train_evaluate(workplace, id):
    env = ["env=pettingzoo", f"env.id={id}", *SMALL]
    assert run("collect", *env, "data.quality=random", "data.episodes=5", "out=set.h5") == 0
    store = EpisodeStore.open("set.h5")
    assert store.episodes == 5 and store.available_actions is not None
    assert run("train", *env, *SHORT, "algo=bc", "run_dir=run") == 0
    summary = json.loads((workplace / "run/summary.json").read_text())
    assert summary["env"] == "pettingzoo" and summary["scenario"] == id.rpartition(".")[2]
    assert run("evaluate", "run=run", "episodes=4", "hardware.device=cpu", "film=true") == 0
    assert list((workplace / "run/evaluations").glob("*/rollout.gif"))


def test_options_of_the_environment(workplace):
    given = ["env=pettingzoo", "env.id=mpe2.simple_spread_v3", "env.options.N=2", "env.limit=4", *SMALL]
    assert run("collect", *given, "data.quality=random", "data.episodes=2", "out=set.h5") == 0
    store = EpisodeStore.open("set.h5")
    assert store.agents == 2 and store.lengths.tolist() == [4, 4]


def test_refusals(capsys):
    collect = ["env=pettingzoo", *SMALL, "out=set.h5"]
    assert "env.id: not given" in complaint(capsys, "collect", *collect)
    assert "is not an installed package" in complaint(capsys, "collect", *collect, "env.id=os.path")
    line = complaint(capsys, "collect", *collect, "env.id=mpe2.simple_v3", "data.quality=good")
    assert "no quality is called 'good'; allowed: random" in line
