"""Effects and curves: the rule of the verdict by hand, what is measured, and what a suite may not ask."""

from dataclasses import replace

import numpy as np
import pytest

from madiff.benchmarking import drawing, suite
from madiff.benchmarking.aggregate import Results, aggregate
from madiff.benchmarking.answers import answer_tables, answers
from madiff.benchmarking.questions import Effect, verdict
from madiff.interfaces import UserError
from tests.benchmarking import fakes

METHODS = {"a": {"options": {"algo": "bc"}}, "b": {"options": {"algo": "bc", "algo.width": 8}},
           "again": {"of": "b", "options": {"algo.acting": "sample"}, "not_on": {"t": "no time"}}}  # fmt: skip
CONTENT = {
    "about": "a", "leaves_out": "l", "same_for_all": "s", "seeds": 1, "reference": "a", "baselines": ["a"],
    "tasks": {"t": {"options": {"env": "xor"}}, "u": {"options": {"env": "xor"}}}, "methods": METHODS,
}  # fmt: skip


def asked(**effect):
    return {"about": "words", "cell": "t/b", "relation": "above", "other": "t/a", **effect}


def measured(ours, theirs, zero=0.0, **effect):
    """The answer where t/b returned `ours` and t/a `theirs`, by seed and episode."""
    returns = {("t", "b", None): dict(enumerate(ours)), ("t", "a", None): dict(enumerate(theirs))}
    described = fakes.described({"t": fakes.task("t")}, 1)
    described |= {"effects": {"e": Effect("e", **asked(**effect)).told}, "methods": {"a": {}, "b": {}}}
    results = Results(described, {"t": fakes.reference(zero, zero + 10.0)}, [], returns)
    return answers(results)["effects"]["e"], results


@pytest.mark.parametrize(
    ("margins", "expected"),
    [
        ([(0.1, 2.0)], "seen"),
        ([(-2.0, -0.1)], "not seen"),
        ([(-0.1, 0.1)], "inconclusive"),
        ([(0.0, 1.0)], "inconclusive"),  # touching the end is not within it
        ([(-1.0, 0.0)], "inconclusive"),
        ([(0.1, 1.0), (0.1, 1.0)], "seen"),
        ([(0.1, 1.0), (-0.1, 1.0)], "inconclusive"),
        ([(-0.5, 1.0), (-1.0, -0.1)], "not seen"),
    ],
)  # fmt: skip
def test_the_verdict_by_hand(margins, expected):
    assert verdict(margins) == expected


@pytest.mark.parametrize(
    ("ratio", "effect", "expected"),
    [
        (1.2, {"relation": "above"}, "seen"),
        (0.8, {"relation": "above"}, "not seen"),
        (1.2, {"relation": "above", "share": 0.3}, "not seen"),
        (1.4, {"relation": "above", "share": 0.3}, "seen"),
        (0.8, {"relation": "below"}, "seen"),
        (0.8, {"relation": "below", "share": 0.5}, "not seen"),
        (0.4, {"relation": "below", "share": 0.5}, "seen"),
        (1.05, {"relation": "about"}, "seen"),
        (0.95, {"relation": "about"}, "seen"),
        (1.2, {"relation": "about"}, "not seen"),
        (0.8, {"relation": "about"}, "not seen"),
        (1.2, {"relation": "about", "share": 0.3}, "seen"),
        (0.9, {"relation": "at-least", "share": 0.8}, "seen"),
        (0.7, {"relation": "at-least", "share": 0.8}, "not seen"),
    ],
)
@pytest.mark.parametrize("zero", [0.0, 100.0, -100.0])
def test_relations_are_bands_of_shares_above_zero(ratio, effect, expected, zero):
    """Episodes differ widely, methods by a fixed share of what they return above zero: only pairs know that."""
    wide = np.random.default_rng(0).uniform(1, 100, (2, 40))
    found, _ = measured(zero + ratio * wide, zero + wide, zero, **effect)
    assert found["verdict"] == expected and found["share"] == pytest.approx(ratio) and found["seeds"] == 2
    assert found["difference"] == pytest.approx((ratio - 1) * wide.mean())


def test_few_episodes_that_overlap_decide_nothing():
    found, _ = measured([[6.0, 14.0, 7.0, 14.0]], [[10.0] * 4], relation="at-least", share=0.95)
    low, high = found["margins_ci95"][0]
    assert low < 0 < high and found["verdict"] == "inconclusive"
    assert found["difference_ci95"][0] < found["difference"] < found["difference_ci95"][1]


def test_shares_of_what_is_no_better_than_random_decide_nothing_but_above_and_below_do():
    ours, theirs = [[5.0, 5.0]], [[-1.0, -1.0]]
    assert measured(ours, theirs, relation="at-least", share=0.8)[0]["verdict"] == "inconclusive"
    above, _ = measured(ours, theirs, relation="above")
    assert (above["verdict"], above["share"]) == ("seen", None)


def test_common_seeds_and_episodes_are_compared_and_missing_cells_are_told():
    found, _ = measured([[2.0, 2.0, 90.0]], [[1.0, 1.0], [50.0, 50.0]])
    assert (found["seeds"], found["difference"]) == (1, 1.0)
    missing, results = measured([], [[1.0, 1.0]])
    assert missing == {"seeds": 0, "verdict": "not measured"}
    (table,) = answer_tables(results, answers(results))
    assert table.rows[0][-1] == "not measured" and table.rows[0][4:6] == ["–", "–"]


def test_the_table_says_what_was_predicted_and_measured():
    _, results = measured([[3.0, 3.0]], [[2.0, 2.0]], relation="about", share=0.1)
    (table,) = answer_tables(results, answers(results))
    assert table.rows == [["e", "words", "t b less t a", "90% to 110%", "150%", "+1.000 [1.000, 1.000]", "not seen"]]
    assert "inconclusive" in table.notes[1]


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"cell": "v/b"}, ["effects.e.cell", "'v/b' names no task", "t/METHOD"]),
        ({"cell": "t"}, ["effects.e.cell", "'t' names no method", "t/a, t/b"]),
        ({"other": "t/c"}, ["effects.e.other", "'t/c' names no method", "t/a, t/b"]),
        ({"other": "t/again"}, ["effects.e.other", "again is not run on t", "no time"]),
        ({"relation": "over"}, ["effects.e.relation", "'over'", "above", "at-least"]),
        ({"share": -1}, ["effects.e.share", "too small"]),
        ({"shares": 1}, ["effects.e", "'shares'", "share"]),
    ],
)
def test_mistakes_in_effects_are_one_line_that_says_what_is_allowed(changes, parts):
    with pytest.raises(UserError) as caught:
        suite.parse("test", {**CONTENT, "effects": {"e": asked(**changes)}})
    message = str(caught.value)
    assert all(part in message for part in parts) and "\n" not in message, message


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"lines": {"one": ["c"]}}, ["curves.c.lines.one", "no method 'c'", "a, b, again"]),
        ({"lines": {"one": "b"}}, ["curves.c.lines.one", "no list"]),
        ({"tasks": ["v"]}, ["curves.c.tasks", "'v' is no task"]),
        ({"lines": {"one": ["a"]}}, ["curves.c.lines.one", "a says no number for algo.width on t"]),
        ({"over": "algo"}, ["curves.c.lines.one", "b says no number for algo"]),
    ],
)
def test_mistakes_in_curves_are_named(changes, parts):
    with pytest.raises(UserError) as caught:
        suite.parse("test", {**CONTENT, "curves": {"c": {"over": "algo.width", "lines": {"one": ["b"]}, **changes}}})
    assert all(part in str(caught.value) for part in parts), caught.value


def test_a_curve_takes_the_option_of_the_run_that_a_row_evaluates():
    curves = {"c": {"over": "algo.width", "lines": {"one": ["b", "again"]}}}
    told = suite.parse("test", {**CONTENT, "curves": curves}).curves["c"].told(suite.parse("test", CONTENT))
    assert told["lines"]["one"] == {"t": {"b": 8, "again": 8}, "u": {"b": 8, "again": 8}}


def test_a_curve_is_a_table_and_a_plot_in_the_order_of_its_option(tmp_path):
    results = fakes.results(seeds=1)
    line = {task: {"madiff-d": 4, "madiff-c": 2, "omar": 7} for task in ("xor", "spread-medium")}
    results = replace(results, suite=results.suite | {
        "curves": {"c": {"about": "words", "option": "algo.execute", "lines": {"plain": line}}}})  # fmt: skip
    told = aggregate(results) | answers(results)
    points = told["curves"]["c"]["spread-medium"]["plain"]
    assert [(p["value"], p["label"]) for p in points] == [(2, "madiff-c"), (4, "madiff-d"), (7, "omar")]
    assert points[0]["return_mean"] == told["cells"]["spread-medium"]["madiff-c"]["return_mean"]
    assert [p["value"] for p in told["curves"]["c"]["xor"]["plain"]] == [2, 4]  # omar does not fit
    (table,) = answer_tables(results, told)
    assert list(table.columns[2:]) == ["algo.execute=2", "algo.execute=4", "algo.execute=7"]
    assert table.rows[0][:2] == ["xor", "plain"] and table.rows[0][4] == "–"
    assert tmp_path / "curve_c.png" in drawing.draw(results, told, tmp_path)
