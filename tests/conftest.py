"""Every test runs on one thread and draws the same, whatever the load of the machine and the order of the tests."""

import signal

import pytest
import torch

torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    """What takes longest is begun first."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


@pytest.fixture(autouse=True, scope="session")
def heard_ctrl_c():
    """Tests stop programs as Ctrl-C does, which a shell's background jobs, and all their children, would not hear."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def same_draws_in_any_order():
    """A test that draws from torch's own generator draws the same whichever tests ran before it."""
    torch.manual_seed(0)
