"""Cells that evaluate another cell's run again: with a safeguard, a budget, or other options of acting."""

import json
import shlex

import pytest
import yaml

from madiff import benchmark, evaluate
from madiff.benchmarking import suite
from madiff.interfaces import UserError
from tests.benchmarking.test_benchmark import complaint, read

TINY = {
    "algo": "diffuser", "algo.horizon": 8, "algo.width": 8, "algo.multipliers": [1, 2], "algo.diffusion_steps": 5,
    "algo.sampler_steps": 2, "algo.batch_size": 8, "algo.inverse_dynamics": "none", "algo.values.width": 8,
    "algo.values.multipliers": [1, 2], "algo.values.members": 1, "algo.values.held_out": 0.0,
}  # fmt: skip
CONTENT = {
    "about": "a", "leaves_out": "l", "same_for_all": "s", "seeds": 1, "reference": "diffuser", "baselines": [],
    "options": {"env": "maze", "env.limit": 40, "env.repeat": 10, "data.episodes": 8, "train.steps": 4,
                "train.evaluate_every": 4, "train.evaluate_episodes": 1, "evaluation.episodes": 3},
    "tasks": {"large": {"options": {"scenario": "large"}}},
    "methods": {
        "exact": {"of": "diffuser", "options": {"safe": "exact"}},
        "diffuser": {"options": TINY},
        "trebi": {"of": "diffuser", "options": {"safe": "trebi", "safe.coverage": None, "cost_limit": 2.0}},
    },
}  # fmt: skip


def cells(**methods):
    made = suite.parse("test", CONTENT | {"methods": CONTENT["methods"] | methods}).cells(2, {"hardware.threads": 1})
    return {(cell.method.label, cell.seed): cell for cell in made}


def test_an_evaluation_comes_after_its_training_and_takes_options_of_evaluate():
    made = cells()
    assert list(made) == [(label, seed) for seed in (0, 1) for label in ("diffuser", "exact", "trebi")]
    cell = made["trebi", 1]
    assert cell.source is made["diffuser", 1] and cell.cost_limit == 2.0
    assert dict(cell.options) == {
        "safe": "trebi", "safe.coverage": None, "cost_limit": 2.0, "episodes": 3, "hardware.threads": 1,
    }  # fmt: skip
    words = shlex.split(cell.command)
    assert words[:4] == ["python", "-m", "madiff.evaluate", "run=cells/large/diffuser/seed1"]
    assert "safe.coverage=null" in words


@pytest.mark.parametrize("of", ["nothing", "exact"])
def test_only_a_trained_method_can_be_evaluated_again(of):
    with pytest.raises(UserError, match=f"there is no trained method '{of}'.*allowed: diffuser"):
        cells(other={"of": of, "options": {}})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("evaluations")
    path = place / "safe.yaml"
    path.write_text(yaml.safe_dump(CONTENT, sort_keys=False))
    cache = tmp_path_factory.getbasetemp() / "data-cache"
    arguments = [f"suite={path}", f"out={place / 'bench'}", "workers=1", f"data.cache={cache}"]
    assert benchmark.main([*arguments, "methods=[exact]"]) == 0
    assert [r["status"] for r in read(place / "bench")] == ["finished", "finished", "waiting"]
    assert benchmark.main(arguments) == 0
    return place / "bench"


def test_a_run_is_trained_once_and_every_evaluation_says_both_kinds_of_violation(folder):
    records = {r["label"]: r for r in read(folder)}
    assert [records[label]["seconds"] > 0 for label in ("diffuser", "exact", "trebi")] == [True, False, False]
    for label in ("exact", "trebi"):
        assert records[label]["updates"] == 4 and records[label]["status"] == "finished"
        assert {"plans_violating", "episodes_violating", "cost_mean"} <= {*records[label]["metrics"]}
    assert records["exact"]["metrics"]["plans_least_barrier"] > records["trebi"]["metrics"]["plans_least_barrier"]
    assert (records["exact"]["cost_limit"], records["trebi"]["cost_limit"]) == (None, 2.0)


def test_the_table_of_safety_has_a_row_a_method_and_the_share_over_the_limit(folder):
    told = (folder / "tables.md").read_text()
    rows = [line for line in told.partition("## Safety: large")[2].splitlines() if line.startswith("| ")]
    head, *rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[:4]]
    assert [row[0] for row in rows] == ["exact", "diffuser", "trebi"]
    table = {row[0]: dict(zip(head, row, strict=True)) for row in rows}
    episodes = [json.loads(line) for line in (folder / "episodes.jsonl").read_text().splitlines()]
    over = [e["cost"] > 2.0 for e in episodes if e["label"] == "trebi"]
    assert len(over) == 3
    assert table["trebi"]["episodes over the limit"] == f"{sum(over) / len(over):.1%}"
    assert table["trebi"]["limit"] == "2" and table["exact"]["limit"] == "–"


def test_robots_that_arrive_are_counted(workplace):
    options = {"env": "crossing", "agents": 3, "data.episodes": 50, "data.quality": "good", "train.steps": 300,
               "train.evaluate_every": 300, "train.evaluate_episodes": 1, "evaluation.episodes": 4}  # fmt: skip
    content = CONTENT | {"options": options, "tasks": {"three": {"one": "good", "options": {}}}, "reference": "bc",
                         "methods": {"bc": {"options": {"algo": "bc"}}}}  # fmt: skip
    (workplace / "robots.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    assert benchmark.main([f"suite={workplace / 'robots.yaml'}", "out=bench", "workers=1"]) == 0
    episodes = [json.loads(line) for line in (workplace / "bench" / "episodes.jsonl").read_text().splitlines()]
    arrived = [robot for episode in episodes for robot in episode["arrived"]]
    rate = sum(arrived) / len(arrived)
    assert len(arrived) == 12 and rate > 0
    (record,) = read(workplace / "bench")
    assert record["metrics"]["arrival_rate"] == pytest.approx(rate)
    told = (workplace / "bench" / "tables.md").read_text()
    assert "agents that arrive" in told and f"{rate:.1%}" in told


def test_the_command_of_an_evaluation_repeats_its_number(folder, monkeypatch, tmp_path):
    record = {r["label"]: r for r in read(folder)}["exact"]
    monkeypatch.chdir(folder)
    assert evaluate.main([*shlex.split(record["command"])[3:], f"out={tmp_path}/again"]) == 0
    again = json.loads((tmp_path / "again" / "evaluation.json").read_text())
    assert again["return_mean"] == record["metrics"]["return_mean"]
    assert again["plan_violations"]["violating"] == record["metrics"]["plans_violating"]


def test_a_training_that_fails_takes_its_evaluations_with_it(workplace, capsys):
    methods = {"diffuser": {"options": TINY | {"algo.learning_rate": 1e30}}, "exact": CONTENT["methods"]["exact"]}
    path = workplace / "bad.yaml"
    path.write_text(yaml.safe_dump(CONTENT | {"methods": methods}, sort_keys=False))
    assert "2 of 2 cells failed" in complaint(capsys, f"suite={path}", "out=bench", "workers=1")
    assert [r["reason"] for r in read(workplace / "bench")][1] == "diffuser failed"


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"safe": "nonsense"}, "nonsense"),
        ({"safe": "exact", "safe.sweets": 1}, "sweets"),
        ({"cost_limit": -1}, "cost_limit"),
    ],  # fmt: skip
)
def test_options_that_no_evaluation_takes_are_refused_before_anything_runs(workplace, capsys, options, part):
    path = workplace / "wrong.yaml"
    methods = {"diffuser": {"options": TINY}, "other": {"of": "diffuser", "options": options}}
    path.write_text(yaml.safe_dump(CONTENT | {"methods": methods}, sort_keys=False))
    assert part in complaint(capsys, f"suite={path}", "out=bench")
    assert not (workplace / "bench").exists()
