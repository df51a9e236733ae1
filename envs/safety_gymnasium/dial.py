"""Recklessness as a number from 0 to 1, and what it stands for."""

from __future__ import annotations

import torch
from torch import Tensor

Curve = tuple[tuple[float, float], ...]
"""Points (dial, value) by rising dial, the first at 0 and the last at 1, with straight lines between them."""

QUALITIES = {
    "safe": (0.0, 0.0),
    "careful": (0.3, 0.3),
    "reckless": (0.6, 0.6),
    "wild": (1.0, 1.0),
    "frontier": (0.0, 1.0),
    "good": (0.0, 1.0),
}
"""The dials of a quality: every episode draws its own between these two. `good`, what a data set is made of unless the
user says otherwise, is the frontier: of a task with a budget no single recklessness is good."""


def at(curve: Curve, dial: Tensor) -> Tensor:
    """The values of a curve at dials (n,)."""
    dials, values = (torch.tensor(column, device=dial.device) for column in zip(*curve, strict=True))
    right = torch.searchsorted(dials, dial.contiguous(), right=True).clamp(1, len(dials) - 1)
    share = (dial - dials[right - 1]) / (dials[right] - dials[right - 1])
    return values[right - 1] + share * (values[right] - values[right - 1])
