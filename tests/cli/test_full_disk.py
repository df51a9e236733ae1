"""A disk that fills up while a command works: one line, exit code 2, and the run goes on when there is room again."""

import errno
import os

import pytest

from madiff.experiment import checkpoint, durable
from tests.cli.command import complaint, run, tiny


@pytest.mark.learn
def test_a_disk_that_fills_up_costs_one_line_and_no_checkpoint(workplace, capsys):
    arguments = tiny(workplace / "run", "algo=bc", "train.baselines=[]")
    write = durable.write

    def filling(path, content):
        if "step-000000004" in str(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        write(path, content)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(durable, "write", filling)
        line = complaint(capsys, "train", *arguments)
    assert "cannot write checkpoint" in line and "No space left on device" in line
    assert checkpoint.latest(workplace / "run" / "checkpoints", pytest.fail).step == 2
    assert run("train", *arguments, "resume=auto") == 0
    assert "resumed from step 2" in capsys.readouterr().out
