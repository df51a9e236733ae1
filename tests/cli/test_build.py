"""The registry, and making things from configurations."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch

import envs
import madiff
from madiff import build
from madiff.data import EpisodeStore
from madiff.interfaces import UserError
from madiff.schema import Data

ROOT = Path(madiff.__file__).parent.parent
CPU = torch.device("cpu")


def data(**changes) -> Data:
    default = {"quality": "good", "episodes": None, "seed": 0, "path": None, "format": "auto", "cache": None}
    return Data(**default | changes)


def store(agents: int = 2, observation_size: int = 3, actions: int = 4) -> EpisodeStore:
    torch.manual_seed(0)
    return EpisodeStore.from_arrays([
        {"observations": torch.randn(3, agents, observation_size), "actions": torch.zeros(2, agents, dtype=torch.int64),
         "rewards": torch.ones(2, agents), "terminated": True}
        for _ in range(3)
    ], action_size=actions)  # fmt: skip


def test_every_method_file_is_found_by_name_and_shared_files_are_not():
    assert {"bc", "madiff-c", "madiff-d"} <= set(build.registry())
    assert list(build.registry()) == sorted(build.registry())
    for name, found in build.registry().items():
        assert name == found.name and found.defaults["steps"] > 0 and found.defaults["batch_size"] > 0
        assert set(found.acting) <= set(found.defaults)


def test_an_unknown_method_is_refused_with_the_list():
    with pytest.raises(UserError, match="unknown method 'omarr'.*allowed: adaptdiffuser, bc, .*madiff-d, .*qmix"):
        build.method("omarr")


def test_every_environment_has_a_configuration():
    assert sorted(path.stem for path in (ROOT / "configs" / "env").glob("*.yaml")) == sorted(envs.names())


def test_the_version_is_the_projects():
    assert madiff.__version__ == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def test_importing_the_package_needs_neither_hydra_nor_torch():
    blocked = "import sys; sys.modules.update(dict.fromkeys(['hydra', 'omegaconf', 'torch', 'wandb'])); import madiff"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, "-c", blocked], env=environment).returncode == 0


def test_loading_knows_nothing_of_hydra():
    blocked = (
        "import sys; sys.modules.update(dict.fromkeys(['hydra', 'omegaconf', 'wandb'])); import madiff\n"
        "try: madiff.load('nowhere')\nexcept ValueError as error: assert 'not a run directory' in str(error)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, "-c", blocked], env=environment).returncode == 0


def test_agents_and_scenario_reach_the_environment():
    spec = build.make_problem({"name": "smac-like", "strict": True}, None, "2s3z", CPU).spec
    assert (spec.scenario, spec.agents) == ("2s3z", 5)
    assert build.make_problem({"name": "smac-like"}, 4, None, CPU).make(3).copies == 3
    with pytest.raises(UserError, match="agents"):
        build.make_problem({"name": "smac-like"}, 3, "2s3z", CPU)
    with pytest.raises(UserError, match="scenario"):
        build.make_problem({"name": "smac-like"}, None, "9z", CPU)


def test_an_option_given_to_the_environment_holds_in_every_copy_made():
    env = build.make_problem({"name": "smac-like", "strict": True}, 2, None, CPU).make(1)
    env.reset(0)
    with pytest.raises((UserError, ValueError)):
        env.step(torch.zeros(1, 2, dtype=torch.int64))


def test_mistakes_in_a_methods_options_are_the_users():
    spec = build.make_problem({"name": "smac-like"}, 2, None, CPU).spec
    for wrong in ({"solver": "dimm"}, {"schedule": "cosin"}, {"parametrization": "eps"}, {"width": 97}, {"nothing": 1}):
        with pytest.raises(UserError, match="algo"):
            build.make_learner({"name": "madiff-d", **wrong}, spec, CPU, 0)


def test_data_of_other_sizes_is_refused(tmp_path):
    problem = build.make_problem({"name": "smac-like"}, 2, None, CPU)
    store().save(tmp_path / "small.h5")
    with pytest.raises(UserError, match="data.path: the data's observation_size is 3"):
        build.make_store(data(path=tmp_path / "small.h5"), problem)


def test_one_agents_file_that_lacks_a_column_is_refused(tmp_path):
    problem = build.make_problem({"name": "particle", "scenario": "spread"}, None, None, CPU)
    shutil.copytree(ROOT / "tests/data/formats/omar/simple_spread/random/seed_0_data", tmp_path / "seed")
    actions = tmp_path / "seed" / "acs_1.npy"
    np.save(actions, np.load(actions)[:, :1])
    with pytest.raises(UserError, match=r"data.path: the data's action_sizes are \[2, 1, 2\]; allowed: \[2, 2, 2\]"):
        build.make_store(data(path=tmp_path / "seed", quality="random"), problem)


def test_data_from_a_file_is_cut_to_the_episodes_asked_for(tmp_path):
    problem = build.make_problem({"name": "smac-like"}, 2, None, CPU)
    spec = problem.spec
    store(2, spec.observation_size, spec.action_size).save(tmp_path / "three.h5")
    assert build.make_store(data(path=tmp_path / "three.h5"), problem)().episodes == 3
    assert build.make_store(data(path=tmp_path / "three.h5", episodes=2), problem)().episodes == 2
    assert build.make_store(data(path=tmp_path / "three.h5", episodes=9), problem)().episodes == 3


def test_actions_that_nobody_played_are_still_the_environments(tmp_path):
    problem = build.make_problem({"name": "smac-like"}, 2, None, CPU)
    spec = problem.spec
    store(2, spec.observation_size, spec.action_size - 1).save(tmp_path / "few.h5")
    assert build.make_store(data(path=tmp_path / "few.h5"), problem)().action_size == spec.action_size
    store(2, spec.observation_size, spec.action_size + 1).save(tmp_path / "many.h5")
    with pytest.raises(UserError, match="data.path: the data's action_size is"):
        build.make_store(data(path=tmp_path / "many.h5"), problem)


def test_unknown_qualities_and_formats_are_refused_before_any_work():
    problem = build.make_problem({"name": "smac-like"}, 2, None, CPU)
    with pytest.raises(UserError, match="godo.*allowed.*good"):
        build.make_store(data(quality="medium+godo"), problem)
    with pytest.raises(UserError, match="data.format.*native"):
        build.make_store(data(format="csv"), problem)
