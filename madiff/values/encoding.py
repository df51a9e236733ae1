"""What a centralised critic or mixer sees of the whole team."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from madiff.data.normalizers import make_normalizer
from madiff.data.store import EpisodeStore
from madiff.interfaces import EnvironmentSpec, UserError


class JointEncoder(nn.Module):
    """The global state, normalised, where the environment has one; else all agents' observations side by side.

    features: length of the result; extras: what a WindowSampler must be asked for.
    """

    def __init__(self, spec: EnvironmentSpec, normalizer: str = "gaussian") -> None:
        super().__init__()
        self.agents, self.has_state = spec.agents, spec.state_size > 0
        self.features = spec.state_size or spec.agents * spec.observation_size
        self.extras: tuple[str, ...] = ("state",) if self.has_state else ()
        self.normalizer = make_normalizer(normalizer, spec.state_size) if self.has_state else None

    def fit(self, store: EpisodeStore) -> None:
        """Measure the states; raises UserError where the data lacks the environment's global state."""
        if self.normalizer is None:
            return
        if store.state_size != self.features:
            raise UserError(f"the data has {store.state_size} state values", "data", f"{self.features} per step")
        self.normalizer.fit(store.state)

    def encode(self, observations: Tensor, state: Tensor | None) -> Tensor:
        """Encoded observations (..., agent, agents + O) and raw state (..., S) or None -> (..., features)."""
        if self.normalizer is not None:
            return self.normalizer.normalize(state)
        return torch.flatten(observations[..., self.agents :], -2)
