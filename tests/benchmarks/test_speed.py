"""The speed tables: arguments, ratios, counting, and rows of peers that are not there."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import environment, peers, picture, plan_quality, planning, qp, speed
from benchmarks.timing import row
from madiff.benchmarking import suite


def test_unknown_arguments_are_one_line_and_exit_2(capsys):
    assert speed.main(["nonsense"]) == 2
    assert "qp, env, plan, train, reference, libraries, all" in capsys.readouterr().err
    assert speed.main(["qp", "out=speed.txt"]) == 2
    assert plan_quality.main(["episodes=three"]) == 2 and plan_quality.main(["runn=x"]) == 2


def test_the_ratio_is_the_median_of_pairs_not_the_ratio_of_medians():
    measured = row("x", [1.0, 10.0, 100.0], [1.0, 100.0, 50.0], "steps/s", {"peer": "1"})
    assert measured["ours"] == 10 and measured["peer"] == 50 and measured["ratio"] == 1.0


def test_a_missing_peer_is_a_row_that_says_so():
    measured = row("x", [1.0], [], "steps/s", {})
    assert measured["peer"] == "not installed" and measured["ratio"] is None
    speed.show(measured)


def test_a_run_that_is_stopped_keeps_its_rows_and_draws_them(tmp_path, monkeypatch, capsys):
    def first():
        yield row("a", [2.0], [1.0], "steps/s", {})

    def second():
        yield row("b", [2.0], [], "steps/s", {})
        assert len(json.loads((tmp_path / "made" / "speed.json").read_text())) == 2
        raise KeyboardInterrupt

    monkeypatch.setattr(speed, "SUITES", {"one": first, "two": second})
    assert speed.main(["all", f"out={tmp_path}/made/speed.json"]) == 130
    rows = json.loads((tmp_path / "made" / "speed.json").read_text())
    assert [(r["suite"], r["name"], r["ratio"]) for r in rows] == [("one", "a", 2.0), ("two", "b", None)]
    assert (tmp_path / "made" / "speed.png").read_bytes()[:4] == b"\x89PNG"
    said = capsys.readouterr()
    assert "[2/2] two" in said.out and "stopped after 2 rows" in said.err


def test_the_picture_has_a_bar_a_row_and_words_for_missing_peers(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(picture, "save", lambda figure, out: drawn.append(figure) or out)
    rows = [row(name, [4.0], other, "steps/s", {}) for name, other in (("fast", [1.0]), ("slow", [8.0]), ("alone", []))]
    assert picture.ratios([*rows, {"name": "no peer", "peer": "none", "ratio": None}], tmp_path) == tmp_path
    axis = drawn[0].axes[0]
    ends = [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in axis.patches]
    assert ends == [(1, 4), (1, 0.5)] and axis.get_xscale() == "log"
    assert [text.get_text().strip() for text in axis.texts] == ["4", "0.5", "not installed"]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["fast", "slow", "alone"]
    assert picture.ratios([{"name": "no peer", "peer": "none", "ratio": None}], tmp_path) is None
    lost = {"name": "lost", "peer": "stopped with exit code 1 " + "and why " * 20, "ratio": None}
    assert picture.ratios([lost], tmp_path) == tmp_path
    words = drawn[-1].axes[0].texts[0].get_text().strip()
    assert words.startswith("stopped with exit code 1") and words.endswith("...") and len(words) <= picture.LONGEST


def test_steps_are_whole_environment_steps_of_all_copies():
    assert environment.stepper("3m", 7, 3, compile=False, device="cpu")() == 21
    assert environment.single_copy(5)() == 5


def test_decision_rows_hold_what_a_decision_costs(tmp_path, monkeypatch):
    monkeypatch.setattr(planning, "MODELS", ("default",))
    monkeypatch.setattr(planning, "ROUNDS", 1)
    monkeypatch.setattr(planning, "single_rows", lambda: iter(()))
    assert speed.main(["plan", f"out={tmp_path / 'plan.json'}"]) == 0
    rows = json.loads((tmp_path / "plan.json").read_text())
    assert len(rows) == 4 and all(r["network_calls"] == 5 and r["ours"] > 0 for r in rows)
    one, ten = rows[0]["gflop"], rows[1]["gflop"]
    assert ten == pytest.approx(10 * one, rel=1e-3)


def test_every_single_agent_method_is_timed_with_what_it_decides_by(monkeypatch):
    """Diffuser's two networks: the denoiser in each of 10 steps, the critics of plans beside it as guidance asks."""
    labels = {"bc", "diffusion-ql", "cpql", "diffuser", "diffusion-policy", "synther"}
    whole = suite.load(planning.SINGLE)
    few = replace(whole, methods={label: whole.methods[label] for label in labels})
    monkeypatch.setattr(planning, "suite", SimpleNamespace(load=lambda name: few))
    monkeypatch.setattr(planning, "ROUNDS", 1)
    rows = {row["name"].split(", ")[1]: row for row in planning.single_rows()}
    assert set(rows) == labels
    calls = {label: row["network_calls"] for label, row in rows.items()}
    assert calls["diffusion-ql"] == 5 and calls["cpql"] == 1 and calls["diffuser"] > 10
    assert calls["diffusion-policy"] == 10 / 8  # eight steps of every plan are carried out
    assert all(row["decisions_per_second"] == pytest.approx(1e3 / row["ours"]) for row in rows.values())
    assert all(row["parameters"] > 1000 for row in rows.values())


def test_programs_are_timed_beside_the_stock_layer_whose_answers_and_gradients_they_match(tmp_path, monkeypatch):
    for name, value in {"DENSE": ((2, 3, 6),), "ROBOTS": 3, "SCENES": 2, "ROUNDS": 1, "PEER_ROUNDS": 1}.items():
        monkeypatch.setattr(qp, name, value)
    monkeypatch.setattr(peers, "installed", lambda name: False)
    assert speed.main(["qp", f"out={tmp_path / 'qp.json'}"]) == 0
    rows = json.loads((tmp_path / "qp.json").read_text())
    assert len(rows) == 2 * 2 * 4 and all(r["residual"] <= 1e-8 and r["ours"] > 0 for r in rows)
    timed = [r for r in rows if "stock" in r["name"]]
    assert len(timed) == 8 and all(r["ratio"] == pytest.approx(r["ours"] / r["peer"]) for r in timed)
    assert all(r["peer_error"] < 1e-5 and r["peer_gradient_error"] < 1e-5 for r in timed)
    assert all(r["peer"] == "not installed" for r in rows if "qpth" in r["name"])


def test_a_peer_is_handed_the_very_programs_we_solve():
    """As matrices, they have the solution of the robots' own form."""
    for case in (qp.half_spaces(2, 3, 5), qp.crowd(4, 3)):
        q, G, h = (case.dense[k] for k in ("q", "G", "h"))
        from_matrices = qp.qp.solve(None, q, G, h, method="interior")
        assert (case.direct(*case.inputs).flatten(1) - from_matrices.x).abs().max() < 1e-8


def test_a_peer_that_stops_is_a_row_that_says_so(monkeypatch, tmp_path):
    script = tmp_path / "broken.py"
    script.write_text("import sys\nsys.stderr.write('much\\nno pivots\\n')\nraise SystemExit(3)")
    monkeypatch.setattr(peers, "python_of", lambda name: Path(sys.executable))
    with pytest.raises(peers.PeerFailed, match="exit code 3"):
        peers.Peer("qpth", script)
    assert peers.started("qpth", script) == (None, "stopped with exit code 3 (no pivots)")
    monkeypatch.setattr(peers, "installed", lambda name: False)
    assert peers.started("qpth", script) == (None, "not installed")
    measured = row("r", [2.0], [], "QPs/s", {}, "stopped with exit code 3")
    assert measured["peer"] == "stopped with exit code 3" and measured["ratio"] is None
