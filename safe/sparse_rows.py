"""Rows of a quadratic program that touch few variables each, at the same places in the whole batch.

Two robots that keep apart, a velocity tied to two positions: the rows have k entries among n variables, products with
them cost k instead of n, and G' diag(weights) G is put together entry by entry. A form of `safe.interior.Rows`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class SparseRows(NamedTuple):
    """Rows with few entries at the same places in every problem of the batch.

    columns (m, k) int64: where; values (batch, m, k): what; variables: n.
    products (batch, m k (k + 1) / 2): every two entries of a row multiplied; places: where each goes in the lower
    triangle of (n, n), flat. Made by `of`; a row with fewer entries than k has zeros anywhere.
    """

    columns: Tensor
    values: Tensor
    variables: int
    products: Tensor
    places: Tensor

    @classmethod
    def of(cls, columns: Tensor, values: Tensor, variables: int) -> SparseRows:
        p, q = torch.tril_indices(columns.shape[1], columns.shape[1], device=columns.device)
        one, other = columns[:, p], columns[:, q]
        twice = 1.0 + ((one == other) & (p != q)).to(values)  # both orders of two entries at one place
        products = values[..., p] * values[..., q] * twice
        places = torch.maximum(one, other) * variables + torch.minimum(one, other)
        return cls(columns, values, variables, products, places)

    def apply(self, x: Tensor) -> Tensor:
        batch, m, k = self.values.shape
        return (x.gather(1, self.columns.reshape(1, -1).expand(batch, -1)).view(batch, m, k) * self.values).sum(-1)

    def adjoint(self, multipliers: Tensor) -> Tensor:
        pushes = (self.values * multipliers[..., None]).flatten(1)
        total = pushes.new_zeros(len(pushes), self.variables)
        return total.scatter_add_(1, self.columns.reshape(1, -1).expand_as(pushes), pushes)

    def normal(self, weights: Tensor) -> Tensor:
        entries = (self.products * weights[..., None]).flatten(1)
        total = entries.new_zeros(len(entries), self.variables**2)
        total.scatter_add_(1, self.places.reshape(1, -1).expand_as(entries), entries)
        return total.unflatten(1, (self.variables, self.variables))

    def scaled(self) -> tuple[SparseRows, Tensor]:
        """The same rows at unit length, and what each was multiplied by (batch, m); zero rows stay."""
        length = torch.linalg.vector_norm(self.values, dim=-1)
        empty = length <= 1e-15 * length.amax(-1, keepdim=True)
        scale = torch.where(empty, 1.0, 1.0 / torch.where(empty, 1.0, length))
        values, products = self.values * scale[..., None], self.products * (scale**2)[..., None]
        return self._replace(values=values, products=products), scale
