"""The default network: a transformer whose tokens are the (time, agent) pairs, small enough to train on two cores."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from madiff.diffusion.networks.embeddings import TimeEmbedding, require_conditions, visible
from madiff.diffusion.sharing import RowWise


class Block(nn.Module):
    """Attention and MLP, each modulated and gated per agent by adaLN-zero (arXiv 2212.09748, section 3.2)."""

    def __init__(self, width: int, heads: int, ratio: int, agent_attention: bool) -> None:
        super().__init__()
        self.heads, self.agent_attention = heads, agent_attention
        self.modulation = nn.Linear(width, 6 * width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, ratio * width), nn.GELU("tanh"), nn.Linear(ratio * width, width))
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """x (B, T, A, W), emb (B, 1, A or 1, W) -> (B, T, A, W)."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(emb).chunk(6, dim=-1)
        x = torch.addcmul(x, gate1, self._attend(modulate(x, shift1, scale1)))
        return torch.addcmul(x, gate2, self.mlp(modulate(x, shift2, scale2)))

    def _attend(self, x: Tensor) -> Tensor:
        if self.agent_attention:
            return self._among(x.flatten(1, 2)).view(x.shape)
        return self._among(x.transpose(1, 2).flatten(0, 1)).view(x.transpose(1, 2).shape).transpose(1, 2)

    def _among(self, tokens: Tensor) -> Tensor:
        """Self-attention among the tokens of each row: (rows, tokens, W) -> the same."""
        rows, count, width = tokens.shape
        qkv = self.qkv(tokens).view(rows, count, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).contiguous()
        return self.out(attention(q, k, v).transpose(1, 2).reshape(tokens.shape))


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v over (B, heads, tokens, d)."""
    if q.is_cuda:
        return F.scaled_dot_product_attention(q, k, v)
    # on CPU the fused kernel takes twice as long for sequences as short as plans
    return torch.softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5, dim=-1) @ v


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """LayerNorm(x) (1 + scale) + shift, over the last axis."""
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:]), 1 + scale)


class TemporalAgentTransformer(RowWise):
    """Full attention over all (time, agent) tokens; time has learned positions, agents have none.

    Without an agent index the network is equivariant under permutation of agents. conditions: name -> size of
    cond[name] (B, A, size), each embedded and zeroed where cond["keep"] (B,) is 0. The last layer starts at zero.
    With agent_attention=False tokens see only their own agent's: agents are independent.
    Any T up to max_time; a longer x raises ValueError.
    """

    def __init__(
        self,
        features: int,
        width: int = 96,
        layers: int = 3,
        heads: int = 4,
        ratio: int = 2,
        max_time: int = 64,
        conditions: Mapping[str, int] | None = None,
        agent_attention: bool = True,
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} does not fit {heads} heads; allowed: multiples of {heads}")
        self.conditions = dict(conditions or {})
        self.inputs = nn.Linear(features, width)
        self.position = nn.Parameter(0.02 * torch.randn(max_time, 1, width))
        self.time = TimeEmbedding(width, width, nn.SiLU)
        self.condition = nn.ModuleDict(
            {
                name: nn.Sequential(nn.Linear(size, width), nn.SiLU(), nn.Linear(width, width))
                for name, size in self.conditions.items()
            }
        )
        self.blocks = nn.ModuleList(Block(width, heads, ratio, agent_attention) for _ in range(layers))
        self.modulation = nn.Linear(width, 2 * width)
        self.outputs = nn.Linear(width, features)
        for layer in (self.modulation, self.outputs):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, t: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        time, max_time = x.shape[1], self.position.shape[0]
        if time > max_time:
            raise ValueError(f"{time} time steps exceed the positions of the network; allowed: up to {max_time}")
        emb = self._embed(t, cond)
        x = self.inputs(x) + self.position[:time]
        for block in self.blocks:
            x = block(x, emb)
        return self.outputs(modulate(x, *self.modulation(emb).chunk(2, dim=-1)))

    def _embed(self, t: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        require_conditions(self.conditions, cond)
        emb = self.time(t)[:, None]
        for name, embed in self.condition.items():
            emb = emb + visible(embed(cond[name]), cond)
        return F.silu(emb)[:, None]
