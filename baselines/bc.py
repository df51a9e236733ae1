"""Behaviour cloning: the honest floor. One network shared by all agents, told which agent it acts for.

Discrete actions: cross-entropy over legal actions; continuous: squared error of tanh, or with `likelihood=gaussian`
the likelihood of a normal distribution that can be sampled. `recurrent` adds a GRU over the episode so far (after
OG-MARL's discrete BC: linear 64, GRU 64, sequences of 20). Where several batches of episodes are imitated,
`acting=sample` reproduces the behaviour's mixture and `acting=greedy` its most probable action.

Deviations: Adam with weight averaging, as our other methods have; inputs are normalised; width is 128, not 64.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from baselines.acting import AgentNetwork, Gaussian, NetworkPolicy, deterministic_head, stochastic_head
from madiff.data.encoding import ObservationEncoder
from madiff.data.store import EpisodeStore
from madiff.data.windows import WindowSampler
from madiff.diffusion.ema import EMA
from madiff.diffusion.networks.action_head import action_loss
from madiff.diffusion.training import GradientLearner
from madiff.interfaces import EnvironmentSpec

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
    likelihood: Literal["mse", "gaussian"] = "mse"
    normalizer: str = "cdf"
    ema_decay: float = 0.995
    ema_every: int = 5
    ema_start: int = field(default=500, metadata={"minimum": 0})
    acting: str = "greedy"
    common_noise: bool = False

    ACTING: ClassVar[tuple[str, ...]] = ("acting", "common_noise")


class BC(GradientLearner):
    """Learner of behaviour cloning."""

    def __init__(self, config: Config, spec: EnvironmentSpec, device: torch.device, seed: int) -> None:
        self.config, self.spec, self.device = config, spec, device
        self.head = stochastic_head(spec) if config.likelihood == "gaussian" else deterministic_head(spec)
        self.encoder = ObservationEncoder(spec.agents, spec.observation_size, config.normalizer).to(device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = AgentNetwork(self.encoder.features, self.head.outputs, config.width, config.recurrent).to(device)
        self.network = network
        super().__init__(
            network, self.encoder, torch.optim.Adam(network.parameters(), lr=config.learning_rate, fused=True),
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
        actions, available = batch["actions"], batch.get("available_actions")
        if isinstance(self.head, Gaussian):
            loss = -torch.where(valid, self.head.log_prob(output, actions), 0.0).sum() / valid.sum().clamp(min=1)
        else:
            loss = action_loss(output, actions, valid, available, self.spec.discrete)
        return {"loss": loss.detach(), "gradient_norm": self.gradient_step(loss, self.config.gradient_clip).detach()}

    def policy(self) -> NetworkPolicy:
        return NetworkPolicy(self.encoder, self.ema.model, self.head, self.config.acting, self.config.common_noise)


def make(config: Config, spec: EnvironmentSpec, device: torch.device, seed: int) -> BC:
    return BC(config, spec, device, seed)
