"""Constants as tensors, made once per device and dtype: a captured graph may not copy from the host."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


@lru_cache(maxsize=1024)
def constant(values: tuple, device: torch.device, dtype: torch.dtype) -> Tensor:
    """A nested tuple of numbers as a tensor that is shared by all who ask for it; not to be written to."""
    # Not an inference tensor, whatever mode the first caller is in: autograd may have to keep it.
    with torch.inference_mode(False):
        return torch.tensor(values, device=device, dtype=dtype)


def like(values: tuple, points: Tensor) -> Tensor:
    """The constant on the device and in the dtype of points."""
    return constant(values, points.device, points.dtype)


def indices(values: tuple[int, ...], points: Tensor) -> Tensor:
    """Positions on an axis, as int64 on the device of points."""
    return constant(values, points.device, torch.int64)
