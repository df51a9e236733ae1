"""Roots of one unknown per point, for all points at once, with a fixed number of iterations."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def bracketed_newton(
    function: Callable[[Tensor], tuple[Tensor, Tensor]], start: Tensor, low: Tensor, high: Tensor, iterations: int
) -> Tensor:
    """A root between low and high of an increasing sign change: Newton's step where it stays inside, else the middle.

    function(t) -> (value, derivative), elementwise; all tensors of one shape. Nothing is differentiated.
    """
    with torch.no_grad():
        t = start
        for _ in range(iterations):
            value, slope = function(t)
            low, high = torch.where(value < 0, t, low), torch.where(value < 0, high, t)
            step = t - value / slope
            t = torch.where((step >= low) & (step <= high), step, (low + high) / 2)
    return t


def implicit(root: Tensor, value: Tensor, slope: Tensor) -> Tensor:
    """The root with its exact first derivative: one Newton step of which only the value is differentiated.

    value, slope: the function and its derivative at the root, the value depending on the parameters. By the implicit
    function theorem d root = -d value / slope. Where the slope vanishes the root is taken for constant.
    """
    slope = slope.detach()
    flat = slope.abs() <= torch.finfo(slope.dtype).tiny
    step = torch.where(flat, torch.zeros_like(value), value / torch.where(flat, torch.ones_like(slope), slope))
    return root - (step - step.detach())
