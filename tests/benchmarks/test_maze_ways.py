"""Lengths of ways in a maze: counted another way, of data, planner and safeguard, and arguments that make no sense."""

import numpy as np
import pytest

import envs
from benchmarks import maze_ways
from envs.maze import Maze
from madiff.experiment.rollout import rollout
from tests.cli.command import run


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A planner, hardly trained."""
    folder = tmp_path_factory.mktemp("maze")
    assert run(
        "train", "env=maze", "env.repeat=10", "algo=diffuser", "data.quality=shortest", "data.episodes=6",
        "train.steps=2", "train.baselines=[]", "train.evaluate_episodes=1", "evaluation.episodes=1",
        "evaluation.film=false", "algo.width=8", "algo.horizon=8", "algo.batch_size=4", "algo.values.learn=none",
        f"data.cache={folder}/cache", f"run_dir={folder}/run",
    ) == 0  # fmt: skip
    return folder / "run"


def test_a_way_round_the_corners_is_about_the_shortest_and_one_by_cells_is_longer():
    env = Maze(2, scenario="umaze", repeat=10)
    outcome = rollout(env, envs.behaviour(env, "shortest"), seed=1, record=True)
    found = maze_ways.ratios(env, outcome)
    seen = outcome.store.observations.reshape(2, -1, 6).double()
    for ratio, path in zip(found, seen, strict=True):
        gone, last = 0.0, None
        for place in path[:, :2]:  # step by step until it is there
            gone += 0.0 if last is None else float((place - last).norm())
            last = place
            if (place - path[0, 4:]).norm() <= 0.45:
                break
        way = gone + float((last - path[0, 4:]).norm())
        shortest = maze_ways.shortest(env, np.array([[path[0, :2].numpy(), path[0, 4:].numpy()]]))[0]
        assert ratio == pytest.approx(way / shortest) and 0.97 < ratio < 1.1
    by_cells = maze_ways.ratios(env, rollout(env, envs.behaviour(env, "expert"), seed=1, record=True))
    assert (by_cells > found + 0.02).all()
    assert maze_ways.shortest(Maze(1), np.array([[[-3.5, 1.5], [3.5, 1.5]]]))[0] > 7.0


def test_data_planner_and_safeguard_have_a_line_each(trained, capsys):
    told = [f"run={trained}", "episodes=3", "safe=exact", "safe.margin=0.05"]
    assert maze_ways.main(told) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["data, shortest", "diffuser", "exact"]
    assert "arrived 100.0%" in lines[0] and float(lines[0].split()[2]) < 1.1
    assert maze_ways.main(told) == 0 and capsys.readouterr().out.splitlines() == lines


@pytest.mark.parametrize("told", [[], ["run=nowhere"], ["episodes=0"], ["runs=x"], ["safe.nonsense=1"]])
def test_senseless_arguments_are_one_line(told, trained, capsys):
    told = told if told == [] or told[0].startswith("run") else [f"run={trained}", *told]
    assert maze_ways.main(told) == 2
    assert capsys.readouterr().err.startswith("error: ")
