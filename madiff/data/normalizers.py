"""Normalisers: features to a range that suits diffusion and back, as modules whose buffers are saved with the weights.

All act on the last axis of any tensor, all dimensions at once. A constant dimension becomes 0 and comes back exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from madiff.interfaces import UserError

KNOTS = 256  # per dimension of a CDF
LARGEST_SAMPLE = 131_072  # rows that a CDF is estimated from
SMALLEST_STEP = 1e-3  # of the unit range between two knots, so that float32 can tell their images apart
NARROWEST = 1e-6  # relative to the magnitude: a dimension that varies less is constant in float32


class Normalizer(nn.Module):
    """Base of all: `fit` once on (N, O), then `normalize` and its inverse `denormalize` on (..., O).

    size: number of features O if known; otherwise `fit` or `load_state_dict` decides.
    """

    shapes: dict[str, tuple[int, ...]] = {}  # buffer -> its shape after the feature axis

    def __init__(self, size: int = 0) -> None:
        super().__init__()
        for name, shape in self.shapes.items():
            self.register_buffer(name, torch.zeros(size, *shape))

    def fit(self, x: Float[Tensor, "N O"]) -> Normalizer:
        """Measure x (N, O); raises UserError for another shape, NaN or infinity. Returns itself."""
        if x.ndim != 2 or 0 in x.shape or not bool(torch.isfinite(x).all()):
            raise UserError(f"cannot be fitted to a tensor of shape {tuple(x.shape)}", "normalizer", "finite (N, O)")
        for name, values in self.measure(x).items():
            setattr(self, name, values.to(x.device, torch.float32))
        return self

    def measure(self, x: Float[Tensor, "N O"]) -> dict[str, Tensor]:
        """The buffers for x (N, O)."""
        return {}

    def normalize(self, x: Float[Tensor, "*rows O"]) -> Float[Tensor, "*rows O"]:
        return x

    def denormalize(self, x: Float[Tensor, "*rows O"]) -> Float[Tensor, "*rows O"]:
        return x

    def unclipped(self) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
        """normalize and denormalize that go on beyond the data's range, where the map has a way to."""
        return self.normalize, self.denormalize

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        for name in self.shapes:
            stored, own = state_dict.get(prefix + name), getattr(self, name)
            if stored is not None and len(own) == 0:
                setattr(self, name, own.new_zeros(stored.shape))
        super()._load_from_state_dict(state_dict, prefix, *arguments)


class Limits(Normalizer):
    """Smallest and largest value seen to -1 and 1; values beyond are clipped."""

    shapes = {"low": (), "high": ()}
    low: Tensor
    high: Tensor

    def measure(self, x: Float[Tensor, "N O"]) -> dict[str, Tensor]:
        low, high = x.amin(0), x.amax(0)
        middle = (low + high) / 2
        still = constant(low, high)
        return {"low": torch.where(still, middle, low), "high": torch.where(still, middle, high)}

    def normalize(self, x: Float[Tensor, "*rows O"]) -> Float[Tensor, "*rows O"]:
        return self._line(x).clamp(-1, 1)

    def denormalize(self, x: Float[Tensor, "*rows O"]) -> Float[Tensor, "*rows O"]:
        return self._real(x.clamp(-1, 1))

    def unclipped(self) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
        return self._line, self._real

    def _line(self, x: Tensor) -> Tensor:
        still = self.high == self.low
        unit = (x - self.low) / torch.where(still, 1.0, self.high - self.low)
        return torch.where(still, 0.0, 2 * unit - 1)

    def _real(self, x: Tensor) -> Tensor:
        unit = (x + 1) / 2
        return torch.lerp(self.low.expand_as(unit), self.high.expand_as(unit), unit)


class Gaussian(Normalizer):
    """Zero mean and unit standard deviation; not clipped."""

    shapes = {"mean": (), "std": ()}
    mean: Tensor
    std: Tensor

    def measure(self, x: Float[Tensor, "N O"]) -> dict[str, Tensor]:
        low, high = x.amin(0), x.amax(0)
        still = constant(low, high)
        mean = torch.where(still, (low + high).double() / 2, x.double().mean(0))
        return {"mean": mean, "std": torch.where(still, 0.0, x.double().std(0, correction=0))}

    def normalize(self, x: Float[Tensor, "*rows O"]) -> Float[Tensor, "*rows O"]:
        return torch.where(self.std > 0, (x - self.mean) / torch.where(self.std > 0, self.std, 1.0), 0.0)

    def denormalize(self, x: Float[Tensor, "*rows O"]) -> Float[Tensor, "*rows O"]:
        return self.mean + self.std * x


class CDF(Normalizer):
    """Empirical distribution function of each dimension, scaled to [-1, 1]; values beyond the data are clipped.

    The choice of MADiff (arXiv 2305.17330, released code). Differences that matter for features with many equal
    values, such as the zeros of dead agents: a repeated value maps to the middle of its jump, so the map is strictly
    increasing over at most 256 knots, piecewise linear between them, and can be inverted.
    """

    shapes = {"values": (KNOTS,), "levels": (KNOTS,)}
    values: Tensor
    levels: Tensor

    def measure(self, x: Float[Tensor, "N O"]) -> dict[str, Tensor]:
        sample = x.cpu().numpy()
        if len(sample) > LARGEST_SAMPLE:
            rows = np.random.default_rng(0).choice(len(sample), LARGEST_SAMPLE)
            sample = np.concatenate([sample[rows], [sample.min(0), sample.max(0)]])
        values, levels = zip(*(cdf_knots(column) for column in sample.T), strict=True)
        return {"values": torch.from_numpy(np.stack(values)), "levels": torch.from_numpy(np.stack(levels))}

    def normalize(self, x: Float[Tensor, "*rows O"]) -> Float[Tensor, "*rows O"]:
        return interpolate(x, self.values, self.levels)

    def denormalize(self, x: Float[Tensor, "*rows O"]) -> Float[Tensor, "*rows O"]:
        return interpolate(x, self.levels, self.values)


def constant(low: Float[Tensor, " O"], high: Float[Tensor, " O"]) -> Bool[Tensor, " O"]:
    """Dimensions that vary no more than float32 can tell from rounding."""
    return high - low <= NARROWEST * torch.maximum(low.abs(), high.abs())


def cdf_knots(column: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most KNOTS increasing values of one dimension and their levels in [-1, 1]; the last pair fills the rest.

    levels: the mid-rank distribution function, its steps at least SMALLEST_STEP, scaled to reach -1 and 1.
    """
    values, counts = np.unique(column.astype(np.float64), return_counts=True)
    low, high = values[0], values[-1]
    if high - low <= NARROWEST * max(abs(low), abs(high)):
        return np.full(KNOTS, (low + high) / 2), np.zeros(KNOTS)
    rank = (np.cumsum(counts) - counts / 2) / counts.sum()
    rank = (rank - rank[0]) / (rank[-1] - rank[0])
    chosen = np.arange(len(values))
    if len(values) > KNOTS:
        chosen = np.unique(np.searchsorted(rank, np.linspace(0, 1, KNOTS)))
    cell = np.floor((values[chosen] - low) / (high - low) / NARROWEST)
    chosen = chosen[np.append(True, np.diff(cell) > 0)]  # of values too close together for float32, the first
    steps = np.maximum(np.diff(rank[chosen]), SMALLEST_STEP)
    levels = np.append(0.0, np.cumsum(steps)) / steps.sum() * 2 - 1
    fill = KNOTS - len(chosen)
    return np.pad(values[chosen], (0, fill), "edge"), np.pad(levels, (0, fill), "edge")


def interpolate(
    x: Float[Tensor, "*rows O"], source: Float[Tensor, "O K"], target: Float[Tensor, "O K"]
) -> Float[Tensor, "*rows O"]:
    """Piecewise linear map of x (..., O) from the knots source (O, K) to target (O, K), clipped at both ends."""
    columns = x.to(source.dtype).reshape(-1, x.shape[-1]).T.contiguous().clamp(source[:, :1], source[:, -1:])
    upper = torch.searchsorted(source, columns).clamp(1, source.shape[1] - 1)
    low, high = source.gather(1, upper - 1), source.gather(1, upper)
    share = (columns - low) / torch.where(high > low, high - low, 1.0)
    start, end = target.gather(1, upper - 1), target.gather(1, upper)
    return (start + share * (end - start)).T.reshape(x.shape).to(x.dtype)


NORMALIZERS: dict[str, type[Normalizer]] = {"cdf": CDF, "limits": Limits, "gaussian": Gaussian, "none": Normalizer}


def make_normalizer(name: str, size: int = 0) -> Normalizer:
    """A fresh normaliser, by name: cdf, limits, gaussian or none; raises UserError for another name."""
    if name not in NORMALIZERS:
        raise UserError(f"unknown normalizer {name!r}", "normalizer", list(NORMALIZERS))
    return NORMALIZERS[name](size)
