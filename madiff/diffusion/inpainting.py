"""In-painting: entries of x that are known are held at their clean values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Known(NamedTuple):
    """Clean values and the entries they hold for; both of the shape of x, the mask boolean."""

    value: Tensor
    mask: Tensor

    def paint(self, x: Tensor) -> Tensor:
        """x with the known entries overwritten."""
        return torch.where(self.mask, self.value, x)


def make_known(
    known: tuple[Tensor, Tensor] | None, shape: Sequence[int], candidates: int, like: Tensor
) -> Known | None:
    """`(value, mask)`, broadcastable to shape (B, T, A, F), as full tensors with every row repeated `candidates` times.

    mask: 0 / 1 or boolean. Raises ValueError where the two do not broadcast to the shape.
    """
    if known is None:
        return None
    try:
        value, mask = (entry.to(like.device).expand(shape) for entry in known)
    except RuntimeError as error:
        shapes = " and ".join(str(tuple(entry.shape)) for entry in known)
        allowed = f"broadcastable to {tuple(shape)}"
        raise ValueError(f"known values and mask have shapes {shapes}; allowed: {allowed}") from error
    return Known(repeat_rows(value.to(like.dtype), candidates), repeat_rows(mask.bool(), candidates))


def repeat_rows(x: Tensor, times: int) -> Tensor:
    """(B, ...) -> (B * times, ...), the copies of a row side by side."""
    return x if times == 1 else x.repeat_interleave(times, dim=0)
