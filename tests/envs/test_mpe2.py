"""MPE2: the twins against the package itself, and the tasks without twin."""

from importlib import import_module

import numpy as np
import pytest
import torch
from mpe2.all_modules import mpe_environments
from pettingzoo.test import parallel_api_test, parallel_seed_test

import envs
from benchmarks import environment
from envs.mpe2 import Mpe2, batched
from envs.mpe2.tasks import TASKS
from envs.particle.behaviours import QUALITIES
from madiff.interfaces import UserError

EPISODES = 60
SCENARIOS = ("simple_spread", "simple_tag")


def bodies(world):
    """Places (body, 2) and velocities (agent, 2) of a world of MPE2, copied."""
    places = np.array([body.state.p_pos for body in world.entities])
    return places, np.array([agent.state.p_vel for agent in world.agents])


def five_numbers(action):
    """MPE2's continuous action that pushes like (x, y)."""
    x, y = action
    return np.array([0, max(-x, 0), max(x, 0), max(-y, 0), max(y, 0)], np.float32)


def played_by_mpe2(scenario, continuous, agents=None):
    """Every step of random episodes: what was before, the actions, and what came of them."""
    options = {"N": agents} if agents else {}
    env = import_module(f"mpe2.{scenario}_v3").parallel_env(continuous_actions=continuous, **options)
    world, random = env.unwrapped.world, np.random.default_rng(0)
    steps = []
    for episode in range(EPISODES):
        env.reset(seed=episode)
        for body in world.entities if episode % 3 == 0 else ():
            body.state.p_pos *= 0.3  # crowded, so that many touch
        while env.agents:
            before = bodies(world)
            count = len(env.agents)
            if continuous:
                actions = random.uniform(-1, 1, (count, 2)).astype(np.float32)
                given = [five_numbers(action) for action in actions]
            else:
                # In half of the episodes all push in one direction for a while, so that they leave the square.
                actions = random.integers(5, size=count) if episode % 2 else np.full(count, 1 + episode // 2 % 4)
                given = actions.tolist()
            seen, paid, _, cut, _ = env.step(dict(zip(env.agents, given, strict=True)))
            observed = [np.pad(row, (0, 30 - len(row))) for row in seen.values()]
            outcome = observed, list(paid.values()), all(cut.values()), env.state()
            steps.append((*before, actions, *bodies(world), *outcome))
    return [torch.from_numpy(np.array(column)) for column in zip(*steps, strict=True)]


@pytest.mark.parametrize("continuous", [False, True])
@pytest.mark.parametrize(("scenario", "agents"), [("simple_spread", None), ("simple_spread", 5), ("simple_tag", None)])
def test_a_step_of_the_twin_is_that_of_mpe2(scenario, continuous, agents):
    before, moving, actions, after, moved, seen, paid, cut, state = played_by_mpe2(scenario, continuous, agents)
    twin = Mpe2(len(before), scenario=scenario, continuous=continuous, agents=agents, float64=True)
    begun = twin.state
    begun["position"], begun["velocity"] = before, moving
    begun["elapsed"] = torch.arange(len(before)) % 25
    twin.set_state(begun)
    step, ended = twin.step(actions), twin.state
    assert (ended["position"] - after).abs().max() < 1e-12 and (ended["velocity"] - moved).abs().max() < 1e-9
    assert (step.rewards - paid).abs().max() < 1e-9
    assert torch.equal(step.truncated, cut) and not step.terminated.any()
    width = twin.spec.observation_size
    assert (step.observations - seen[..., :width]).abs().max() < 1e-6 and not seen[..., width:].any()
    assert step.state.shape == state.shape and (step.state - state).abs().max() < 1e-6
    assert len(paid[:, 0].unique()) > 2  # somebody touched somebody


def test_whole_episodes_stay_together():
    env = import_module("mpe2.simple_tag_v3").parallel_env()
    twin = Mpe2(1, scenario="simple_tag", float64=True)
    env.reset(seed=3)
    begun, random = twin.state, np.random.default_rng(1)
    begun["position"], begun["velocity"] = (torch.from_numpy(rows)[None] for rows in bodies(env.unwrapped.world))
    twin.set_state(begun)
    while env.agents:
        actions = random.integers(5, size=4)
        env.step(dict(zip(env.agents, actions.tolist(), strict=True)))
        twin.step(torch.from_numpy(actions)[None])
        assert np.allclose(twin.state["position"][0], bodies(env.unwrapped.world)[0], atol=1e-9)


def test_beginnings_are_spread_like_those_of_mpe2():
    for scenario in SCENARIOS:
        world = import_module(f"mpe2.{scenario}_v3").parallel_env()
        places = []
        for seed in range(200):
            world.reset(seed=seed)
            places.append(bodies(world.unwrapped.world)[0])
        theirs, ours = np.array(places), Mpe2(2000, scenario=scenario).state["position"].numpy()
        assert np.allclose(np.abs(theirs).max((0, 2)), np.abs(ours).max((0, 2)), atol=0.03)
        assert np.allclose(theirs.std((0, 2)), ours.std((0, 2)), atol=0.1)


def test_sizes_and_legal_actions():
    spread, tag = (envs.make_batched("mpe2", 2, scenario=scenario) for scenario in SCENARIOS)
    spec = spread.spec
    assert (spec.agents, spec.observation_size, spec.action_size, spec.state_size) == (3, 18, 5, 54) and spec.discrete
    assert tag.spec.observation_sizes == (16, 16, 16, 14) and tag.spec.state_size == 62
    step = tag.reset(0)
    assert step.available_actions.shape == (2, 4, 5) and step.available_actions.all()
    assert not step.observations[:, 3, 14:].any()
    pushed = envs.make_batched("mpe2", 2, scenario="simple_tag", continuous=True)
    assert pushed.spec.action_size == 2 and not pushed.spec.discrete and pushed.reset(0).available_actions is None
    for env in (spread, tag, pushed):
        assert envs.make_batched("mpe2", 2, **env.spec.options).spec == env.spec
    assert envs.make_batched("mpe2", 1).spec.scenario == "simple_spread"
    assert envs.score(spec, -10.0) is None and envs.default_episodes("mpe2") == 10000


def test_an_unknown_action_is_played_as_stay():
    a, b = (Mpe2(1) for _ in range(2))
    assert torch.equal(a.step(torch.tensor([[7, -1, 2]])).observations, b.step(torch.tensor([[0, 0, 2]])).observations)


def test_auto_reset_keeps_the_state_of_the_episode_that_ended():
    env = Mpe2(3, scenario="simple_tag", auto_reset=True)
    env.reset(0)
    for _ in range(25):
        step = env.step(torch.ones(3, 4, dtype=torch.int64))
    assert step.truncated.all() and step.info["final_state"].shape == (3, 62)
    assert torch.equal(step.state[:, :16], step.observations[:, 0])
    assert torch.equal(step.info["final_state"][:, :16], step.info["final_observations"][:, 0])
    assert not step.observations[..., :2].any() and step.info["final_observations"][..., 0].abs().min() > 0.01


def mean_returns(env, quality):
    policy = envs.behaviour(env, quality)
    step, total = env.reset(0), 0.0
    policy.reset(1, env.copies)
    while not step.truncated.all():
        actions = policy.act(step.observations, step.available_actions)
        if env.spec.discrete:
            assert actions.min() >= 0 and actions.max() < 5
        else:
            assert actions.abs().max() <= 1
        step = env.step(actions)
        total = total + step.rewards
    return total.mean(0)


@pytest.mark.parametrize("continuous", [False, True])
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_qualities_are_ordered(scenario, continuous):
    env = Mpe2(800, scenario=scenario, continuous=continuous)
    mean = {quality: mean_returns(env, quality)[0].item() for quality in QUALITIES}
    for better, worse in (("expert", "good"), ("good", "medium"), ("medium", "poor"), ("medium", "replay")):
        assert mean[better] > mean[worse] + 0.1 * (mean["expert"] - mean["random"])
    assert min(mean["poor"], mean["replay"]) > mean["random"]


def test_the_prey_is_an_agent_that_pays_for_contacts_and_flees():
    env = Mpe2(500, scenario="simple_tag")
    expert, random = (mean_returns(env, quality) for quality in ("expert", "random"))
    assert expert[0] > 40 and torch.equal(expert[0], expert[2])
    caught_alike = -expert[3] / expert[0]
    assert 1 <= caught_alike < 1.15  # contacts, and little for leaving the square
    assert -random[3] > 2 * random[0]  # a random prey leaves it


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("continuous", [False, True])
def test_pettingzoo_api(scenario, continuous):
    env = envs.make("mpe2", scenario=scenario, continuous=continuous)
    parallel_api_test(env, num_cycles=60)
    assert env.possible_agents == import_module(f"mpe2.{scenario}_v3").parallel_env().possible_agents


def test_pettingzoo_seeds():
    parallel_seed_test(lambda: envs.make("mpe2", scenario="simple_tag"), num_cycles=60)


def test_every_task_of_the_package_is_known():
    assert {f"mpe/{module}" for module in TASKS.values()} == set(mpe_environments)


@pytest.mark.parametrize("scenario", sorted(set(TASKS) - set(SCENARIOS)))
def test_tasks_without_twin_run(scenario):
    env = batched(2, scenario=scenario, workers=0)
    policy = envs.behaviour(env, "random")
    step = env.reset(0)
    policy.reset(1, 2)
    while not (step.terminated | step.truncated).all():
        step = env.step(policy.act(step.observations, step.available_actions))
    assert env.spec.scenario == scenario and step.rewards.isfinite().all()
    assert envs.make_batched("mpe2", 2, workers=0, **env.spec.options).spec == env.spec
    env.close()


def test_a_task_without_twin_is_mpe2s_own():
    ours = envs.make("mpe2", scenario="simple_world_comm")
    theirs = import_module("mpe2.simple_world_comm_v3").parallel_env()
    assert ours.possible_agents == theirs.possible_agents
    for agent in theirs.possible_agents:
        assert ours.action_space(agent) == theirs.action_space(agent)
        assert ours.observation_space(agent).shape == theirs.observation_space(agent).shape
    assert ours.spec.action_sizes == (20, 5, 5, 5, 5, 5)
    ours.close()


def test_mistakes_are_one_clear_line():
    for mistake, line in (
        (dict(scenario="spread"), "no scenario is called 'spread'; allowed: simple_spread, simple_tag"),
        (dict(scenario="simple_tag", agents=3), "agents: 3 agents do not fit simple_tag; allowed: 4"),
        (dict(scenario="simple_push", agents=3), "agents: 3 agents do not fit simple_push; allowed: 2"),
        (dict(copies=0), "allowed: 1 or more"),
    ):
        with pytest.raises(UserError) as caught:
            batched(**mistake)
        assert line in str(caught.value)
    env = batched(1, scenario="simple_push")
    with pytest.raises(UserError, match="allowed: random"):
        envs.behaviour(env, "expert")
    with pytest.raises(UserError, match="allowed: expert, good"):
        envs.behaviour(Mpe2(1), "great")


def test_pictures():
    env = envs.make("mpe2", scenario="simple_tag", render_mode="rgb_array")
    env.reset(seed=0)
    first = env.render()
    env.step(dict.fromkeys(env.agents, 2))
    assert first.shape == env.render().shape and (first != env.render()).any()


def test_the_benchmark_counts_whole_steps_of_all_copies():
    assert environment.stepper("simple_tag", 7, 3, compile=False, device="cpu", env="mpe2")() == 21
    assert environment.mpe2_itself("simple_tag", 30)() == 30


def test_compiled_steps_are_the_same():
    plain, compiled = Mpe2(64, scenario="simple_tag"), Mpe2(64, scenario="simple_tag", compile=True)
    for number in range(3):
        actions = torch.randint(5, (64, plain.spec.agents), generator=torch.Generator().manual_seed(number))
        a, b = plain.step(actions), compiled.step(actions)
        assert torch.allclose(a.observations, b.observations, atol=1e-5)
        assert torch.allclose(a.rewards, b.rewards, atol=1e-4)
