"""Recording behaviour into a file, and --help."""

import pytest

from madiff.data import EpisodeStore
from tests.cli.command import VERBS, complaint, files, run

SMALL = ["agents=2", "data.episodes=6", "hardware.device=cpu"]


def test_a_recorded_file_is_what_was_asked_for(workplace, capsys):
    assert run("collect", *SMALL, "data.quality=medium+poor", "out=new/mixed.h5") == 0
    store = EpisodeStore.open(workplace / "new" / "mixed.h5")
    assert (store.episodes, store.agents, store.card["quality"]) == (6, 2, "medium+poor")
    told = capsys.readouterr().out
    assert "return_mean" in told and store.sha256[:12] in told and "mixed.h5" in told


def test_the_seed_decides_what_is_recorded(workplace):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert run("collect", *SMALL, f"data.seed={seed}", f"out={name}.h5") == 0
    a, b, c = (EpisodeStore.open(workplace / f"{name}.h5").sha256 for name in "abc")
    assert a == b != c


def test_an_existing_file_is_kept_unless_told_otherwise(workplace, capsys):
    (workplace / "old.h5").write_text("precious")
    assert "overwrite=true" in complaint(capsys, "collect", *SMALL, "out=old.h5")
    assert (workplace / "old.h5").read_text() == "precious"
    assert run("collect", *SMALL, "out=old.h5", "overwrite=true") == 0
    assert EpisodeStore.open(workplace / "old.h5").episodes == 6


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ([], ["out: not given"]),
        (["out=."], ["out", "folder"]),
        (["out=new/x.h5", "data.quality=godo"], ["godo", "good"]),
        (["out=new/x.h5", "data.episodes=0"], ["data.episodes", "from 1"]),
        (["out=new/x.h5", "data.path=y"], ["unknown option 'data.path'", "data.quality"]),
        (["out=new/x.h5", "env=tag"], ["unknown env 'tag'", "smac-like"]),
        (["out=new/x.h5", "scenario=9z"], ["scenario", "3m"]),
        (["out=new/x.h5", "overwrite=1"], ["overwrite", "true or false"]),
        (["out=/dev/null/x.h5"], ["out: ", "writable"]),
        (["out=new/" + "x" * 300], ["out: ", "too long"]),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(workplace, capsys, arguments, parts):
    line = complaint(capsys, "collect", *SMALL, *arguments)
    assert all(part in line for part in parts), line
    assert files(workplace) == []


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_is_one_screen_with_examples_and_defaults(verb, flag, capsys):
    assert run(verb, flag) == 0
    told = capsys.readouterr().out
    assert len(told.splitlines()) < 60 and max(map(len, told.splitlines())) <= 120
    assert told.count(f"python -m madiff.{verb} ") == 2
    needed = {"train": ["smac-like", "bc, madiff-c, madiff-d", "train.steps=null", "algo.horizon=4", "seed=0"],
              "collect": ["smac-like", "data.quality=good", "out="], "evaluate": ["episodes=200", "run="]}  # fmt: skip
    assert all(part in told for part in needed[verb])


def test_help_shows_the_options_of_the_method_named(capsys):
    assert run("train", "algo=bc", "--help") == 0
    told = capsys.readouterr().out
    assert "algo.acting=greedy" in told and "algo.horizon" not in told
