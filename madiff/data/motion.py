"""How an agent's observation follows its action: an affine model of one step, measured on data and kept with weights.

It stands beside normalisers and scales: whoever wants to know afterwards where an action leads needs no data.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from madiff.data.store import EpisodeStore, ranges
from madiff.interfaces import EnvironmentSpec, UserError

LARGEST_SAMPLE = 65_536  # transitions that the model is estimated from
SMALLEST = 1e-5  # singular value of the standardised inputs, relative to the largest, that still counts as information


class Motion(NamedTuple):
    """o' = o state^T + a action^T + constant: (agent, O, O), (agent, O, D), (agent, O), in the environment's units."""

    state: Float[Tensor, "agent O O"]
    action: Float[Tensor, "agent O D"]
    constant: Float[Tensor, "agent O"]
    def free(self, observations: Float[Tensor, "*rows agent O"]) -> Float[Tensor, "*rows agent O"]:
        """Where observations (..., agent, O) lead under an action of zero."""
        return torch.einsum("aij,...aj->...ai", self.state, observations) + self.constant

    def __matmul__(self, earlier: Motion) -> Motion:
        """The same action held through `earlier`, then through this one."""
        onward = torch.einsum("aij,aj->ai", self.state, earlier.constant)
        pushed = self.state @ earlier.action + self.action
        return Motion(self.state @ earlier.state, pushed, onward + self.constant)


class AffineMotion(nn.Module):
    """Each agent's next observation as an affine function of its present one and its action, by least squares.

    moved (agent, O): root mean square of a step's change; seen: transitions it was measured on, 0 before `fit`.
    """

    state: Tensor
    action: Tensor
    constant: Tensor
    moved: Tensor
    seen: Tensor

    def __init__(self, spec: EnvironmentSpec) -> None:
        super().__init__()
        agents, observed = spec.agents, spec.observation_size
        self.register_buffer("state", torch.eye(observed).repeat(agents, 1, 1))
        self.register_buffer("action", torch.zeros(agents, observed, spec.action_size))
        self.register_buffer("constant", torch.zeros(agents, observed))
        self.register_buffer("moved", torch.zeros(agents, observed))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def fit(self, store: EpisodeStore) -> AffineMotion:
        """Measure; raises UserError for discrete actions. What does not vary is taken to stay as it is."""
        if store.discrete:
            raise UserError("a model of the motion of discrete actions", "motion", "continuous actions")
        rows = ranges(store.offsets + torch.arange(store.episodes), store.lengths)
        count = min(len(rows), LARGEST_SAMPLE)
        chosen = torch.arange(count) * len(rows) // count
        now, then = (store.observations[rows[chosen] + step].double() for step in (0, 1))
        inputs = torch.cat([now, store.actions[chosen].double()], dim=-1).transpose(0, 1)
        change = (then - now).transpose(0, 1)
        mean, start = inputs.mean(1, keepdim=True), change.mean(1, keepdim=True)
        spread = (inputs - mean).square().mean(1, keepdim=True).sqrt()
        spread = torch.where(spread > 0, spread, 1.0)
        solved = torch.linalg.lstsq((inputs - mean) / spread, change - start, rcond=SMALLEST, driver="gelsd").solution
        slope = (solved / spread.mT).mT
        self._keep(slope, (start - mean @ slope.mT)[:, 0], change.square().mean(1).sqrt(), count)
        return self

    def _keep(self, slope: Tensor, constant: Tensor, moved: Tensor, count: int) -> None:
        observed = slope.shape[1]
        state = slope[..., :observed] + torch.eye(observed, dtype=slope.dtype)
        found = {"state": state, "action": slope[..., observed:], "constant": constant, "moved": moved}
        for name, values in found.items():
            own = getattr(self, name)
            setattr(self, name, values.to(own.device, own.dtype))
        self.seen = torch.full_like(self.seen, count)

    def ahead(self, steps: int) -> Motion:
        """The model of so many steps, at least 1, through which an action is held."""
        once = found = Motion(self.state, self.action, self.constant)
        for _ in range(steps - 1):
            found = once @ found
        return found

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        """Weights from before there was such a model leave it as it is: seen is then 0."""
        if f"{prefix}seen" in state_dict:
            super()._load_from_state_dict(state_dict, prefix, *arguments)
