"""What actor-critics share: named networks, an optimiser for each, slow copies, and their whole state by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from madiff.diffusion import sharing
from madiff.diffusion.ema import EMA
from madiff.diffusion.training import NamedWeights
from madiff.values.targets import Target


class ActorCritic(NamedWeights):
    """Base of learners with several networks under optimisers of their own (Adam).

    networks: what is trained, by name; learning_rates: of every network, by the same names; fixed: what is fitted to
    the data once (normalisers, scales); targets, averages: slow copies by name, updated by `finish_update`. An actor
    acts with `averages["actor"].model`.
    """

    def __init__(
        self,
        networks: Mapping[str, nn.Module],
        learning_rates: Mapping[str, float],
        fixed: Mapping[str, nn.Module],
        targets: Mapping[str, Target] | None = None,
        averages: Mapping[str, EMA] | None = None,
    ) -> None:
        self.networks, self.fixed = dict(networks), dict(fixed)
        self.targets, self.averages = dict(targets or {}), dict(averages or {})
        self.optimizers = {
            name: torch.optim.Adam(module.parameters(), lr=learning_rates[name], fused=True)
            for name, module in self.networks.items()
        }
        self.updates = 0

    def gradient_step(self, name: str, loss: Tensor, clip: float) -> Tensor:
        """One optimiser step of network `name` on loss, its gradient's norm clipped; returns the norm before.

        Only this network gets gradients: an actor may be trained through a critic that stays as it is.
        """
        parameters = list(self.networks[name].parameters())
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.grad = gradient
        sharing.settle(parameters)
        norm = nn.utils.clip_grad_norm_(parameters, clip)
        self.optimizers[name].step()
        return norm.detach()

    def finish_update(self) -> None:
        """Count one update and let targets and averages follow."""
        self.updates += 1
        for slow in (*self.targets.values(), *self.averages.values()):
            slow.update(self.updates)

    def _parts(self) -> dict[str, nn.Module]:
        groups = {
            "trained": self.networks,
            "target": {name: target.model for name, target in self.targets.items()},
            "averaged": {name: average.model for name, average in self.averages.items()},
            "fixed": self.fixed,
        }
        return {f"{group}.{name}": module for group, members in groups.items() for name, module in members.items()}

    def training_state(self) -> dict[str, Any]:
        optimizers = {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()}
        return {"optimizers": optimizers, "updates": self.updates}

    def load_training_state(self, state: dict[str, Any]) -> None:
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        self.updates = state["updates"]
