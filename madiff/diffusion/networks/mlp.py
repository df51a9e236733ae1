"""MLPs, and MLP denoisers for policies, where every agent and time step is denoised on its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from madiff.diffusion.networks.embeddings import TimeEmbedding, require_conditions, visible
from madiff.diffusion.sharing import RowWise


def mlp(sizes: Sequence[int], activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Linear layers of the given sizes with the activation between them: (..., sizes[0]) -> (..., sizes[-1])."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in zip(sizes[:-1], sizes[1:], strict=True):
        layers += [nn.Linear(fan_in, fan_out), activation()]
    return nn.Sequential(*layers[:-1])


class ResidualBlock(nn.Module):
    """x + W2 ReLU(W1 dropout(LayerNorm(x))) with a hidden layer of 4 widths (arXiv 2304.10573, app. E)."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Dropout(dropout), nn.LayerNorm(width), mlp((width, 4 * width, width)))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.net(x)


class MLPDenoiser(RowWise):
    """Diffusion-QL's network (arXiv 2208.06193): an MLP on [x, time embedding, conditions], shared by all agents.

    conditions: name -> size of cond[name] (B, A, size), entering unembedded and zeroed where cond["keep"] is 0.
    """

    def __init__(
        self,
        features: int,
        width: int = 256,
        layers: int = 3,
        conditions: Mapping[str, int] | None = None,
        time_width: int = 16,
    ) -> None:
        super().__init__()
        self.conditions = dict(conditions or {})
        self.time = TimeEmbedding(time_width, 2 * time_width)
        inputs = features + time_width + sum(self.conditions.values())
        self.net = self._body(inputs, width, layers, features)

    def _body(self, inputs: int, width: int, layers: int, features: int) -> nn.Module:
        return mlp((inputs, *[width] * layers, features), nn.Mish)

    def forward(self, x: Tensor, t: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        require_conditions(self.conditions, cond)
        batch, time, agents, _ = x.shape
        given = [visible(cond[name], cond)[:, None].expand(-1, time, -1, -1) for name in self.conditions]
        embedded = self.time(t)[:, None, None].expand(-1, time, agents, -1)
        return self.net(torch.cat([x, embedded, *given], dim=-1))


class ResidualMLPDenoiser(MLPDenoiser):
    """IDQL's network (arXiv 2304.10573): the same inputs through residual blocks with layer norm."""

    def __init__(
        self,
        features: int,
        width: int = 256,
        layers: int = 3,
        conditions: Mapping[str, int] | None = None,
        time_width: int = 16,
        dropout: float = 0.1,
    ) -> None:
        self.dropout = dropout  # before the base makes the body
        super().__init__(features, width, layers, conditions, time_width)

    def _body(self, inputs: int, width: int, layers: int, features: int) -> nn.Module:
        blocks = [ResidualBlock(width, self.dropout) for _ in range(layers)]
        return nn.Sequential(nn.Linear(inputs, width), *blocks, nn.ReLU(), nn.Linear(width, features))
