"""Puts the options of the hardware to work: the machine for the whole process, and how the core computes on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, fields

import torch

from madiff.diffusion import capture, computing
from madiff.experiment import runtime
from madiff.experiment.runtime import Runtime
from madiff.interfaces import Learner, UserError
from madiff.schema import Hardware

Say = Callable[[str], None] | None


def setup(hardware: Hardware, say: Say = print, together: bool = False) -> Runtime:
    """The machine, set up for this process until the next call; `say` is told what was chosen, and what to expect.

    together: as `runtime.setup`. Raises UserError for what this machine cannot do.
    """
    machine = runtime.setup(hardware.device, hardware.threads or 0, say, together)
    precision = None if hardware.precision == "float32" else bfloat16(machine.device, say)
    compiler = compiled(machine) if hardware.compile else None
    recorder = recorded(machine.device) if hardware.graphs else None
    plain = precision is compiler is recorder is None
    computing.use(computing.PLAIN if plain else computing.Computing(precision, compiler, recorder))
    return machine


def bfloat16(device: torch.device, say: Say) -> torch.dtype:
    """The type, where the device has it; a CPU without instructions for it is told to be slow."""
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UserError("this GPU has no bf16", "hardware.precision", ["float32"])
    if device.type == "cpu" and say is not None and not runtime.multiplies_bf16():
        say("hardware.precision=bf16: this CPU has no instructions for it, so it will be slower than float32")
    return torch.bfloat16


def compiled(machine: Runtime) -> computing.Compiler:
    """The compiler, once it has shown that it works here."""
    from madiff.diffusion import compiling  # and with it torch's, only where it is wanted

    compiler = compiling.Compiled(machine.threads)
    try:
        compiling.trial(machine.device)
    except Exception as error:  # torch has as many kinds of them as there are things that can be missing
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        what = f"torch.compile does not work here ({reason})"
        raise UserError(what, "hardware.compile", "false, or a C++ compiler (for GPUs also Triton)") from error
    return compiler


def recorded(device: torch.device) -> computing.Recorder:
    """The recorder of a GPU."""
    if device.type != "cuda":
        raise UserError("only CUDA records graphs", "hardware.graphs", "false, or hardware.device=cuda")
    return capture.Recorder()


def unheeded(hardware: Hardware, learner: Learner, name: str) -> str | None:
    """A line where a method heeds none of the options that are on; None where all is as asked."""
    on = [f.name for f in fields(hardware) if f.default is not MISSING and getattr(hardware, f.name) != f.default]
    if not on or getattr(learner, "heeds_computing", True):
        return None
    return f"{', '.join(f'hardware.{key}' for key in on)}: {name} has no denoiser, so nothing changes"
