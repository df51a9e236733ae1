"""A disk that is full, or read-only, from any operation on: one line, nothing lost, and the run can go on."""

import errno
import itertools
import os
from contextlib import contextmanager
from pathlib import Path

import pytest

from madiff.experiment import checkpoint, durable, run_directory
from madiff.experiment.run_directory import Metrics, RunDirectory
from madiff.interfaces import UserError
from tests.experiment.training_job import train

STEPS = 10
OPTIONS = {"log_every": 3, "checkpoint_every": 4, "evaluate": None}
WRITES, REMOVES = ("fsync", "rename", "replace", "mkdir"), ("unlink", "rmdir")


@contextmanager
def disk(allowed, code):
    """Lets so many operations be and then refuses all: with EROFS also those that remove."""
    count = itertools.count()

    def refusing(function):
        def guarded(*arguments, **named):
            if next(count) >= allowed:
                raise OSError(code, os.strerror(code))
            return function(*arguments, **named)

        return guarded

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "fsync", lambda descriptor: None)  # the real one would only take time
        for name in (*WRITES, *(REMOVES if code == errno.EROFS else ())):
            patched.setattr(os, name, refusing(getattr(os, name)))
        for module in (durable, run_directory):
            patched.setattr(module, "open", refusing(open), raising=False)
        yield


def final(run):
    files = ("metrics.jsonl", *(f"checkpoints/{checkpoint.folder_name(STEPS)}/{name}" for name in
                                ("model.safetensors", "train_state.pt")))  # fmt: skip
    return {name: (run / name).read_bytes() for name in files}


@pytest.mark.parametrize(("code", "stride"), [(errno.ENOSPC, 1), (errno.EROFS, 2)])
def test_wherever_the_disk_begins_to_refuse_it_is_one_line_and_the_run_goes_on(tmp_path, code, stride):
    with disk(10**6, code):
        train(tmp_path / "unbroken", STEPS, **OPTIONS)
    for allowed in itertools.count(0, stride):
        run = tmp_path / str(allowed)
        try:
            with disk(allowed, code):
                train(run, STEPS, **OPTIONS)
            break
        except UserError as error:
            assert os.strerror(code) in str(error) and str(run) in str(error) and "\n" not in str(error)
        saved = checkpoint.latest(run / "checkpoints", pytest.fail)
        with disk(10**6, code):
            report = train(run, STEPS, **OPTIONS)
        assert report.start_step == (saved.step if saved else 0)
        assert final(run) == final(tmp_path / "unbroken")
        assert not [path for path in run.rglob(".*") if path.name != run_directory.LOCK]
    assert allowed > 40


def test_a_record_that_does_not_fit_any_more_is_one_line():
    with pytest.raises(UserError, match=r"cannot write /dev/full \(No space left on device\)"):
        Metrics(Path("/dev/full")).append(1, {"loss": 1.0})


def test_what_killed_writes_left_is_cleared_away_and_nothing_else(tmp_path):
    RunDirectory.open(tmp_path / "run", {}, {}).close()
    for name in (".metrics.jsonl.0badcafe.tmp", ".summary.json.tmp", "notes.tmp"):
        (tmp_path / "run" / name).write_text("torn")
    (tmp_path / "run" / ".mine.tmp").mkdir()
    RunDirectory.open(tmp_path / "run", {}, {}).close()
    kept = {path.name for path in (tmp_path / "run").iterdir()}
    assert kept == {"config.yaml", "run.json", ".lock", "notes.tmp", ".mine.tmp"}
