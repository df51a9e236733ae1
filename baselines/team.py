"""What the learners with a value of the whole team share: encoders, data, slow copies of all networks, the policy.

Actors see their own observation; critics and mixers also the state, or all observations where there is no state. The
team's reward is the mean of the agents'. The Polyak average of a network both bootstraps and acts.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from baselines.acting import Head, NetworkPolicy
from madiff.data.encoding import ObservationEncoder
from madiff.data.store import EpisodeStore
from madiff.data.windows import WindowSampler
from madiff.interfaces import EnvironmentSpec, UserError
from madiff.values import ActorCritic, JointEncoder, RewardScale, Target


@dataclass
class TeamConfig:
    """Options of every team learner; batch_size counts transitions, also where they come in sequences."""

    steps: int = 4000
    batch_size: int = 256
    learning_rate: float = field(default=1e-3, metadata={"minimum": 0})
    gradient_clip: float = field(default=10.0, metadata={"minimum": 0})
    width: int = 128
    discount: float = field(default=0.99, metadata={"minimum": 0, "maximum": 1})
    target_rate: float = field(default=0.005, metadata={"minimum": 1e-6, "maximum": 1})
    normalizer: str = "cdf"


@dataclass
class SequenceConfig(TeamConfig):
    """recurrent: a GRU over the last `sequence` steps, which also are as far as TD(lambda) looks ahead."""

    recurrent: bool = False
    sequence: int = 1
    td_lambda: float = field(default=0.0, metadata={"minimum": 0, "maximum": 1})


@dataclass
class StochasticActing:
    """How a policy with a density acts: greedily or by a sample, its agents' samples from common noise or not."""

    acting: str = "greedy"
    common_noise: bool = False

    ACTING: ClassVar[tuple[str, ...]] = ("acting", "common_noise")


class TeamLearner(ActorCritic):
    """Base of the learners: a method adds `make_networks` and `update`."""

    def __init__(self, config: TeamConfig, spec: EnvironmentSpec, device: torch.device, seed: int) -> None:
        self.config, self.spec, self.device = config, spec, device
        if isinstance(config, SequenceConfig) and config.recurrent and config.sequence < 2:
            raise UserError("is 1, too short for a memory to learn from", "algo.sequence", "at least 2")
        self.encoder = ObservationEncoder(spec.agents, spec.observation_size, config.normalizer).to(device)
        self.joint, self.scale = JointEncoder(spec, config.normalizer).to(device), RewardScale().to(device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            networks = {name: network.to(device) for name, network in self.make_networks().items()}
        super().__init__(
            networks, dict.fromkeys(networks, config.learning_rate),
            fixed={"encoder": self.encoder, "joint": self.joint, "scale": self.scale},
            targets={name: Target(network, config.target_rate) for name, network in networks.items()},
        )  # fmt: skip

    @abstractmethod
    def make_networks(self) -> dict[str, nn.Module]:
        """Everything that is trained, by name; `encoder.features` and `joint.features` are the inputs' sizes."""

    def sequences(self, store: EpisodeStore, length: int, ahead: int = 0) -> WindowSampler:
        """Fit all scales; windows of `length` steps to learn from and `ahead` further ones."""
        self.encoder.fit(store)
        self.joint.fit(store)
        self.scale.fit(store, self.config.discount)
        return WindowSampler(
            store, history=0, horizon=length + ahead, batch_size=max(1, self.config.batch_size // length),
            device=self.device, observations=self.encoder.encode(store.observations.to(self.device)),
            extras=("rewards", "terminated", "next_available_actions", *self.joint.extras),
        )  # fmt: skip

    def states(self, batch: dict[str, Tensor]) -> Tensor:
        """What critics and mixers know of the team: (B, T + 1, joint.features)."""
        return self.joint.encode(batch["observations"], batch.get("state"))

    def team_rewards(self, batch: dict[str, Tensor]) -> Tensor:
        """(B, T), scaled."""
        return self.scale(batch["rewards"]).mean(-1)

    def acting_with(self, network: nn.Module, head: Head) -> NetworkPolicy:
        """The policy of a slow network, acting as the options say where it is stochastic."""
        acting = self.config if isinstance(self.config, StochasticActing) else StochasticActing()
        return NetworkPolicy(self.encoder, network, head, acting.acting, acting.common_noise)
