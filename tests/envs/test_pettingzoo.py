"""Environments by import path: which are imported, and whether batching repeats what the environment itself does."""

import importlib.metadata

import mpe2.simple_reference_v3
import mpe2.simple_speaker_listener_v4
import numpy as np
import pytest
import torch
from pettingzoo.test import parallel_api_test

import envs
from envs.pettingzoo_env import needs_pettingzoo
from madiff.experiment.rollout import rollout
from madiff.interfaces import UserError


@pytest.mark.parametrize("module", [mpe2.simple_reference_v3, mpe2.simple_speaker_listener_v4])
def test_batching_repeats_the_environment(module):
    """The same seed and actions, in the environment itself and in the second of three copies."""
    env = envs.make_batched("pettingzoo", 3, id=module.__name__, workers=0)
    own = module.parallel_env()
    step = env.reset(11)
    seed = int(env.state["seed"][1])
    seen, _ = own.reset(seed=seed)
    sizes = env.spec.observation_sizes or (env.spec.observation_size,) * 2
    generator, lasted = torch.Generator().manual_seed(0), 0
    while own.agents:
        for row, agent in enumerate(own.possible_agents):
            assert np.array_equal(step.observations[1, row, : sizes[row]].numpy(), seen[agent])
            assert step.available_actions[1, row].sum() == own.action_space(agent).n
        assert np.allclose(step.state[1].numpy(), own.state())
        draws = torch.rand(step.available_actions.shape, generator=generator)
        actions = (draws * step.available_actions).argmax(-1)
        step = env.step(actions)
        played = dict(zip(own.possible_agents, actions[1].tolist(), strict=True))
        seen, rewards, terminations, truncations, _ = own.step(played)
        assert step.rewards[1].tolist() == pytest.approx([rewards[agent] for agent in own.possible_agents])
        lasted += 1
    assert lasted == env.spec.episode_limit == 25
    assert step.truncated.all() and all(truncations.values()) and not step.terminated.any()
    assert np.array_equal(step.observations[1, 1, : sizes[1]].numpy(), seen[own.possible_agents[1]]), "seen last"


def test_heterogeneous_agents_and_options():
    env = envs.make_batched("pettingzoo", 2, id="mpe2.simple_speaker_listener_v4", limit=9, options={"max_cycles": 12})
    spec = env.spec
    assert (spec.observation_sizes, spec.action_sizes, spec.episode_limit) == ((3, 11), (3, 5), 9)
    assert spec.scenario == "simple_speaker_listener_v4"
    assert envs.make_batched("pettingzoo", 1, **spec.options).spec == spec
    run = rollout(env, envs.behaviour(env, "random"), seed=0, record=True)
    assert (run.lengths == 9).all() and not run.illegal.any() and not run.terminated.any()


def test_continuous_actions_of_an_installed_environment():
    env = envs.make_batched("pettingzoo", 1, id="mpe2.simple_spread_v3", options={"continuous_actions": True})
    assert not env.spec.discrete and env.spec.action_size == 5
    assert rollout(env, envs.behaviour(env, "random"), seed=0).lengths.tolist() == [25]


def test_pettingzoo_form():
    env = envs.make("pettingzoo", id="pettingzoo.classic.rps_v2", render_mode="rgb_array")
    parallel_api_test(env, num_cycles=40)
    env.reset(seed=0)
    env.step(dict.fromkeys(env.agents, 1))
    picture = env.render()
    assert picture.dtype == np.uint8 and picture.ndim == 3 and picture.std() > 0


def test_only_packages_that_require_pettingzoo_are_imported(tmp_path, monkeypatch):
    mark = tmp_path / "imported"
    folder = tmp_path / "stranger"
    folder.mkdir()
    (folder / "__init__.py").write_text(f"open({str(mark)!r}, 'w')")
    monkeypatch.syspath_prepend(str(tmp_path))
    refusal = "not an installed package that requires pettingzoo; allowed: a package of your own after pip install"
    for id in ("stranger", "stranger.board_v0", "os", "numpy.testing", "no_such_package.env"):
        with pytest.raises(UserError, match=refusal):
            envs.make_batched("pettingzoo", 1, id=id)
    assert not mark.exists()
    needs = {"Stranger": ["numpy", "PettingZoo[classic]>=1.24 ; python_version > '3'"], "other": ["pettingzoo-extra"]}
    monkeypatch.setattr("envs.pettingzoo_env.requires", needs.get)
    monkeypatch.setattr(
        "envs.pettingzoo_env.packages_distributions", lambda: {"stranger": ["Stranger"], "other_package": ["other"]}
    )
    needs_pettingzoo.cache_clear()
    try:
        assert needs_pettingzoo("stranger") and not needs_pettingzoo("other_package")
        with pytest.raises(UserError, match="env.id: stranger has no parallel_env"):
            envs.make_batched("pettingzoo", 1, id="stranger")
        assert mark.exists()
    finally:
        needs_pettingzoo.cache_clear()


def test_user_errors():
    for options, line in (
        ({}, "env.id: not given; allowed: the import path of a module with parallel_env"),
        ({"id": "mpe2; import os"}, "env.id: 'mpe2; import os' is not an import path"),
        ({"id": 3}, "env.id: 3 is not an import path"),
        ({"id": "mpe2.simple_nothing_v9"}, "env.id: mpe2.simple_nothing_v9 cannot be imported"),
        ({"id": "pettingzoo.utils"}, "env.id: pettingzoo.utils has no parallel_env"),
        ({"id": "mpe2.simple_spread_v3", "options": {"N": [1]}}, "env.options.N: [1] is not a plain value"),
        ({"id": "mpe2.simple_spread_v3", "options": {"M": 4}}, "unexpected keyword argument 'M'"),
        ({"id": "mpe2.simple_spread_v3", "agents": 4}, "no option is called 'agents'; allowed: id, limit, options"),
    ):
        with pytest.raises(UserError) as caught:
            envs.make_batched("pettingzoo", 1, **options)
        assert line in str(caught.value)
    env = envs.make_batched("pettingzoo", 1, id="mpe2.simple_spread_v3")
    with pytest.raises(UserError, match="no quality is called 'good'; allowed: random"):
        envs.behaviour(env, "good")


def test_the_packages_this_suite_names_are_allowed():
    assert needs_pettingzoo("mpe2") and needs_pettingzoo("pettingzoo") and needs_pettingzoo("gymnasium_robotics")
    assert "torch" in importlib.metadata.packages_distributions() and not needs_pettingzoo("torch")
