"""MADT, the multi-agent decision transformer (arXiv 2112.02845 and the code its authors released).

One causal transformer shared by all agents, each reading its own last `context` observations, and in front of every
observation the return still to come where `condition_return` is set. Cross-entropy over legal actions, squared error
of tanh for continuous ones. Acting asks for `target_return`: 0 is the worst, 1 the best of the data.

Deviations: the released default has context 1, no return and width 32; here context 10, returns and width 64 (no
online fine-tuning). The return-to-go falls by the rewards received. Adam with weight averaging; normalised inputs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from baselines.acting import NetworkPolicy, deterministic_head
from madiff.data.encoding import ObservationEncoder
from madiff.data.store import EpisodeStore
from madiff.data.windows import WindowSampler
from madiff.diffusion.ema import EMA
from madiff.diffusion.networks.action_head import action_loss
from madiff.diffusion.training import GradientLearner
from madiff.interfaces import EnvironmentSpec

NAME = "madt"


@dataclass
class Config:
    steps: int = 4000
    batch_size: int = 256
    learning_rate: float = field(default=1e-3, metadata={"minimum": 0})
    gradient_clip: float = field(default=1.0, metadata={"minimum": 0})
    width: int = 64
    layers: int = 2
    heads: int = 2
    context: int = 10
    condition_return: bool = True
    target_return: float = 1.0
    normalizer: str = "cdf"
    ema_decay: float = 0.995
    ema_every: int = 5
    ema_start: int = field(default=500, metadata={"minimum": 0})
    acting: str = "greedy"
    common_noise: bool = False

    ACTING: ClassVar[tuple[str, ...]] = ("acting", "common_noise", "target_return")


class CausalBlock(nn.Module):
    """Attention to this and earlier tokens, then an MLP, each after a layer norm: (rows, tokens, width) -> the same."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.before_attention(x)).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        x = x + self.out(attended)
        return x + self.mlp(self.before_mlp(x))


class MADTNetwork(nn.Module):
    """(B, T, agent, inputs) -> (B, T, agent, outputs) from each agent's last `context` steps.

    returns: the last input is the return to come, which becomes a token of its own before the observation's.
    """

    def __init__(
        self, inputs: int, outputs: int, width: int, layers: int, heads: int, context: int, returns: bool
    ) -> None:  # fmt: skip
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} does not fit {heads} heads; allowed: multiples of {heads}")
        self.context, self.inputs = context, inputs
        self.observation = nn.Linear(inputs, width)
        self.to_come = nn.Linear(1, width) if returns else None
        self.position = nn.Parameter(0.02 * torch.randn(context, width))
        self.blocks = nn.Sequential(*(CausalBlock(width, heads) for _ in range(layers)))
        self.outputs = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, outputs))

    def forward(self, x: Tensor, past: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """past (B, steps, agent, inputs [+ 1]): what was seen before x; also returned, x included, for the next call.

        Past and x are at most `context` steps in training; of a longer past the oldest steps are forgotten.
        """
        new = x.shape[1]
        seen = (x if past is None else torch.cat([past, x], dim=1))[:, -self.context :]
        rows = seen.transpose(1, 2).flatten(0, 1)
        tokens = (self.observation(rows[..., : self.inputs]) + self.position[: rows.shape[1]])[..., None, :]
        if self.to_come is not None:
            to_come = self.to_come(rows[..., self.inputs :]) + self.position[: rows.shape[1]]
            tokens = torch.cat([to_come[..., None, :], tokens], dim=-2)
        heard = self.blocks(tokens.flatten(1, 2)).unflatten(1, tokens.shape[1:3])[:, -new:, -1]
        return self.outputs(heard).unflatten(0, (x.shape[0], -1)).transpose(1, 2), seen


class ReturnScale(nn.Module):
    """Best and worst return of an agent in the data."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.ones(()))

    def fit(self, store: EpisodeStore) -> None:
        returns = store.returns()
        self.low.fill_(float(returns.min()))
        self.high.fill_(float(returns.max()))

    def forward(self, returns: Tensor) -> Tensor:
        """In units of the distance between best and worst."""
        return returns / (self.high - self.low).clamp(min=1e-6)

    def target(self, share: float) -> Tensor:
        return torch.lerp(self.low, self.high, share)


class MADT(GradientLearner):
    """Learner of the decision transformer."""

    def __init__(self, config: Config, spec: EnvironmentSpec, device: torch.device, seed: int) -> None:
        self.config, self.spec, self.device = config, spec, device
        self.head = deterministic_head(spec)
        self.encoder = ObservationEncoder(spec.agents, spec.observation_size, config.normalizer)
        self.scale = ReturnScale()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = MADTNetwork(
                self.encoder.features, self.head.outputs, config.width, config.layers, config.heads, config.context,
                config.condition_return,
            ).to(device)  # fmt: skip
        self.network = network
        super().__init__(
            network, nn.ModuleDict({"encoder": self.encoder, "scale": self.scale}).to(device),
            torch.optim.Adam(network.parameters(), lr=config.learning_rate, fused=True),
            EMA(network, config.ema_decay, config.ema_every, config.ema_start),
        )  # fmt: skip

    def batches(self, store: EpisodeStore) -> WindowSampler:
        self.encoder.fit(store)
        self.scale.fit(store)
        windows = max(1, self.config.batch_size // self.config.context)
        return WindowSampler(
            store, history=0, horizon=self.config.context, batch_size=windows, device=self.device, extras=("rewards",),
            observations=self.encoder.encode(store.observations.to(self.device)),
        )  # fmt: skip

    def update(self, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        x = batch["observations"][:, :-1]
        if self.config.condition_return:
            paid = batch["rewards"].cumsum(1) - batch["rewards"]
            x = torch.cat([x, self.scale(batch["returns"][:, None] - paid)[..., None]], dim=-1)
        output, _ = self.network(x)
        valid = batch["transition_valid"][..., None].expand(output.shape[:-1])
        loss = action_loss(output, batch["actions"], valid, batch.get("available_actions"), self.spec.discrete)
        return {"loss": loss.detach(), "gradient_norm": self.gradient_step(loss, self.config.gradient_clip).detach()}

    def policy(self) -> MADTPolicy:
        return MADTPolicy(self.config, self.scale, self.encoder, self.ema.model, self.head)


class MADTPolicy(NetworkPolicy):
    """Remembers the last observations, and asks for what is left of the target return."""

    def __init__(self, config: Config, scale: ReturnScale, *arguments: Any) -> None:
        super().__init__(*arguments, config.acting, config.common_noise)
        self.config, self.scale = config, scale

    def reset(self, seed: int, n: int) -> None:
        super().reset(seed, n)
        self.to_come = self.scale.target(self.config.target_return).expand(n, self.encoder.agents)

    def receive(self, rewards: Tensor) -> None:
        self.to_come = self.to_come - rewards

    def inputs(self, observations: Tensor) -> Tensor:
        x = super().inputs(observations)
        if not self.config.condition_return:
            return x
        return torch.cat([x, self.scale(self.to_come)[..., None]], dim=-1)


def make(config: Config, spec: EnvironmentSpec, device: torch.device, seed: int) -> MADT:
    return MADT(config, spec, device, seed)
