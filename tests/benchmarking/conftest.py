"""Benchmarks of seconds, each in a folder of its own, with one cache of data for all of them."""

import pytest
import torch

from madiff import benchmark


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch, tmp_path_factory):
    deterministic, threads = torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MADIFF_CACHE", str(tmp_path_factory.getbasetemp() / "data-cache"))
    yield tmp_path
    if torch.are_deterministic_algorithms_enabled() != deterministic:  # asking imports the compiler
        torch.use_deterministic_algorithms(deterministic)
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """The whole smoke suite, run once with its own processes; tests read it and write elsewhere."""
    folder = tmp_path_factory.mktemp("smoke") / "out"
    cache = tmp_path_factory.getbasetemp() / "data-cache"
    assert benchmark.main(["suite=smoke", f"out={folder}", "workers=2", f"data.cache={cache}"]) == 0
    return folder
