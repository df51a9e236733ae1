"""Safety-Gymnasium on the current stack: a test for each bridged fault, what is left alone, costs, copies."""

import subprocess
import sys
import xml.etree.ElementTree as xml
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
import yaml
from pettingzoo.test import parallel_api_test

import envs
from envs.safety_gymnasium import bridge
from envs.safety_gymnasium.scenarios import SCENARIOS
from madiff.data import dsrl_scores
from madiff.interfaces import UserError

NAME = "safety-gymnasium"


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    """MuJoCo must not leave its log where the user stands."""
    monkeypatch.chdir(tmp_path)
    yield
    assert not list(tmp_path.iterdir())


def make(scenario, copies=1, **options):
    return envs.make_batched(NAME, copies, scenario=scenario, workers=0, **options)


def inner(env, copy=0):
    """The package's own environment behind a copy that lives in this process."""
    return env.pool.share.singles[copy].env.env


def drawn(env, seed, steps, scale=1.0):
    """Actions (steps, copies, agents, A) at random."""
    generator = torch.Generator().manual_seed(seed)
    size = (steps, env.copies, env.spec.agents, env.spec.action_size)
    return scale * (2 * torch.rand(size, generator=generator) - 1)


def test_fault_1_arrays_as_defaults_of_dataclasses():
    """Python refuses them; every object of the package gets its own copy of the colour that is its default."""
    from dataclasses import dataclass

    with pytest.raises(ValueError, match="mutable default"):
        dataclass(type("Thing", (), {"__annotations__": {"color": np.ndarray}, "color": np.zeros(3)}))
    bridge.load()
    from safety_gymnasium.assets.color import COLOR
    from safety_gymnasium.assets.geoms import Hazards

    one, other = Hazards(), Hazards()
    assert np.array_equal(one.color, COLOR["hazard"]) and one.color is not other.color
    one.color[:] = 0
    assert np.array_equal(other.color, COLOR["hazard"]) and COLOR["hazard"].any()


def test_fault_2_wrappers_that_gymnasium_removed():
    """They cannot be imported before or after; the package's classes stand on empty ones."""
    bridge.load()
    from safety_gymnasium.wrappers import SafeTimeLimit

    assert issubclass(SafeTimeLimit, gymnasium.Wrapper) and not hasattr(SafeTimeLimit.__base__, "_elapsed_steps")
    for name in bridge.REMOVED:
        with pytest.raises(ModuleNotFoundError):
            __import__(f"gymnasium.wrappers.{name}")


def test_fault_3_make_reads_fields_that_are_gone():
    """The package's own `make` fails; ours makes what is registered, and leaves the registered arguments alone."""
    package = bridge.load()
    with pytest.raises(AttributeError, match="apply_api_compatibility|autoreset"):
        package.make("SafetyPointGoal1-v0")
    env = bridge.make("SafetyCarGoal1-v0")
    assert type(env.task).__name__ == "GoalLevel1" and type(env.task.agent).__name__ == "Car"
    env.config["agent_name"] = "Point"
    assert gymnasium.spec("SafetyCarGoal1-v0").kwargs["config"]["agent_name"] == "Car"


@pytest.mark.parametrize(("scenario", "hinges"), [("DoggoGoal1", 12), ("AntGoal1", 8)])
def test_fault_4_arrays_where_numbers_are_needed(scenario, hinges):
    """The legs' joints are found, as many as the robot's file lists, and their angles are read as MuJoCo has them."""
    env = make(scenario)
    step = env.reset(1)
    task = inner(env).task
    base = Path(sys.modules["safety_gymnasium"].__file__).parent / task.agent.base
    listed = [entry for entry in xml.parse(base).iter("jointpos")]
    names = task.agent.sensor_info.hinge_pos_names
    assert len(names) == len(listed) == hinges
    for actions in drawn(env, 0, 5):
        step = env.step(actions)
    for name in names:
        joint = next(entry.get("joint") for entry in listed if entry.get("name") == name)
        at = env.spec.observation_names.index(f"{name}_0")
        angle = float(task.data.joint(joint).qpos[0])
        assert step.observations[0, 0, at : at + 2].tolist() == pytest.approx([np.sin(angle), np.cos(angle)], abs=1e-6)


def test_worlds_are_small_and_move_as_they_did():
    """With what is left out MuJoCo takes hundreds of megabytes, and the same steps."""
    world = inner(make("PointGoal2")).task.world
    import mujoco

    large = mujoco.MjModel.from_xml_string(world.xml_string.replace('memory="16M"', 'njmax="3000" nconmax="1000"'))
    assert world.model.narena == 16 * 2**20 and large.narena > 10 * world.model.narena
    assert world.model.ntexdata < 2**20 and "skybox" not in world.xml_string
    both, rng = [mujoco.MjData(model) for model in (world.model, large)], np.random.default_rng(0)
    for _ in range(400):
        control = rng.uniform(-1, 1, 2)
        for model, data in zip((world.model, large), both, strict=True):
            data.ctrl[:] = control
            mujoco.mj_step(model, data)
    assert np.array_equal(both[0].qpos, both[1].qpos) and both[0].ncon > 0
    assert both[0].maxuse_arena < world.model.narena / 20


LEFT_ALONE = """
import dataclasses, importlib, sys, types
from envs.safety_gymnasium import bridge
for name in bridge.BEFORE:
    importlib.import_module(name)
original = dataclasses.dataclass
before = {name: dict(vars(module)) for name, module in sys.modules.items()
          if isinstance(module, types.ModuleType) and not name.endswith("main__")}
bridge.load()
assert dataclasses.dataclass is original
assert not [name for name in bridge.REMOVED if "gymnasium.wrappers." + name in sys.modules]
changed = []
for name, held in before.items():
    for key, value in vars(sys.modules[name]).items():
        if key not in held and isinstance(value, types.ModuleType):
            continue  # a submodule that was imported in the meantime
        if key.startswith("__warning"):
            continue  # which warnings were shown already
        if key not in held or held[key] is not value:
            changed.append((name, key))
assert not changed, changed
mine = [name for name in sys.modules if name.partition(".")[0] != "safety_gymnasium" and name not in before]
held = [(name, key) for name in mine for key, value in list(vars(sys.modules[name]).items())
        if getattr(value, "func", None) is bridge.copying_dataclass]
assert not held, held
print("nothing else is changed")
"""


def test_nothing_else_in_the_process_stays_patched():
    """In a process of its own: every name of every module there was before refers to what it did."""
    root = Path(envs.__file__).parent.parent
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", LEFT_ALONE], capture_output=True, text=True, cwd=root)
    assert done.stdout.endswith("nothing else is changed\n"), done.stderr


def test_where_the_package_is_missing_one_line_says_how_to_add_it(monkeypatch):
    bridge.load()
    monkeypatch.setattr(bridge, "load", bridge.load.__wrapped__)
    held = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == bridge.PACKAGE}
    try:
        for name in held:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, bridge.PACKAGE, None)
        with pytest.raises(UserError, match="cannot be imported.*pip install --no-deps safety-gymnasium==1.0.0"):
            make("PointGoal1")
    finally:
        sys.modules.pop(bridge.PACKAGE, None)
        sys.modules.update(held)


@pytest.mark.parametrize("scenario", ["PointPush1", "CarCircle2", "RacecarButton1", "AntRun0", "SwimmerVelocity"])
def test_a_copy_is_the_packages_own_environment(scenario):
    """Observation, reward and cost of every step are what the package gives for the same seed and actions."""
    env = make(scenario)
    step = env.reset(3)
    alone = bridge.make(SCENARIOS[scenario].id)
    seen, _ = alone.reset(seed=int(env.state["seed"][0]))
    low, high = alone.action_space.low, alone.action_space.high
    for actions in drawn(env, 2, 20):
        assert np.array_equal(step.observations[0, 0].numpy(), seen.astype(np.float32))
        step = env.step(actions)
        taken = (low + high) / 2 + (high - low) / 2 * actions[0, 0].double().numpy()
        seen, reward, cost, *_ = alone.step(taken)
        assert (float(step.rewards), float(step.costs)) == pytest.approx((reward, cost), rel=1e-4, abs=1e-5)


def test_sizes_are_those_of_the_published_data():
    for scenario in ("PointGoal1", "PointButton2", "CarCircle1", "CarPush1", "HopperVelocity", "AntVelocity"):
        spec, published = make(scenario).spec, dsrl_scores.task(scenario)
        sizes = spec.observation_size, spec.action_size, spec.episode_limit
        assert sizes == (published.observations, published.actions, published.horizon)
        assert len(spec.observation_names) == len(set(spec.observation_names)) == spec.observation_size


@pytest.mark.parametrize(("scenario", "first", "name"), [
    ("PointGoal1", 28, "hazards_lidar_0"), ("CarPush1", 72, "push_box_lidar_0"), ("PointGoal1", 9, "magnetometer_x"),
    ("HalfCheetahVelocity", 8, "vx"), ("Walker2dVelocity", 0, "z"), ("Walker2dVelocity", 9, "vz"),
    ("SwimmerVelocity", 3, "vx"), ("SwimmerVelocity", 4, "vy"), ("AntVelocity", 13, "vx"), ("AntVelocity", 14, "vy"),
    ("HopperVelocity", 5, "vx"),
])  # fmt: skip
def test_observations_are_named(scenario, first, name):
    assert make(scenario).spec.observation_names[first] == name


@pytest.mark.parametrize("scenario", ["HalfCheetahVelocity", "AntVelocity", "HopperVelocity", "HumanoidVelocity"])
def test_the_named_velocity_is_mujocos(scenario):
    env = make(scenario)
    env.reset(0)
    for actions in drawn(env, 0, 4):
        step = env.step(actions)
    at = env.spec.observation_names.index("vx")
    # A hopping body's observation cuts velocities at 10, which these few steps do not reach.
    assert float(step.observations[0, 0, at]) == pytest.approx(float(inner(env).unwrapped.data.qvel[0]), rel=1e-5)


def test_position_is_the_simulators():
    env = make("CarCircle1", position=True)
    assert env.spec.observation_names[-4:] == ("x", "y", "heading_cos", "heading_sin")
    assert env.spec.observation_size == 40 + 4
    env.reset(0)
    for actions in drawn(env, 1, 30):
        step = env.step(actions)
    agent = inner(env).task.agent
    expected = [*agent.pos[:2], *(agent.mat @ np.array([1.0, 0, 0]))[:2]]
    assert step.observations[0, 0, -4:].tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("scenario", ["PointGoal1", "HalfCheetahVelocity", "2x3HalfCheetah"])
def test_repeat_holds_an_action_and_sums_what_it_pays(scenario):
    slow, fast = make(scenario, repeat=4, limit=22), make(scenario, limit=22)
    assert (slow.spec.episode_limit, fast.spec.episode_limit) == (6, 22)
    slow.reset(5), fast.reset(5)
    for number, actions in enumerate(drawn(slow, 3, 6)):
        held = [fast.step(actions) for _ in range(4 if number < 5 else 2)]
        step = slow.step(actions)
        assert torch.allclose(step.rewards, sum(one.rewards for one in held), atol=1e-5)
        assert torch.equal(step.costs, sum(one.costs for one in held))
        assert torch.equal(step.observations, held[-1].observations)
    assert step.truncated.all() and held[-1].truncated.all() and not step.terminated.any()


@pytest.mark.parametrize("scenario", ["PointGoal1", "PointButton1", "CarGoal1"])
def test_a_hazards_cost_can_be_read_off_the_lidar(scenario):
    """d <= 0.2 exactly where the largest reading is 1 - 0.2 / 3 or more; robots are put all over the place."""
    env = make(scenario)
    env.reset(0)
    package = inner(env)
    names, rng, costs = env.spec.observation_names, np.random.default_rng(0), []
    first, qpos = names.index("hazards_lidar_0"), package.task.data.qpos
    # The Point slides along axes that are turned as it stood at first, the Car moves along the world's.
    axes = np.eye(2) if scenario.startswith("Car") else package.task.agent.mat[:2, :2].copy()
    for _ in range(150):
        hazard = package.task.hazards.pos[rng.integers(len(package.task.hazards.pos))][:2]
        qpos[:2] += axes.T @ (hazard + rng.normal(size=2, scale=0.2) - package.task.agent.pos[:2])
        reading = package.task.obs()[first : first + 16].max()
        cost = package.task.calculate_cost()["cost_hazards"] > 0
        assert cost == (reading >= 1 - 0.2 / 3)
        costs.append(cost)
    assert 30 < sum(costs) < 140


def barrier(entry, values):
    """The smallest distance to the edge of a box, or of a half-space, in its own units; below 0 outside."""
    points = np.array([values[name] for name in entry["dimensions"]])
    if entry["type"] == "half-space":
        return entry["offset"] - float(np.dot(entry["normal"], points))
    assert entry["type"] == "box"
    low = np.array([-np.inf if bound is None else bound for bound in entry["low"]])
    high = np.array([np.inf if bound is None else bound for bound in entry["high"]])
    return float(np.minimum(points - low, high - points).min())


@pytest.mark.parametrize(
    "scenario", ["PointCircle1", "PointGoal1", "CarGoal1", "HalfCheetahVelocity", "Walker2dVelocity"]
)
def test_the_shipped_constraints_are_what_costs(scenario):
    """A state costs where it is outside of the sets; of a velocity the mean over a step costs, the last one is seen."""
    navigates = SCENARIOS[scenario].kind == "navigation"
    env = make(scenario, 2, limit=300, **({"position": True} if scenario.endswith("Circle1") else {}))
    sets = yaml.safe_load(envs.constraints(NAME, scenario).read_text())["sets"]
    policy = envs.behaviour(env, "wild")
    step, checked = env.reset(1), []
    policy.reset(0, 2)
    for _ in range(300):
        step = env.step(policy.act(step.observations, None))
        for copy in range(2):
            values = dict(zip(env.spec.observation_names, step.observations[copy, 0].tolist(), strict=True))
            least = min(barrier(entry, values) for entry in sets)
            checked.append((least, bool(step.costs[copy])))
    least, costs = np.array(checked).T
    assert 20 < costs.sum() < 580
    if navigates:
        # Where a goal was reached the layout changed after the cost was paid; a tilted car reads a little off.
        assert ((least < 0) != costs).mean() < 0.02
    else:
        assert sets[0]["offset"] == inner(env).unwrapped._velocity_threshold
        assert ((least < 0) != costs).mean() < 0.25


def test_constraints_that_are_not_there():
    assert envs.constraints(NAME, "PointRun0") is None and envs.constraints("smac-like", "3m") is None
    with pytest.raises(UserError, match="no scenario is called 'PointGaol1'"):
        envs.constraints(NAME, "PointGaol1")
    for path in envs.constraints(NAME, "PointGoal1").parent.iterdir():
        assert path.stem in SCENARIOS


def test_a_team_moves_the_body_and_shares_its_cost():
    env = make("2x3HalfCheetah", 2)
    assert (env.spec.agents, env.spec.state_size, env.spec.episode_limit) == (2, 17, 1000)
    policy = envs.behaviour(env, "wild")
    step = env.reset(0)
    policy.reset(0, 2)
    costs, fast = [], []
    for _ in range(60):
        before = [float(inner(env, copy).single_agent_env.unwrapped.data.qpos[0]) for copy in range(2)]
        step = env.step(policy.act(step.observations, None))
        after = [float(inner(env, copy).single_agent_env.unwrapped.data.qpos[0]) for copy in range(2)]
        costs += step.costs.tolist()
        fast += [[float((b - a) / 0.05 > 3.227)] * 2 for a, b in zip(before, after, strict=True)]
    assert costs == fast and 0 < np.sum(costs) < np.size(costs)


@pytest.mark.parametrize("scenario", [name for name, known in SCENARIOS.items() if known.kind == "team"])
def test_all_teams_can_be_made(scenario):
    env = make(scenario, limit=3)
    assert env.spec.agents == SCENARIOS[scenario].agents == len(inner(env).possible_agents)
    env.reset(0)
    steps = [env.step(actions) for actions in drawn(env, 0, 3, 0.1)]
    assert [bool(step.truncated | step.terminated) for step in steps] == [False, False, True]


def test_workers_and_states():
    single, spread = (envs.make_batched(NAME, 3, scenario="PointGoal1", workers=n) for n in (0, 2))
    assert single.spec == spread.spec
    single.reset(7), spread.reset(7)
    for actions in drawn(single, 0, 10):
        ours, theirs = single.step(actions), spread.step(actions)
        assert torch.equal(ours.observations, theirs.observations) and torch.equal(ours.costs, theirs.costs)
    spread.reset(0)
    spread.set_state(single.state)
    assert torch.equal(single.step(actions).observations, spread.step(actions).observations)
    spread.close()


def test_pettingzoo_form_and_pictures():
    env = envs.make(NAME, scenario="PointPush1", limit=30, render_mode="rgb_array")
    parallel_api_test(env, num_cycles=40)
    env.reset(seed=0)
    before = env.render()
    for _ in range(10):
        *_, infos = env.step({"agent_0": np.array([1.0, 0.3], np.float32)})
    assert before.dtype == np.uint8 and before.shape == env.render().shape and (before != env.render()).any()
    assert infos["agent_0"]["cost"] == 0.0
    for scenario in ("CarCircle2", "HalfCheetahVelocity", "2x3HalfCheetah"):
        picture = make(scenario).frame()
        assert picture.dtype == np.uint8 and picture.ndim == 3 and picture.std() > 5


def test_scenarios_and_user_errors():
    made = {agents: envs.make_batched(NAME, 1, agents=agents, workers=0).spec for agents in (1, 2, 3)}
    assert [spec.scenario for spec in made.values()] == ["PointGoal1", "2x3HalfCheetah", "3x1Hopper"]
    assert envs.make_batched(NAME, 1, workers=0, **made[2].options).spec == made[2]
    assert envs.make_batched(NAME, 1, workers=0, agents=1, **made[1].options).spec == made[1]
    for mistake, line in (
        (lambda: envs.make(NAME, scenario="PointGoal3"), "no scenario is called 'PointGoal3'; allowed: PointGoal1"),
        (lambda: envs.make(NAME, agents=7), "agents: 7 agents; allowed: 1, 2, 3"),
        (lambda: envs.make(NAME, scenario="2x4Ant", agents=1), "agents: 1 disagrees with scenario 2x4Ant; allowed: 2"),
        (lambda: envs.make(NAME, repeat=0), "repeat: 0; allowed: a whole number from 1 to 1000"),
        (lambda: envs.make(NAME, scenario="PointRun0", limit=501), "limit: 501; allowed: a whole number from 1 to 500"),
        (lambda: envs.make(NAME, position=1), "position: 1; allowed: true or false"),
        (lambda: make("AntVelocity", position=True), "AntVelocity has no robot that navigates; allowed: False"),
    ):
        with pytest.raises(UserError) as caught:
            mistake()
        assert line in str(caught.value)
