"""What changed between two folders: against scipy, closed forms and numbers written down by hand."""

import json
import shutil

import numpy as np
import pytest
from scipy import stats

from madiff import report
from madiff.benchmarking import difference, sides
from madiff.benchmarking.aggregate import aggregate
from madiff.benchmarking.answers import answers
from madiff.benchmarking.folder import told_by, with_episodes
from tests.benchmarking import fakes
from tests.benchmarking.test_report import Page, complaint

RNG = np.random.default_rng(0)
LUCK = 10 * RNG.normal(size=(3, 60))  # of the beginnings of the episodes: the same for all
NOISE = RNG.normal(size=(2, 3, 60))


def folder(path, cells, versions=None, seeds=3):
    """A benchmark's files. cells: (task, label) -> {"returns": (seeds, episodes)} and other things of its records."""
    records, lines = [], []
    for (task, label), cell in cells.items():
        if "reason" in cell:
            records.append({**fakes.empty(task, label, 0), "reason": cell["reason"]})
        for seed, values in enumerate(cell.get("returns", ())):
            record = fakes.finished(task, label, seed, np.asarray(values), 0.0)
            record["metrics"] |= cell.get("metrics", {}) | {"plan_ms_batch1": cell.get("ms", 20.0)}
            command = f"python -m madiff.train env=spread algo={label} seed={seed} {cell.get('options', '')}"
            records.append({**record, "command": command, "run_dir": f"cells/{task}/{label}/seed{seed}", "data": "good",
                            "device": "cpu", "episodes": len(values), "env": "spread", "scenario": "3"})  # fmt: skip
            costs = cell.get("costs", np.zeros((seeds, len(values))))[seed]
            cell_of = {"task": task, "label": label, "seed": seed, "shift": None}
            lines += [{**cell_of, "episode": i, "return": float(value), "cost": float(cost)}
                      for i, (value, cost) in enumerate(zip(values, costs, strict=True))]  # fmt: skip
    suite = fakes.described({task: fakes.task(task) for task, _ in cells}, seeds)
    suite |= {"methods": {label: {"about": ""} for _, label in cells}, "versions": versions or {"torch": "2.6"}}
    path.mkdir()
    for name, value in (("suite", suite), ("results", records), ("aggregates", {})):
        (path / f"{name}.json").write_text(json.dumps(value))
    (path / "episodes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def changes(a, b):
    a, b = sides.side(a), sides.side(b)
    return {(*one.key, one.quantity): one for one in difference.changes(a, b)}, a, b


def test_the_same_seeds_and_episodes_are_paired_and_their_luck_falls_away(workplace):
    """Against scipy's own bootstrap of the paired differences of a single seed."""
    a = folder(workplace / "a", {("t", "m"): {"returns": (LUCK + NOISE[0])[:1]}}, seeds=1)
    b = folder(workplace / "b", {("t", "m"): {"returns": (LUCK + NOISE[1] + 0.8)[:1]}}, seeds=1)
    one = changes(a, b)[0]["t", "m", "return"]
    less = NOISE[1, 0] + 0.8 - NOISE[0, 0]
    expected = stats.bootstrap((less,), np.mean, method="percentile", rng=np.random.default_rng(1)).confidence_interval
    assert one.difference == pytest.approx(less.mean()) and one.ends == pytest.approx(tuple(expected), abs=0.08)
    assert one.verdict == "better" and one.compared == "1 × 60, paired"
    back = changes(b, a)[0]["t", "m", "return"]
    assert back.verdict == "worse" and back.ends == pytest.approx((-one.ends[1], -one.ends[0]), abs=0.08)


@pytest.mark.parametrize("option", ["evaluation.seed=7", "env.speed=0.5", "agents=4"])
def test_episodes_that_begin_otherwise_are_not_paired(workplace, option):
    a = folder(workplace / "a", {("t", "m"): {"returns": (LUCK + NOISE[0])[:1]}}, seeds=1)
    b = folder(workplace / "b", {("t", "m"): {"returns": (LUCK + NOISE[1] + 0.8)[:1], "options": option}}, seeds=1)
    one = changes(a, b)[0]["t", "m", "return"]
    half = 1.96 * np.sqrt(sum((LUCK + noise)[0].var() / 60 for noise in NOISE))
    assert one.ends == pytest.approx((one.difference - half, one.difference + half), abs=0.5)
    assert one.verdict == "no difference shown" and one.compared == "1 × 60"


def test_common_seeds_are_compared_where_one_side_has_more(workplace):
    a = folder(workplace / "a", {("t", "m"): {"returns": LUCK}})
    b = folder(workplace / "b", {("t", "m"): {"returns": LUCK[:2] + 1}}, seeds=2)
    one = changes(a, b)[0]["t", "m", "return"]
    assert one.means == pytest.approx((LUCK[:2].mean(), LUCK[:2].mean() + 1)) and one.compared == "2 × 60, paired"
    c = folder(workplace / "c", {("t", "m"): {"returns": LUCK[:, :50]}})
    assert changes(a, c)[0]["t", "m", "return"].compared == "3 × 60 and 3 × 50"


def test_less_cost_is_better_and_cost_that_means_nothing_is_left_out(workplace):
    known = {"returns": LUCK, "metrics": {"cost_mean": 1.0}}
    a = folder(workplace / "a", {("t", "m"): {**known, "costs": LUCK + 5}, ("t", "free"): {"returns": LUCK}})
    b = folder(workplace / "b", {("t", "m"): {**known, "costs": LUCK}, ("t", "free"): {"returns": LUCK}})
    found = changes(a, b)[0]
    assert found["t", "m", "cost"].verdict == "better" and found["t", "m", "cost"].difference == pytest.approx(-5)
    assert ("t", "free", "cost") not in found


def test_rounding_is_no_difference_and_one_episode_tells_nothing(workplace):
    a = folder(workplace / "a", {("t", "m"): {"returns": np.full((3, 9), 20.0)}, ("u", "m"): {"returns": [[1.0]]}})
    b = folder(workplace / "b", {("t", "m"): {"returns": np.full((3, 9), 20.000001)}, ("u", "m"): {"returns": [[2.0]]}})
    found = changes(a, b)[0]
    assert found["t", "m", "return"].verdict == "no difference shown"
    assert found["u", "m", "return"].verdict == "too few episodes"


@pytest.mark.parametrize("key", ["plans_violating", "episodes_violating"])
def test_shares_in_violation_have_the_interval_of_a_binomial(workplace, key):
    made = [folder(workplace / name, {("t", "m"): {"returns": np.zeros((1, 200)), "metrics": {key: share}}}, seeds=1)
            for name, share in (("a", 0.5), ("b", 0.2))]  # fmt: skip
    one = changes(*made)[0]["t", "m", key]
    half = 1.96 * np.sqrt(0.5 * 0.5 / 200 + 0.2 * 0.8 / 200)
    assert one.ends == pytest.approx((-0.3 - half, -0.3 + half), abs=0.015) and one.verdict == "better"


def test_no_numbers_with_this_share_differ_more_than_those_that_stand_for_it():
    for share, count in ((0.567, 100), (0.0, 7), (1.0, 7), (0.29, 100), (1 / 3, 3)):
        values = sides.spread(share, count)
        assert len(values) == count and np.mean(values) == pytest.approx(share)
        drawn = RNG.beta(0.3, 0.6, size=(500, count))
        drawn *= share / drawn.mean(1, keepdims=True)
        assert all(one.var() <= np.var(values) + 1e-9 for one in drawn if one.max() <= 1)


def test_rows_in_one_only_say_why(workplace):
    a = folder(workplace / "a", {("t", "m"): {"returns": LUCK}, ("t", "gone"): {"returns": LUCK}})
    b = folder(workplace / "b", {("t", "m"): {"returns": LUCK}, ("t", "gone"): {"reason": "cannot"},
                                 ("t", "new"): {"returns": LUCK}})  # fmt: skip
    _, one, other = changes(a, b)
    assert difference.common(one, other) == [("t", "m")]
    assert difference.lone(one, other).rows == [
        ["t", "gone", "has numbers", "cannot"], ["t", "new", "not there", "has numbers"]
    ]  # fmt: skip


def test_changed_options_name_their_rows_and_defaults_count_where_they_are_known(workplace):
    cells = {("t", "m"): {"returns": LUCK}, ("t", "n"): {"returns": LUCK}, ("t", "o"): {"returns": LUCK}}
    changed = {key: {**cell, "options": "train.steps=7"} for key, cell in cells.items()}
    changed["t", "n"]["options"] += " algo.width=8"
    a, b = folder(workplace / "a", cells), folder(workplace / "b", changed)
    for path, depth in ((a, 1), (b, 2)):
        run = path / "cells/t/m/seed0"
        run.mkdir(parents=True)
        (run / "config.yaml").write_text(f"algo: {{name: m, depth: {depth}}}\nseed: {depth}\nrun_dir: {depth}\n")
    table = difference.option_table(*changes(a, b)[1:])
    assert table.rows == [["algo.depth", "1", "2", "t m"], ["train.steps", "–", "7", "all"],
                          ["algo.width", "–", "8", "t n"]]  # fmt: skip
    assert "only the options that were given" in table.notes[0]


def test_an_evaluation_has_the_options_of_what_it_evaluates(workplace):
    results = told_by(folder(workplace / "a", {("t", "m"): {"returns": LUCK, "options": "env.speed=2"}}))[0]
    record = {"command": "python -m madiff.evaluate run=cells/t/m/seed0 episodes=5 seed=3 safe=exact", "run_dir": "x"}
    composed, given = sides.options(workplace / "a", record, results)
    assert composed is None
    assert given == {"env.name": "spread", "algo.name": "m", "env.speed": "2", "evaluation.episodes": "5",
                     "evaluation.seed": "3", "safe.name": "exact"}  # fmt: skip


def test_effort_and_versions_say_what_moved(workplace):
    a = folder(workplace / "a", {("t", "m"): {"returns": LUCK, "ms": 20.0}})
    b = folder(workplace / "b", {("t", "m"): {"returns": LUCK, "ms": 5.0}}, versions={"torch": "2.7"})
    _, one, other = changes(a, b)
    assert difference.effort(one, other).rows == [["t", "m", "20 → 5 (-75%)", "5", "123,456", "123"]]
    assert difference.fact_table(one, other).rows == [["torch", "2.6", "2.7"]]


def test_a_folder_does_not_differ_from_itself(finished):
    found, a, b = changes(finished, finished)
    assert found and {one.verdict for one in found.values()} == {"no difference shown"}
    assert all(one.ends == (0.0, 0.0) and one.compared.endswith("paired") for one in found.values())
    assert [t.rows[0][0] for t in (difference.option_table(a, b), difference.fact_table(a, b))] == ["nothing"] * 2


def test_two_runs_are_compared_by_what_they_trained_and_what_was_beside_it(finished, workplace, capsys):
    runs = [finished / "cells/2m" / label / "seed0" for label in ("bc", "madiff-c")]
    found, a, b = changes(*runs)
    (task,) = {key[0] for key in found}
    one = found[task, sides.TRAINED, "return"]
    means = [json.loads((run / "summary.json").read_text())["return_mean"] for run in runs]
    assert one.name == "bc → madiff-c" and one.means == pytest.approx(means) and one.compared == "1 × 4, paired"
    assert found[task, "behaviour", "return"].difference == 0
    assert ["algo.name", "bc", "madiff-c", "all"] in difference.option_table(a, b).rows
    assert report.main(["--compare", *map(str, runs), "out=changes.html"]) == 0
    told, page = capsys.readouterr().out, Page((workplace / "changes.html").read_text())
    assert "algo.name" in told and "written to changes.html" in told
    for table in difference.difference_tables(a, b, list(found.values())):
        assert all(list(row) in page.rows for row in table.rows) and table.title in told
    assert [tag for tag, _ in page.tags].count("img") == len({key[2] for key in found})


def test_compare_by_its_key_is_the_same_and_writes_no_page_unasked(finished, workplace, capsys):
    run = finished / "cells/2m/bc/seed0"
    assert report.main([f"compare=[{run},{run}]"]) == 0
    first = capsys.readouterr().out
    assert report.main(["--compare", str(run), str(run)]) == 0
    assert capsys.readouterr().out == first and list(workplace.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--compare"], ["compare: 0 folders", "two"]),
        (["--compare", "BENCH"], ["compare: 1 folder;", "two"]),
        (["--compare", "BENCH", "nowhere"], ["nowhere is no folder"]),
        (["--compare", "BENCH", "."], ["is neither a benchmark nor a run"]),
        (["--compare", "BENCH", "RUN"], ["is a benchmark and", "a run", "two benchmarks, or two runs"]),
        (["RUN", "--compare", "BENCH", "BENCH"], ["runs: not of a comparison"]),
        (["--compare", "BENCH", "BENCH", "out=."], ["out", "folder"]),
        (["--compare", "BENCH", "BENCH", "--colour"], ["'--colour' is not an option"]),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(finished, workplace, capsys, arguments, parts):
    places = {"BENCH": str(finished), "RUN": str(finished / "cells/2m/bc/seed0")}
    line = complaint(capsys, *(places.get(word, word) for word in arguments))
    assert all(part in line for part in parts), line
    assert list(workplace.iterdir()) == []


def test_damaged_folders_are_refused(finished, workplace, capsys):
    shutil.copytree(finished, workplace / "bench", ignore=shutil.ignore_patterns("cells", ".lock"))
    for name, text in (("episodes.jsonl", "{}\n"), ("results.json", "[{}]"), ("suite.json", "{}")):
        (workplace / "bench" / name).write_text(text)
        assert "that can be read" in complaint(capsys, "--compare", str(finished), "bench")


def test_the_statements_can_be_made_again_of_the_files_alone(finished, workplace):
    results, told = told_by(finished)
    whole = with_episodes(results, finished)
    assert json.loads(json.dumps(aggregate(whole) | answers(whole))) == told
    shutil.copytree(finished, workplace / "old", ignore=shutil.ignore_patterns("cells", ".lock"))
    for cells in told["cells"].values():
        for cell in cells.values():
            del cell["plan_ms_batch1"]  # as if an earlier version had not told it
    (workplace / "old/aggregates.json").write_text(json.dumps(told))
    assert report.main(["old", "out=old.html"]) == 0 and report.main([str(finished), "out=new.html"]) == 0
    old, new = (Page((workplace / name).read_text()).rows for name in ("old.html", "new.html"))
    assert old == new
