"""MADiff written down as the paper says it (arXiv 2305.17330), centralised: what `benchmarks.speed reference` measures.

Plain PyTorch that knows nothing of this suite: items cut one by one out of arrays and collated, one network forward
after the other for classifier-free guidance, the DDIM loop as a loop, Adam with its defaults, weights averaged one by
one. Network, objective and sampler are those of `model=official`, so that the same weights and noise give the same
plan; weights have the suite's names, see `renamed`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset


@dataclass(frozen=True)
class Sizes:
    """features: of a waypoint, identity included; actions: discrete ones; the rest as in `configs/model/official`."""

    features: int
    actions: int
    agents: int
    history: int = 20
    horizon: int = 3
    width: int = 128
    multipliers: tuple[int, ...] = (1, 4, 8)
    heads: int = 4
    inverse_width: int = 256
    diffusion_steps: int = 200
    sampler_steps: int = 15
    learning_rate: float = 2e-4
    condition_dropout: float = 0.25
    guidance_weight: float = 1.2
    temperature: float = 0.5
    discount: float = 0.99
    returns_scale: float = 20.0
    ema_decay: float = 0.995
    ema_every: int = 10
    ema_start: int = 2000


class Windows(Dataset):
    """One window per step: history before the start repeats the first observation, the future the last one.

    episodes: observations (T+1, agent, F), as the network sees them, actions (T, agent), rewards (T, agent) and
    available_actions (T+1, agent, n) each.
    """

    def __init__(self, episodes: Sequence[Mapping[str, np.ndarray]], sizes: Sizes) -> None:
        self.episodes, self.sizes = episodes, sizes
        self.places = [(e, now) for e, episode in enumerate(episodes) for now in range(len(episode["actions"]))]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        which, now = self.places[index]
        episode, length = self.episodes[which], len(self.episodes[which]["actions"])
        steps = np.arange(now - self.sizes.history, now + self.sizes.horizon + 1)
        valid = (steps >= 0) & (steps <= length)
        taken = np.clip(steps[:-1], 0, length - 1)
        rewards = episode["rewards"][now:]
        return {
            "observations": episode["observations"][np.clip(steps, 0, length)],
            "valid": valid,
            "actions": episode["actions"][taken],
            "available_actions": episode["available_actions"][taken],
            "transition_valid": valid[:-1] & valid[1:],
            "returns": (self.sizes.discount ** np.arange(len(rewards)) @ rewards).astype(np.float32),
        }


class ConvBlock(nn.Sequential):
    def __init__(self, channels: int, out: int) -> None:
        super().__init__(nn.Conv1d(channels, out, 5, padding=2), nn.GroupNorm(8, out), nn.Mish())


class ResidualBlock(nn.Module):
    def __init__(self, channels: int, out: int, embedding: int) -> None:
        super().__init__()
        self.first = ConvBlock(channels, out)
        self.second = ConvBlock(out, out)
        self.embedding = nn.Linear(embedding, out)
        self.shortcut = nn.Conv1d(channels, out, 1) if channels != out else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        hidden = self.first(x) + self.embedding(F.mish(emb))[:, :, None]
        return self.second(hidden) + self.shortcut(x)


class TemporalSelfAttention(nn.Module):
    """Tokens are agents; a head's query, key and value are its channels over the whole time axis."""

    def __init__(self, channels: int, embedding: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.query_embedding = nn.Conv1d(channels, channels // 4, 1), nn.Linear(embedding, channels // 4)
        self.key, self.key_embedding = nn.Conv1d(channels, channels // 4, 1), nn.Linear(embedding, channels // 4)
        self.value, self.value_embedding = nn.Conv1d(channels, channels, 1), nn.Linear(embedding, channels)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, emb: Tensor, agents: int) -> Tensor:
        emb = F.mish(emb)

        def by_head(y: Tensor) -> Tensor:
            rows, channels, time = y.shape
            y = y.reshape(rows // agents, agents, self.heads, channels // self.heads * time)
            return y.permute(0, 2, 1, 3)

        q = by_head(self.query(x) + self.query_embedding(emb)[:, :, None])
        k = by_head(self.key(x) + self.key_embedding(emb)[:, :, None])
        v = by_head(self.value(x) + self.value_embedding(emb)[:, :, None])
        attention = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]), dim=-1)
        out = (attention @ v).permute(0, 2, 1, 3).reshape(x.shape)
        return x + self.gamma * out


class UNet(nn.Module):
    """Noise of every agent's trajectory: x (B, T, agent, F), t (B,) in (0, 1], returns (B, agent), keep (B,) 0 or 1."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        width, channels = sizes.width, [sizes.width * m for m in sizes.multipliers]
        exponents = torch.arange(width // 2, dtype=torch.float64) / (width // 2 - 1)
        self.register_buffer("frequencies", (1000 * 1e4**-exponents).float(), persistent=False)
        self.time = nn.Sequential(nn.Linear(width, 4 * width), nn.Mish(), nn.Linear(4 * width, width))
        self.returns = nn.Sequential(
            nn.Linear(1, width), nn.Mish(), nn.Linear(width, 4 * width), nn.Mish(), nn.Linear(4 * width, width)
        )
        emb = 2 * width

        def pair(a: int, b: int) -> nn.ModuleList:
            return nn.ModuleList([ResidualBlock(a, b, emb), ResidualBlock(b, b, emb)])

        self.down = nn.ModuleList()
        self.shrink = nn.ModuleList()
        for a, b in zip([sizes.features, *channels[:-1]], channels, strict=True):
            self.down.append(pair(a, b))
        for size in channels[:-1]:
            self.shrink.append(nn.Conv1d(size, size, 3, stride=2, padding=1))
        self.middle = pair(channels[-1], channels[-1])
        self.up = nn.ModuleList()
        self.grow = nn.ModuleList()
        self.attention = nn.ModuleList([TemporalSelfAttention(channels[-1], emb, sizes.heads)])
        for a, b in zip(channels[:0:-1], channels[-2::-1], strict=True):
            self.attention.append(TemporalSelfAttention(a, emb, sizes.heads))
            self.up.append(pair(2 * a, b))
            self.grow.append(nn.ConvTranspose1d(b, b, 4, stride=2, padding=1))
        self.head = nn.Sequential(ConvBlock(channels[0], width), nn.Conv1d(width, sizes.features, 1))

    def forward(self, x: Tensor, t: Tensor, returns: Tensor, keep: Tensor) -> Tensor:
        batch, time, agents, features = x.shape
        angles = t[:, None] * self.frequencies
        time_embedding = self.time(torch.cat([angles.sin(), angles.cos()], dim=-1))
        time_embedding = time_embedding[:, None, :].repeat(1, agents, 1)
        returns_embedding = self.returns(returns[:, :, None]) * keep[:, None, None]
        emb = torch.cat([time_embedding, returns_embedding], dim=-1).reshape(batch * agents, -1)
        x = x.permute(0, 2, 3, 1).reshape(batch * agents, features, time)
        skips = []
        for level, (first, second) in enumerate(self.down):
            x = second(first(x, emb), emb)
            skips.append(x)
            if level < len(self.shrink):
                x = self.shrink[level](x)
        first, second = self.middle
        x = second(first(x, emb), emb)
        x = self.attention[0](x, emb, agents)
        for level, (first, second) in enumerate(self.up):
            skip = self.attention[level + 1](skips.pop(), emb, agents)
            x = torch.cat([x, skip], dim=1)
            x = second(first(x, emb), emb)
            x = self.grow[level](x)
        return self.head(x).reshape(batch, agents, features, time).permute(0, 3, 1, 2)


class Reference:
    """The model, its training step and its plan; weights: the suite's, with which it begins."""

    def __init__(self, sizes: Sizes, weights: Mapping[str, Tensor]) -> None:
        self.sizes, self.updates = sizes, 0
        self.denoiser = UNet(sizes)
        self.inverse = nn.Sequential(
            nn.Linear(2 * sizes.features, sizes.inverse_width), nn.ReLU(),
            nn.Linear(sizes.inverse_width, sizes.inverse_width), nn.ReLU(),
            nn.Linear(sizes.inverse_width, sizes.actions),
        )  # fmt: skip
        self.networks = nn.ModuleDict({"denoiser": self.denoiser, "inverse": self.inverse})
        self.networks.load_state_dict(renamed(weights))
        self.averaged = copy.deepcopy(self.networks)
        self.optimizer = torch.optim.Adam(self.networks.parameters(), lr=sizes.learning_rate)
        self.alpha, self.sigma = cosine_schedule(sizes.diffusion_steps)

    def known(self, x: Tensor) -> Tensor:
        """Everything up to now, and who the agents are, at all times."""
        known = torch.zeros(x.shape, dtype=torch.bool, device=x.device)
        known[:, : self.sizes.history + 1] = True
        known[..., : self.sizes.agents] = True
        return known

    def update(self, batch: Mapping[str, Tensor], generator: torch.Generator) -> Tensor:
        loss = 0.5 * (self.diffusion_loss(batch, generator) + self.inverse_loss(batch))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.updates += 1
        if self.updates % self.sizes.ema_every == 0:
            self.average()
        return loss.detach()

    def diffusion_loss(self, batch: Mapping[str, Tensor], generator: torch.Generator) -> Tensor:
        x0, sizes = batch["observations"], self.sizes
        keep = (torch.rand(len(x0), generator=generator) >= sizes.condition_dropout).to(x0.dtype)
        index = torch.randint(1, sizes.diffusion_steps + 1, (len(x0),), generator=generator)
        noise = torch.randn(x0.shape, generator=generator, dtype=x0.dtype)
        alpha, sigma = (table[index].to(x0.dtype)[:, None, None, None] for table in (self.alpha, self.sigma))
        known = self.known(x0)
        x = torch.where(known, x0, alpha * x0 + sigma * noise)
        returns = batch["returns"].to(x0.dtype) / sizes.returns_scale
        predicted = self.denoiser(x, (index / sizes.diffusion_steps).to(x0.dtype), returns, keep)
        weight = (~known) * batch["valid"][:, :, None, None]
        return ((predicted - noise) ** 2 * weight).sum() / weight.sum()

    def inverse_loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        x = batch["observations"]
        logits = self.inverse(torch.cat([x[:, :-1], x[:, 1:]], dim=-1))
        logits = logits.masked_fill(~batch["available_actions"], -1e10)
        loss = F.cross_entropy(logits.flatten(0, 2), batch["actions"].flatten(), reduction="none")
        valid = batch["transition_valid"][:, :, None].expand_as(batch["actions"]).flatten()
        return (loss * valid).sum() / valid.sum()

    def average(self) -> None:
        decay = self.sizes.ema_decay if self.updates >= self.sizes.ema_start else 0.0
        for mine, theirs in zip(self.averaged.parameters(), self.networks.parameters(), strict=True):
            mine.data = mine.data * decay + theirs.data * (1 - decay)

    @torch.no_grad()
    def plan(self, history: Tensor, noise: Tensor, returns: Tensor) -> Tensor:
        """Plans (B, T, agent, F) from histories (B, history + 1, agent, F), noise like the plan, returns (B, agent)."""
        sizes, denoiser = self.sizes, self.averaged["denoiser"]
        value = torch.cat([history, history[:, -1:].repeat(1, sizes.horizon, 1, 1)], dim=1)
        known = self.known(value)
        indices = [round(sizes.diffusion_steps * (1 - i / sizes.sampler_steps)) for i in range(sizes.sampler_steps + 1)]
        x = torch.where(known, value, sizes.temperature * noise)
        for now, following in zip(indices[:-1], indices[1:], strict=True):
            t = torch.full((len(x),), now / sizes.diffusion_steps, dtype=x.dtype)
            conditional = denoiser(x, t, returns, torch.ones(len(x), dtype=x.dtype))
            unconditional = denoiser(x, t, returns, torch.zeros(len(x), dtype=x.dtype))
            eps = unconditional + sizes.guidance_weight * (conditional - unconditional)
            x0 = ((x - self.sigma[now].item() * eps) / self.alpha[now].item()).clamp(-1, 1)
            x = self.alpha[following].item() * x0 + self.sigma[following].item() * eps
            x = torch.where(known, value, x)
        return x


def cosine_schedule(steps: int) -> tuple[Tensor, Tensor]:
    """Scales of signal and noise after 0 to `steps` steps, betas at most 0.999 (arXiv 2102.09672, eq. 17)."""
    f = [math.cos((i / steps + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(steps + 1)]
    products = [1.0]
    for before, after in zip(f[:-1], f[1:], strict=True):
        products.append(products[-1] * (1 - min(1 - after / before, 0.999)))
    product = torch.tensor(products, dtype=torch.float64)
    return product.sqrt(), (1 - product).sqrt()


def renamed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """This suite's weights of denoiser and inverse dynamics under the names they have here."""
    found = {}
    for key, value in weights.items():
        key = key.replace("denoiser.condition.returns.", "denoiser.returns.").replace("inverse.network.", "inverse.")
        if key.startswith("denoiser.time."):  # there the sinusoids are the first part
            part = int(key.split(".")[2])
            key = key.replace(f"time.{part}.", f"time.{part - 1}.")
        if ".attention." in key and (".qkv." in key or ".embedding." in key):
            c = 2 * len(value) // 3  # queries and keys have a quarter of the channels each
            name = {"qkv": "", "embedding": "_embedding"}[key.split(".")[3]]
            for role, part in zip(("query", "key", "value"), value.split((c // 4, c // 4, c)), strict=True):
                found[key.replace(key.split(".")[3], role + name)] = part.clone()
            continue
        found[key] = value.clone()
    return found
