"""Diffusion models for multi-agent reinforcement learning from offline data."""

from __future__ import annotations

import os
from os import PathLike
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from madiff.api import Plan, assess, constrain, fit, load_data, plan
    from madiff.interfaces import Policy

__version__ = "0.1.0"
__all__ = ["Plan", "assess", "constrain", "fit", "load", "load_data", "plan"]

# Read once, when torch loads OpenMP. By default its idle threads spin, and one other busy process on a two-core
# machine then makes a training update thirty times slower. Asleep at once they cost nothing, but an update wakes them
# hundreds of times: after a few microseconds, within which most work comes, they sleep.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def load(run_dir: str | PathLike[str], device: str = "cpu") -> Policy:
    """The trained policy of a run directory: its newest intact checkpoint. Nothing stored there is executed.

    Raises UserError where there is no run or no checkpoint.
    """
    from madiff.build import load_run  # torch and every method: not for those who only want a part of the package

    return load_run(run_dir, device).policy


def __getattr__(name: str) -> Any:
    """The functions of `madiff.api`, imported when they are first asked for: they bring torch and every method."""
    if name not in __all__:
        raise AttributeError(f"module 'madiff' has no attribute {name!r}")
    from madiff import api

    return getattr(api, name)
