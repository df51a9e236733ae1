"""The verb from end to end on real, tiny trainings: what it writes, how it goes on, what it refuses."""

import csv
import json
import shlex

import numpy as np
import pytest
import yaml

from madiff import benchmark, train
from madiff.benchmarking import suite

RECORD = {"env", "scenario", "data", "algo", "updates", "seconds", "evaluation_seconds", "flattened", "reason"}
METRICS = {"return_mean", "return_ci95", "win_rate", "plan_ms_batch1", "network_calls_per_decision", "parameters",
           "behaviour_return_mean", "data_return_mean"}  # fmt: skip
SMALL = {
    "about": "a", "leaves_out": "l", "same_for_all": "s", "seeds": 1, "reference": "bc", "baselines": ["bc"],
    "options": {"env": "smac-like", "agents": 2, "data.episodes": 8, "train.steps": 4, "train.evaluate_every": 2,
                "train.evaluate_episodes": 2, "evaluation.episodes": 2, "algo.batch_size": 8},
    "tasks": {"2m": {"options": {}}}, "methods": {"bc": {"options": {"algo": "bc"}}},
}  # fmt: skip


def read(folder, name="results.json"):
    return json.loads((folder / name).read_text())


def small(folder, **changes):
    """The path of a suite of one task and one method, with changes."""
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(SMALL | changes, sort_keys=False))
    return str(path)


def complaint(capsys, *arguments):
    capsys.readouterr()
    assert benchmark.main(arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    return lines[0]


def test_there_is_a_record_of_every_cell_with_all_that_was_promised(finished):
    records = read(finished)
    assert [(r["task"], r["label"], r["seed"], r["status"]) for r in records] == [
        ("2m", "bc", 0, "finished"), ("2m", "madiff-c", 0, "finished"),
        ("3m-poor", "bc", 0, "finished"), ("3m-poor", "madiff-c", 0, "left out"),
        ("2m", "bc", 1, "finished"), ("2m", "madiff-c", 1, "finished"),
        ("3m-poor", "bc", 1, "finished"), ("3m-poor", "madiff-c", 1, "left out"),
    ]  # fmt: skip
    for record in records:
        assert record["command"].startswith("python -m madiff.train ") and f"seed={record['seed']}" in record["command"]
        if record["status"] == "finished":
            assert {*record} > RECORD and {*record["metrics"]} >= METRICS
            assert (record["updates"], record["env"]) == (8, "smac-like") and record["flattened"] in (True, False)
        else:
            assert record["reason"] == "the suite runs it on good data only" and record["metrics"] == {}


def test_every_number_is_that_of_its_run_and_of_its_episodes(finished):
    episodes = [json.loads(line) for line in (finished / "episodes.jsonl").read_text().splitlines()]
    assert len(episodes) == 6 * 4 + 4 * 4  # six runs of four episodes, four of them under a shift too
    for record in read(finished):
        if record["status"] != "finished":
            continue
        key = record["task"], record["label"], record["seed"]
        own = [e for e in episodes if (e["task"], e["label"], e["seed"]) == key]
        summary = read(finished / record["run_dir"], "summary.json")
        assert record["metrics"]["return_mean"] == summary["return_mean"]
        assert record["metrics"]["return_mean"] == pytest.approx(np.mean([e["return"] for e in own if not e["shift"]]))
        for shift, row in record["shifts"].items():
            values = [e["return"] for e in own if e["shift"] == shift]
            assert row["return_mean"] == pytest.approx(np.mean(values)) and len(values) == 4
        assert list(record["shifts"]) == (["strict-rules"] if record["task"] == "2m" else [])


def test_the_command_of_a_cell_repeats_its_number(finished, workplace, tmp_path_factory):
    record = read(finished)[0]
    words = [*shlex.split(record["command"])[3:], f"run_dir={workplace}/again"]
    assert train.main(words) == 0
    again = read(workplace / "again", "summary.json")
    for key in ("return_mean", "return_ci95", "win_rate", "parameters", "behaviour_return_mean"):
        assert again[key] == record["metrics"][key]


def test_tables_and_plots_tell_the_records(finished):
    told = (finished / "tables.md").read_text()
    with open(finished / "tables" / "cells.csv") as file:
        rows = list(csv.DictReader(file))
    for row, record in zip(rows, read(finished), strict=True):
        assert (row["task"], row["label"], int(row["seed"])) == (record["task"], record["label"], record["seed"])
        if record["status"] == "finished":
            assert float(row["return_mean"]) == record["metrics"]["return_mean"]
    means = {label: np.mean([r["metrics"]["return_mean"] for r in read(finished)
                             if (r["task"], r["label"]) == ("2m", label)]) for label in ("bc", "madiff-c")}  # fmt: skip
    line = next(line for line in told.splitlines() if line.startswith("| 2m |"))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    for label, cell in zip(means, cells[4:], strict=True):
        assert float(cell.split()[0]) == pytest.approx(means[label], abs=0.01)
    loaded = suite.load("smoke")
    assert all(text in told for text in (loaded.same_for_all, loaded.leaves_out, "the suite runs it on good data only"))
    made = {path.stem for path in (finished / "plots").glob("*.png")}
    assert made == {"returns", "learning_curves", "performance_profile", "iqm", "improvement", "shifts"}


def test_a_finished_benchmark_runs_nothing_again_and_more_seeds_only_the_new(workplace, capsys):
    arguments = [f"suite={small(workplace)}", "out=bench", "workers=1"]
    assert benchmark.main(arguments) == 0
    first = workplace / "bench" / "records" / "2m" / "bc" / "seed0.json"
    before = first.stat().st_mtime_ns
    capsys.readouterr()
    assert benchmark.main(arguments) == 0
    assert "1 cells, 0 to run" in capsys.readouterr().out
    assert benchmark.main([*arguments, "seeds=2"]) == 0
    assert [r["status"] for r in read(workplace / "bench")] == ["finished"] * 2
    assert first.stat().st_mtime_ns == before
    assert benchmark.main([*arguments, "seeds=1"]) == 0  # what is there stays in the tables
    assert len(read(workplace / "bench")) == 2
    steps = [r["updates"] for r in read(workplace / "bench")]
    assert benchmark.main([*arguments, "seeds=2", "train.steps=6"]) == 0  # trained further, from the checkpoint
    assert steps == [4, 4] and [r["updates"] for r in read(workplace / "bench")] == [6, 6]
    assert read(workplace / "bench" / "cells/2m/bc/seed0", "summary.json")["resumed_from"] == 4
    assert "evaluation.episodes=2, not 3" in complaint(capsys, *arguments, "train.steps=6", "evaluation.episodes=3")
    assert "train.steps=6, not 5" in complaint(capsys, *arguments, "train.steps=5")
    both = complaint(capsys, *arguments, "train.steps=8", "evaluation.episodes=3")
    assert "evaluation.episodes=2, not 3" in both and len(read(workplace / "bench")) == 2


def test_what_the_suite_asks_for_later_is_caught_up_with(workplace, capsys):
    """A cell that was left out is run; a new shift is evaluated without training again."""
    methods = {"bc": {"options": {"algo": "bc"}, "not_on": {"2m": "later"}}}
    assert benchmark.main([f"suite={small(workplace, methods=methods)}", "out=bench"]) == 0
    assert read(workplace / "bench")[0]["status"] == "left out"
    assert benchmark.main([f"suite={small(workplace)}", "out=bench"]) == 0
    assert read(workplace / "bench")[0]["shifts"] == {}
    tasks = {"2m": {"options": {}, "shifts": {"strict-rules": {"strict": True}}}}
    assert benchmark.main([f"suite={small(workplace, tasks=tasks)}", "out=bench"]) == 0
    assert "strict-rules" in read(workplace / "bench")[0]["shifts"]
    assert "is finished (4 updates): nothing to do" in (workplace / "bench/logs/2m/bc/seed0.log").read_text()


def test_a_cell_that_fails_is_recorded_and_tried_again_while_the_others_go_on(workplace, capsys):
    methods = {"bad": {"options": {"algo": "bc", "algo.learning_rate": 1e30}}, "bc": {"options": {"algo": "bc"}}}
    line = complaint(capsys, f"suite={small(workplace, methods=methods)}", "out=bench", "workers=1")
    assert "1 of 2 cells failed" in line and "2m bad seed 0" in line and "between steps" in line
    bad, good = read(workplace / "bench")
    assert (bad["status"], good["status"]) == ("failed", "finished") and "became" in bad["reason"]
    assert "failed on 2m seed 0" in (workplace / "bench" / "tables.md").read_text()
    methods["bad"]["options"].pop("algo.learning_rate")
    assert benchmark.main([f"suite={small(workplace, methods=methods)}", "out=bench", "workers=1"]) == 0
    assert [r["status"] for r in read(workplace / "bench")] == ["finished", "finished"]


def test_a_task_that_cannot_be_prepared_takes_only_its_own_cells_with_it(workplace, capsys):
    options = {"data.episodes": 10**9}
    tasks = {"endless": {"options": options}, "2m": {"options": {}}}
    line = complaint(capsys, f"suite={small(workplace, tasks=tasks)}", "out=bench", "workers=1")
    assert "1 of 2 cells failed" in line and "endless bc" in line
    assert [r["status"] for r in read(workplace / "bench")] == ["failed", "finished"]


def test_a_chosen_part_can_be_run_and_the_rest_waits(workplace, capsys):
    methods = {"bc": {"options": {"algo": "bc"}}, "sampled": {"options": {"algo": "bc", "algo.acting": "sample"}}}
    path = small(workplace, methods=methods)
    assert benchmark.main([f"suite={path}", "out=bench", "methods=[sampled]", "tasks=[2m]"]) == 0
    assert [r["status"] for r in read(workplace / "bench")] == ["waiting", "finished"]
    assert "1 of 2 cells have not been run yet" in (workplace / "bench" / "tables.md").read_text()
    assert "has no 'omar'; allowed: bc, sampled" in complaint(capsys, f"suite={path}", "out=bench", "methods=omar")
    assert "allowed: 2m" in complaint(capsys, f"suite={path}", "out=bench", "tasks=[2n]")


def test_shares_are_subsets_of_one_data_set_collected_once(workplace, tmp_path):
    tasks = {"2m": {"options": {"data.quality": "medium"}, "shares": [1, 0.5]}}
    arguments = [f"suite={small(workplace, tasks=tasks)}", "out=bench", "workers=1", f"data.cache={tmp_path}/cache"]
    assert benchmark.main(arguments) == 0
    assert len(list((tmp_path / "cache").glob("*.h5"))) == 1
    logs = workplace / "bench" / "logs"
    whole, half = ((logs / f"2m-share{share}" / "bc" / "seed0.log").read_text() for share in ("1", "0.5"))
    assert "data: 8 episodes" in whole and "data: 4 episodes" in half
    assert (workplace / "bench" / "plots" / "shares.png").exists()
    assert "| 2m | 50% |" in (workplace / "bench" / "tables.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["suite=nonsense"], ["nonsense", "coordination", "smoke"]),
        (["suite=missing.yaml"], ["missing.yaml", "cannot be read"]),
        (["suite=smoke", "seeds=0"], ["seeds", "from 1"]),
        (["suite=smoke", "workers=0"], ["workers", "from 1"]),
        (["suite=smoke", "minutes=-1"], ["minutes", "-1"]),
        (["suite=smoke", "launcher=cloud"], ["launcher", "submitit"]),
        (["suite=smoke", "slurm.partition=gpu"], ["launcher", "submitit"]),
        (["suite=smoke", "launcher=submitit", "cluster=slurm"], ["slurm", "srun"]),
        (["suite=smoke", "launcher=submitit", "cluster=local", "slurm.nonsense=1"], ["slurm", "nonsense"]),
        (["suite=smoke", "train.step=3"], ["train.step", "train.steps"]),
        (["suite=smoke", "evaluation.episodes=0"], ["evaluation.episodes", "from 1"]),
        (["suite=smoke", "methods=[a,b]"], ["'a'", "bc, madiff-c"]),
        (["suite=smoke", "sweets=3"], ["sweets"]),
    ],
)
def test_bad_input_is_one_line_and_leaves_no_folder(workplace, capsys, arguments, parts):
    line = complaint(capsys, "out=deep/bench", *arguments)
    assert all(part in line for part in parts), line
    assert list(workplace.iterdir()) == []


def test_a_folder_of_something_else_is_refused_and_left_alone(finished, workplace, capsys):
    (workplace / "thesis").mkdir()
    (workplace / "thesis" / "text.tex").write_text("x")
    assert "holds other files" in complaint(capsys, "suite=smoke", "out=thesis")
    assert [path.name for path in (workplace / "thesis").iterdir()] == ["text.tex"]
    assert "is a file" in complaint(capsys, "suite=smoke", "out=thesis/text.tex")
    before = (finished / "suite.json").stat().st_mtime_ns
    assert "holds suite 'smoke', not 'small'" in complaint(capsys, f"suite={small(workplace)}", f"out={finished}")
    assert (finished / "suite.json").stat().st_mtime_ns == before
