"""Diffuser: planning states and actions together by guided denoising (arXiv 2205.09991), for one agent or a team.

What is diffused: windows of [action, observation] per waypoint, the first of them now. The present is in-painted, and
so is the goal where one is named; a learnt return guides the denoising; classifier-free conditions on the return and
on the cost still to come (arXiv 2211.15657) let one model serve all budgets of cost.

What differs from the official code is listed in docs/deviations.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from madiff.data.store import EpisodeStore
from madiff.data.windows import WindowSampler
from madiff.diffusion.ema import EMA
from madiff.diffusion.guidance import VARIANCES
from madiff.diffusion.networks.action_head import action_loss
from madiff.diffusion.objective import denoising_loss
from madiff.diffusion.parametrization import make_parametrization
from madiff.diffusion.schedule import make_schedule
from madiff.interfaces import EnvironmentSpec, Hook, PlanLayout, UserError, within
from madiff.planners.denoisers import NETWORKS, make_denoiser
from madiff.planners.diffuser_encoding import PlanEncoder
from madiff.planners.diffuser_policy import CONTROLLERS, DiffuserPolicy
from madiff.planners.inverse_dynamics import SHARING, InverseDynamics
from madiff.planners.planner import Chooser, Planner, Watch
from madiff.values.plan_values import PlanValueConfig, plan_labels

NAME = "diffuser"


@dataclass
class Config:
    """Options of Diffuser; the defaults train in minutes on two CPU cores.

    past_end: what lies behind an episode's end is learnt as staying there, or carries no loss. goal: dimensions of the
    last waypoint that are given; goal_source: those of the present observation that say where; relabel: in training,
    agents are told that they were going where they got to. conditions: any of return, cost.
    """

    steps: int = 4000
    batch_size: int = 64
    learning_rate: float = within(0.0, math.inf, 1e-3)
    gradient_clip: float = within(0.0, math.inf, 1.0)
    horizon: int = 32  # waypoints, the present one included
    past_end: Literal["stay", "ignore"] = "ignore"
    action_weight: float = within(0.0, math.inf, 10.0)  # of the first action in the loss
    # the denoiser
    network: Literal["unet", "transformer"] = "unet"
    width: int = 32
    multipliers: tuple[int, ...] = (1, 2, 4)
    layers: int = 3
    heads: int = 4
    agent_attention: bool = True
    # diffusion
    schedule: str = "cosine"
    diffusion_steps: int = 100
    parametrization: str = "x0"
    normalizer: Literal["limits", "cdf", "gaussian"] = "limits"
    # goals and conditions
    goal: tuple[str, ...] = ()
    goal_source: tuple[str, ...] = ()
    relabel: bool = True
    conditions: tuple[str, ...] = ()
    condition_dropout: float = within(0.0, 1.0, 0.25)
    returns_scale: float = within(0.0, math.inf, 0.0)
    costs_scale: float = within(0.0, math.inf, 0.0)
    discount: float = within(0.0, 1.0, 1.0)
    # inverse dynamics
    inverse_dynamics: Literal["none", "shared", "independent", "joint"] = "shared"
    inverse_width: int = 256
    # critics of noisy plans, for guidance and for budgets of cost
    values: PlanValueConfig = field(default_factory=PlanValueConfig)
    # averaged weights act
    ema_decay: float = within(0.0, 1.0, 0.995)
    ema_every: int = 5
    ema_start: int = within(0, math.inf, 500)
    # acting
    controller: Literal["plan", "inverse", "track"] = "plan"
    execute: int = 1
    solver: str = "ddim"
    sampler_steps: int = 10
    temperature: float = within(0.0, math.inf, 1.0)
    candidates: int = 1
    guide_scale: float = within(0.0, math.inf, 0.1)
    guide_repeats: int = 1
    guide_stop: float = within(0.0, 1.0, 0.1)
    guide_variance: Literal["posterior", "marginal"] = "posterior"
    guidance_weight: float = 1.2
    target_return: float = 1.0
    track_return: bool = True
    cost_limit: float = within(0.0, math.inf, 20.0)
    positions: tuple[str, ...] = ()
    velocities: tuple[str, ...] = ()
    gain_position: float = within(0.0, math.inf, 1.0)
    gain_velocity: float = within(0.0, math.inf, 1.0)
    plan_batch: int = 1024

    ACTING: ClassVar[tuple[str, ...]] = (
        "controller", "execute", "solver", "sampler_steps", "temperature", "candidates", "guide_scale",
        "guide_repeats", "guide_stop", "guide_variance", "guidance_weight", "target_return", "track_return",
        "cost_limit", "positions", "velocities", "gain_position", "gain_velocity", "plan_batch",
    )  # fmt: skip


CONDITIONS = ("return", "cost")
ALLOWED = {
    "network": NETWORKS, "normalizer": ("limits", "cdf", "gaussian"), "controller": CONTROLLERS,
    "past_end": ("stay", "ignore"), "inverse_dynamics": ("none", *SHARING), "guide_variance": VARIANCES,
}  # fmt: skip


def check(config: Config, spec: EnvironmentSpec) -> None:
    """Refuse what no run could use, before anything is built."""
    for key, allowed in ALLOWED.items():
        if getattr(config, key) not in allowed:
            raise UserError(f"unknown value {getattr(config, key)!r}", f"algo.{key}", allowed)
    for key in ("horizon", "width", "batch_size", "diffusion_steps", "sampler_steps", "execute", "candidates",
                "guide_repeats", "plan_batch"):
        if getattr(config, key) < 1:
            raise UserError(f"{getattr(config, key)} is too small", f"algo.{key}", "whole numbers from 1")
    if config.horizon < 2:
        raise UserError("1 waypoint is no plan", "algo.horizon", "whole numbers from 2")
    if unknown := [name for name in config.conditions if name not in CONDITIONS]:
        raise UserError(f"unknown condition '{unknown[0]}'", "algo.conditions", CONDITIONS)
    if config.cost_limit < 0:
        raise UserError(f"a budget of {config.cost_limit:g} is below zero", "algo.cost_limit", "numbers from 0")
    check_controller(config, spec)
    if config.candidates > 1 and config.values.learn == "none":
        raise UserError(f"nothing ranks {config.candidates} candidates", "algo.candidates",
                        "1, or a training with algo.values.learn=return")  # fmt: skip


def check_controller(config: Config, spec: EnvironmentSpec) -> None:
    """Refuse a way of acting that the options or the environment do not offer."""
    if config.controller != "track" and config.execute > config.horizon - 1:
        what = f"{config.execute} steps of a plan of {config.horizon} waypoints"
        raise UserError(what, "algo.execute", f"1 to {config.horizon - 1}, or algo.controller=track")
    if config.controller == "inverse" and config.inverse_dynamics == "none":
        allowed = "plan, or a training with algo.inverse_dynamics"
        raise UserError("there is no inverse dynamics model", "algo.controller", allowed)
    if config.controller == "track":
        given = len(config.positions), len(config.velocities)
        if spec.discrete or given != (spec.action_size,) * 2:
            what = f"{given[0]} positions and {given[1]} velocities to track"
            raise UserError(what, "algo.positions", f"one of each for every of {spec.action_size} continuous actions")


def make_networks(config: Config, spec: EnvironmentSpec, features: int, seed: int) -> nn.ModuleDict:
    """Denoiser and inverse dynamics with weights drawn from the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        conditions = {name: 1 for name in config.conditions}
        networks = {"denoiser": make_denoiser(config, features, config.horizon, conditions)}
        if config.inverse_dynamics != "none":
            observed = features - spec.action_size
            networks["inverse"] = InverseDynamics(
                observed, spec.action_size, spec.agents, config.inverse_width, config.inverse_dynamics
            )
        return nn.ModuleDict(networks)


class Diffuser(Planner):
    """Learner of the plan model, the inverse dynamics (total loss: their sum), and the critics of plans."""

    values_of_returns = True

    def __init__(self, config: Config, spec: EnvironmentSpec, device: torch.device, seed: int) -> None:
        check(config, spec)
        self.config, self.spec, self.device, self.seed = config, spec, device, seed
        self.preprocessing = PlanEncoder(spec, config.normalizer, config.goal, config.goal_source).to(device)
        self.networks = make_networks(config, spec, self.preprocessing.plan_features, seed).to(device)
        self.schedule = make_schedule(config.schedule, steps=config.diffusion_steps)
        self.parametrization = make_parametrization(config.parametrization, self.schedule)
        super().__init__(
            self.networks, self.preprocessing,
            torch.optim.Adam(self.networks.parameters(), lr=config.learning_rate, fused=True),
            EMA(self.networks, config.ema_decay, config.ema_every, config.ema_start),
        )  # fmt: skip

    @property
    def plan_features(self) -> int:
        return self.preprocessing.plan_features

    @property
    def plan_length(self) -> int:
        return self.config.horizon

    def layout(self) -> PlanLayout:
        """What the features of a plan mean: actions, identities, then the observation."""
        return self.preprocessing.layout()

    def batches(self, store: EpisodeStore) -> WindowSampler:
        """Fit the normaliser and the scales; normalise once, so that a batch is one gather."""
        encoder = self.preprocessing
        encoder.fit(store)
        for scale, given, seen in ((encoder.returns_scale, self.config.returns_scale, store.returns()),
                                   (encoder.costs_scale, self.config.costs_scale, store.team_costs())):  # fmt: skip
            largest = given or float(seen.max())
            scale.fill_(largest if largest > 0 else 1.0)
        self.costs = plan_labels(store, 1.0)[:, 1].to(self.device)
        self.first = store.offsets.to(self.device)
        source = WindowSampler(
            store, history=0, horizon=self.config.horizon, batch_size=self.config.batch_size, device=self.device,
            discount=self.config.discount, observations=encoder.encode(store.observations.to(self.device)),
        )  # fmt: skip
        self.fit_values(store, source)
        return source

    def plans(self, batch: dict[str, Tensor], generator: torch.Generator) -> tuple[Tensor, Tensor]:
        x = self.preprocessing.plan(batch["observations"][:, :-1], batch["actions"])
        return x, self.preprocessing.known(x)[1]

    def update(self, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        diffusion = self._diffusion_loss(batch, generator)
        losses = {"diffusion_loss": diffusion}
        if "inverse" in self.networks:
            losses["inverse_loss"] = self._inverse_loss(batch)
        loss = sum(losses.values())
        norm = self.gradient_step(loss, self.config.gradient_clip)
        metrics = {"loss": loss, **losses, "gradient_norm": norm, **self.update_values(batch, generator)}
        return {name: value.detach() for name, value in metrics.items()}

    def conditions(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return and the team's cost from now on, in units of their scales: (B, agent, 1) each."""
        paid = self.costs[self.first[batch["episode"]] + batch["time"]] / self.preprocessing.costs_scale
        told = {
            "return": (batch["returns"] / self.preprocessing.returns_scale)[..., None],
            "cost": paid[:, None, None].expand(-1, self.spec.agents, -1),
        }
        return {name: told[name] for name in self.config.conditions}

    def _diffusion_loss(self, batch: dict[str, Tensor], generator: torch.Generator) -> Tensor:
        observations = batch["observations"][:, :-1]
        if self.config.relabel:
            observations = self.preprocessing.relabel(observations)
        x = self.preprocessing.plan(observations, batch["actions"])
        mask = self.preprocessing.known(x)[1]
        cond = self.conditions(batch)
        if cond:
            kept = torch.rand(len(x), generator=generator, device=self.device) >= self.config.condition_dropout
            cond["keep"] = kept.to(x.dtype)
        return denoising_loss(
            self.networks["denoiser"], x, cond, schedule=self.schedule, parametrization=self.parametrization,
            known_mask=mask, weight=(1 - mask) * self._weight(x, batch), generator=generator,
        )[0]  # fmt: skip

    def _weight(self, x: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """What every entry of the plans counts, before the known ones are left out."""
        actions, observations = x.split([self.spec.action_size, x.shape[-1] - self.spec.action_size], dim=-1)
        taken = batch["transition_valid"].to(x.dtype)[..., None, None].expand_as(actions).clone()
        taken[:, 0] *= self.config.action_weight
        seen = batch["valid"][:, :-1].to(x.dtype)[..., None, None].expand_as(observations)
        return torch.cat([taken, torch.ones_like(seen) if self.config.past_end == "stay" else seen], dim=-1)

    def _inverse_loss(self, batch: dict[str, Tensor]) -> Tensor:
        x, available = batch["observations"], batch.get("available_actions")
        output = self.networks["inverse"](x[:, :-1], x[:, 1:])
        valid = batch["transition_valid"][..., None].expand(output.shape[:-1])
        return action_loss(output, batch["actions"], valid, available, self.spec.discrete)

    def policy(
        self, hooks: Sequence[Hook] = (), *, guide: Hook | None = None, chooser: Chooser | None = None,
        watch: Watch | None = None,
    ) -> DiffuserPolicy:  # fmt: skip
        """The hooks run after clipping and after `guide`, which takes the place of the value guidance."""
        return DiffuserPolicy(self, hooks, guide, chooser, watch)

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """Raises UserError where several candidates are to be ranked and the weights hold no critic."""
        super().load_weights(weights)
        if self.config.candidates > 1 and self.values is None:
            what = f"{self.config.candidates} candidates need a critic of plans, which this training had not"
            raise UserError(what, "algo.candidates", "1, or a training with algo.values.learn=return")


def make(config: Config, spec: EnvironmentSpec, device: torch.device, seed: int) -> Diffuser:
    return Diffuser(config, spec, device, seed)
