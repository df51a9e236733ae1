"""Embeddings of the diffusion time and of named conditions."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

# t in [0, 1] reaches the sinusoids as t * 1000, the range their periods (2 pi to 2 pi 10^4) were made for
TIME_SCALE = 1000.0


class SinusoidalEmbedding(nn.Module):
    """Sines and cosines of the time at geometric frequencies (arXiv 1706.03762, section 3.5): t (B,) -> (B, width)."""

    frequencies: Tensor
    def __init__(self, width: int) -> None:
        super().__init__()
        if width < 4 or width % 2:
            raise ValueError(f"time embedding width {width} is odd or too small; allowed: even numbers from 4")
        half = width // 2
        exponents = torch.arange(half, dtype=torch.float64) / (half - 1)
        self.register_buffer("frequencies", (TIME_SCALE * 1e4**-exponents).float(), persistent=False)

    def forward(self, t: Tensor) -> Tensor:
        angles = t[:, None] * self.frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=-1)


class TimeEmbedding(nn.Sequential):
    """Sinusoids and a two-layer MLP: t (B,) -> (B, width)."""

    def __init__(self, width: int, hidden: int, activation: type[nn.Module] = nn.Mish) -> None:
        super().__init__(SinusoidalEmbedding(width), nn.Linear(width, hidden), activation(), nn.Linear(hidden, width))


def require_conditions(sizes: Mapping[str, int], cond: Mapping[str, Tensor]) -> None:
    """Raises ValueError if a condition the network was built for is not given."""
    for name in sizes:
        if name not in cond:
            given = ", ".join(cond) or "nothing"
            raise ValueError(f"condition {name!r} is missing, given: {given}; allowed: all of {', '.join(sizes)}")


def visible(value: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
    """An embedded condition (B, A, W), zeroed in the rows where cond["keep"] (B,) is 0."""
    return value * cond["keep"].view(-1, 1, 1).to(value.dtype) if "keep" in cond else value
