"""The point maze against gymnasium-robotics' PointMaze step by step; its obstacles, places and players."""

from collections import defaultdict

import gymnasium
import gymnasium_robotics
import numpy as np
import pytest
import torch
import yaml
from gymnasium_robotics.envs.maze import maps as published
from pettingzoo.test import parallel_api_test, parallel_seed_test

import envs
from benchmarks.maze_paths import Grid, earliest
from envs.maze import Maze
from envs.maze.maps import LARGE, MEDIUM, UMAZE, WALL
from envs.maze.scenarios import SCENARIOS
from envs.maze.shortest import Corners, Route
from madiff.experiment.rollout import rollout
from madiff.interfaces import EnvironmentSpec, UserError

PUBLISHED = {"large": "PointMaze_Large-v3", "medium": "PointMaze_Medium-v3", "umaze": "PointMaze_UMaze-v3"}


@pytest.fixture(scope="module", autouse=True)
def registered():
    gymnasium.register_envs(gymnasium_robotics)


def uniform(*shape, seed=0, dtype=torch.float32):
    return 2 * torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype) - 1


def placed(env, position, velocity, goal=None):
    """The environment at the start of an episode from these places and velocities."""
    state = env.state
    state["position"], state["velocity"] = torch.as_tensor(position), torch.as_tensor(velocity)
    state["elapsed"].zero_()
    if goal is not None:
        state["goal"] = torch.as_tensor(goal)
    env.set_state(state)
    return env


def sets(scenario):
    """The barriers that a scenario's file states, by a second reading: functions of x, y and the step."""

    def barrier(entry):
        (x0, y0), (rx, ry), power = entry["center"], entry["radii"], entry.get("power", 2)
        dx, dy = entry.get("velocity", (0, 0))
        return lambda x, y, t=0.0: ((x - x0 - dx * t) / rx) ** power + ((y - y0 - dy * t) / ry) ** power - 1

    path = envs.constraints("maze", scenario)
    return [barrier(entry) for entry in yaml.safe_load(path.read_text())["sets"]] if path else []


@pytest.mark.parametrize(
    ("ours", "theirs"), [(UMAZE, published.U_MAZE), (MEDIUM, published.MEDIUM_MAZE), (LARGE, published.LARGE_MAZE)]
)
def test_the_maps_are_those_of_gymnasium_robotics(ours, theirs):
    assert [[int(cell == WALL) for cell in row] for row in ours] == theirs


@pytest.mark.parametrize("scenario", list(PUBLISHED))
def test_every_step_is_mujocos_also_at_walls_and_corners(scenario):
    copies, steps = 120, 10
    ours = Maze(copies, scenario=scenario, repeat=1, float64=True)
    theirs = gymnasium.make(PUBLISHED[scenario]).unwrapped
    theirs.reset(seed=0)
    drawn = np.random.default_rng(0)
    cells = ours.maze.center(ours.maze.free[drawn.integers(len(ours.maze.free), size=copies)]).numpy()
    # Half of them anywhere, half at walls or corners, some pressed into them as far as speed 5 could take them.
    edge = drawn.choice([-0.44, -0.4, 0.4, 0.44], (copies, 2)) + drawn.uniform(-0.01, 0.01, (copies, 2))
    offset = np.where(np.arange(copies)[:, None] % 2, edge, drawn.uniform(-0.42, 0.42, (copies, 2)))
    position, velocity = cells + offset, drawn.uniform(-5.5, 5.5, (copies, 2))
    actions = drawn.uniform(-1.3, 1.3, (steps, copies, 2))
    placed(ours, position, velocity)
    found = [ours.step(torch.tensor(action)[:, None]).observations[:, 0, :4].numpy() for action in actions]
    touching = defaultdict(int)
    for copy in range(copies):
        theirs.point_env.set_state(position[copy], velocity[copy])
        for step in range(steps):
            expected = theirs.step(actions[step, copy])[0]["observation"]
            assert np.abs(found[step][copy] - expected).max() < 1e-10
            touching[theirs.point_env.data.ncon - 1] += 1  # the floor, always touched, does nothing
    assert touching[0] > 300 and touching[1] > 100 and touching[2] > 20 and touching[3] > 0


def test_an_action_is_held_and_paid_as_by_pointmaze_until_the_end():
    ours, theirs = Maze(1, float64=True), gymnasium.make(PUBLISHED["large"]).unwrapped
    ours.reset(4)
    state, player = ours.state, envs.behaviour(ours, "medium")
    player.reset(0, 1)
    theirs.reset(seed=0)
    theirs.goal = state["goal"][0].numpy()
    theirs.point_env.set_state(state["position"][0].numpy(), state["velocity"][0].numpy())
    step, paid = placed(ours, state["position"], state["velocity"]).step(torch.zeros(1, 1, 2)), 0.0
    theirs_step = [theirs.step(np.zeros(2)) for _ in range(4)][-1]
    for _ in range(ours.spec.episode_limit - 1):
        action = player.act(step.observations, None)
        step = ours.step(action)
        rewards = []
        for _ in range(4):
            theirs_step = theirs.step(action[0, 0].numpy())
            rewards.append(theirs_step[1])
        assert np.abs(step.observations[0, 0, :4].numpy() - theirs_step[0]["observation"]).max() < 1e-9
        assert step.rewards.item() == sum(rewards) and bool(step.info["won"]) == theirs_step[4]["success"]
        paid += sum(rewards)
    assert paid > 0 and step.truncated.all() and not step.terminated.any()


def test_episodes_are_as_long_as_pointmazes():
    for scenario, name in PUBLISHED.items():
        assert Maze(1, scenario=scenario).spec.episode_limit * 4 == gymnasium.spec(name).max_episode_steps
    assert Maze(1, scenario="umaze", repeat=7).spec.episode_limit == 43
    assert Maze(1, repeat=10, limit=30).spec.episode_limit == 30


def test_single_precision_is_near_enough():
    single, double = Maze(256, repeat=1), Maze(256, repeat=1, float64=True)
    single.reset(1)
    double.set_state({k: v.double() if v.is_floating_point() else v for k, v in single.state.items()})
    # Within a millimetre of a wall a contact changes quickly; over a few steps errors stay at rounding times that.
    for number in range(5):
        actions = uniform(256, 1, 2, seed=number)
        a, b = single.step(actions), double.step(actions)
    assert a.observations.dtype == torch.float32 and b.observations.dtype == torch.float64
    assert (a.observations - b.observations).abs().max() < 1e-4


def test_sizes_names_and_options():
    spec = envs.make_batched("maze", 1, scenario="narrow", repeat=8).spec
    assert (spec.agents, spec.observation_size, spec.action_size, spec.discrete) == (1, 6, 2, False)
    assert spec.observation_names == ("x", "y", "vx", "vy", "goal_x", "goal_y")
    assert spec.options == {"scenario": "narrow", "repeat": 8, "limit": 100, "start": "random"}
    assert envs.make_batched("maze", 1, **spec.options).spec == spec
    assert isinstance(spec, EnvironmentSpec) and envs.default_episodes("maze") == 2000


@pytest.mark.parametrize("scenario", list(SCENARIOS))
def test_starts_and_goals_are_free_far_apart_and_clear_of_all_obstacles_at_all_times(scenario):
    env = Maze(500, scenario=scenario)
    step = env.reset(2)
    seen = step.observations[:, 0].double().numpy()
    assert not seen[:, 2:4].any() and len(np.unique(seen[:, :2], axis=0)) == 500
    start, goal = (env.maze.cell(torch.from_numpy(seen[:, i : i + 2])) for i in (0, 4))
    assert (env.maze.lengths[start, goal] >= SCENARIOS[scenario].far - 1e-6).all()
    for x, y in (seen[:, :2].T, seen[:, 4:].T):
        offset = np.stack([x + env.maze.half[0], env.maze.half[1] - y]) % 1 - 0.5
        assert np.abs(offset).max() <= 0.25 + 1e-5
        for barrier in sets(scenario):
            assert all((barrier(x, y, t) >= 0.099).all() for t in range(env.spec.episode_limit + 1))
    assert len(np.unique(start)) > 3 and len(np.unique(goal)) > 3


def test_the_fixed_pair_is_the_same_for_all():
    env = Maze(5, start="fixed")
    assert env.reset(0).observations[:, 0].tolist() == [[-2.5, 3.0, 0.0, 0.0, 3.5, -3.0]] * 5


@pytest.mark.parametrize("scenario", [name for name in SCENARIOS if name != "umaze"])
def test_the_fixed_pair_is_hard(scenario):
    env = Maze(8, scenario=scenario, start="fixed")
    result = rollout(env, envs.behaviour(env, "expert"), seed=0)
    assert result.won.all() and (result.costs > 0).all()


@pytest.mark.parametrize("scenario", list(SCENARIOS))
def test_cost_is_paid_exactly_where_the_file_says(scenario):
    env = Maze(200, scenario=scenario, repeat=1, float64=True)
    places = torch.stack([uniform(200, seed=1) * env.maze.half[0], uniform(200, seed=2) * env.maze.half[1]], 1).double()
    env.reset(0)
    # Anywhere that is no wall, at any time.
    free = ~env.maze.walls.flatten()[env.maze.cell(places)]
    state = env.state
    state["position"] = torch.where(free[:, None], places, state["position"])
    state["elapsed"] = torch.arange(200) % (env.spec.episode_limit - 1)
    env.set_state(state)
    step = env.step(uniform(200, 1, 2))
    x, y = step.observations[:, 0, :2].T
    inside = torch.zeros(200, dtype=torch.bool)
    for barrier in sets(scenario):
        inside |= barrier(x, y, state["elapsed"] + 1) < 0
    assert torch.equal(step.costs[:, 0] > 0, inside)
    assert inside.any() == (scenario != "umaze") and not inside.all()


def test_an_obstacle_crossed_between_two_observations_costs():
    env = placed(Maze(1, repeat=50, float64=True), [[0.5, 1.3]], [[0.0, -5.0]])
    step = env.step(torch.tensor([[[0.0, -1.0]]]))
    after = step.observations[0, 0, :2]
    assert all(barrier(*place) > 0 for barrier in sets("large") for place in ((0.5, 1.3), after.tolist()))
    assert after[1] < -1.25 and step.costs.item() == 1.0


def test_ways_are_shortest_and_of_many_kinds():
    for scenario in SCENARIOS:
        maze = Maze(1, scenario=scenario).maze
        assert bool(maze.lengths[maze.free][:, maze.free].isfinite().all())
        for way in maze.ways:
            start, goal = torch.meshgrid(maze.free, maze.free, indexing="ij")
            here, walked = start, torch.zeros(start.shape, dtype=torch.float64)
            while not bool((here == goal).all()):
                following = way[here, goal]
                walked = walked + (maze.center(following) - maze.center(here)).norm(dim=-1)
                assert not maze.walls.flatten()[following].any()
                here = following
            # Each table prefers some steps by up to a tenth.
            assert (walked >= maze.lengths[start, goal] - 1e-9).all()
            assert (walked <= 1.1 * maze.lengths[start, goal] + 1e-9).all()
    room = Maze(1, scenario="moving").maze
    assert len({tuple(way.flatten().tolist()) for way in room.ways}) == len(room.ways)


@pytest.mark.parametrize("scenario", list(SCENARIOS))
def test_one_end_may_be_fixed_and_the_other_random(scenario):
    (row, column), (goal_row, goal_column) = SCENARIOS[scenario].pair
    for options, columns, place in (
        ({"start": "random", "goal": "fixed"}, slice(4, 6), (goal_row, goal_column)),
        ({"start": "fixed", "goal": "random"}, slice(0, 2), (row, column)),
    ):
        env = Maze(300, scenario=scenario, **options)
        seen = env.reset(1).observations[:, 0].double()
        middle = env.maze.center(torch.tensor(place[0] * env.maze.columns + place[1]))
        assert torch.allclose(seen[:, columns], middle.expand(300, -1), atol=1e-6)
        other = seen[:, :2] if columns.start else seen[:, 4:]
        assert len(other.unique(dim=0)) == 300 and bool(env.places.clear(other.float()).all())
        ends = env.maze.cell(other), env.maze.cell(middle[None]).expand(300)
        assert (env.maze.lengths[ends] >= SCENARIOS[scenario].far - 1e-6).all()
        assert env.spec.options == Maze(1, scenario=scenario).spec.options | options
        assert envs.make_batched("maze", 1, **env.spec.options).spec == env.spec


def test_a_goal_that_is_as_the_start_changes_nothing():
    for start in ("random", "fixed"):
        plain, told = Maze(20, start=start), Maze(20, start=start, goal=start)
        assert plain.spec == told.spec and torch.equal(plain.reset(3).observations, told.reset(3).observations)


def test_who_roams_goes_on_to_the_end_and_past_the_goal_by_chance():
    env = Maze(64, start="random", goal="fixed", limit=400)
    runs = {
        quality: rollout(env, envs.behaviour(env, quality), seed=1, record=True) for quality in ("roam", "expert")
    }
    speed, cells = {}, {}
    for quality, run in runs.items():
        seen = run.store.observations.reshape(64, 401, 6)
        speed[quality] = seen[:, 200:, 2:4].norm(dim=-1).mean().item()
        cells[quality] = np.mean([len(env.maze.cell(row[:, :2].double()).unique()) for row in seen])
    assert speed["roam"] > 1.0 > 0.3 > speed["expert"]
    assert cells["roam"] > 1.5 * cells["expert"] and (runs["roam"].lengths == 400).all()
    assert 0 < runs["roam"].returns.mean() < 0.3 * runs["expert"].returns.mean()


@pytest.mark.parametrize("scenario", ["large", "medium", "umaze"])
def test_ways_round_the_corners_are_as_long_as_the_shortest_by_brute_force(scenario):
    env = Maze(1, scenario=scenario, float64=True)
    pairs = env.places.middles[::7]
    route = Route(Corners(env.maze, env.ball, pairs, berth=0.02, clearance=0.005), pairs[:, 1])
    place, length = pairs[:, 0], torch.zeros(len(pairs))
    for _ in range(12):
        target, free = route.towards(place)
        assert free.all()
        length, place = length + (target - place).norm(dim=-1), target
    assert torch.equal(place, pairs[:, 1])
    grid = Grid(SCENARIOS[scenario].rows)
    ratio = length.numpy() / grid.lengths(grid.free, pairs.numpy())
    # Its berth makes it longer, the grid's few directions the other.
    assert 0.98 < ratio.min() and ratio.max() < 1.04 and abs(ratio.mean() - 1) < 0.01


@pytest.mark.parametrize("scenario", list(SCENARIOS))
def test_who_takes_the_shortest_way_goes_less_far_and_arrives(scenario):
    env = Maze(64, scenario=scenario, repeat=10)
    gone = {}
    for quality in ("shortest", "expert"):
        run = rollout(env, envs.behaviour(env, quality), seed=1, record=True)
        seen = run.store.observations.reshape(64, -1, 6)
        left = (seen[..., :2] - seen[:, :1, 4:]).norm(dim=-1)
        before = ((left > 0.45).int().cumprod(1)[:, :-1]).bool()
        gone[quality] = (seen[:, 1:, :2] - seen[:, :-1, :2]).norm(dim=-1).where(before, 0.0).sum(1).mean()
        assert run.won.mean() > 0.95
    assert gone["shortest"] < (1.0 if scenario == "moving" else 0.92) * gone["expert"]


def test_players_reach_the_goal_by_skill_and_ignore_the_obstacles():
    env = Maze(64)
    qualities = ("expert", "good", "medium", "random")
    results = {quality: rollout(env, envs.behaviour(env, quality), seed=1) for quality in qualities}
    won = {quality: result.won.mean() for quality, result in results.items()}
    assert won["expert"] > 0.98 and won["good"] > 0.85 and 0.3 < won["medium"] < 0.85 and won["random"] < 0.1
    returns = [result.returns.mean() for result in results.values()]
    assert returns == sorted(returns, reverse=True)
    assert (results["expert"].costs > 0).mean() >= 0.5 and (results["good"].costs > 0).mean() >= 0.5


@pytest.mark.parametrize("repeat", [1, 10])
def test_players_cope_with_actions_held_shorter_or_longer(repeat):
    env = Maze(32, repeat=repeat, scenario="medium")
    assert rollout(env, envs.behaviour(env, "expert"), seed=1).won.mean() > 0.95


def test_data_spans_many_routes_between_the_same_places():
    env = Maze(64, start="fixed")
    store = rollout(env, envs.behaviour(env, "good"), seed=0, record=True).store
    cells = env.maze.cell(store.observations[..., :2].double()).reshape(64, -1)
    routes = {tuple(torch.unique_consecutive(row).tolist()) for row in cells}
    assert len(routes) >= 10 and len(cells.unique()) > 0.8 * len(env.maze.free)


def test_a_safe_way_of_nearly_the_same_length_exists():
    for scenario in ("large", "narrow", "medium"):
        env = Maze(1, scenario=scenario)
        grid = Grid(SCENARIOS[scenario].rows)
        outside = np.logical_and.reduce([barrier(*grid.places) >= 0.01 for barrier in sets(scenario)])
        pairs = env.places.middles.double().numpy()
        chosen = pairs[np.isin(pairs[:, 0].sum(1), np.unique(pairs[:, 0].sum(1))[::4])]
        free, safe = (grid.lengths(allowed, chosen) for allowed in (grid.free, grid.free & outside))
        assert len(chosen) > 50 and np.isfinite(safe).all()
        longer = safe / free
        assert (longer.max() if scenario == "large" else longer.mean()) <= 1.1


def test_moving_obstacles_leave_a_safe_way_in_time():
    env = Maze(1, scenario="moving")
    grid = Grid(SCENARIOS["moving"].rows, 0.1)
    barriers = sets("moving")
    pairs = env.places.middles.double().numpy()

    def safe(step):
        return grid.free & np.logical_and.reduce([barrier(*grid.places, step) >= 0.01 for barrier in barriers])

    for start in np.unique(pairs[:, 0], axis=0)[::5]:
        goals = pairs[(pairs[:, 0] == start).all(1), 1]
        # A tenth of a metre in a step of 0.04 s is slower than an expert.
        arrivals = earliest(grid, safe, start, goals, env.spec.episode_limit)
        assert max(arrivals) < 0.9 * env.spec.episode_limit


def test_an_episode_is_cut_and_then_stands_still_or_begins_anew():
    env, again = Maze(3, limit=6), Maze(3, limit=6, auto_reset=True)
    first = again.reset(0).observations
    env.reset(0)
    for number in range(6):
        actions = uniform(3, 1, 2, seed=number)
        step, begun = env.step(actions), again.step(actions)
        assert step.truncated.tolist() == begun.truncated.tolist() == [number == 5] * 3
    assert torch.equal(begun.info["final_observations"], step.observations)
    assert not torch.equal(begun.observations[..., :2], first[..., :2]) and not begun.observations[..., 2:4].any()
    assert again.state["episode"].tolist() == [1, 1, 1] and again.state["elapsed"].tolist() == [0, 0, 0]
    state = env.state
    still = env.step(uniform(3, 1, 2))
    assert torch.equal(still.observations, step.observations) and not still.rewards.any() and not still.costs.any()
    assert all(torch.equal(state[name], value) for name, value in env.state.items())


def test_a_copy_depends_on_the_seed_and_its_index_alone_and_a_state_repeats_in_another_copy():
    few, many = Maze(4), Maze(50)
    assert torch.equal(few.reset(9).observations, many.reset(9).observations[:4])
    assert not torch.equal(few.reset(10).observations, many.reset(9).observations[:4])
    few.set_state({name: rows[20:24] for name, rows in many.state.items()})
    for number in range(40):
        actions = uniform(50, 1, 2, seed=number)
        ours, theirs = many.step(actions), few.step(actions[20:24])
        assert torch.allclose(ours.observations[20:24], theirs.observations, atol=1e-6)
        assert torch.equal(ours.costs[20:24], theirs.costs) and torch.equal(ours.rewards[20:24], theirs.rewards)


def test_pettingzoo_form_and_agreement_with_the_batched_one():
    parallel_api_test(envs.make("maze", scenario="umaze"), num_cycles=200)
    parallel_seed_test(lambda: envs.make("maze", scenario="moving"), num_cycles=30)
    single, crowd = envs.make("maze", scenario="narrow"), Maze(8, scenario="narrow")
    single.reset(seed=3)
    crowd.reset(4)
    single.batched.set_state({name: rows[5:6] for name, rows in crowd.state.items()})
    while single.agents:
        actions = uniform(8, 1, 2, seed=int(crowd.state["elapsed"][0]))
        step = crowd.step(actions)
        observations, rewards, _, truncations, infos = single.step({"agent_0": actions[5, 0].numpy()})
        assert np.allclose(observations["agent_0"], step.observations[5, 0], atol=1e-6)
        assert rewards["agent_0"] == step.rewards[5, 0] and infos["agent_0"]["cost"] == step.costs[5, 0]
        assert infos["agent_0"]["won"] == step.info["won"][5] and truncations["agent_0"] == step.truncated[5]


def test_the_outline_is_the_walls_within_the_corners_of_the_map():
    env = Maze(1, scenario="large")
    corners, solids = env.outline()
    assert corners.tolist() == [[-6.0, -4.5], [6.0, 4.5]]
    cells = np.array([(x, y) for x in np.arange(-5.5, 6) for y in np.arange(-4.0, 5)])
    covered = sum((solid.min(0) < cells).all(1) & (cells < solid.max(0)).all(1) for solid in solids)
    wall = np.array([LARGE[int(4.5 - y)][int(x + 6)] == WALL for x, y in cells])
    assert covered.tolist() == wall.tolist()
    assert all(np.ptp(solid, axis=0).tolist() == [1, 1] and solid.shape == (4, 2) for solid in solids)


def test_pictures_show_obstacles_where_they_are():
    env = Maze(2, scenario="moving")
    first = env.frame(1)
    state = env.state
    state["elapsed"][1] = 60
    env.set_state(state)
    later = env.frame(1)
    assert first.dtype == np.uint8 and first.shape == later.shape and first.shape[2] == 3
    red = [(frame[..., 0].astype(int) - frame[..., 2] > 40) for frame in (first, later)]
    assert red[0].sum() > 1000 and (red[0] != red[1]).sum() > 1000
    assert envs.make("maze", render_mode="rgb_array").metadata["render_fps"] == 25


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"scenario": "huge"}, "scenario: no scenario is called 'huge'; allowed: large, medium, umaze, narrow, moving"),
        ({"repeat": 0}, "repeat: 0 is not a number of steps; allowed: 1 to 100"),
        ({"limit": 2.5}, "limit: 2.5 is not a number of steps"),
        ({"start": "here"}, "start: 'here'; allowed: random, fixed"),
        ({"goal": "there"}, "goal: 'there'; allowed: random, fixed"),
        ({"copies": 0}, "copies: 0 is not a number of copies"),
    ],
)
def test_mistakes_are_told_in_one_line(options, line):
    with pytest.raises(UserError) as caught:
        envs.make_batched("maze", **({"copies": 1} | options))
    assert line in str(caught.value)


def test_other_mistakes_are_told_too():
    env = Maze(2)
    with pytest.raises(UserError, match="data.quality: no quality is called 'best'; allowed: shortest, expert, good"):
        envs.behaviour(env, "best")
    with pytest.raises(UserError, match=r"actions: shape \(2, 2\); allowed: \(2, 1, 2\)"):
        env.step(torch.zeros(2, 2))
    with pytest.raises(UserError, match="position has shape"):
        env.set_state(Maze(3).state)
    with pytest.raises(UserError, match="no scenario is called"):
        envs.constraints("maze", "huge")
    assert envs.constraints("maze", "umaze") is None and envs.constraints("maze", None).name == "large.yaml"
    assert envs.constraints("xor", None) is None
