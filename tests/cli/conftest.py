"""Every test of the command line works in a folder of its own, with one cache of data for all of them."""

import pytest
import torch

from tests.cli.command import run, tiny


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch, tmp_path_factory):
    deterministic, threads = torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MADIFF_CACHE", str(tmp_path_factory.getbasetemp() / "data-cache"))
    yield tmp_path
    torch.use_deterministic_algorithms(deterministic)
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A finished run of MADiff-D and BC, made once; its data lie in `cache` beside it."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert run("train", *tiny(folder, f"data.cache={folder.parent}/cache")) == 0
    return folder
