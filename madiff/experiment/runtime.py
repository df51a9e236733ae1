"""The machine a run uses: device, threads, matrix precision; chosen once, said in one line."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass

import torch

from madiff.experiment.processes import place
from madiff.interfaces import UserError

DEVICES = ("auto", "cpu", "cuda")
PACKAGES = ("madiff-suite", "torch", "numpy", "safetensors", "pettingzoo", "gymnasium", "mujoco", "cvxpy")


@dataclass(frozen=True)
class Runtime:
    """device: where networks and data live; threads: of torch on the CPU; reason: why, in words."""

    device: torch.device
    threads: int
    reason: str

    def __str__(self) -> str:
        name = f" ({torch.cuda.get_device_name(self.device)})" if self.device.type == "cuda" else ""
        plural = "" if self.threads == 1 else "s"
        return f"device: {self.device}{name}, {self.threads} CPU thread{plural}: {self.reason}"


def setup(
    device: str = "auto", threads: int = 0, say: Callable[[str], None] | None = print, together: bool = False
) -> Runtime:
    """Choose and set up the hardware for this process; `say` is told in one line what was chosen and why.

    device: auto (CUDA if there is one), cpu, cuda. threads: of torch on the CPU, 0 for as many as this process may use.
    together: whether the caller can work as one of several processes, which have a GPU each and are refused otherwise.
    On a CPU the algorithms are set to be deterministic and float32 is exact; on CUDA float32 products use TF32.
    """
    if place().count > 1 and not together:
        raise UserError("this command works as one process", "torchrun", ["python -m madiff.train"])
    chosen, reason = _device(device)
    if not 0 <= threads <= cores():
        raise UserError(f"{threads} is out of range", "hardware.threads", f"up to {cores()}, the cores here; 0 = all")
    torch.set_num_threads(threads or min(torch.get_num_threads(), cores()))
    on_cuda = chosen.type == "cuda"
    torch.set_float32_matmul_precision("high" if on_cuda else "highest")
    torch.use_deterministic_algorithms(not on_cuda)
    # Filling every fresh tensor with NaN is for debugging; it costs time and changes no result.
    torch.utils.deterministic.fill_uninitialized_memory = False
    runtime = Runtime(chosen, torch.get_num_threads(), reason)
    if say is not None:
        say(str(runtime))
    return runtime


def multiplies_bf16() -> bool:
    """Whether this machine's processor has instructions for products of bfloat16."""
    able = getattr(torch.cpu, "get_capabilities", dict)()  # older versions of torch cannot tell
    return any(able.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all its work, so that a clock read next tells the truth."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def versions() -> dict[str, str]:
    """Versions of Python, the platform and the packages a result depends on; those not installed are left out."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _device(name: str) -> tuple[torch.device, str]:
    if name not in DEVICES:
        raise UserError(f"{name!r} is not known", "hardware.device", DEVICES)
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise UserError(f"cuda is not available to torch {torch.__version__}", "hardware.device", ["auto", "cpu"])
    why = "as asked" if name != "auto" else f"CUDA is {'' if available else 'not '}available"
    return (_gpu() if available and name != "cpu" else torch.device("cpu")), why


def _gpu() -> torch.device:
    """The only one that is asked for, or among several processes of this machine this one's own."""
    _, count, local = place()
    if count == 1:
        return torch.device("cuda")
    gpus = torch.cuda.device_count()
    if local >= gpus:
        raise UserError(f"there is no GPU for process {local + 1} of a machine", "--nproc-per-node", f"up to {gpus}")
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


def cores() -> int:
    """Cores this process may run on, which containers and job schedulers make fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
