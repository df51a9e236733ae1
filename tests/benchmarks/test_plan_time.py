"""Time of one plan: what is timed, what it says of a safeguard, and arguments that make no sense."""

import json

import pytest

from benchmarks import plan_time
from tests.cli.command import run


@pytest.fixture(scope="module")
def crossings(tmp_path_factory):
    """Runs of two and of three robots, hardly trained."""
    folder = tmp_path_factory.mktemp("crossings")
    for agents in (2, 3):
        assert run(
            "train", "env=crossing", f"agents={agents}", "algo=madiff-c", "data.quality=good", "data.episodes=6",
            "train.steps=2", "train.baselines=[]", "train.evaluate_episodes=1", "evaluation.episodes=1",
            "evaluation.film=false", "algo.width=16", "algo.layers=1", "algo.heads=2", "algo.horizon=4",
            "algo.history=1", "algo.batch_size=4", "algo.inverse_width=16", f"data.cache={folder}/cache",
            f"run_dir={folder}/{agents}",
        ) == 0  # fmt: skip
    return [folder / "2", folder / "3"]


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(plan_time, "ROUNDS", 1)
    monkeypatch.setattr(plan_time, "MOMENTS", 2)
    monkeypatch.setattr(plan_time, "WARM", 1)


def test_every_run_batch_and_safeguard_has_a_row_and_the_share_is_against_none(crossings, tmp_path, capsys):
    runs = ",".join(map(str, crossings))
    told = [f"runs={runs}", "safe=exact,smooth", "safe.smoothness=9", "batches=1,3", f"out={tmp_path}"]
    assert plan_time.main(told) == 0
    rows = json.loads((tmp_path / "plan_time.json").read_text())
    assert [(r["agents"], r["batch"], r["safe"]) for r in rows] == [
        (n, batch, safe) for n in (2, 3) for batch in (1, 3) for safe in ("none", "exact", "smooth")
    ]
    for none, *others in (rows[i : i + 3] for i in range(0, 12, 3)):
        assert none["share"] == 0 and none["ms_per_plan"] == pytest.approx(none["ms"] / none["batch"])
        assert all(r["share"] == pytest.approx(r["ms"] / none["ms"] - 1) for r in others)
    assert (tmp_path / "plan_time.png").read_bytes()[:4] == b"\x89PNG"
    assert capsys.readouterr().out.count("of denoising") == 12


def test_one_number_of_agents_is_drawn_against_the_plans_at_once(crossings, tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(plan_time.plots, "sweep", lambda series, out, **labels: drawn.update(series, **labels))
    assert plan_time.main([f"runs={crossings[0]}", "batches=2,1", f"out={tmp_path}"]) == 0
    assert drawn["xlabel"] == "plans asked for at once" and drawn["none"].x == [1, 2]


def test_options_reach_the_safeguards_that_have_them():
    section = plan_time.section("smooth", {"smoothness": 3.0, "weight": 2.0})
    assert section["smoothness"] == 3.0 and "weight" not in section


@pytest.mark.parametrize(
    ("told", "line"),
    [
        (["batch=3"], "unknown argument 'batch'"),
        (["runs=x", "batches=0"], "whole numbers of plans"),
        (["batches=2"], "run directories"),
        (["runs=nowhere"], "nowhere"),
    ],
)
def test_what_makes_no_sense_is_one_line_and_exit_2(told, line, capsys):
    assert plan_time.main(told) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and line in error


def test_an_option_that_no_safeguard_has_is_refused(crossings, capsys):
    assert plan_time.main([f"runs={crossings[0]}", "safe=exact", "safe.nonsense=1"]) == 2
    assert "nonsense" in capsys.readouterr().err
