"""The suite from Python does what the commands do, and takes data and environments that only Python knows."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from pettingzoo import ParallelEnv

import madiff
from madiff import build
from madiff.data import EpisodeStore
from madiff.interfaces import UserError
from tests.cli.command import run, tiny

LENGTH = 6
HARDWARE = {"device": "cpu", "threads": 1}
TRAIN = {"steps": 4, "log_every": 2, "evaluate_every": 2, "evaluate_episodes": 2}
QUICK = {"seed": 3, "hardware": HARDWARE, "train": TRAIN}
DIFFUSER = {"name": "diffuser", "horizon": 4, "width": 16, "multipliers": [1, 2], "sampler_steps": 2, "batch_size": 4}
WALL = {"sets": [{"type": "half-space", "dimensions": ["x"], "normal": [1], "offset": 0.15}]}


class Walk(ParallelEnv):
    """Two walkers in the plane; an action moves by up to 0.2, and a step pays how far right it ends."""

    metadata = {"name": "walk"}
    observation_names = ("x", "y", "time")
    max_steps = LENGTH

    def __init__(self):
        self.possible_agents = ["one", "two"]

    def observation_space(self, agent):
        return Box(-9, 9, (3,))

    def action_space(self, agent):
        return Box(-1, 1, (2,))

    def reset(self, seed=None, options=None):
        self.places = np.random.default_rng(seed).uniform(-0.1, 0.1, (2, 2))
        self.agents, self.time = list(self.possible_agents), 0
        return self.seen(), {agent: {} for agent in self.agents}

    def seen(self):
        return {a: np.float32([*self.places[k], self.time / LENGTH]) for k, a in enumerate(self.possible_agents)}

    def step(self, actions):
        self.places += [0.2 * np.clip(actions[agent], -1, 1) for agent in self.possible_agents]
        self.time += 1
        paid = {agent: float(self.places[k, 0]) for k, agent in enumerate(self.possible_agents)}
        no, over = dict.fromkeys(self.agents, False), dict.fromkeys(self.agents, self.time >= LENGTH)
        infos = {agent: {"cost": float(self.places[k, 0] > 0.25)} for k, agent in enumerate(self.agents)}
        self.agents = [] if self.time >= LENGTH else self.agents
        return self.seen(), paid, no, over, infos


class Longer(Walk):
    """The same with another observation."""

    def observation_space(self, agent):
        return Box(-9, 9, (4,))

    def seen(self):
        return {agent: np.append(row, np.float32(0)) for agent, row in super().seen().items()}


def walks(episodes=6):
    """Episodes of random actions that go to the right, as arrays."""
    draw, made = np.random.default_rng(0), []
    for number in range(episodes):
        env = Walk()
        seen, actions, rewards = [env.reset(number)[0]], [], []
        for _ in range(LENGTH):
            actions.append(draw.uniform([0, -1], 1, (2, 2)))
            rows, paid, *_ = env.step(dict(zip(env.possible_agents, actions[-1], strict=True)))
            seen.append(rows)
            rewards.append(list(paid.values()))
        observations = np.array([[row[agent] for agent in ("one", "two")] for row in seen])
        made.append({"observations": observations, "actions": np.array(actions), "rewards": np.array(rewards)})
    return made


@pytest.fixture(scope="module")
def walker(tmp_path_factory):
    folder = tmp_path_factory.mktemp("walker")
    return madiff.fit(walks(), DIFFUSER, Walk, run_dir=folder / "run", data={"cache": folder}, **QUICK)


def recorded(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def test_importing_the_package_stays_light():
    told = "import madiff, sys; print([name for name in ('torch', 'numpy', 'hydra') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", told], capture_output=True, text=True).stdout.strip() == "[]"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        madiff.nothing  # noqa: B018


def test_fit_trains_what_the_command_trains(workplace):
    assert run("collect", "env=smac-like", "agents=2", "data.episodes=8", "out=set.h5") == 0
    assert run("train", *tiny("told"), "data.path=set.h5", "algo=bc", "algo.width=8", "train.baselines=[]") == 0
    train = {"steps": 4, "log_every": 2, "checkpoint_every": 2, "evaluate_every": 4, "evaluate_episodes": 2}
    found = madiff.fit(
        "set.h5", {"name": "bc", "width": 8, "batch_size": 4}, "smac-like", agents=2, train=train, hardware=HARDWARE,
        run_dir="given",
    )  # fmt: skip
    other = build.load_run("told", "cpu")
    weights = found.learner.weights()
    assert all(torch.equal(value, weights[name]) for name, value in other.learner.weights().items())
    assert recorded(found.path) == recorded(other.path)
    asked = {"episodes": 3, "hardware": HARDWARE}
    assert run("evaluate", "run=told", "episodes=3", "hardware.device=cpu", "hardware.threads=1", "out=out") == 0
    told, report = json.loads((workplace / "out/evaluation.json").read_text()), madiff.assess(found, **asked)
    vary = {"run", "plan_ms_batch1", "evaluation_seconds", "behaviour", "behaviour_return_mean", "return_ci95"}
    assert {k: v for k, v in told.items() if k not in vary} == {k: v for k, v in report.items() if k not in vary}
    assert list(report["return_ci95"]) == told["return_ci95"]


def test_a_run_goes_on_and_is_not_begun_twice(workplace):
    given = {"algo": {"name": "bc", "width": 8, "batch_size": 4}, "hardware": HARDWARE, "run_dir": "run"}
    first = madiff.fit(walks(), train={"steps": 2}, **given)
    with pytest.raises(UserError, match="already holds a run; allowed: resume=auto"):
        madiff.fit(walks(), train={"steps": 2}, **given)
    assert (first.step, madiff.fit(walks(), train={"steps": 3}, resume="auto", **given).step) == (2, 3)


def test_an_environment_of_python_gives_a_learning_curve_and_episodes_alone_give_none(walker, workplace):
    assert [r["step"] for r in recorded(walker.path) if "eval/return_mean" in r] == [2, 4]
    assert tuple(walker.spec.observation_names) == Walk.observation_names and walker.spec.episode_limit == LENGTH
    store = madiff.load_data(walks())
    store.save("mine.h5")
    alone = madiff.fit("mine.h5", {"name": "bc", "width": 8}, run_dir="alone", **QUICK)
    assert not any("eval/return_mean" in record for record in recorded(alone.path))
    assert alone.spec.agents == 2 and alone.spec.episode_limit == LENGTH
    actions = alone.policy
    actions.reset(0, 1)
    assert actions.act(store.observations[:1], None).shape == (1, 2, 2)
    assert madiff.load_data("mine.h5").sha256 == madiff.load_data(store).sha256


def test_the_same_arrays_are_kept_once(walker):
    files = list(walker.path.parent.glob("episodes-*.h5"))
    assert len(files) == 1 and str(files[0]) == str(walker.config.data.path)
    assert EpisodeStore.open(files[0]).sha256 == madiff.load_data(walks()).sha256


def test_plans_begin_where_they_are_asked_and_are_in_real_units(walker):
    seen = walks()[0]["observations"][0]
    plan = madiff.plan(walker, seen, hardware=HARDWARE)
    assert plan.names == ("action_0", "action_1", "agent_0", "agent_1", *Walk.observation_names)
    assert plan.points.shape == (1, 4, 2, 7) and plan.actions.shape == (2, 2)
    assert plan.points[0, 0, :, 4:] == pytest.approx(seen, abs=1e-4)
    again, other = (madiff.plan(walker.path, seen, seed=seed, hardware=HARDWARE) for seed in (0, 1))
    assert np.array_equal(again.points, madiff.plan(walker, seen, seed=0, hardware=HARDWARE).points)
    assert not np.array_equal(again.points, other.points)


def test_agents_that_plan_apart_have_a_plan_each(workplace):
    small = {"name": "madiff-d", "width": 16, "layers": 1, "heads": 2, "batch_size": 4, "sampler_steps": 2}
    found = madiff.fit(walks(), small, Walk, run_dir="apart", **QUICK)
    seen = walks()[1]["observations"][0]
    plan = madiff.plan(found, seen, hardware=HARDWARE)
    assert plan.points.shape[0] == 2
    for agent in (0, 1):  # each knows what it sees itself
        assert plan.points[agent, 0, agent, -3:] == pytest.approx(seen[agent], abs=0.02)


def test_a_constraint_keeps_plans_within_its_sets(walker):
    seen = np.array([[0.1, 0.0, 0.0], [0.05, 0.1, 0.0]])
    free, asked = madiff.plan(walker, seen, hardware=HARDWARE), {"episodes": 3, "hardware": HARDWARE}
    x = free.names.index("x")
    kept = madiff.constrain(walker, WALL, "exact", margin=0.0)
    plan = madiff.plan(kept, seen, hardware=HARDWARE)
    assert plan.points[..., x].max() <= 0.15 + 1e-4 < free.points[..., x].max()
    report = madiff.assess(kept, Walk, **asked)
    loose = madiff.assess(walker, Walk, **asked, safe={"name": "none", "constraints": kept.config.safe["constraints"]})
    assert report["safe"]["name"] == "exact" and loose["safe"]["name"] == "none"
    assert report["plan_violations"]["violating"] == 0 < loose["plan_violations"]["violating"]
    assert "rollout_violations" in report and walker.config.safe["name"] == "none"


def test_what_cannot_be_done_is_said_in_one_line(walker, workplace):
    wrong = {
        "options: unknown option 'algo.widht'; did you mean algo.width?": lambda: madiff.fit(
            walks(), {"name": "bc", "widht": 8}),
        "env: none was given, only episodes": lambda: madiff.fit(
            walks(), {"name": "dipo"}, run_dir="online", **QUICK),
        "options: unknown option 'film'; allowed: seed, algo,": lambda: madiff.assess(walker, Walk, film=True),
        "algo.width cannot change after training": lambda: madiff.plan(walker, np.zeros((2, 3)), algo={"width": 8}),
        "observation: shape (3,); allowed: finite numbers of shape (2, 3)": lambda: madiff.plan(walker, np.zeros(3)),
        "env: pettingzoo Longer has observation_size 4; allowed: 3": lambda: madiff.assess(walker, Longer, episodes=1),
        "env: the run's own is known to Python alone": lambda: madiff.assess(walker, episodes=1),
        "env: xor 2-agents has": lambda: madiff.assess(walker, "xor", episodes=1),
        "there is no dimension 'z'": lambda: madiff.constrain(
            walker, {"sets": [{**WALL["sets"][0], "dimensions": ["z"]}]}, "exact"),
        "safe: unknown value 'magic'": lambda: madiff.constrain(walker, WALL, "magic"),
        "safe: unknown option 'margn'": lambda: madiff.constrain(walker, WALL, "exact", margn=0.1),
    }  # fmt: skip
    for message, call in wrong.items():
        with pytest.raises(UserError) as refused:
            call()
        assert message in str(refused.value), str(refused.value)
    assert not (workplace / "online").exists()
    policy = madiff.fit(walks(), {"name": "bc", "width": 8}, Walk, run_dir="bc", **QUICK)
    with pytest.raises(UserError, match="bc makes no plans"):
        madiff.plan(policy, np.zeros((2, 3)))
