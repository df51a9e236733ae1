"""The page: everything in it, nothing fetched, nothing executed."""

import base64
import io
import json
import shlex
import shutil
from html.parser import HTMLParser

import pytest
from PIL import Image

from madiff import build, configuration, evaluate, report
from madiff.benchmarking import commands
from madiff.benchmarking import page as pages
from madiff.configuration import flatten
from madiff.experiment import run_directory


class Page(HTMLParser):
    """The tags with their attributes, the text, and the rows of the tables."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.rows = [], "", []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data):
        self.text += data
        if self.tags and self.tags[-1][0] in ("td", "th"):
            self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def page(finished, tmp_path_factory):
    out = tmp_path_factory.mktemp("page") / "deep" / "report, (1)=.html"
    assert report.main([str(finished), str(finished / "cells/2m/bc/seed0"), f"out={out}"]) == 0
    return Page(out.read_text())


def complaint(capsys, *arguments):
    capsys.readouterr()
    assert report.main(arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    return lines[0]


def test_the_page_fetches_nothing_and_runs_nothing(page):
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "iframe", "object", "a", "base", "form"})
    for tag, attributes in page.tags:
        assert "href" not in attributes and "srcset" not in attributes
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
        if "src" in attributes:
            assert attributes["src"].startswith("data:image/")


def test_its_pictures_are_those_of_the_folders(page, finished):
    shown = []
    for tag, attributes in page.tags:
        if tag == "img":
            data = base64.b64decode(attributes["src"].partition("base64,")[2])
            with Image.open(io.BytesIO(data)) as image:
                image.verify()
            shown.append(data)
    run = finished / "cells/2m/bc/seed0"
    files = [*sorted((finished / "plots").glob("*.png")), *sorted((run / "plots").glob("*.png"))]
    assert shown == [path.read_bytes() for path in files] and len(files) == 8


def test_its_tables_are_those_of_the_benchmark_and_every_cell_has_its_command(page, finished):
    lines = [line for line in (finished / "tables.md").read_text().splitlines() if line.startswith("| 2m |")]
    for line in lines:
        assert [cell.strip() for cell in line.strip("|").split("|")] in page.rows
    for record in json.loads((finished / "results.json").read_text()):
        row = next(r for r in page.rows if r[:3] == [record["task"], record["label"], str(record["seed"])])
        assert record["command"] in row[-1] and (record["reason"] or "") in row[-1]


def test_it_says_what_is_the_same_for_all_what_is_left_out_and_the_versions(page, finished):
    suite = json.loads((finished / "suite.json").read_text())
    assert all(suite[key] in page.text for key in ("about", "leaves_out", "same_for_all"))
    assert ["torch", suite["versions"]["torch"]] in page.rows
    assert ["2m", "smac-like 2m, good data, 4 episodes"] in page.rows


def test_what_strangers_wrote_is_shown_as_text(finished, workplace):
    shutil.copytree(finished, workplace / "copy", ignore=shutil.ignore_patterns("cells", ".lock"))
    told = json.loads((workplace / "copy" / "suite.json").read_text())
    told["about"] = "<script>alert(1)</script>"
    (workplace / "copy" / "suite.json").write_text(json.dumps(told))
    assert report.main(["copy", "out=page.html"]) == 0
    page = Page((workplace / "page.html").read_text())
    assert "script" not in {tag for tag, _ in page.tags} and "<script>alert(1)</script>" in page.text


@pytest.mark.parametrize("label", ["bc", "madiff-c"])
def test_the_command_of_a_run_says_again_what_the_run_was_told(finished, label):
    config, _ = run_directory.read(finished / "cells/2m" / label / "seed0")
    words = shlex.split(commands.training(config))
    assert words[:3] == ["python", "-m", "madiff.train"] and len(words) < 25
    again = flatten(configuration.compose("train", build.defaults(), words[3:]))
    assert {key: value for key, value in flatten(config).items() if again[key] != value}.keys() <= set(commands.SESSION)
    assert commands.training({**config, "env": {"name": "of nobody"}}) is None


def test_a_run_shows_its_evaluations_each_with_its_command(finished, workplace):
    run = workplace / "run"
    shutil.copytree(finished / "cells/2m/bc/seed0", run)
    assert evaluate.main([f"run={run}", "episodes=3", "env.strict=true", "seed=5", "hardware.threads=1"]) == 0
    assert report.main(["run", "out=page.html"]) == 0
    made = Page((workplace / "page.html").read_text())
    (found,) = (run / "evaluations").iterdir()
    told = json.loads((found / "evaluation.json").read_text())
    (row,) = (row for row in made.rows if row[0] == found.name)
    assert row[1] == "3" and row[2].startswith(f"{told['return_mean']:.3f}"[:4])
    words = shlex.split(row[-1])
    assert words[:3] == ["python", "-m", "madiff.evaluate"]
    again = configuration.compose("evaluate", build.defaults(), words[3:])
    assert (again["run"], again["episodes"], again["seed"], again["env"]) == (str(run), 3, 5, {"strict": True})
    assert again["safe"] == told["safe"] and again["algo"] == {} and again["cost_limit"] is None


def test_films_lie_in_the_page_while_there_is_room_and_are_named_otherwise(finished, workplace, monkeypatch):
    bench = workplace / "bench"
    shutil.copytree(finished, bench, ignore=shutil.ignore_patterns("checkpoints", ".lock"))
    frames = [Image.new("L", (20, 20), shade) for shade in (0, 100, 200)]
    for cell in ("2m/bc/seed0", "2m/bc/seed1", "2m/madiff-c/seed0"):
        frames[0].save(bench / "cells" / cell / "rollout.gif", save_all=True, append_images=frames[1:])
    names = ["2m, bc, seed 0: rollout", "2m, madiff-c, seed 0: rollout"]
    for room, shown in ((pages.ROOM, names), ((bench / "cells/2m/bc/seed0/rollout.gif").stat().st_size, names[:1])):
        monkeypatch.setattr(pages, "ROOM", room)
        assert report.main(["bench", "out=page.html"]) == 0
        made = Page((workplace / "page.html").read_text())
        assert [a["alt"] for tag, a in made.tags if tag == "img" and "rollout" in a["alt"]] == shown
        assert ("Too large for this page: " + names[1] in made.text) == (shown != names)


def test_a_benchmark_that_has_drawn_nothing_yet_is_drawn_for_the_page(finished, workplace):
    shutil.copytree(finished, workplace / "bench", ignore=shutil.ignore_patterns("cells", "plots", ".lock"))
    assert report.main(["bench", "out=page.html"]) == 0
    made = Page((workplace / "page.html").read_text())
    drawn = {a["alt"].replace(" ", "_") for tag, a in made.tags if tag == "img"}
    assert drawn == {path.stem for path in (finished / "plots").glob("*.png")}


def test_a_run_with_costs_shows_return_against_cost(finished, workplace):
    run = workplace / "run"
    shutil.copytree(finished / "cells/2m/bc/seed0", run)
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps({**summary, "cost_mean": 0.0}))
    assert report.main(["run", "out=page.html"]) == 0
    assert "return against cost" in {a.get("alt") for _, a in Page((workplace / "page.html").read_text()).tags}


def test_a_folder_with_an_equals_sign_is_a_folder(finished, workplace):
    (workplace / "a=b").symlink_to(finished)
    assert report.main(["a=b", "out=page.html"]) == 0
    assert "Benchmark smoke" in (workplace / "page.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ([], ["runs: not given"]),
        (["nowhere"], ["nowhere is not a run directory"]),
        (["."], ["not a run directory"]),
        (["nowhere", "out=."], ["out", "folder"]),
        (["nowhere", "outt=x.html"], ["outt", "did you mean out?"]),
        (["nowhere", "out=/dev/null/x.html"], ["out", "writable"]),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(workplace, capsys, arguments, parts):
    line = complaint(capsys, *arguments)
    assert all(part in line for part in parts), line
    assert list(workplace.iterdir()) == []


def test_a_run_that_has_not_finished_and_damaged_results_are_refused(finished, workplace, capsys):
    run = workplace / "run"
    shutil.copytree(finished / "cells/2m/bc/seed0", run)
    (run / "summary.json").unlink()
    assert "has no summary yet" in complaint(capsys, "run", "out=x.html")
    shutil.copytree(finished, workplace / "bench", ignore=shutil.ignore_patterns("cells", ".lock"))
    (workplace / "bench" / "results.json").write_text("{")
    assert "no results that can be read" in complaint(capsys, "bench", "out=x.html")
    assert not (workplace / "x.html").exists()
