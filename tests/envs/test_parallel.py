"""The PettingZoo form: API, seeds, and agreement with the batched form."""

import numpy as np
import pytest
import torch
from pettingzoo.test import parallel_api_test, parallel_seed_test

import envs
from envs.smac_like import SmacLike
from madiff.interfaces import UserError


@pytest.mark.parametrize("scenario", ["3m", "MMM"])
def test_pettingzoo_api(scenario):
    parallel_api_test(envs.make("smac-like", scenario=scenario), num_cycles=150)


def test_pettingzoo_seeds():
    parallel_seed_test(lambda: envs.make("smac-like", scenario="2s3z"), num_cycles=60)


def test_agrees_with_the_batched_form():
    single, crowd = envs.make("smac-like", scenario="2s3z"), SmacLike(64, scenario="2s3z")
    single.reset(seed=3)
    step = crowd.reset(4)
    copy, generator = 40, torch.Generator().manual_seed(0)
    single.batched.set_state({key: value[copy : copy + 1] for key, value in crowd.state.items()})
    while single.agents:
        actions = (torch.rand(step.available_actions.shape, generator=generator) * step.available_actions).argmax(-1)
        step = crowd.step(actions)
        played = dict(zip(single.agents, actions[copy].tolist(), strict=True))
        observations, rewards, terminations, truncations, infos = single.step(played)
        for i, agent in enumerate(single.possible_agents):
            assert np.allclose(observations[agent], step.observations[copy, i].numpy(), atol=1e-5)
            assert np.array_equal(infos[agent]["action_mask"], step.available_actions[copy, i].numpy())
            assert rewards[agent] == pytest.approx(step.rewards[copy, i].item(), abs=1e-5)
            assert terminations[agent] == step.terminated[copy].item()
            assert truncations[agent] == step.truncated[copy].item()
            assert infos[agent]["cost"] == 0.0 and infos[agent]["won"] == step.info["won"][copy].item()
        assert np.allclose(single.state(), step.state[copy].numpy(), atol=1e-5)
    assert (step.terminated | step.truncated)[copy]


def test_the_dead_stay_listed_with_no_op():
    env = envs.make("smac-like", scenario="3m")
    _, infos = env.reset(seed=0)
    seen_dead = False
    while env.agents:
        masks = {agent: infos[agent]["action_mask"] for agent in env.agents}
        # Attack when possible, else walk east; the dead have nothing but no-op.
        actions = {a: 0 if m[0] else 6 + int(m[6:].argmax()) if m[6:].any() else 4 for a, m in masks.items()}
        _, _, _, _, infos = env.step(actions)
        assert set(infos) == set(env.possible_agents)
        seen_dead |= any(info["action_mask"][0] == 1 for info in infos.values()) and bool(env.agents)
    assert seen_dead
    assert infos["agent_0"]["action_mask"].dtype == np.int8


def test_illegal_actions_are_counted_or_refused():
    env = envs.make("smac-like", agents=3)
    env.reset(seed=0)
    assert env.step(dict.fromkeys(env.agents, 0))[4]["agent_1"]["illegal_actions"] == 3
    strict = envs.make("smac-like", agents=3, strict=True)
    strict.reset(seed=0)
    with pytest.raises(UserError, match="illegal"):
        strict.step(dict.fromkeys(strict.agents, 7))


def test_registry_and_user_errors():
    assert "smac-like" in envs.names()
    for mistake, line in (
        (lambda: envs.make("smac"), "env: no environment is called 'smac'; allowed: smac-like"),
        (lambda: envs.make("smac-like", map="3m"), "no option is called 'map'; allowed: scenario, agents"),
        (lambda: envs.make("smac-like", scenario="4q"), "no scenario is called '4q'; allowed: 3m, 8m"),
        (lambda: envs.make("smac-like", agents=0), "agents: 0 is not a number of marines; allowed: 1 to 64"),
        (lambda: envs.make("smac-like", agents=-2), "allowed: 1 to 64"),
        (lambda: envs.make("smac-like", agents=65), "allowed: 1 to 64"),
        (lambda: envs.make("smac-like", scenario="2s3z", agents=3), "3 disagrees with scenario 2s3z; allowed: 5"),
        (lambda: envs.make("smac-like", render_mode="human"), "allowed: rgb_array"),
        (lambda: envs.make_batched("smac-like", copies=0), "allowed: 1 or more"),
        (lambda: envs.behaviour(SmacLike(1), "great"), "allowed: expert, good, medium, poor, replay, random"),
    ):
        with pytest.raises(UserError) as caught:
            mistake()
        assert line in str(caught.value)


def test_agents_alone_are_marines():
    assert envs.make("smac-like", agents=3).spec == envs.make("smac-like", scenario="3m").spec
    limits = {n: SmacLike(agents=n).spec.episode_limit for n in (1, 3, 5, 8, 25, 64)}
    assert limits == {1: 60, 3: 60, 5: 84, 8: 120, 25: 150, 64: 219}
    spec = envs.make_batched("smac-like", copies=2, agents=5).spec
    assert (spec.scenario, spec.options, spec.agents) == ("5m", {"agents": 5}, 5)
    again = envs.make_batched("smac-like", copies=2, **spec.options).spec
    assert again == spec


def test_pictures():
    env = envs.make("smac-like", scenario="2s3z", render_mode="rgb_array")
    env.reset(seed=0)
    first = env.render()
    for _ in range(4):
        env.step(dict.fromkeys(env.agents, 4))
    second = env.render()
    assert first.shape == second.shape and first.shape[2] == 3 and first.dtype == np.uint8
    blue, red = ((first == colour).all(-1).sum() for colour in ((31, 111, 180), (200, 69, 47)))
    assert blue > 300 and red > 300
    assert (first != second).any()
    assert envs.make("smac-like").render() is None
