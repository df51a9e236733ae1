"""Single-agent references written without the library: Janner's temporal U-Net with a return condition (as in
Decision Diffuser, arXiv 2211.15657) on x (batch, time, feature), and a plain guided DDIM loop in float64."""

import math

import torch
import torch.nn.functional as F
from torch import nn


def conv_block(channels, out):
    return nn.Sequential(nn.Conv1d(channels, out, kernel_size=5, padding=2), nn.GroupNorm(8, out), nn.Mish())


class Residual(nn.Module):
    def __init__(self, channels, out, embedding):
        super().__init__()
        self.block_in = conv_block(channels, out)
        self.block_out = conv_block(out, out)
        self.time_mlp = nn.Sequential(nn.Mish(), nn.Linear(embedding, out))
        self.residual_conv = nn.Conv1d(channels, out, 1) if channels != out else None

    def forward(self, x, emb):
        h = self.block_in(x)
        h = self.block_out(h + self.time_mlp(emb).unsqueeze(-1))
        return h + (x if self.residual_conv is None else self.residual_conv(x))


class ReferenceUNet(nn.Module):
    """Three levels, spelled out."""

    def __init__(self, features, width):
        super().__init__()
        a, b, c, e = width, 4 * width, 8 * width, 2 * width
        self.width = width
        self.time_1, self.time_2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.return_1, self.return_2, self.return_3 = nn.Linear(1, a), nn.Linear(a, 4 * a), nn.Linear(4 * a, a)
        self.d1a, self.d1b, self.down1 = Residual(features, a, e), Residual(a, a, e), nn.Conv1d(a, a, 3, 2, 1)
        self.d2a, self.d2b, self.down2 = Residual(a, b, e), Residual(b, b, e), nn.Conv1d(b, b, 3, 2, 1)
        self.d3a, self.d3b = Residual(b, c, e), Residual(c, c, e)
        self.m1, self.m2 = Residual(c, c, e), Residual(c, c, e)
        self.u1a, self.u1b, self.up1 = Residual(2 * c, b, e), Residual(b, b, e), nn.ConvTranspose1d(b, b, 4, 2, 1)
        self.u2a, self.u2b, self.up2 = Residual(2 * b, a, e), Residual(a, a, e), nn.ConvTranspose1d(a, a, 4, 2, 1)
        self.final_block, self.final_conv = conv_block(a, a), nn.Conv1d(a, features, 1)

    def forward(self, x, t, returns, keep):
        half = self.width // 2
        steps = torch.arange(half, dtype=torch.float64)
        frequencies = 1000 * torch.exp(-math.log(10000) * steps / (half - 1))
        angles = t[:, None] * frequencies.float()  # the library stores them in single precision
        time = self.time_2(F.mish(self.time_1(torch.cat([torch.sin(angles), torch.cos(angles)], dim=1))))
        target = self.return_3(F.mish(self.return_2(F.mish(self.return_1(returns)))))
        emb = torch.cat([time, keep[:, None] * target], dim=1)
        x = x.transpose(1, 2)
        x = self.d1b(self.d1a(x, emb), emb)
        skip2 = self.d2b(self.d2a(self.down1(x), emb), emb)
        skip3 = self.d3b(self.d3a(self.down2(skip2), emb), emb)
        x = self.m2(self.m1(skip3, emb), emb)
        x = self.up1(self.u1b(self.u1a(torch.cat([x, skip3], 1), emb), emb))
        x = self.up2(self.u2b(self.u2a(torch.cat([x, skip2], 1), emb), emb))
        return self.final_conv(self.final_block(x)).transpose(1, 2)


RENAMED = {
    "time_1": "time.1", "time_2": "time.3",
    "return_1": "condition.returns.0", "return_2": "condition.returns.2", "return_3": "condition.returns.4",
    "d1a": "down.0.0", "d1b": "down.0.1", "down1": "shrink.0", "d2a": "down.1.0", "d2b": "down.1.1",
    "down2": "shrink.1", "d3a": "down.2.0", "d3b": "down.2.1", "m1": "middle.0", "m2": "middle.1",
    "u1a": "up.0.0", "u1b": "up.0.1", "up1": "grow.0", "u2a": "up.1.0", "u2b": "up.1.1", "up2": "grow.1",
    "final_block": "head.0", "final_conv": "head.1",
    "block_in": "first", "block_out": "second", "time_mlp.1": "embedding", "residual_conv": "shortcut",
}  # fmt: skip


def copied_from(unet: nn.Module, features: int, width: int) -> ReferenceUNet:
    """A reference with the weights of the library's U-Net."""
    reference, source = ReferenceUNet(features, width), unet.state_dict()

    def renamed(name):
        head, _, rest = name.partition(".")
        for old, new in list(RENAMED.items())[-4:]:
            rest = rest.replace(old + ".", new + ".")
        return f"{RENAMED[head]}.{rest}"

    reference.load_state_dict({name: source[renamed(name)] for name in reference.state_dict()})
    return reference


@torch.no_grad()
def reference_plan(network, history, returns, horizon, *, K, steps, weight, temperature, noise):
    """Guided DDIM over K cosine noise levels with the history clamped; history (B, h, F), noise (B, T, F)."""

    def f(i):
        return math.cos((i / K + 0.008) / 1.008 * math.pi / 2) ** 2

    bars = [1.0]
    for i in range(1, K + 1):
        bars.append(bars[-1] * (1 - min(1 - f(i) / f(i - 1), 0.999)))
    rows, now = len(history), history.shape[1]
    on, off = torch.ones(rows, dtype=noise.dtype), torch.zeros(rows, dtype=noise.dtype)
    x = temperature * math.sqrt(1 - bars[K]) * noise
    indices = [K - j * K // steps for j in range(steps + 1)]
    for i, j in zip(indices[:-1], indices[1:], strict=True):
        x[:, :now] = history
        t = torch.full((rows,), i / K, dtype=noise.dtype)
        unconditional = network(x, t, returns, off)
        eps = unconditional + weight * (network(x, t, returns, on) - unconditional)
        clean = ((x - math.sqrt(1 - bars[i]) * eps) / math.sqrt(bars[i])).clamp(-1, 1)
        x = math.sqrt(bars[j]) * clean + math.sqrt(1 - bars[j]) * eps
    x[:, :now] = history
    return x
