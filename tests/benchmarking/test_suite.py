"""Suites: how options merge, what unfolds into what, and what is refused."""

import shlex
from dataclasses import replace

import pytest
import torch

from madiff import build, train
from madiff.benchmarking import suite
from madiff.benchmarking.examine import empty
from madiff.benchmarking.work import compose, compose_evaluation
from madiff.configuration import main as run_verb
from madiff.data import EpisodeStore
from madiff.interfaces import UserError

BC = {"bc": {"options": {"algo": "bc"}}}


def content(**changes):
    return {
        "about": "a", "leaves_out": "l", "same_for_all": "s", "seeds": 2, "reference": "bc", "baselines": ["bc"],
        "options": {"env": "smac-like", "train.steps": 10, "data.episodes": 8},
        "tasks": {"two": {"options": {"agents": 2, "train.steps": 20}},
                  "three": {"options": {"agents": 3}, "shares": [1, 0.5]}},
        "methods": {"bc": {"options": {"algo": "bc"}},
                    "deep": {"options": {"algo": "madiff-c", "train.steps": 30},
                             "tasks": {"three*": {"train.steps": 40}}, "not_on": {"two": "too small"}}},
    } | changes  # fmt: skip


def cells(seeds=1, given=None, **changes):
    made = suite.parse("test", content(**changes)).cells(seeds, given or {})
    return {(cell.task.name, cell.method.label, cell.seed): cell for cell in made}


def test_a_suite_unfolds_into_all_cells_one_seed_after_the_other():
    made = list(cells(seeds=2))
    tasks = ["two", "three-share1", "three-share0.5"]
    assert made == [(task, label, seed) for seed in (0, 1) for task in tasks for label in ("bc", "deep")]


def test_later_options_win_the_users_last():
    steps = {key[:2]: cell.options["train.steps"] for key, cell in cells().items()}
    assert steps["two", "bc"] == 20 and steps["two", "deep"] == 30
    assert steps["three-share1", "bc"] == 10 and steps["three-share1", "deep"] == 40
    assert {cell.options["train.steps"] for cell in cells(given={"train.steps": 7}).values()} == {7}


def test_shares_are_of_one_data_set_and_know_their_family():
    whole, half = (cells()[f"three-share{share}", "bc", 0].task for share in ("1", "0.5"))
    assert (whole.share, half.share, whole.family, half.family) == (1.0, 0.5, "three", "three")
    assert cells()["two", "bc", 0].task.family == "two"


def test_a_smaller_share_of_the_episodes_lies_within_every_larger_one():
    store = EpisodeStore.from_arrays([
        {"observations": torch.full((2, 1, 1), float(i)), "actions": torch.zeros(1, 1, dtype=torch.int64),
         "rewards": torch.zeros(1, 1), "terminated": True} for i in range(40)
    ], action_size=2)  # fmt: skip
    data = compose(("env=smac-like", "agents=2")).data
    kept = {}
    for share in (1.0, 0.5, 0.1, 0.001):
        part = build.part(store, replace(data, share=share))
        kept[share] = [int(first) for first in part.observations[part.offsets + torch.arange(part.episodes), 0, 0]]
    assert kept[1.0] == list(range(40)) and [len(values) for values in kept.values()] == [40, 20, 4, 1]
    assert set(kept[0.001]) < set(kept[0.1]) < set(kept[0.5]) and kept[0.5] == sorted(kept[0.5]) != list(range(20))
    assert build.part(store, data) is store


def test_the_command_of_a_cell_is_read_by_madiff_train_as_the_benchmark_reads_it(monkeypatch, capsys):
    cell = cells(seeds=2)["three-share0.5", "deep", 1]
    seen = []
    monkeypatch.setattr(train, "train", seen.append)
    verb = train.configuration.Verb("train", "", train.TrainConfig, seen.append, [])
    words = shlex.split(cell.command)
    assert words[:3] == ["python", "-m", "madiff.train"]
    assert run_verb(verb, train.build.defaults, words[3:]) == 0
    assert seen == [compose(cell.arguments)]
    assert (seen[0].seed, seen[0].agents, seen[0].data.share, seen[0].train.steps) == (1, 3, 0.5, 40)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"tasks": {"a/b": {"options": {}}}}, ["a/b", "folder"]),
        ({"tasks": {"a": "x"}}, ["tasks.a", "section"]),
        ({"tasks": {"a": {"options": {}, "shift": {}}}}, ["shift", "tasks.a", "shifts"]),
        ({"tasks": {"a": {"options": {}, "shifts": {"s": 3}}}}, ["tasks.a.shifts.s"]),
        ({"tasks": {"a": {"options": {}, "shares": [0.5, 2]}}}, ["tasks.a.shares", "too large"]),
        ({"reference": "nobody"}, ["nobody", "bc, deep"]),
        ({"baselines": ["nobody"]}, ["nobody", "bc, deep"]),
        ({"seeds": 0}, ["seeds", "from 1"]),
        ({"speed": 1}, ["speed"]),
        ({"methods": {"bc": {"options": {"algo": "bc"}, "not_on": {"tow": "no"}}}}, ["'tow' is no task", "two"]),
        ({"methods": {"bc": {"options": {"algo": "bc"}, "tasks": {"two": 3}}}}, ["methods.bc.tasks.two"]),
        ({"methods": {"bc": {"algo": "bc"}}}, ["algo", "methods.bc"]),
    ],
)
def test_mistakes_in_a_suite_are_named(changes, parts):
    with pytest.raises(UserError) as caught:
        suite.parse("test", content(**changes))
    assert all(part in str(caught.value) for part in parts), caught.value


def test_a_missing_damaged_or_unknown_suite_is_refused(tmp_path):
    with pytest.raises(UserError, match="no suite is called 'cordination'.*coordination.*PATH.yaml"):
        suite.load("cordination")
    with pytest.raises(UserError, match="cannot be read"):
        suite.load(str(tmp_path / "none.yaml"))
    (tmp_path / "bad.yaml").write_text("a: [1")
    with pytest.raises(UserError, match="cannot be read"):
        suite.load(str(tmp_path / "bad.yaml"))
    (tmp_path / "evil.yaml").write_text("!!python/object/apply:os.system ['touch owned']")
    with pytest.raises(UserError, match="cannot be read"):
        suite.load(str(tmp_path / "evil.yaml"))
    (tmp_path / "list.yaml").write_text("[1]")
    with pytest.raises(UserError, match="no mapping"):
        suite.load(str(tmp_path / "list.yaml"))


def test_what_does_not_fit_is_told_from_what_is_wrong():
    made = suite.parse("test", content()).cells(1, {})
    verdicts = {(cell.task.name, cell.method.label): verdict for cell, verdict in empty(made).items()}
    assert verdicts == {("two", "deep"): ("left out", "too small")}
    qmix = BC | {"qmix": {"options": {"algo": "qmix"}}}
    continuous = {"spread": {"options": {"env": "particle"}}}
    verdicts = empty(suite.parse("test", content(tasks=continuous, methods=qmix)).cells(2, {}))
    assert {(cell.method.label, cell.seed) for cell in verdicts} == {("qmix", 0), ("qmix", 1)}
    assert all(kind == "does not fit" and "discrete" in reason for kind, reason in verdicts.values())
    guarded = BC | {"through": {"options": {"algo": "dom2", "safe": "actions"}}}
    battle = {"battle": {"options": {"env": "smac-like", "scenario": "3m"}}}
    verdicts = empty(suite.parse("test", content(tasks=battle, methods=guarded)).cells(1, {}))
    assert [(kind, "discrete" in reason) for kind, reason in verdicts.values()] == [("does not fit", True)]


@pytest.mark.parametrize(
    ("task", "parts"),
    [
        ({"env": "smac-lik"}, ["smac-lik", "smac-like", "a bc"]),
        ({"scenario": "9z"}, ["9z", "3m"]),
        ({"trian.steps": 3}, ["trian.steps"]),
        ({"algo.width": -1}, ["algo.width", "from 1"]),
        ({"data.quality": "godo"}, ["godo", "good"]),
    ],
)
def test_a_mistake_in_a_cell_is_told_before_anything_runs(task, parts):
    with pytest.raises(UserError) as caught:
        empty(suite.parse("test", content(tasks={"a": {"options": task}}, methods=BC)).cells(1, {}))
    assert all(part in str(caught.value) for part in parts), caught.value


@pytest.mark.parametrize("shift", [{"name": "xor"}, {"speed": 2}, {"strict": 3}])
def test_a_shift_that_is_no_option_is_told_before_anything_runs(shift):
    task = {"a": {"options": {"agents": 2}, "shifts": {"s": shift}}}
    with pytest.raises(UserError, match="env.*strict|strict.*true or false"):
        empty(suite.parse("test", content(tasks=task, methods=BC)).cells(1, {}))


@pytest.mark.parametrize("name", suite.names())
def test_every_shipped_suite_can_be_told_to_madiff_train(name):
    """Every task with the first method, every method on the first task, and every method with options of its tasks."""
    loaded = suite.load(name)
    cells = loaded.cells(1, {})
    told = [c for c in cells if c.task is cells[0].task or c.method is cells[0].method or c.method.tasks]
    assert all(compose(cell.arguments).algo["name"] == cell.options["algo"] for cell in told if cell.source is None)
    again = {cell.arguments: cell.options for cell in cells if cell.source is not None}  # many tasks ask for the same
    for words, options in again.items():
        assert compose_evaluation((*words, "run=r")).episodes == options["episodes"]
    assert len(cells) == len(loaded.tasks) * len(loaded.methods)
    assert all(text.strip() for text in (loaded.about, loaded.leaves_out, loaded.same_for_all))
