"""Work on those rows of a batch that need it, where shapes may depend on data."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def where_needed(
    solve: Callable[..., Tensor], needed: Tensor, otherwise: Tensor, points: Tensor, *arguments: Tensor | float | None
) -> Tensor:
    """solve(points, *arguments) where needed, a mask over leading axes, and `otherwise` elsewhere.

    In eager mode on a CPU only those rows are worked on; elsewhere all are, so that shapes never depend on data.
    arguments: tensors with as many axes as points, or broadcastable to points without the last; numbers; None.
    """
    if points.device.type != "cpu" or torch.compiler.is_compiling():
        keep = needed.reshape(needed.shape + (1,) * (points.ndim - needed.ndim))
        return torch.where(keep, solve(points, *arguments), otherwise)
    rows = needed.nonzero(as_tuple=True)
    if not len(rows[0]):
        return otherwise

    def chosen(value: Tensor | float | None) -> Tensor | float | None:
        if not isinstance(value, Tensor):
            return value
        return (value if value.ndim == points.ndim else value.expand(points.shape[:-1]))[rows]

    return otherwise.index_put(rows, solve(points[rows], *map(chosen, arguments)))
