import json
import os
import stat
from pathlib import Path

import pytest
import yaml

from madiff.experiment import run_directory
from madiff.experiment.run_directory import RunDirectory, read_records
from madiff.interfaces import UserError

CONFIG = {"algo": "bc", "train": {"steps": 3, "betas": [0.9, 0.999]}}
IDENTITY = {"algo": "bc", "env": "toy", "scenario": "3m"}


def opened(path, resume="auto", identity=IDENTITY):
    return RunDirectory.open(path, CONFIG, identity, resume)


@pytest.mark.parametrize("name", ["run", "a=b,c(d)/e f/ü"])
def test_a_new_run_is_created_with_its_parents_and_its_config(tmp_path, name):
    with opened(tmp_path / name) as run:
        assert yaml.safe_load((run.path / "config.yaml").read_text()) == CONFIG
        assert run.summary() is None and not run.finished(0)
    assert run_directory.read(tmp_path / name) == (CONFIG, IDENTITY)


def test_an_earlier_run_is_refused_unless_resume_is_auto(tmp_path):
    opened(tmp_path / "run").close()
    before = sorted(path.name for path in (tmp_path / "run").iterdir())
    with pytest.raises(UserError, match="already holds a run; allowed: resume=auto, another run_dir"):
        opened(tmp_path / "run", "no")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == before
    opened(tmp_path / "run", "auto").close()


@pytest.mark.parametrize("key, value", [("algo", "dom2"), ("scenario", "8m"), ("cost", True)])
def test_another_experiment_in_the_same_directory_is_refused_by_name(tmp_path, key, value):
    opened(tmp_path / "run").close()
    with pytest.raises(UserError, match=f"holds a run with {key}={IDENTITY.get(key)}, not {key}={value}"):
        opened(tmp_path / "run", identity={**IDENTITY, key: value})


def test_strangers_files_are_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="holds other files"):
        opened(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(UserError, match="is not a directory"):
        opened(tmp_path / "thesis.tex")


def test_a_second_opening_is_refused_and_harms_nothing(tmp_path):
    with opened(tmp_path / "run") as run:
        run.metrics.append(1, {"loss": 1.0})
        with pytest.raises(UserError, match=f"in use by process {os.getpid()} on "):
            opened(tmp_path / "run")
        run.metrics.append(2, {"loss": 0.5})
    assert [record["step"] for record in read_records(tmp_path / "run" / "metrics.jsonl")] == [1, 2]
    opened(tmp_path / "run").close()


@pytest.mark.parametrize("resume", ["yes", ""])
def test_resume_values_are_checked_before_anything_is_made(tmp_path, resume):
    with pytest.raises(UserError, match="resume: .* allowed: auto, no"):
        opened(tmp_path / "new" / "run", resume)
    assert list(tmp_path.iterdir()) == []


def test_places_that_cannot_be_written_give_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "run", Path("/proc/run"), Path("/dev/null/run"), tmp_path / ("x" * 300)):
        with pytest.raises(UserError) as caught:
            opened(path)
        assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_failed_opening_takes_its_folders_back(tmp_path):
    with pytest.raises(yaml.YAMLError):
        RunDirectory.open(tmp_path / "a" / "b", {"path": Path("not plain")}, IDENTITY)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "empty").mkdir()
    with pytest.raises(yaml.YAMLError):
        RunDirectory.open(tmp_path / "empty", {"path": Path("not plain")}, IDENTITY)
    assert list((tmp_path / "empty").iterdir()) == []


def test_a_user_error_before_any_result_removes_a_new_directory_only(tmp_path):
    with pytest.raises(UserError), opened(tmp_path / "a" / "run"):
        raise UserError("no data")
    assert list(tmp_path.iterdir()) == []
    opened(tmp_path / "run").close()
    with pytest.raises(UserError), opened(tmp_path / "run"):
        raise UserError("no data")
    assert (tmp_path / "run" / "config.yaml").exists()
    with pytest.raises(UserError), opened(tmp_path / "other") as run:
        run.metrics.append(1, {"loss": 1.0})
        raise UserError("diverged")
    assert (tmp_path / "other" / "metrics.jsonl").exists()


def test_a_run_killed_while_being_created_can_be_created_again(tmp_path):
    opened(tmp_path / "run").close()
    (tmp_path / "run" / "run.json").rename(tmp_path / "run" / ".run.json.tmp")
    opened(tmp_path / "run", "no").close()
    assert run_directory.read(tmp_path / "run") == (CONFIG, IDENTITY)


def test_metrics_keep_each_step_once_after_a_kill(tmp_path):
    with opened(tmp_path / "run") as run:
        for step in (1, 2, 3, 4):
            run.metrics.append(step, {"loss": 1 / step})
    whole = (tmp_path / "run" / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    for tail in (b'{"step": 5, "lo', b'{"step": 2, "loss": 9}\n', b"\x00\x00\x00", b"[1]\n"):
        (tmp_path / "run" / "metrics.jsonl").write_bytes(b"".join(whole) + tail)
        with opened(tmp_path / "run") as run:
            assert run.metrics.rewind(3) == 3
            run.metrics.append(4, {"loss": 0.25})
        kept = (tmp_path / "run" / "metrics.jsonl").read_bytes().splitlines(keepends=True)
        assert [json.loads(line)["step"] for line in kept] == [1, 2, 3, 4]
        assert kept[0] == whole[0] and kept[2:] == whole[2:]
    with opened(tmp_path / "run") as run:
        assert run.metrics.rewind(0) == 0 and list(run.metrics) == []


def test_numbers_that_json_cannot_say_become_null(tmp_path):
    with opened(tmp_path / "run") as run:
        run.metrics.append(1, {"loss": 1.0, "spread": float("nan")})
        run.write_json("summary.json", {"steps": 1, "deep": [{"x": float("inf")}, (1.5, -float("inf"))]})
        assert run.summary() == {"steps": 1, "deep": [{"x": None}, [1.5, None]]}
    text = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {"step": 1, "loss": 1.0, "spread": None}


def test_finished_means_a_summary_of_enough_steps(tmp_path):
    with opened(tmp_path / "run") as run:
        run.write_json("summary.json", {"steps": 10})
        assert run.finished(10) and not run.finished(11)
        (run.path / "summary.json").write_text('{"steps": 1')
        assert run.summary() is None and not run.finished(1)


def test_a_failed_write_keeps_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    def refuse(source, target):
        raise OSError(28, "No space left on device")

    with opened(tmp_path / "run") as run:
        run.write_json("summary.json", {"steps": 1})
        before = sorted(path.name for path in run.path.iterdir())
        monkeypatch.setattr(os, "replace", refuse)
        with pytest.raises(UserError, match="cannot write .*summary.json .No space left"):
            run.write_json("summary.json", {"steps": 2})
        assert run.summary() == {"steps": 1} and sorted(path.name for path in run.path.iterdir()) == before


def test_what_is_no_run_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match="is not a run directory"):
        run_directory.read(tmp_path / "absent")
    (tmp_path / "run.json").write_text("[]")
    (tmp_path / "config.yaml").write_text("!!python/object/apply:os.mkdir ['%s']" % (tmp_path / "executed"))
    with pytest.raises(UserError, match="is not a run directory"):
        run_directory.read(tmp_path)
    assert not (tmp_path / "executed").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_without_write_permission_gives_one_line(tmp_path):
    (tmp_path / "sealed").mkdir()
    (tmp_path / "sealed").chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(UserError, match="Permission denied"):
        opened(tmp_path / "sealed" / "run")


@pytest.mark.parametrize("text", ["[]", '{"steps": "many"}', "[" * 100_000, "{"])
def test_a_damaged_summary_is_no_summary(tmp_path, text):
    with RunDirectory.open(tmp_path / "run", {}, {}) as run:
        (run.path / "summary.json").write_text(text)
        assert run.summary() is None
        assert not run.finished(1)


@pytest.mark.parametrize("name", ["run.json", "config.yaml"])
def test_nesting_without_end_is_no_run(tmp_path, name):
    RunDirectory.open(tmp_path / "run", {"a": 1}, {}).close()
    (tmp_path / "run" / name).write_text("[" * 100_000)
    with pytest.raises(UserError, match="not a run directory"):
        run_directory.read(tmp_path / "run")


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, OSError])
def test_whatever_ends_a_run_before_any_result_leaves_no_folder(tmp_path, error):
    with pytest.raises(error), opened(tmp_path / "deep" / "run"):
        raise error
    assert list(tmp_path.iterdir()) == []
