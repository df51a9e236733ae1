"""MADiff's network (arXiv 2305.17330): a temporal U-Net shared by all agents, with attention among agents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from madiff.diffusion.networks.convolution import TimeConv1d
from madiff.diffusion.networks.embeddings import TimeEmbedding, require_conditions, visible
from madiff.diffusion.networks.mish import Mish
from madiff.diffusion.networks.mlp import mlp
from madiff.diffusion.sharing import RowWise


class ConvBlock(nn.Sequential):
    """Convolution over time, group norm, Mish: (N, C, T) -> (N, C', T)."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__(TimeConv1d(channels, out, 5), nn.GroupNorm(8, out), Mish())


class ResidualBlock(nn.Module):
    """Two convolution blocks with an embedding added between them: x (N, C, T), emb (N, E) after Mish -> (N, C', T)."""

    def __init__(self, channels: int, out: int, embedding: int) -> None:
        super().__init__()
        self.first, self.second = ConvBlock(channels, out), ConvBlock(out, out)
        self.embedding = nn.Linear(embedding, out)
        self.shortcut = nn.Conv1d(channels, out, 1) if channels != out else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        hidden = self.first(x)
        hidden = hidden + over_time(self.embedding(emb), hidden)
        return self.second(hidden) + self.shortcut(x)


class AgentAttention(nn.Module):
    """Attention whose tokens are agents: x + gamma softmax(q k^T / sqrt(d)) v, gamma starting at 0.

    x (B A, C, T), emb (B A, E) after Mish; a head's query, key and value are flattened over its channels and time, so
    every agent attends to whole trajectories. There is no agent index: permuting agents permutes the output.
    """

    def __init__(self, channels: int, embedding: int, heads: int) -> None:
        super().__init__()
        self.heads, self.split = heads, (channels // 4, channels // 4, channels)
        self.qkv = nn.Conv1d(channels, sum(self.split), 1)
        self.embedding = nn.Linear(embedding, sum(self.split))
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, emb: Tensor, agents: int) -> Tensor:
        mixed = self.qkv(x)
        mixed = mixed + over_time(self.embedding(emb), mixed)
        q, k, v = (self._by_head(part, agents) for part in mixed.split(self.split, dim=1))
        out = F.scaled_dot_product_attention(q, k, v)
        return x + self.gamma * out.transpose(1, 2).reshape(x.shape)

    def _by_head(self, part: Tensor, agents: int) -> Tensor:
        """(B A, C, T) -> (B, heads, A, C T / heads)."""
        return part.reshape(-1, agents, self.heads, part.shape[1] * part.shape[2] // self.heads).transpose(1, 2)


class AgentAttentionUNet(RowWise):
    """Temporal U-Net over every agent's trajectory, attention among agents at the bottleneck and on every used skip.

    width x multipliers are the channels of the levels; each level but the last halves the time axis, so T must be
    divisible by 2^(levels - 1). conditions: name -> size of cond[name] (B, A, size), each embedded to `width`, zeroed
    where cond["keep"] (B,) is 0. With attention=False agents are independent. The defaults are the official network;
    its attention on the unused first skip is left out.
    """

    def __init__(
        self,
        features: int,
        width: int = 128,
        multipliers: Sequence[int] = (1, 4, 8),
        conditions: Mapping[str, int] | None = None,
        attention: bool = True,
        heads: int = 4,
    ) -> None:
        super().__init__()
        if not multipliers:
            raise ValueError("the U-Net has no levels; allowed: at least one multiplier")
        channels = [width * multiplier for multiplier in multipliers]
        if any(size % 8 for size in channels) or any(size % (4 * heads) for size in channels[1:]):
            raise ValueError(f"width {width} does not fit {heads} heads; allowed: multiples of {max(8, 4 * heads)}")
        self.divisor = 2 ** (len(channels) - 1)
        self.conditions = dict(conditions or {})
        self.time = TimeEmbedding(width, 4 * width)
        self.condition = nn.ModuleDict(
            {name: mlp((size, width, 4 * width, width), nn.Mish) for name, size in self.conditions.items()}
        )
        emb = width * (1 + len(self.conditions))
        ends = [features, *channels]
        self.down = nn.ModuleList(_pair(a, b, emb) for a, b in zip(ends[:-1], ends[1:], strict=True))
        self.shrink = nn.ModuleList(nn.Conv1d(size, size, 3, stride=2, padding=1) for size in channels[:-1])
        self.middle = _pair(channels[-1], channels[-1], emb)
        falling = zip(channels[:0:-1], channels[-2::-1], strict=True)
        self.up = nn.ModuleList(_pair(2 * a, b, emb) for a, b in falling)
        self.grow = nn.ModuleList(nn.ConvTranspose1d(size, size, 4, stride=2, padding=1) for size in channels[-2::-1])
        mixed = [channels[-1], *channels[:0:-1]] if attention else []
        self.attention = nn.ModuleList(AgentAttention(size, emb, heads) for size in mixed)
        self.head = nn.Sequential(ConvBlock(width * multipliers[0], width), nn.Conv1d(width, features, 1))

    def forward(self, x: Tensor, t: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        batch, time, agents, features = x.shape
        if time % self.divisor:
            raise ValueError(f"the U-Net cannot halve {time} time steps; allowed: multiples of {self.divisor}")
        emb = self._embed(t, cond, agents)
        x = x.permute(0, 2, 3, 1).reshape(batch * agents, features, time)
        skips = []
        for level, blocks in enumerate(self.down):
            x = _apply(blocks, x, emb)
            skips.append(x)
            x = self.shrink[level](x) if level < len(self.shrink) else x
        x = self._mix(0, _apply(self.middle, x, emb), emb, agents)
        for level, blocks in enumerate(self.up):
            skip = self._mix(level + 1, skips.pop(), emb, agents)
            x = self.grow[level](_apply(blocks, torch.cat([x, skip], dim=1), emb))
        return self.head(x).view(batch, agents, features, time).permute(0, 3, 1, 2)

    def _embed(self, t: Tensor, cond: Mapping[str, Tensor], agents: int) -> Tensor:
        require_conditions(self.conditions, cond)
        parts = [self.time(t)[:, None].expand(-1, agents, -1)]
        parts += [visible(embed(cond[name]), cond) for name, embed in self.condition.items()]
        return F.mish(torch.cat(parts, dim=-1).flatten(0, 1))  # as every block wants it

    def _mix(self, index: int, x: Tensor, emb: Tensor, agents: int) -> Tensor:
        return self.attention[index](x, emb, agents) if len(self.attention) else x


def over_time(emb: Tensor, like: Tensor) -> Tensor:
    """emb (N, C) at every time of `like` (N, C, T); written out, as adding in bf16 along so short an axis is slow."""
    return emb[..., None].expand_as(like).contiguous()


def _pair(channels: int, out: int, embedding: int) -> nn.ModuleList:
    return nn.ModuleList([ResidualBlock(channels, out, embedding), ResidualBlock(out, out, embedding)])


def _apply(blocks: nn.Module, x: Tensor, emb: Tensor) -> Tensor:
    assert isinstance(blocks, nn.ModuleList)  # lists in lists are modules to a type checker
    for block in blocks:
        x = block(x, emb)
    return x
