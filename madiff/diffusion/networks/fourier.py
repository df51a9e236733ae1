"""Convolution over a short time by real Fourier transforms: less than half the products, and as exact to a digit.

A convolution is a product of transforms (the convolution theorem). Over a period of T + kernel // 2 steps, the zeros
around x are just enough that what runs over one end meets zeros at the other. A frequency's product of two complex
numbers is three real ones: (a + ib)(c + id) = p - r + i (p + q) with p = c (a + b), q = a (d - c), r = b (c + d).
So three matrices describe it all, y = Y [(W w) * (X x)], and about 1.5 T products do what kernel T did. Minimal
filtering (arXiv 1509.09308) needs about as few, but its points are whole numbers, whose powers cost digits as they
become more; these all lie on the circle.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

PORTION = 1 << 22
"""Numbers of a transform at a time: few enough that the memory of one is the next one's, and not new pages."""


@lru_cache
def transforms(time: int, kernel: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """X (n, T), W (n, kernel) and Y (T, n) of a convolution that keeps the length; kernel is odd."""
    period, half = time + kernel // 2, kernel // 2
    frequency = np.arange(period // 2 + 1)
    angle = 2 * np.pi * np.outer(frequency, np.arange(period)) / period
    cosine, sine = np.cos(angle), -np.sin(angle)
    alone = (frequency == 0) | (2 * frequency == period)  # frequencies whose transforms are real
    times, taps = np.arange(time), (half - np.arange(kernel)) % period

    def rows(columns: np.ndarray, real: list[tuple[int, int]], scale: float = 1.0) -> np.ndarray:
        parts = [a * cosine[~alone][:, columns] + b * sine[~alone][:, columns] for a, b in real]
        return np.concatenate([cosine[alone][:, columns], *(scale * part for part in parts)])

    seen = rows(times, [(1, 1), (1, 0), (0, 1)])
    learnt = rows(taps, [(1, 0), (-1, 1), (1, 1)])
    back = rows(times, [(1, 1), (0, 1), (-1, 0)], 2.0).T / period
    x, w, y = (torch.from_numpy(matrix).to(dtype).contiguous() for matrix in (seen, learnt, back))
    return x, w, y


def products(time: int, kernel: int) -> int:
    """Products of numbers for one input and one output channel."""
    period = time + kernel // 2
    return 1 + 3 * (period // 2) if period % 2 else 3 * (period // 2) - 1


def transformed(matrix: Tensor, x: Tensor) -> Tensor:
    """matrix (n, T) times x (N, C, T) over time -> (n, N, C)."""
    rows, channels, time = x.shape
    return (matrix @ x.permute(2, 0, 1).reshape(time, -1)).view(-1, rows, channels)


def returned(matrix: Tensor, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """matrix (T, n) times x (n, N, C), and bias (C,) -> (N, C, T)."""
    over_time = (matrix @ x.flatten(1)).view(-1, *x.shape[1:])
    return (over_time if bias is None else over_time + bias).permute(1, 2, 0)


def spectrum(weight: Tensor, time: int, dtype: torch.dtype) -> Tensor:
    """Transform (n, C', C) of weights (C', C, kernel)."""
    out, channels, kernel = weight.shape
    matrix = transforms(time, kernel, weight.dtype)[1]
    return (matrix @ weight.reshape(-1, kernel).T).view(-1, out, channels).to(dtype)


def convolved(x: Tensor, spectrum: Tensor, bias: Tensor, kernel: int) -> Tensor:
    """The convolution (N, C', T) of x (N, C, T) with the weights of this transform."""
    to, _, back = transforms(x.shape[2], kernel, x.dtype)
    seen = transformed(to, x)
    return returned(back, seen @ spectrum.transpose(1, 2), bias).contiguous()


def portion(weight: Tensor, time: int) -> int:
    """How many output channels of weights (C', C, kernel) make a transform that is not too large."""
    return max(1, PORTION // (products(time, weight.shape[2]) * weight.shape[1]))
