"""Behaviour cloning: the honest floor. One network shared by all agents, told which agent it acts for.

Discrete actions: cross-entropy over legal actions; continuous: squared error of tanh. `recurrent` adds a GRU over
the episode so far (after OG-MARL's discrete BC: linear 64, GRU 64, sequences of 20). Where several batches of
episodes are imitated, `acting=sample` reproduces the behaviour's mixture and `acting=greedy` its most probable action.

Deviations: Adam with weight averaging, as our other methods have; inputs are normalised; width is 128, not 64.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from madiff.data.encoding import ObservationEncoder
from madiff.data.store import EpisodeStore
from madiff.data.windows import WindowSampler
from madiff.diffusion.ema import EMA
from madiff.diffusion.networks.action_head import action_loss, greedy_action, sampled_action
from madiff.diffusion.training import GradientLearner
from madiff.interfaces import EnvironmentSpec, UserError

NAME = "bc"


@dataclass
class Config:
    steps: int = 4000
    batch_size: int = 256
    learning_rate: float = field(default=1e-3, metadata={"minimum": 0})
    gradient_clip: float = field(default=10.0, metadata={"minimum": 0})
    width: int = 128
    recurrent: bool = False
    sequence: int = 20
    normalizer: str = "gaussian"
    ema_decay: float = 0.995
    ema_every: int = 5
    ema_start: int = field(default=500, metadata={"minimum": 0})
    acting: str = "greedy"

    ACTING: ClassVar[tuple[str, ...]] = ("acting",)


class BCNetwork(nn.Module):
    """Observation and agent identity to action logits or means: (B, T, agent, agents + O) -> (B, T, agent, outputs)."""

    def __init__(self, inputs: int, outputs: int, width: int, recurrent: bool) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(inputs, width), nn.ReLU())
        self.memory = nn.GRU(width, width, batch_first=True) if recurrent else None
        self.last = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, outputs))

    def forward(self, x: Tensor, hidden: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """hidden (1, B * agent, width): the memory so far, None to start anew."""
        x = self.first(x)
        if self.memory is not None:
            batch, agents = x.shape[0], x.shape[2]
            y, hidden = self.memory(x.transpose(1, 2).flatten(0, 1), hidden)
            x = y.unflatten(0, (batch, agents)).transpose(1, 2)
        return self.last(x), hidden


class BC(GradientLearner):
    """Learner of behaviour cloning."""

    def __init__(self, config: Config, spec: EnvironmentSpec, device: torch.device, seed: int) -> None:
        if config.acting not in ("greedy", "sample"):
            raise UserError(f"unknown value {config.acting!r}", "algo.acting", ("greedy", "sample"))
        self.config, self.spec, self.device = config, spec, device
        self.encoder = ObservationEncoder(spec.agents, spec.observation_size, config.normalizer).to(device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = BCNetwork(self.encoder.features, spec.action_size, config.width, config.recurrent).to(device)
        self.network = network
        super().__init__(
            network, self.encoder, torch.optim.Adam(network.parameters(), lr=config.learning_rate),
            EMA(network, config.ema_decay, config.ema_every, config.ema_start),
        )  # fmt: skip

    def batches(self, store: EpisodeStore) -> WindowSampler:
        self.encoder.fit(store)
        length = self.config.sequence if self.config.recurrent else 1
        return WindowSampler(
            store, history=0, horizon=length, batch_size=max(1, self.config.batch_size // length), device=self.device,
            observations=self.encoder.encode(store.observations.to(self.device)),
        )  # fmt: skip

    def update(self, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        output, _ = self.network(batch["observations"][:, :-1])
        valid = batch["transition_valid"][..., None].expand(output.shape[:-1])
        loss = action_loss(output, batch["actions"], valid, batch.get("available_actions"), self.spec.discrete)
        return {"loss": loss.detach(), "gradient_norm": self.gradient_step(loss, self.config.gradient_clip).detach()}

    def policy(self) -> BCPolicy:
        return BCPolicy(self.config, self.spec, self.encoder, self.ema.model)


class BCPolicy:
    """Acts step by step; the recurrent form carries its memory from one `act` to the next."""

    def __init__(self, config: Config, spec: EnvironmentSpec, encoder: ObservationEncoder, network: BCNetwork) -> None:
        self.config, self.spec, self.encoder, self.network = config, spec, encoder, network
        self.parameters = sum(p.numel() for p in network.parameters())
        self.network_calls_per_decision = 1

    def reset(self, seed: int, n: int) -> None:
        self.generator = torch.Generator(next(self.network.parameters()).device).manual_seed(seed)
        self.hidden: Tensor | None = None

    @torch.no_grad()
    def act(self, observations: Tensor, masks: Tensor | None, active: Tensor | None = None) -> Tensor:
        output, self.hidden = self.network(self.encoder.encode(observations)[:, None], self.hidden)
        if self.config.acting == "sample":
            return sampled_action(output[:, 0], masks, self.spec.discrete, self.generator)
        return greedy_action(output[:, 0], masks, self.spec.discrete)


def make(config: Config, spec: EnvironmentSpec, device: torch.device, seed: int) -> BC:
    return BC(config, spec, device, seed)
