"""The pages for newcomers: their Python runs, their commands are accepted, their messages are the real ones.

Python blocks of a page run in order in one namespace, with few updates and episodes in the place of the page's. A block
that ends in `# UserError: ...` must raise that; in a `console` block each command must be refused with the line below.
`...` stands for anything.
"""

import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest
import torch
import yaml

import madiff
from madiff import build, configuration
from madiff.data import EpisodeStore
from madiff.interfaces import UserError
from safe.constraints import TYPES
from tests.cli.command import VERBS, run

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGES = {page.stem: page.read_text() for page in sorted(DOCS.glob("*.md"))}
NEW = ("start", "bring-your-data", "bring-your-environment", "add-a-constraint", "troubleshooting")
RUN = "runs/smac-like-3m-madiff-d-good-seed0"
TINY = "train={'steps': 2, 'evaluate_every': 2, 'evaluate_episodes': 1}, hardware={'device': 'cpu', 'threads': 1}"


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    deterministic, threads = torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MADIFF_CACHE", str(tmp_path / "cache"))
    yield tmp_path
    if torch.are_deterministic_algorithms_enabled() != deterministic:  # asking imports the compiler
        torch.use_deterministic_algorithms(deterministic)
    torch.set_num_threads(threads)


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", PAGES[page], re.DOTALL)


def smallest(code):
    """The block with the fewest updates and episodes that still do something."""
    code = re.sub(r"train=\{[^}]*\}", TINY, code)
    code = code.replace('"diffuser", "horizon": 8', '"diffuser", "horizon": 8, "width": 8, "sampler_steps": 1')
    code = code.replace('"madiff-c",', '{"name": "madiff-c", "width": 16, "layers": 1, "sampler_steps": 1},')
    return re.sub(r"\bepisodes=\d+", "episodes=2", code)


def executed(page):
    """The names that a page's Python leaves behind; YAML blocks that begin with a file's name are that file."""
    for name, text in re.findall(r"```yaml\n# (\S+)\n(.*?)```", PAGES[page], re.DOTALL):
        Path(name).write_text(text)
    namespace = {"__name__": "example"}
    for code in blocks(page, "python"):
        refused = re.search(r"# UserError: (.*)\n$", code)
        if refused is None:
            exec(compile(smallest(code), f"{page}.md", "exec"), namespace)
            continue
        with pytest.raises(UserError) as error:
            exec(compile(code, f"{page}.md", "exec"), namespace)
        assert like(refused[1], str(error.value)), str(error.value)
    return namespace


def like(pattern, text):
    return re.fullmatch(".*".join(map(re.escape, pattern.split("..."))), text) is not None


def tiny_run(folder, *options):
    few = ["train.steps=2", "train.evaluate_episodes=1", "train.baselines=[]", "evaluation.episodes=1",
           "evaluation.film=false", "hardware.threads=1", "hardware.device=cpu"]  # fmt: skip
    assert run("train", *options, *few, f"run_dir={folder}") == 0


def commands(page):
    for verb, rest in re.findall(r"^python -m madiff\.(\w+) (.*)$", PAGES[page], re.MULTILINE):
        yield verb, shlex.split(rest, comments=True)


@pytest.mark.parametrize("page", NEW)
def test_commands_are_accepted(page):
    for verb, arguments in commands(page):
        tree = configuration.compose(verb, build.defaults(), arguments)
        for key in (argument.partition("=")[0] for argument in arguments if "=" in argument):
            assert key in tree or key.partition(".")[0] in tree, key


def test_start():
    tiny_run(RUN, "env=smac-like", "agents=3", "data.episodes=4", "algo.width=16", "algo.layers=1", "algo.batch_size=4",
             "algo.sampler_steps=1")  # fmt: skip
    report = executed("start")["report"]
    assert report["episodes"] == 2 and report["options"] == {"target_return": 0.5}
    for name in re.findall(r"`madiff\.(\w+)\(", PAGES["start"]):
        assert callable(getattr(madiff, name))


def test_bring_your_data():
    found = executed("bring-your-data")
    assert found["actions"].shape == (1, 3, 2) and found["plan"].points.shape == (3, 9, 3, 21)
    assert found["same"].sha256 == found["data"].sha256
    for _, arguments in commands("bring-your-data"):
        tiny_run("runs/typed", *arguments)


def test_bring_your_environment():
    found = executed("bring-your-environment")
    spec = found["run"].spec
    assert tuple(spec.observation_names) == ("x", "y", "time") and spec.episode_limit == 10
    assert found["report"]["episodes"] == 2 and found["report"]["scenario"] == "Walk" and "cost_mean" in found["report"]


def test_add_a_constraint(monkeypatch):
    monkeypatch.setattr(import_module("envs.crossing.batched"), "LIMIT", 8)  # the package has a function of this name
    arguments = next(arguments for verb, arguments in commands("add-a-constraint") if verb == "collect")
    assert run("collect", *arguments, "data.episodes=4", "hardware.threads=1") == 0
    found = executed("add-a-constraint")
    assert found["sets"] and found["report"]["plan_violations"]["violating"] == 0
    file = yaml.safe_load(Path("zone.yaml").read_text())
    assert {entry["type"] for entry in file["sets"]} <= set(TYPES)
    assert all(f"`{kind}`" in PAGES["add-a-constraint"] for kind in TYPES)


def test_messages(capsys, monkeypatch):
    tiny_run("runs/mine", "env=xor", "algo=bc", "data.episodes=4", "algo.width=16")
    two = {"observations": torch.zeros(2, 2, 3), "actions": torch.zeros(1, 2, dtype=torch.int64), "rewards": [0.0]}
    EpisodeStore.from_arrays([two]).save("mine.h5")
    executed("troubleshooting")
    told = [pair for block in blocks("troubleshooting", "console")
            for pair in re.findall(r"^\$ python -m madiff\.(\w+) (.*)\n(error: .*)$", block, re.MULTILINE)]  # fmt: skip
    assert len(told) == PAGES["troubleshooting"].count("\n$ ") > 15
    for verb, rest, line in told:
        capsys.readouterr()
        assert VERBS[verb].main(shlex.split(rest)) == 2, rest
        assert like(line, capsys.readouterr().err.strip()), (rest, line)


@pytest.mark.parametrize(
    ("message", "file"),
    [
        ("between steps", "madiff/experiment/loop.py"),
        ("a weight became nan", "madiff/experiment/loop.py"),
        ("not enough memory for sizes as large as these", "madiff/configuration.py"),
        ("cuda is not available to torch", "madiff/experiment/runtime.py"),
        ("is in use by process", "madiff/experiment/run_directory.py"),
        ("no checkpoint in", "madiff/experiment/checkpoint.py"),
        ("is intact", "madiff/experiment/checkpoint.py"),
    ],
)
def test_messages_that_need_a_broken_machine_are_in_the_code(message, file):
    source = (DOCS.parent / file).read_text()
    assert message in PAGES["troubleshooting"]
    assert all(part in source for part in message.split(" process"))


def test_the_index_lists_every_page_and_links_lead_somewhere():
    listed = set(re.findall(r"\]\(([\w/-]+\.md)\)", PAGES["README"]))
    there = {page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")} - {"README.md"}
    assert listed == there
    for page in (*NEW, "README"):
        for link in re.findall(r"\]\((?!http)([^)#]+)(?:#[^)]*)?\)", PAGES[page]):
            assert (DOCS / link).exists(), f"{page}: {link}"
