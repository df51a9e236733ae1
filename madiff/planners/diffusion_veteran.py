"""Diffusion Veteran: draw plans of distant states freely, keep the best by a critic (arXiv 2503.00535).

States only, `stride` environment steps between waypoints, no condition and no guidance: of `candidates` plans the one
of the largest expected return is followed, by an inverse dynamics that is itself a small diffusion model, or an MLP.

What differs from the official code is listed in docs/deviations.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from madiff.data.store import EpisodeStore
from madiff.data.windows import WindowSampler
from madiff.interfaces import EnvironmentSpec, UserError, within
from madiff.planners.diffuser import Diffuser
from madiff.planners.diffuser_config import Unconditional, without
from madiff.planners.diffuser_policy import DiffuserPolicy
from madiff.planners.inverse_diffusion import InverseDiffusion
from madiff.values.plan_values import plan_labels

NAME = "diffusion-veteran"


@dataclass
class Config(Unconditional):
    """Options of Diffusion Veteran.

    lead: what finds the action that leads to the next waypoint; emphasis: plans count exp(emphasis (r - 1)), r their
    return from 0, the data's least, to 1, its largest.
    """

    horizon: int = 8
    stride: int = 4
    network: Literal["unet", "transformer"] = "transformer"
    width: int = 64
    layers: int = 2
    emphasis: float = within(0.0, math.inf, 0.0)
    lead: Literal["diffusion", "mlp"] = "diffusion"
    lead_steps: int = 10
    lead_temperature: float = within(0.0, math.inf, 0.5)
    inverse_dynamics: Literal["shared", "independent", "joint"] = "shared"
    controller: Literal["inverse", "track", "preview"] = "inverse"
    candidates: int = 16

    plans_actions: ClassVar[bool] = False
    action_weight: ClassVar[float] = 1.0
    guide_scale: ClassVar[float] = 0.0
    guide_repeats: ClassVar[int] = 1
    guide_stop: ClassVar[float] = 0.0
    guide_variance: ClassVar[str] = "posterior"
    ACTING: ClassVar[tuple[str, ...]] = without(
        Unconditional.ACTING, "guide_scale", "guide_repeats", "guide_stop", "guide_variance"
    )  # fmt: skip


class VeteranPolicy(DiffuserPolicy):
    """Follows the best of the candidates."""

    def __init__(self, learner: Veteran, *arguments: object) -> None:
        super().__init__(learner, *arguments)
        self.diffusion = learner.diffusion
        if self.diffusion is not None and self.config.controller == "inverse":
            self.network_calls_per_decision += self.diffusion.steps

    def lead(self, now: Tensor, then: Tensor, masks: Tensor | None) -> Tensor:
        if self.diffusion is None:
            return super().lead(now, then, masks)
        return self.diffusion.draw(self.networks["inverse"], now, then, masks, self.generator)


class Veteran(Diffuser):
    """Learner of the plan model, the inverse dynamics, and the critic."""

    policy_class = VeteranPolicy

    def make_networks(self) -> dict[str, nn.Module]:
        config, networks = self.config, super().make_networks()
        self.diffusion = None
        if config.lead == "diffusion":
            self.diffusion = InverseDiffusion(self.spec, config.lead_steps, config.lead_temperature)
            networks["inverse"] = self.diffusion.network(self.preprocessing.features, config.inverse_width)
        return networks

    def batches(self, store: EpisodeStore) -> WindowSampler:
        returns = plan_labels(store, self.config.discount)[:, 0].to(self.device)
        least, largest = returns.min(), returns.max()
        self.standing = (returns - least) / torch.where(largest > least, largest - least, 1.0)
        return super().batches(store)

    def _weight(self, x: Tensor, batch: dict[str, Tensor]) -> Tensor:
        r = self.standing[self.first[batch["episode"]] + batch["time"]]
        return super()._weight(x, batch) * torch.exp(self.config.emphasis * (r - 1))[:, None, None, None]

    def _inverse_loss(self, batch: dict[str, Tensor], generator: torch.Generator) -> Tensor:
        if self.diffusion is None:
            return super()._inverse_loss(batch, generator)
        return self.diffusion.loss(self.networks["inverse"], *self.moves(batch), generator)


def make(config: Config, spec: EnvironmentSpec, device: torch.device, seed: int) -> Veteran:
    if config.values.learn == "none":
        raise UserError("nothing chooses among plans", "algo.values.learn", ("auto", "return", "both"))
    return Veteran(config, spec, device, seed)
