"""What a benchmark states, against hand computation and other libraries, on made-up results."""

import csv
import io
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from madiff.benchmarking import drawing
from madiff.benchmarking.aggregate import Results, aggregate
from madiff.benchmarking.board import long_csv
from madiff.benchmarking.table import Table
from madiff.benchmarking.tables import estimate, gaps, number, tables
from tests.benchmarking import fakes

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


@pytest.fixture(scope="module")
def results():
    return fakes.results()


@pytest.fixture(scope="module")
def told(results):
    return aggregate(results)


def runs(results, task, label, shift=None):
    return np.array([results.runs(task, label, shift)[seed] for seed in range(3)])


def two(returns):
    """Results of one task, 0 to 10, and methods a and b with these returns by seed and episode."""
    tasks = {"t": fakes.task("t")}
    suite = fakes.described(tasks, 2) | {"methods": {"a": {"about": ""}, "b": {"about": ""}}, "reference": "a",
                                         "baselines": ["a"]}  # fmt: skip
    records = [fakes.finished("t", label, seed, np.array(run), 0.0) for label, seeds in returns.items()
               for seed, run in enumerate(seeds)]  # fmt: skip
    by_key = {("t", label, None): dict(enumerate(map(tuple, seeds))) for label, seeds in returns.items()}
    return Results(suite, {"t": fakes.reference(0.0, 10.0)}, records, by_key)


def test_means_and_scores_by_hand():
    told = aggregate(two({"a": [[1.0, 3.0], [4.0, 4.0]], "b": [[5.0, 5.0], [3.0, 7.0]]}))
    a, b = (told["cells"]["t"][label] for label in "ab")
    assert (a["return_mean"], a["normalised"], a["seeds"]) == (3.0, pytest.approx(0.3), 2)
    assert (b["return_mean"], b["normalised"]) == (5.0, pytest.approx(0.5))
    low, high = a["return_ci95"]
    assert 1.0 <= low < 3.0 < high <= 4.0
    assert told["labels"]["b"]["mean"] == pytest.approx(0.5) and told["labels"]["b"]["tasks"] == 1


def test_differences_are_between_the_same_seeds_and_episodes():
    """Episodes differ widely, methods by one: only paired does the interval know."""
    wide = np.random.default_rng(0).normal(0, 100, (2, 50))
    told = aggregate(two({"a": wide, "b": wide + 1.0}))
    over = told["over_best_baseline"]["t"]
    assert over["baseline"] == "a" and over["labels"]["b"]["difference"] == pytest.approx(1.0)
    assert over["labels"]["b"]["difference_ci95"] == pytest.approx((1.0, 1.0))
    assert over["labels"]["b"]["probability"] == 1.0 and over["labels"]["b"]["probability_ci95"] == (1.0, 1.0)
    assert told["improvement"]["b"]["probability"] == 1.0 and "a" not in told["improvement"]


def test_the_probability_of_improvement_of_a_cell_pairs_seeds_and_episodes(results, told):
    tie = two({"a": [[1.0, 2.0, 3.0, 4.0]], "b": [[2.0, 2.0, 2.0, 2.0]]})
    over = aggregate(tie)["over_best_baseline"]["t"]["labels"]["b"]
    assert over["probability"] == 0.375  # better once, level once, of four
    table = next(t for t in tables(results, told) if t.name == "over_best_baseline")
    assert any("P 0." in value for row in table.rows for value in row[2:])


def test_only_common_seeds_are_paired():
    uneven = two({"a": [[1.0, 1.0]], "b": [[2.0, 2.0], [0.0, 0.0]]})
    over = aggregate(uneven)["over_best_baseline"]["t"]["labels"]["b"]
    assert (over["seeds"], over["difference"]) == (1, 1.0)


def test_the_best_baseline_is_the_one_with_the_highest_mean(results, told):
    for task in results.tasks:
        means = {label: runs(results, task, label).mean() for label in results.suite["baselines"]
                 if results.runs(task, label)}  # fmt: skip
        assert told["over_best_baseline"][task]["baseline"] == max(means, key=means.get)


def test_iqm_over_tasks_is_scipys_trimmed_mean_of_normalised_run_means(results, told):
    for label in ("bc", "madiff-c"):
        scores = []
        for task in results.tasks:
            zero, one = (results.references[task][end]["return_mean"] for end in ("zero", "one"))
            scores += list((runs(results, task, label).mean(1) - zero) / (one - zero))
        row = told["labels"][label]
        assert row["iqm"] == pytest.approx(stats.trim_mean(scores, 0.25))
        assert row["mean"] == pytest.approx(np.mean(scores))
        assert row["iqm_ci95"][0] < row["iqm"] < row["iqm_ci95"][1] and row["tasks"] == len(results.tasks)


def test_a_method_that_does_not_fit_is_counted_over_its_own_tasks(results, told):
    assert told["labels"]["omar"]["tasks"] == 4 < len(results.tasks) == 7
    assert "omar" not in told["cells"]["xor"] and told["improvement"]["omar"]["tasks"] == 4
    lines = {row[0]: row for row in next(t for t in tables(results, told) if t.name == "together").rows}
    assert lines["omar"][1] == "4 of 7" and lines["bc"][1] == "7 of 7"


def test_a_task_whose_references_are_in_the_wrong_order_is_not_normalised():
    upside_down = two({"a": [[1.0]], "b": [[2.0]]})
    upside_down.references["t"]["one"]["return_mean"] = -1.0
    told = aggregate(upside_down)
    assert told["cells"]["t"]["b"]["normalised"] is None and told["labels"]["b"] == {"tasks": 0}
    assert told["cells"]["t"]["b"]["return_mean"] == 2.0 and told["profile"] == {}


def test_drops_are_what_was_lost_on_the_same_episodes(results, told):
    for shift in fakes.SHIFTS:
        lost = told["shifts"]["spread-medium"][shift]["dom2"]
        expected = (runs(results, "spread-medium", "dom2") - runs(results, "spread-medium", "dom2", shift)).mean()
        assert lost["drop"] == pytest.approx(expected)
        assert lost["relative"] == pytest.approx(expected / (517 - 160))
        assert lost["drop_ci95"][0] < lost["drop"] < lost["drop_ci95"][1]
    assert set(told["shifts"]) == {"spread-medium"}


def test_shares_make_one_curve_a_method(results, told):
    points = told["shares"]["spread-mixed"]["bc"]
    assert [p["share"] for p in points] == [0.05, 0.25, 1.0]
    assert points[0]["return_mean"] == pytest.approx(runs(results, "spread-mixed-share0.05", "bc").mean())


def test_profiles_fall_from_one_to_none_within_their_bands(told):
    thresholds, shares = told["profile"]["thresholds"], told["profile"]["labels"]["madiff-c"]
    assert thresholds == sorted(thresholds) and shares["share"][0] == 1.0 and shares["share"][-1] == 0.0
    assert np.all(np.diff(shares["share"]) <= 0)
    assert np.all(np.array(shares["low"]) <= shares["share"]) and np.all(np.array(shares["share"]) <= shares["high"])


def test_the_tables_say_what_is_missing_and_what_was_still_rising(results, told):
    returns = next(t for t in tables(results, told) if t.name == "returns")
    rows = {row[0]: dict(zip(returns.columns, row, strict=True)) for row in returns.rows}
    assert rows["xor"]["omar"] == "–" and rows["xor"]["madiff-d"].endswith("†") and "†" not in rows["xor"]["bc"]
    notes = " ".join(returns.notes)
    assert "– omar does not fit xor, 3m-good, 3m-poor: omar needs continuous actions" in notes
    assert "Nothing was tuned." in notes and "still rising" in notes


def test_what_was_not_begun_takes_no_room_and_is_counted(results):
    left = {"xor", "omar", "dom2"}
    waiting = [
        record if left.isdisjoint((record["task"], record["label"])) or record["status"] != "finished"
        else {**record, "status": "waiting", "metrics": {}} for record in results.records
    ]  # fmt: skip
    played = {key: runs for key, runs in results.returns.items() if left.isdisjoint(key[:2])}
    part = replace(results, records=waiting, returns=played)
    returns = next(t for t in tables(part, aggregate(part)) if t.name == "returns")
    whole = next(t for t in tables(results, aggregate(results)) if t.name == "returns")
    assert list(returns.columns) == [column for column in whole.columns if column not in left]
    assert [row[0] for row in returns.rows] == [row[0] for row in whole.rows if row[0] != "xor"]
    assert f"{sum(r['status'] == 'waiting' for r in waiting)} of {len(waiting)} cells" in " ".join(returns.notes)
    nothing = replace(results, records=[{**r, "status": "waiting", "metrics": {}} for r in results.records],
                      returns={})  # fmt: skip
    assert list(next(iter(tables(nothing, aggregate(nothing)))).columns) == list(whole.columns)


def test_methods_that_are_missing_for_one_reason_share_a_line(results):
    left_out = {"status": "left out", "metrics": {}, "command": "c", "reason": "one robot"}
    missing = [{**left_out, "task": "xor", "label": label, "seed": 0} for label in ("bc", "dom2")]
    other = {**left_out, "task": "xor", "label": "ma-cql", "seed": 0, "reason": "no time"}
    found = gaps(replace(results, records=[*missing, other]))
    assert found == ["– bc, dom2 left out on xor: one robot", "– ma-cql left out on xor: no time"]


def test_a_table_reads_the_same_in_markdown_csv_and_html():
    table = Table("t", "A <title>", ["task", "a|b"], [["x & y", '1 "2"'], ["z", "3,4"]], ["a note"])
    assert list(csv.reader(io.StringIO(table.csv()))) == [["task", "a|b"], ["x & y", '1 "2"'], ["z", "3,4"]]
    lines = table.markdown().splitlines()
    assert lines[2:4] == ["| task | a\\|b |", "|---|---|"] and lines[4] == '| x & y | 1 "2" |' and "a note" in lines

    class Cells(HTMLParser):
        found: list[str] = []

        def handle_data(self, data):
            self.found.append(data)

    parser = Cells()
    parser.feed(table.html())
    assert parser.found == ["A <title>", "task", "a|b", "x & y", '1 "2"', "z", "3,4", "a note"]


def test_a_page_turns_tables_that_are_too_wide_for_it_where_that_helps():
    wide = Table("t", "T", ["task", *(f"a-method-{i}" for i in range(14))], [["xor", *map(str, range(14))]])
    lines = "<tr><th>task</th><th>xor</th></tr>", "<tr><td>a-method-3</td><td>3</td></tr>"
    assert all(line in wide.html() for line in lines)
    tall = Table("t", "T", ["task", *"abc"], [["x" * 50, "y" * 50, "z" * 50, str(i)] for i in range(9)])
    assert tall.html().count("<tr>") == 10 and f"<td class=long>{'y' * 50}</td>" in tall.html()
    assert "<td class=better>better</td>" in Table("t", "T", ["a"], [["better"]]).html()


def test_training_takes_so_long_in_all_and_an_update(results, told):
    methods = results.suite["methods"] | {"dom2": {"about": "", "of": "bc"}}
    table = next(t for t in tables(replace(results, suite=results.suite | {"methods": methods}), told)
                 if t.name == "training")  # fmt: skip
    rows = {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    assert rows["bc"]["xor"] == "123 s (30.9 ms)" and rows["omar"]["xor"] == "–"
    assert "dom2" not in rows and list(table.columns) == ["method", *results.tasks]


def test_every_cell_is_a_line_of_the_long_table(results):
    table = long_csv(results)
    assert len(table.rows) == len(results.records) == 7 * 6 * 3
    column = table.columns.index("return_mean")
    values = [float(row[column]) for row in table.rows if row[column]]
    assert values == [r["metrics"]["return_mean"] for r in results.records if r["status"] == "finished"]


@pytest.mark.parametrize(
    ("value", "text"), [(0.12345, "0.123"), (-12.345, "-12.35"), (123.45, "123.5"), (12345.6, "12346"), (None, "–")]
)
def test_numbers_keep_about_four_digits(value, text):
    assert number(value) == text


def test_an_estimate_has_its_interval_to_the_same_place():
    assert estimate(19.704, (19.391, 19.9)) == "19.70 [19.39, 19.90]"
    assert estimate(0.5, (-0.25, 1.0), "+") == "+0.500 [-0.250, 1.000]"


def test_every_plot_is_drawn_and_shows_every_method(results, told, tmp_path):
    made = drawing.draw(results, told, tmp_path)
    names = ["returns", "learning_curves", "performance_profile", "iqm", "improvement", "shifts", "shares"]
    assert [path.stem for path in made] == names
    for path in made:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
        for label, colour in zip(fakes.SKILL, COLOURS, strict=True):
            wanted = np.array([int(part, 16) for part in re.findall("..", colour[1:])])
            shown = (np.abs(pixels.astype(int) - wanted).max(1) < 8).sum()
            assert shown > 20 or (path.stem, label) == ("improvement", "bc"), (path.stem, label)


def test_nothing_to_show_is_no_plot(tmp_path):
    empty = Results(fakes.described({"t": fakes.task("t")}, 1), {}, [], {})
    assert drawing.draw(empty, aggregate(empty), tmp_path) == []
    assert tables(empty, aggregate(empty))[0].name == "returns"
