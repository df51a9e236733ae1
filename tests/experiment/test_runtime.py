import platform

import pytest
import torch

from madiff.experiment import runtime
from madiff.interfaces import UserError


@pytest.fixture(autouse=True)
def settings_restored():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)
    torch.set_float32_matmul_precision("highest")


def test_the_choice_is_said_in_one_line():
    said = []
    chosen = runtime.setup("cpu", threads=1, say=said.append)
    assert said == ["device: cpu, 1 CPU thread: as asked"]
    assert chosen.device == torch.device("cpu") and torch.get_num_threads() == 1


def test_auto_takes_cuda_where_there_is_some_and_says_why():
    said = []
    chosen = runtime.setup("auto", say=said.append)
    assert (chosen.device.type == "cuda") == torch.cuda.is_available()
    assert "CUDA is" in said[0] and chosen.threads == torch.get_num_threads() >= 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_asked_for_but_absent_is_refused():
    with pytest.raises(UserError, match="hardware.device: cuda is not available .* allowed: auto, cpu"):
        runtime.setup("cuda")


@pytest.mark.parametrize("device", ["gpu", "cpu:7", ""])
def test_unknown_devices_are_refused(device):
    with pytest.raises(UserError, match="allowed: auto, cpu, cuda"):
        runtime.setup(device)


def test_negative_threads_are_refused():
    with pytest.raises(UserError, match="hardware.threads"):
        runtime.setup("cpu", threads=-1)


def test_on_a_cpu_algorithms_are_deterministic_and_products_exact():
    runtime.setup("cpu", say=None)
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.get_float32_matmul_precision() == "highest"


def test_versions_name_what_a_result_depends_on():
    found = runtime.versions()
    assert found["torch"] == torch.__version__.split("+")[0] or found["torch"] == torch.__version__
    assert found["python"] == platform.python_version() and "numpy" in found
