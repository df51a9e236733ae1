"""The particle environment against OMAR's fork: equations, stored transitions, returns of random actions."""

from pathlib import Path

import numpy as np
import particle_reference as reference
import prey_files
import pytest
import torch
from pettingzoo.test import parallel_api_test, parallel_seed_test

import envs
from envs.particle import Particle
from envs.particle.prey import Flee
from madiff.interfaces import UserError

STORED = Path(__file__).parent / "data" / "omar_spread_random.npz"
PREY_FEATURES = {"tag": 14, "world": 22}


def uniform(*shape, seed=0, dtype=torch.float32):
    return 2 * torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype) - 1


def options(scenario, path):
    """Keyword arguments; where there is a prey, one of known weights, in the file at the path."""
    features = PREY_FEATURES.get(scenario)
    return {"scenario": scenario} | ({"prey": prey_files.saved(path, features)} if features else {})


@pytest.mark.parametrize(
    ("scenario", "agents"), [("spread", 3), ("spread", 5), ("tag", 3), ("world", 3), ("multimodal", 3)]
)
def test_a_step_is_that_of_the_fork(scenario, agents, tmp_path):
    copies = 400
    env = Particle(copies, agents=agents, float64=True, **options(scenario, tmp_path / "prey.pt"))
    state = env.state
    # Crowded, so that many bodies touch; a few far out.
    side = torch.linspace(0.15, 1.5, copies)[:, None, None]
    state["position"] = side * uniform(*state["position"].shape, seed=1, dtype=torch.float64)
    state["velocity"] = 1.5 * uniform(*state["velocity"].shape, seed=2, dtype=torch.float64)
    env.set_state(state)
    actions = uniform(copies, agents, 2, seed=3)
    step, after = env.step(actions), env.state
    weights = {k: v.double().numpy() for k, v in prey_files.policy(PREY_FEATURES.get(scenario, 1)).items()}
    collisions = 0
    for copy in range(copies):
        movers, fixed = reference.world(scenario, state["position"][copy], state["velocity"][copy], agents)
        pushes = list(actions[copy].double().numpy())
        if scenario in PREY_FEATURES:
            seen = reference.observation(scenario, agents, movers, fixed)
            pushes.append(reference.prey_action(weights, seen))
        solid = [body for body in movers + fixed if body["collides"]]
        collisions += any(reference.touch(a, b) for a in movers for b in solid if a is not b)
        reference.advance(movers, fixed, pushes)
        for i, mover in enumerate(movers):
            assert np.allclose(after["position"][copy, i], mover["place"], atol=1e-9)
            assert np.allclose(after["velocity"][copy, i], mover["velocity"], atol=1e-9)
        assert torch.equal(after["position"][copy, len(movers) :], state["position"][copy, len(movers) :])
        for i in range(agents):
            expected = reference.observation(scenario, i, movers, fixed)
            assert np.allclose(step.observations[copy, i], expected, atol=1e-9)
        assert np.allclose(step.rewards[copy], reference.rewards(scenario, movers, fixed), atol=1e-7)
    assert collisions > 30


@pytest.mark.parametrize("scenario", ["spread", "tag", "world"])
def test_single_precision_is_near_enough(scenario):
    single, double = Particle(256, scenario=scenario), Particle(256, scenario=scenario, float64=True)
    single.reset(1)
    double.set_state({k: v.double() if v.is_floating_point() else v for k, v in single.state.items()})
    actions = uniform(256, 3, 2)
    a, b = single.step(actions), double.step(actions)
    assert a.observations.dtype == torch.float32 and b.observations.dtype == torch.float64
    assert (a.observations - b.observations).abs().max() < 1e-5


def test_stored_transitions_of_omar_are_reproduced():
    stored = {name: torch.from_numpy(values) for name, values in np.load(STORED, allow_pickle=False).items()}
    seen = stored["observations"]
    env = Particle(len(seen))
    state = env.state
    state["velocity"], agents = seen[..., :2], seen[..., 2:4]
    state["position"] = torch.cat([agents, seen[:, 0, 4:10].unflatten(-1, (3, 2)) + agents[:, :1]], 1)
    env.set_state(state)
    step = env.step(stored["actions"])
    assert (step.observations - stored["next_observations"]).abs().max() < 1e-5
    assert (step.rewards - stored["rewards"]).abs().max() < 1e-4


def returns_of_random_actions(env, seed=0):
    generator = torch.Generator().manual_seed(seed)
    step, total = env.reset(seed), 0.0
    while not step.truncated.all():
        step = env.step(2 * torch.rand(env.copies, env.spec.agents, 2, generator=generator) - 1)
        total = total + step.rewards
    return total


def test_random_actions_earn_what_omars_random_data_earned():
    total = returns_of_random_actions(Particle(10000))
    assert abs(total.mean().item() - 159.6) < 3
    assert 55 < total.mean(1).std() < 66  # 60.5 in the data


def test_sizes_names_and_options():
    sizes = {name: envs.make_batched("particle", 1, scenario=name).spec for name in ("spread", "tag", "world")}
    assert {name: spec.observation_size for name, spec in sizes.items()} == {"spread": 18, "tag": 16, "world": 24}
    assert all((s.agents, s.action_size, s.discrete, s.episode_limit) == (3, 2, False, 25) for s in sizes.values())
    spec = envs.make_batched("particle", 1, agents=4, speed=2, size=1.0, start=0.5).spec
    assert spec.options == {"scenario": "spread", "agents": 4, "speed": 2.0, "start": 0.5}
    assert envs.make_batched("particle", 1, **spec.options).spec == spec
    assert envs.default_episodes("particle") == 10000


def test_an_episode_is_cut_after_25_steps_and_then_stands_still():
    env = Particle(3)
    step = env.reset(0)
    for number in range(1, 26):
        step = env.step(uniform(3, 3, 2, seed=number))
        assert bool(step.truncated.all()) == (number == 25) and not step.terminated.any()
    state = env.state
    again = env.step(uniform(3, 3, 2))
    assert torch.equal(again.observations, step.observations) and not again.rewards.any() and again.truncated.all()
    assert all(torch.equal(state[name], value) for name, value in env.state.items())


def test_copies_of_different_age_end_one_by_one():
    env = Particle(2)
    state = env.state
    state["elapsed"] = torch.tensor([0, 23])
    env.set_state(state)
    ends = [env.step(uniform(2, 3, 2, seed=number)).truncated.tolist() for number in range(25)]
    assert ends == [[False, False]] + [[False, True]] * 23 + [[True, True]]


def test_auto_reset_begins_anew_within_the_step():
    env, still = Particle(4, auto_reset=True), Particle(4)
    first = env.reset(5).observations
    still.reset(5)
    state = env.state
    state["elapsed"][1] = 20
    env.set_state(state)
    for number in range(1, 31):
        actions = uniform(4, 3, 2, seed=number)
        step, kept = env.step(actions), still.step(actions)
        assert step.truncated.tolist() == [number == 25, number in (5, 30), number == 25, number == 25]
        if number == 25:
            assert torch.allclose(step.info["final_observations"][0], kept.observations[0])
            assert torch.equal(step.rewards[0], kept.rewards[0])
            assert not step.observations[0, :, :2].any() and not torch.equal(step.observations[0], first[0])
        elif number not in (5, 30):
            assert "final_observations" not in step.info
    assert env.state["episode"].tolist() == [1, 2, 1, 1]


def test_a_copy_depends_on_the_seed_and_its_index_alone():
    few, many = Particle(4).reset(9).observations, Particle(50).reset(9).observations
    assert torch.equal(few, many[:4])
    assert not torch.equal(few, Particle(4).reset(10).observations)
    assert len(many[:, 0, 2].unique()) == 50


@pytest.mark.parametrize("scenario", ["spread", "tag", "world", "multimodal"])
def test_a_state_repeats_what_followed_also_in_another_copy(scenario):
    env, other = Particle(6, scenario=scenario, auto_reset=True), Particle(2, scenario=scenario, auto_reset=True)
    env.reset(2)
    for number in range(20):
        env.step(uniform(6, 3, 2, seed=number))
    other.set_state({name: rows[3:5] for name, rows in env.state.items()})
    for number in range(8):
        actions = uniform(6, 3, 2, seed=100 + number)
        ours, theirs = env.step(actions), other.step(actions[3:5])
        assert torch.allclose(ours.observations[3:5], theirs.observations, atol=1e-6)
        assert torch.allclose(ours.rewards[3:5], theirs.rewards, atol=1e-4)


def test_states_that_do_not_fit_are_refused():
    env = Particle(2)
    with pytest.raises(UserError, match="state"):
        env.set_state({"position": env.state["position"]})
    with pytest.raises(UserError, match="position has shape"):
        env.set_state(Particle(3).state)
    with pytest.raises(UserError, match=r"actions: shape \(2, 3\); allowed: \(2, 3, 2\)"):
        env.step(torch.zeros(2, 3))


def test_speed_multiplies_force_and_largest_speed():
    for speed in (0.5, 1.0, 2.0):
        env = Particle(1, scenario="tag", speed=speed)
        state = env.state
        state["position"][:] = 5 * torch.arange(12.0).reshape(1, 6, 2)  # nobody touches anybody
        env.set_state(state)
        east = torch.tensor([1.0, 0.0]).expand(1, 3, 2)
        assert env.step(east).observations[0, 0, 0] == pytest.approx(min(0.9 * speed, speed))
        for _ in range(9):
            step = env.step(east)
        assert step.observations[0, 0, 0] == pytest.approx(speed)
        prey = step.observations[0, 0, 14:].norm()
        assert prey == pytest.approx(0.96, abs=0.1)  # the prey stays as it is


def test_size_multiplies_the_agents_and_start_the_distances():
    ordinary, large, wide = Particle(500), Particle(500, size=2.0), Particle(500, start=2.0)
    places = [env.reset(1).observations[..., 2:10] for env in (ordinary, large, wide)]
    assert torch.equal(places[0], places[1]) and torch.allclose(2 * places[0], places[2])
    paid = [env.step(torch.zeros(500, 3, 2)).rewards for env in (ordinary, large)]
    assert (paid[1] < paid[0] - 4).any()  # touching already, where ordinary agents do not
    assert returns_of_random_actions(large).mean() < returns_of_random_actions(ordinary).mean() - 8
    predators = Particle(1, scenario="tag", size=2.0).scene.mechanics.size[:4, 0].tolist()
    assert predators == pytest.approx([0.15, 0.15, 0.15, 0.05])


def test_multimodal_starts_in_the_middle_of_a_ring():
    env = Particle(2000, scenario="multimodal")
    seen = env.reset(3).observations
    agents, landmarks = seen[..., 2:4], seen[:, 0, 4:10].unflatten(-1, (3, 2)) + seen[:, :1, 2:4]
    assert torch.allclose(landmarks.norm(dim=-1), torch.full((2000, 3), 0.7), atol=1e-5)
    apart = torch.cdist(agents, agents) + torch.eye(3)
    assert apart.min() > 0.1 and agents.norm(dim=-1).max() < 0.15
    sides = torch.cdist(landmarks, landmarks)[:, [0, 1, 2], [1, 2, 0]]
    assert torch.allclose(sides, torch.full_like(sides, 0.7 * 3**0.5), atol=1e-5)
    turns = torch.atan2(landmarks[:, 0, 1], landmarks[:, 0, 0]) - torch.pi / 2
    assert turns.abs().max() <= torch.pi / 12 + 1e-5
    assert torch.histc(turns, 8, -torch.pi / 12, torch.pi / 12).min() > 180  # 250 expected in each eighth
    starts = torch.atan2(agents[:, 0, 1], agents[:, 0, 0])
    assert torch.histc(starts, 8, -torch.pi, torch.pi).min() > 180


def test_scores_are_omars():
    spec = Particle(1).spec
    assert envs.score(spec, 516.8) == pytest.approx(100) and envs.score(spec, 159.8) == pytest.approx(0)
    assert envs.score(Particle(1, speed=2).spec, 300.0) is None
    assert envs.score(Particle(1, agents=4).spec, 300.0) is None
    for scenario in ("tag", "world", "multimodal"):
        assert envs.score(Particle(1, scenario=scenario).spec, 100.0) is None


def test_scores_of_tag_and_world_need_the_trained_prey(tmp_path):
    for scenario, random, expert in (("tag", -4.1, 185.6), ("world", -6.8, 79.5)):
        spec = Particle(1, **options(scenario, tmp_path / "prey.pt")).spec
        assert envs.score(spec, expert) == pytest.approx(100) and envs.score(spec, random) == pytest.approx(0)
        assert envs.make_batched("particle", 1, **spec.options).spec == spec


def test_the_scripted_prey_flees_and_stays_inside():
    env = Particle(300, scenario="tag")
    flee = Flee(env.scene.plan)
    seen = torch.zeros(1, 1, 14)
    seen[..., 4:8], seen[..., 8:14] = 5.0, torch.tensor([-0.3, 0.0, -0.4, 0.1, -0.4, -0.1])  # all in the west
    assert flee(seen)[0, 0, 0] > 0.1
    seen[..., 2] = 1.0  # but the edge is in the east
    assert flee(seen)[0, 0, 0] < 0
    returns_of_random_actions(env)
    prey = env.state["position"][:, 3]
    assert (prey.abs() < 1.2).float().mean() > 0.97


@pytest.mark.parametrize("scenario", ["spread", "tag", "world", "multimodal"])
def test_pettingzoo_api(scenario):
    parallel_api_test(envs.make("particle", scenario=scenario), num_cycles=60)


def test_pettingzoo_seeds():
    parallel_seed_test(lambda: envs.make("particle", scenario="tag"), num_cycles=60)


def test_the_parallel_form_agrees_and_refuses_nonsense():
    single, crowd = envs.make("particle"), Particle(3)
    single.reset(seed=1)
    crowd.reset(2)
    single.batched.set_state({name: rows[2:] for name, rows in crowd.state.items()})
    actions = uniform(3, 3, 2)
    step = crowd.step(actions)
    seen, paid, ended, cut, infos = single.step(dict(zip(single.agents, actions[2].numpy(), strict=True)))
    for i, agent in enumerate(single.possible_agents):
        assert np.allclose(seen[agent], step.observations[2, i], atol=1e-6)
        assert paid[agent] == pytest.approx(step.rewards[2, i].item(), abs=1e-4)
        assert not ended[agent] and not cut[agent] and infos[agent] == {"cost": 0.0}
    with pytest.raises(UserError, match="NaN"):
        single.step({agent: np.full(2, np.nan) for agent in single.agents})


def test_an_agent_left_out_does_not_push():
    one, other = envs.make("particle"), envs.make("particle")
    one.reset(seed=1)
    other.reset(seed=1)
    push = np.ones(2, np.float32)
    a = one.step({"agent_1": push})[0]
    b = other.step({"agent_0": 0 * push, "agent_1": push, "agent_2": 0 * push})[0]
    assert all(np.array_equal(a[agent], b[agent]) for agent in a)


def test_mistakes_are_one_clear_line():
    for mistake, line in (
        (dict(scenario="simple"), "no scenario is called 'simple'; allowed: spread, tag, world, multimodal"),
        (dict(agents=7), "agents: 7 agents do not fit spread; allowed: 2, 3, 4, 5, 6"),
        (dict(scenario="tag", agents=4), "allowed: 3"),
        (dict(speed=0), "speed: 0; allowed: a number from 0.25 to 4"),
        (dict(size="big"), "size: 'big'; allowed: a number"),
        (dict(start=float("nan")), "start: nan; allowed"),
        (dict(start=True), "start: True; allowed"),
        (dict(copies=0), "allowed: 1 or more"),
        (dict(prey="prey.pt"), "spread has no prey to load; allowed: scripted"),
        (dict(scenario="tag", prey=3), "prey: 3 is not a file"),
    ):
        with pytest.raises(UserError) as caught:
            Particle(**mistake)
        assert line in str(caught.value)


def test_pictures():
    env = envs.make("particle", scenario="world", render_mode="rgb_array")
    env.reset(seed=0)
    first = env.render()
    for _ in range(3):
        env.step({agent: np.ones(2, np.float32) for agent in env.agents})
    second = env.render()
    assert first.shape == second.shape and first.shape[2] == 3 and first.dtype == np.uint8
    assert (first != second).any(-1).sum() > 500
    assert ((np.abs(first.astype(int) - (0x8A, 0x8A, 0x86)) < 3).all(-1)).sum() > 500  # the obstacle
    assert envs.make("particle").render() is None
