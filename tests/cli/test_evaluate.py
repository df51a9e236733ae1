"""Evaluating a trained run, with its own options and with others."""

import json
import math

import pytest

import envs
import madiff
from madiff.experiment import seeding
from madiff.experiment.rollout import evaluate
from tests.cli.command import complaint, files, run, tiny


def evaluation(folder):
    return json.loads((folder / "evaluation.json").read_text())


def test_the_trainings_own_numbers_come_out_again(finished, workplace):
    summary = json.loads((finished / "summary.json").read_text())
    assert run("evaluate", f"run={finished}", "episodes=3", "out=again") == 0
    found = evaluation(workplace / "again")
    for key in ("return_mean", "return_ci95", "win_rate", "parameters", "behaviour_return_mean", "episodes"):
        assert found[key] == summary[key]
    assert found["step"] == summary["steps"] and math.isfinite(found["plan_ms_batch1"])
    records = [json.loads(line) for line in (workplace / "again" / "episodes.jsonl").read_text().splitlines()]
    assert len(records) == 6


def test_a_baseline_of_the_run_can_be_evaluated_too(finished, workplace):
    summary = json.loads((finished / "summary.json").read_text())
    assert run("evaluate", f"run={finished}/baselines/bc", "episodes=3", "out=bc", "algo.acting=sample") == 0
    assert run("evaluate", f"run={finished}/baselines/bc", "episodes=3", "out=same") == 0
    assert evaluation(workplace / "bc")["algo"] == "bc"
    assert evaluation(workplace / "same")["return_mean"] == summary["baselines"]["bc"]["return_mean"]


def test_options_of_acting_may_change_and_results_have_a_folder_of_their_own(finished):
    options = ["algo.sampler_steps=2", "algo.target_return=0.2", "film=true"]
    assert run("evaluate", f"run={finished}", "episodes=2", *options) == 0
    folder = finished / "evaluations" / "episodes2-seed0-sampler_steps=2-target_return=0.2"
    assert files(folder) == ["episodes.jsonl", "evaluation.json", "rollout.gif"]
    assert evaluation(folder)["network_calls_per_decision"] == 2
    assert evaluation(folder)["options"] == {"sampler_steps": 2, "target_return": 0.2}


@pytest.fixture(scope="module")
def spread(tmp_path_factory):
    """A finished run of BC in a particle world, whose dynamics can change at test time."""
    folder = tmp_path_factory.mktemp("spread") / "run"
    arguments = tiny(folder, "env=particle", "scenario=spread", "algo=bc", "train.baselines=[]", "agents=null",
                     f"data.cache={folder.parent}/cache")  # fmt: skip
    assert run("train", *arguments) == 0
    return folder


def test_the_environment_may_change_at_test_time_and_the_report_says_so(spread, capsys):
    for changes in ([], ["env.speed=0.5", "env.size=2"]):
        assert run("evaluate", f"run={spread}", "episodes=3", *changes) == 0
    assert "other than in training: env.speed=0.5, env.size=2" in capsys.readouterr().out
    plain, changed = (spread / "evaluations" / f"episodes3-seed0{name}" for name in ("", "-env.size=2-env.speed=0.5"))
    assert (evaluation(plain)["env_options"], evaluation(changed)["env_options"]) == ({}, {"speed": 0.5, "size": 2})
    outcome = evaluate(
        lambda copies: envs.make_batched("particle", copies=copies, scenario="spread", speed=0.5, size=2),
        madiff.load(spread), 3, seeding.derive(0, "evaluation"),
    )  # fmt: skip
    assert evaluation(changed)["return_mean"] == pytest.approx(outcome.returns.mean())
    assert evaluation(changed)["return_mean"] != pytest.approx(evaluation(plain)["return_mean"])


def test_a_published_score_stands_beside_the_return(spread):
    told = json.loads((spread / "summary.json").read_text())
    assert told["score"] == pytest.approx(100 * (told["return_mean"] - 159.8) / (516.8 - 159.8))
    assert "score" not in evaluation_of(spread, "env.speed=2")  # it is of the published dynamics only


def evaluation_of(folder, change):
    assert run("evaluate", f"run={folder}", "episodes=2", change, f"out={folder}/out") == 0
    return evaluation(folder / "out")


def test_an_option_that_changes_sizes_is_refused(workplace, capsys):
    assert run("train", *tiny(workplace / "run", "env=bridge", "agents=null", "algo=bc", "train.baselines=[]")) == 0
    line = complaint(capsys, "evaluate", f"run={workplace}/run", "env.length=4")
    assert "env.length=4 makes observation_size" in line and "as trained" in line


def test_another_seed_means_other_episodes(finished, workplace):
    assert run("evaluate", f"run={finished}", "episodes=2", "seed=7", "out=seven") == 0
    assert run("evaluate", f"run={finished}", "episodes=2", "out=own") == 0
    texts = [(workplace / name / "episodes.jsonl").read_text() for name in ("seven", "own")]
    seeds = [json.loads(text.splitlines()[0])["seed"] for text in texts]
    assert seeds[0] != seeds[1]


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["algo.history=3"], ["algo.history cannot change after training", "algo.target_return"]),
        (["algo.nonsense=3"], ["algo.nonsense", "algo.target_return"]),
        (["algo.sampler_steps=0"], ["algo.sampler_steps", "1"]),
        (["algo.sampler_steps=two"], ["algo.sampler_steps", "two"]),
        (["algo.target_return=nan"], ["algo.target_return", "nan"]),
        (["algo.solver=dimm"], ["dimm", "ddim"]),
        (["episodes=0"], ["episodes"]),
        (["seed=-1"], ["seed"]),
        (["agents=3"], ["unknown option 'agents'"]),
        (["env.sped=3"], ["env.sped is no option of smac-like", "env.strict"]),
        (["env.name=xor"], ["env.name is no option"]),
        (["env.strict=1"], ["env.strict", "true or false"]),
        (["film=maybe"], ["film", "true or false"]),
        (["out=/dev/null"], ["out: /dev/null is a file", "a folder"]),
        (["out=/dev/null/x"], ["out: cannot write", "writable"]),
    ],
)
def test_bad_input_is_one_line_and_leaves_no_folder(finished, workplace, capsys, arguments, parts):
    line = complaint(capsys, "evaluate", f"run={finished}", "out=here", *arguments)
    assert all(part in line for part in parts), line
    assert files(workplace) == []


def test_a_missing_or_foreign_run_is_refused(workplace, capsys):
    assert "run: not given" in complaint(capsys, "evaluate")
    assert "not a run directory" in complaint(capsys, "evaluate", "run=nowhere")
    (workplace / "other").mkdir()
    assert "not a run directory" in complaint(capsys, "evaluate", "run=other")
    with pytest.raises(ValueError, match="not a run directory"):
        madiff.load(workplace / "other")


def test_a_strangers_configuration_can_name_only_known_methods(finished, workplace, capsys):
    folder = workplace / "stranger"
    folder.mkdir()
    (folder / "run.json").write_bytes((finished / "run.json").read_bytes())
    (folder / "checkpoints").symlink_to(finished / "checkpoints")
    text = (finished / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text.replace("name: madiff-d", "name: os.system"))
    assert "unknown method 'os.system'" in complaint(capsys, "evaluate", f"run={folder}")
    (folder / "config.yaml").write_text(text.replace("width: 96", "width: 32"))
    assert "does not fit" in complaint(capsys, "evaluate", f"run={folder}")
    (folder / "config.yaml").write_text(text + "\nhook: !!python/object/apply:os.system ['touch owned']\n")
    assert "not a run directory" in complaint(capsys, "evaluate", f"run={folder}")
    assert not (workplace / "owned").exists()
