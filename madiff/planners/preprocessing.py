"""What a planner sees of the observations: encoded, and in-painted with what is known when a plan is made."""

from __future__ import annotations

import torch
from torch import Tensor

from madiff.data.encoding import ObservationEncoder
from madiff.interfaces import EnvironmentSpec


class Preprocessing(ObservationEncoder):
    """Observation encoding, the scale of returns, and what a plan is told of the past."""

    returns_scale: Tensor

    def __init__(self, spec: EnvironmentSpec, normalizer: str) -> None:
        super().__init__(spec.agents, spec.observation_size, normalizer)
        self.register_buffer("returns_scale", torch.ones(()))

    def condition(self, x: Tensor, visible: Tensor, now: int) -> tuple[Tensor, Tensor]:
        """In-painting of a window: what the model is told of x (B, T, agent, F), given visible (B, agent) bool.

        Visible agents: everything up to now. The others: their history reads zero, their present is generated.
        Identities are known at all steps. Returns (value, mask), mask as x with 1 = known.
        """
        time = torch.arange(x.shape[1], device=x.device)
        told = torch.where(visible[:, None], (time <= now)[:, None], (time < now)[:, None])[..., None]
        is_identity = torch.arange(x.shape[-1], device=x.device) < self.agents
        value = torch.where((visible[:, None, :, None] & told) | is_identity, x, 0.0)
        return value, (told | is_identity).to(x.dtype)
