"""docs/add-a-method.md holds: its files, put in a folder of their own, train and stand in a benchmark's table."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import madiff
from madiff import build
from madiff.interfaces import UserError

ROOT = Path(madiff.__file__).parent.parent
TEXT = (ROOT / "docs" / "add-a-method.md").read_text()
TINY = "data.episodes=8 train.steps=4 train.evaluate_episodes=2 evaluation.episodes=2".split()
RUN = """
import sys
from madiff import benchmark, report, train
training, comparing, telling = (line.split() for line in sys.argv[1:])
sys.exit(train.main(training) or benchmark.main(comparing) or report.main(telling))
"""


def files():
    """Each code block that begins with a comment of its path."""
    return {path: code for path, code in re.findall(r"```\w+\n# (\S+\.(?:py|yaml))\n(.*?)```", TEXT, re.DOTALL)}


def commands():
    return {verb: rest for verb, rest in re.findall(r"^python -m madiff\.(\w+) (.*)$", TEXT, re.MULTILINE)}


@pytest.fixture
def unpacked(workplace):
    for path, code in files().items():
        (workplace / path).parent.mkdir(exist_ok=True)
        (workplace / path).write_text(code)
    return workplace


def test_the_example_trains_and_is_compared_as_written(unpacked):
    assert set(files()) == {"methods/linear.py", "linear.yaml"} and set(commands()) == {"train", "benchmark", "report"}
    told = commands()
    lines = [
        " ".join([told["train"], "run_dir=run", "evaluation.film=false", *TINY]),
        " ".join([told["benchmark"], "seeds=1", "tasks=[3m-good]", *TINY]), told["report"],
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MADIFF_METHODS": "methods", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", RUN, *lines], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    summary = json.loads((unpacked / "run" / "summary.json").read_text())
    assert (summary["algo"], summary["steps"]) == ("linear", 4) and set(summary["baselines"]) == {"bc"}
    records = {r["label"]: r for r in json.loads((unpacked / "runs/linear/results.json").read_text())
               if r["task"] == "3m-good" and r["seed"] == 0}  # fmt: skip
    assert {r["status"] for r in records.values()} == {"finished"}
    assert set(records) == {"bc", "linear", "linear-sampled"}
    inputs, actions = 3 + 30, 9
    assert records["linear"]["metrics"]["parameters"] == summary["parameters"] == (inputs + 1) * actions
    assert "linear-sampled" in (unpacked / "linear.html").read_text()


def found(folder, monkeypatch):
    monkeypatch.setenv("MADIFF_METHODS", str(folder))
    return build.registry.__wrapped__()


def test_the_file_is_found_in_any_of_the_folders(unpacked, monkeypatch):
    folders = os.pathsep.join([str(unpacked), "", "~nobody", str(unpacked / "methods")])
    method = found(folders, monkeypatch)["linear"]
    assert method.acting == ("greedy",) and method.defaults["learning_rate"] == 1e-2


@pytest.mark.parametrize(
    ("code", "part"),
    [
        ("NAME = 'bc'\nConfig = make = None", "already a method called bc"),
        ("NAME = 'half'", "declares NAME without Config and make"),
        ("import nothing_of_this_name", "cannot be imported"),
        ("1 +", "cannot be imported"),
    ],
)
def test_a_wrong_file_is_named_in_one_line(workplace, monkeypatch, code, part):
    (workplace / "mine.py").write_text(code)
    with pytest.raises(UserError, match=f"mine.py.*{part}"):
        found(workplace, monkeypatch)


def test_a_file_without_a_name_is_no_method(workplace, monkeypatch):
    (workplace / "helper.py").write_text("x = 1")
    assert "helper" not in found(workplace, monkeypatch)
