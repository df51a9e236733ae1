"""Counter-based random numbers: every copy's draws depend on its own key and clock alone.

So copies are independent of their neighbours, a copied state repeats its step exactly, and drawing compiles.
"""

from __future__ import annotations

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)


def mix(z: Tensor) -> Tensor:
    """SplitMix64's finaliser (Steele et al. 2014) on int64, which wraps around like uint64."""
    z = (z ^ ((z >> 30) & ((1 << 34) - 1))) * _MIX_1
    z = (z ^ ((z >> 27) & ((1 << 37) - 1))) * _MIX_2
    return z ^ ((z >> 31) & ((1 << 33) - 1))


def keys(seed: int, copies: int, device: torch.device) -> Tensor:
    """One key per copy, (copies,) int64; a copy's key does not depend on how many copies there are."""
    start = mix(torch.tensor(int(seed) % (1 << 62), device=device))
    return mix(start + torch.arange(1, copies + 1, device=device) * _GOLDEN)


def draw_bits(key: Tensor, clock: Tensor, columns: int) -> Tensor:
    """64 random bits for each copy and column: (copies,), (copies,) -> (columns, copies) int64."""
    column = torch.arange(1, columns + 1, device=key.device)
    return mix(mix(key + clock * _GOLDEN) + column[:, None] * _GOLDEN)


def uniforms_of_bytes(bits: Tensor) -> Tensor:
    """Eight uniform numbers from each 64 bits, multiples of 1/256 centred in their cells: (...) -> (8, ...)."""
    shift = torch.arange(0, 64, 8, device=bits.device).view(8, *[1] * bits.ndim)
    return (((bits >> shift) & 255) + 0.5) / 256


def uniform(bits: Tensor) -> Tensor:
    """One uniform number in [0, 1) from the upper 24 of each 64 bits."""
    return ((bits >> 40) & 0xFFFFFF) / (1 << 24)
