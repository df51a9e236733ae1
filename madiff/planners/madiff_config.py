"""Options of MADiff, and what they may be."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

from madiff.diffusion.solvers import REPEATABLE
from madiff.interfaces import EnvironmentSpec, UserError, within
from madiff.planners.denoisers import NETWORKS
from madiff.planners.inverse_dynamics import SHARING
from madiff.planners.madiff_policy import ABLATIONS, NOISES
from madiff.values.plan_values import PlanValueConfig


@dataclass
class Config:
    """Options of MADiff; the defaults train in minutes on two CPU cores, `model=official` has the paper's sizes."""

    steps: int = 2000
    batch_size: int = 128
    learning_rate: float = within(0.0, math.inf, 2e-3)
    gradient_clip: float = within(0.0, math.inf, 1.0)
    # the window, in environment steps
    history: int = within(0, math.inf, 3)
    horizon: int = 4
    # the denoiser
    network: str = "transformer"
    width: int = 96
    layers: int = 3
    heads: int = 4
    multipliers: tuple[int, ...] = (1, 4, 8)
    agent_attention: bool = True
    # diffusion
    schedule: str = "cosine"
    diffusion_steps: int = 200
    parametrization: str = "x0"
    normalizer: str = "cdf"
    # conditioning
    condition_dropout: float = within(0.0, 1.0, 0.25)
    agreement: float = within(0.0, math.inf, 0.0)  # of plans that two agents make of the same noise
    return_label: str = "to-go"
    returns_scale: float = within(0.0, math.inf, 0.0)
    discount: float = within(0.0, 1.0, 1.0)
    # inverse dynamics
    inverse_dynamics: str = "shared"
    inverse_width: int = 256
    inverse_sees: tuple[str, ...] = ()  # dimensions of the next observation that it is shown, empty = all
    inverse_steps: int = within(1, math.inf, 4)  # of the optimiser in every update, each on its part of the batch
    # a critic that ranks candidate plans; trained where it is asked for or several candidates are
    critic: bool = False
    critic_width: int = 128
    critic_discount: float = within(0.0, 1.0, 0.99)
    expectile: float = within(0.0, 1.0, 0.8)
    # critics of noisy plans, for budgets of cost
    values: PlanValueConfig = field(default_factory=PlanValueConfig)
    # a student that plans in one call learns at every distill_every-th update from ema_start on; 0: there is none
    distill_every: int = within(0, math.inf, 0)
    # averaged weights act
    ema_decay: float = within(0.0, 1.0, 0.995)
    ema_every: int = 2
    ema_start: int = within(0, math.inf, 500)
    # acting
    solver: str = "ddim"
    sampler_steps: int = 5
    one_step: bool = False  # the student acts
    guidance_weight: float = 1.2
    target_return: float = 1.0
    track_return: bool = True
    temperature: float = within(0.0, math.inf, 0.5)
    warm_start: float = within(0.0, 1.0, 0.0)  # noise level that the last plan is taken up at; 0: pure noise always
    common_noise: bool = True
    noise: str = "step"
    candidates: int = 1
    rank_steps: int = 1
    plan_ablation: str = "none"
    plan_batch: int = 1024

    execution: ClassVar[str] = "decentralised"
    ACTING: ClassVar[tuple[str, ...]] = (
        "solver", "sampler_steps", "one_step", "guidance_weight", "target_return", "track_return", "temperature",
        "warm_start", "common_noise", "noise", "candidates", "rank_steps", "plan_ablation", "plan_batch",
    )  # fmt: skip


ALLOWED = {
    "network": NETWORKS,
    "normalizer": ("cdf", "limits"),  # plans are clipped to their range, [-1, 1]
    "return_label": ("to-go", "episode"),
    "inverse_dynamics": SHARING,
    "noise": NOISES,
    "plan_ablation": ABLATIONS,
}


def check(config: Config) -> None:
    """Refuse what no run could use, before anything is built."""
    for key, allowed in ALLOWED.items():
        if getattr(config, key) not in allowed:
            raise UserError(f"unknown value {getattr(config, key)!r}", f"algo.{key}", allowed)
    for key in ("horizon", "width", "layers", "heads", "sampler_steps", "diffusion_steps", "batch_size", "plan_batch",
                "candidates", "rank_steps", "critic_width"):
        if getattr(config, key) < 1:
            raise UserError(f"{getattr(config, key)} is too small", f"algo.{key}", "whole numbers from 1")
    if config.rank_steps > config.horizon:
        raise UserError(f"{config.rank_steps} is more than a plan has", "algo.rank_steps", f"1 to {config.horizon}")
    if config.history < 0:
        raise UserError(f"{config.history} is negative", "algo.history", "whole numbers from 0")


def check_student(config: Config) -> None:
    """Only a student that learns can act, and only from a teacher that makes the same plan of a noise twice."""
    if config.one_step and not config.distill_every:
        allowed = "false, or a training with algo.distill_every=4"
        raise UserError("true where no student has learnt", "algo.one_step", allowed)
    if config.one_step and config.warm_start:
        raise UserError("a student plans in one step from pure noise", "algo.warm_start", "0")
    if config.distill_every and config.solver not in REPEATABLE:
        raise UserError(f"{config.solver} cannot be distilled, it draws noise on its way", "algo.solver", REPEATABLE)


def check_agreement(config: Config, spec: EnvironmentSpec) -> None:
    """Only agents that plan apart can be made to agree."""
    if config.agreement and (config.execution == "centralised" or spec.agents < 2):
        raise UserError(f"{config.agreement} where there is one plan", "algo.agreement", "0")
    if config.agreement and config.batch_size < 2:
        raise UserError(f"{config.batch_size} holds no pair", "algo.batch_size", "at least 2 with algo.agreement")
