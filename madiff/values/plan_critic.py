"""Networks that read a noisy plan: independent members, all in one batched product."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from madiff.diffusion.networks.embeddings import TimeEmbedding
from madiff.diffusion.networks.mlp import mlp

GROUPS = 4  # of channels that a member normalises together


class Grouped(nn.Module):
    """Two grouped convolutions over time with the embedding added between, and a shortcut; then half the length.

    x (N, members * channels, T), emb (N, E) -> (N, members * out, ceil(T / 2)). Members never mix.
    """

    def __init__(self, members: int, channels: int, out: int, embedding: int) -> None:
        super().__init__()

        def convolve(a: int, b: int, kernel: int, stride: int = 1) -> nn.Conv1d:
            return nn.Conv1d(members * a, members * b, kernel, stride, kernel // 2, groups=members)

        self.first, self.second = convolve(channels, out, 5), convolve(out, out, 5)
        self.norms = nn.ModuleList(nn.GroupNorm(members * GROUPS, members * out) for _ in range(2))
        self.embedding = nn.Linear(embedding, members * out)
        self.shortcut, self.shrink = convolve(channels, out, 1), convolve(out, out, 3, stride=2)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        hidden = F.mish(self.norms[0](self.first(x))) + self.embedding(emb)[..., None]
        hidden = F.mish(self.norms[1](self.second(hidden)))
        return self.shrink(hidden + self.shortcut(x))


class PlanCritic(nn.Module):
    """`members` independent temporal networks on the same plans (Diffuser's value function, arXiv 2205.09991, app. C).

    Every agent's trajectory runs through the same convolutions; the mean over agents goes to the head, so the order of
    agents does not matter. width x multipliers are the channels of the levels, each of which halves the length.
    Raises ValueError for a width that does not fit the normalisation.
    """

    def __init__(
        self, features: int, length: int, members: int, outputs: int, width: int = 16,
        multipliers: Sequence[int] = (1, 2, 4),
    ) -> None:  # fmt: skip
        super().__init__()
        if width % GROUPS or not multipliers:
            raise ValueError(f"a critic of width {width} and multipliers {tuple(multipliers)} is not possible; "
                             f"allowed: multiples of {GROUPS}, and at least one multiplier")  # fmt: skip
        self.members = members
        self.time, self.elapsed = TimeEmbedding(width, 4 * width), mlp((1, width, width), nn.Mish)
        ends = [features, *(width * multiplier for multiplier in multipliers)]
        pairs = list(zip(ends[:-1], ends[1:], strict=True))
        self.levels = nn.ModuleList(Grouped(members, a, b, width) for a, b in pairs)
        for _ in pairs:
            length = (length + 1) // 2
        self.hidden = nn.Conv1d(members * ends[-1] * length, members * 4 * width, 1, groups=members)
        self.inner = nn.Linear(width, members * 4 * width)
        self.outputs = nn.Conv1d(members * 4 * width, members * outputs, 1, groups=members)

    def forward(self, x: Tensor, t: Tensor, elapsed: Tensor) -> Tensor:
        """x (B, T, A, F), t (B,), elapsed (B,): the share of the episode that is over -> (B, members, outputs)."""
        batch, time, agents, features = x.shape
        emb = F.mish(self.time(t) + self.elapsed(elapsed[:, None]))
        by_agent = emb[:, None].expand(-1, agents, -1).flatten(0, 1)
        x = x.permute(0, 2, 3, 1).reshape(batch * agents, features, time).repeat(1, self.members, 1)
        for level in self.levels:
            x = level(x, by_agent)
        team = x.unflatten(0, (batch, agents)).mean(1).reshape(batch, -1, 1)
        hidden = F.mish(self.hidden(team) + self.inner(emb)[..., None])
        return self.outputs(hidden).view(batch, self.members, -1)


def pinball(estimates: Tensor, target: Tensor, levels: Tensor) -> Tensor:
    """Quantile loss max(q u, (q - 1) u), u = target - estimate (Koenker & Bassett 1978), of every entry.

    estimates (..., Q) at quantile levels (Q,); target (...).
    """
    error = target[..., None] - estimates
    return torch.maximum(levels * error, (levels - 1) * error)
