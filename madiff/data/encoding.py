"""Raw observations to what networks see: who the agent is, then its observation normalised."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from madiff.data.normalizers import make_normalizer
from madiff.data.store import EpisodeStore


class ObservationEncoder(nn.Module):
    """(..., agent, O) in the environment's units -> (..., agent, agents + O): one-hot identity first, then values.

    One normaliser serves all agents. The identity makes permutation-equivariant networks tell agents apart.
    """

    def __init__(self, agents: int, observation_size: int, normalizer: str) -> None:
        super().__init__()
        self.agents, self.features = agents, agents + observation_size
        self.normalizer = make_normalizer(normalizer, observation_size)

    def fit(self, store: EpisodeStore) -> None:
        self.normalizer.fit(store.observations.flatten(0, -2))

    def encode(self, observations: Float[Tensor, "*rows agent O"]) -> Float[Tensor, "*rows agent agent+O"]:
        identity = torch.eye(self.agents, device=observations.device, dtype=observations.dtype)
        identity = identity.expand(*observations.shape[:-1], self.agents)
        return torch.cat([identity, self.normalizer.normalize(observations)], dim=-1)

    def decode(self, features: Float[Tensor, "*rows features"]) -> Float[Tensor, "*rows O"]:
        """(..., agents + O) -> (..., O) in the environment's units."""
        return self.normalizer.denormalize(features[..., self.agents :])
