"""Options of Diffuser and of the planners that are made of it, and what they may be."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from madiff.diffusion.guidance import VARIANCES
from madiff.interfaces import EnvironmentSpec, UserError, within
from madiff.planners.denoisers import NETWORKS
from madiff.planners.diffuser_policy import CONTROLLERS
from madiff.planners.inverse_dynamics import SHARING
from madiff.values.plan_values import PlanValueConfig


def without(names: tuple[str, ...], *left_out: str) -> tuple[str, ...]:
    """The names but these."""
    return tuple(name for name in names if name not in left_out)


@dataclass
class Config:
    """Options of Diffuser; the defaults train in minutes on two CPU cores.

    past_end: what lies behind an episode's end is learnt as staying there, or carries no loss. goal: dimensions of the
    last waypoint that are given; goal_source: those of the present observation that say where; relabel: in training,
    agents are told that they were going where they got to. conditions: any of return, cost (still to come) and time
    (share of the episode gone). inverse_ahead: waypoints from now to the one that the inverse dynamics leads to;
    inverse_sees: dimensions of it that are shown, empty = all (shown places alone, it goes where a plan was corrected
    to, whatever else the plan observes there). motion_seconds: between two waypoints, where the planned positions and
    velocities shall agree; 0 leaves them as they were denoised; motion_weight: of the velocities against the positions.
    preview_steps: environment steps that controller=preview looks ahead.
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
    inverse_ahead: int = 1
    inverse_sees: tuple[str, ...] = ()
    # critics of noisy plans, for guidance and for budgets of cost
    values: PlanValueConfig = field(default_factory=PlanValueConfig)
    # averaged weights act
    ema_decay: float = within(0.0, 1.0, 0.995)
    ema_every: int = 1
    ema_start: int = within(0, math.inf, 500)
    # acting
    controller: Literal["plan", "inverse", "track", "preview"] = "plan"
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
    preview_steps: int = 6
    motion_seconds: float = within(0.0, math.inf, 0.0)
    motion_weight: float = within(0.0, math.inf, 10.0)
    plan_batch: int = 1024

    ACTING: ClassVar[tuple[str, ...]] = (
        "controller", "execute", "solver", "sampler_steps", "temperature", "candidates", "guide_scale",
        "guide_repeats", "guide_stop", "guide_variance", "guidance_weight", "target_return", "track_return",
        "cost_limit", "positions", "velocities", "gain_position", "gain_velocity", "preview_steps",
        "motion_seconds", "motion_weight", "plan_batch",
    )  # fmt: skip
    # what a plan is made of: environment steps between two waypoints, and whether it holds actions
    stride: ClassVar[int] = 1
    plans_actions: ClassVar[bool] = True


@dataclass
class Unconditional(Config):
    """Options of planners that are told neither what return to reach nor what it may cost."""

    conditions: ClassVar[tuple[str, ...]] = ()
    condition_dropout: ClassVar[float] = 0.0
    returns_scale: ClassVar[float] = 0.0
    costs_scale: ClassVar[float] = 0.0
    guidance_weight: ClassVar[float] = 1.0
    target_return: ClassVar[float] = 1.0
    track_return: ClassVar[bool] = False
    cost_limit: ClassVar[float] = 0.0
    ACTING: ClassVar[tuple[str, ...]] = without(
        Config.ACTING, "guidance_weight", "target_return", "track_return", "cost_limit"
    )  # fmt: skip


CONDITIONS = ("return", "cost", "time")
ALLOWED = {
    "network": NETWORKS, "normalizer": ("limits", "cdf", "gaussian"), "controller": CONTROLLERS,
    "past_end": ("stay", "ignore"), "inverse_dynamics": ("none", *SHARING), "guide_variance": VARIANCES,
}  # fmt: skip


def check(config: Config) -> None:
    """Refuse options of which no plans can be made."""
    for key, allowed in ALLOWED.items():
        if getattr(config, key) not in allowed:
            raise UserError(f"unknown value {getattr(config, key)!r}", f"algo.{key}", allowed)
    for key in ("horizon", "width", "batch_size", "diffusion_steps", "sampler_steps", "execute", "candidates",
                "guide_repeats", "plan_batch", "inverse_ahead", "preview_steps"):
        if getattr(config, key) < 1:
            raise UserError(f"{getattr(config, key)} is too small", f"algo.{key}", "whole numbers from 1")
    if config.horizon < 2:
        raise UserError("1 waypoint is no plan", "algo.horizon", "whole numbers from 2")
    if config.inverse_ahead >= config.horizon:
        raise UserError(f"{config.inverse_ahead} waypoints ahead", "algo.inverse_ahead", f"1 to {config.horizon - 1}")
    if unknown := [name for name in config.conditions if name not in CONDITIONS]:
        raise UserError(f"unknown condition '{unknown[0]}'", "algo.conditions", CONDITIONS)
    if config.cost_limit < 0:
        raise UserError(f"a budget of {config.cost_limit:g} is below zero", "algo.cost_limit", "numbers from 0")
    if config.candidates > 1 and config.values.learn == "none":
        raise UserError(f"nothing ranks {config.candidates} candidates", "algo.candidates",
                        "1, or a training with algo.values.learn=return")  # fmt: skip


def check_controller(config: Config, spec: EnvironmentSpec) -> None:
    """Refuse a way of acting that the options or the environment do not offer."""
    following = config.controller in ("track", "preview")
    if not following and config.execute > config.horizon - 1:
        what = f"{config.execute} steps of a plan of {config.horizon} waypoints"
        raise UserError(what, "algo.execute", f"1 to {config.horizon - 1}, or algo.controller=track or preview")
    if not following and config.execute > 1 and config.stride > 1:
        what = f"{config.execute} steps where waypoints are {config.stride} steps apart"
        raise UserError(what, "algo.execute", "1, or algo.controller=track or preview")
    if config.controller == "plan" and not config.plans_actions:
        raise UserError("plans hold no actions", "algo.controller", "inverse, track or preview")
    if config.controller == "inverse" and config.inverse_dynamics == "none":
        allowed = "plan, or a training with algo.inverse_dynamics"
        raise UserError("there is no inverse dynamics model", "algo.controller", allowed)
    if config.motion_seconds and not (config.positions and len(config.positions) == len(config.velocities)):
        what = f"{len(config.positions)} positions and {len(config.velocities)} velocities that are to agree"
        raise UserError(what, "algo.motion_seconds", "0, or as many algo.positions as algo.velocities")
    if following:
        given = len(config.positions), len(config.velocities)
        if spec.discrete or given != (spec.action_size,) * 2:
            what = f"{given[0]} positions and {given[1]} velocities to track"
            raise UserError(what, "algo.positions", f"one of each for every of {spec.action_size} continuous actions")
