"""MADiff: one attention-based diffusion model of all agents' joint trajectory (arXiv 2305.17330).

What is diffused: normalised observation windows of `history` past steps, now, and `horizon` future steps. Actions
come from an inverse dynamics model on consecutive planned observations. Centralised execution (MADiff-C) shows the
model every agent's history; decentralised execution (MADiff-D) shows it one agent's, and the model generates the
teammates' present and future: teammate modelling. The two differ in one mask, `visible`.

What differs from the official code is listed in docs/deviations.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from madiff.data.store import EpisodeStore
from madiff.data.windows import WindowSampler
from madiff.diffusion.ema import EMA
from madiff.diffusion.networks.action_head import action_loss
from madiff.diffusion.objective import agreement_loss, denoising_loss
from madiff.diffusion.parametrization import make_parametrization
from madiff.diffusion.schedule import make_schedule
from madiff.interfaces import EnvironmentSpec, Hook, PlanLayout, UserError, within
from madiff.planners.denoisers import NETWORKS, make_denoiser
from madiff.planners.inverse_dynamics import SHARING, InverseDynamics
from madiff.planners.joint_critic import EXTRAS, make_joint_critic
from madiff.planners.madiff_policy import ABLATIONS, NOISES, MADiffPolicy
from madiff.planners.planner import Chooser, Planner, Watch, make_layout
from madiff.planners.preprocessing import Preprocessing
from madiff.values.plan_values import PlanValueConfig


@dataclass
class Config:
    """Options of MADiff; the defaults train in minutes on two CPU cores, `model=official` has the paper's sizes."""

    steps: int = 4000
    batch_size: int = 128
    learning_rate: float = within(0.0, math.inf, 1e-3)
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
    # a critic that ranks candidate plans; trained where it is asked for or several candidates are
    critic: bool = False
    critic_width: int = 128
    critic_discount: float = within(0.0, 1.0, 0.99)
    expectile: float = within(0.0, 1.0, 0.8)
    # critics of noisy plans, for budgets of cost
    values: PlanValueConfig = field(default_factory=PlanValueConfig)
    # averaged weights act
    ema_decay: float = within(0.0, 1.0, 0.995)
    ema_every: int = 5
    ema_start: int = within(0, math.inf, 500)
    # acting
    solver: str = "ddim"
    sampler_steps: int = 5
    guidance_weight: float = 1.2
    target_return: float = 1.0
    track_return: bool = True
    temperature: float = within(0.0, math.inf, 0.5)
    common_noise: bool = True
    noise: str = "step"
    candidates: int = 1
    rank_steps: int = 1
    plan_ablation: str = "none"
    plan_batch: int = 1024

    execution: ClassVar[str] = "decentralised"
    ACTING: ClassVar[tuple[str, ...]] = (
        "solver", "sampler_steps", "guidance_weight", "target_return", "track_return", "temperature", "common_noise",
        "noise", "candidates", "rank_steps", "plan_ablation", "plan_batch",
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


def check_agreement(config: Config, spec: EnvironmentSpec) -> None:
    """Only agents that plan apart can be made to agree."""
    if config.agreement and (config.execution == "centralised" or spec.agents < 2):
        raise UserError(f"{config.agreement} where there is one plan", "algo.agreement", "0")
    if config.agreement and config.batch_size < 2:
        raise UserError(f"{config.batch_size} holds no pair", "algo.batch_size", "at least 2 with algo.agreement")


def make_networks(config: Config, spec: EnvironmentSpec, seed: int) -> nn.ModuleDict:
    """Denoiser and inverse dynamics with weights drawn from the seed alone."""
    features = spec.agents + spec.observation_size
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inverse = InverseDynamics(
            features, spec.action_size, spec.agents, config.inverse_width, config.inverse_dynamics
        )
        length = config.history + 1 + config.horizon
        return nn.ModuleDict({"denoiser": make_denoiser(config, features, length, {"returns": 1}), "inverse": inverse})


class MADiff(Planner):
    """Learner of the joint diffusion model and the inverse dynamics, with one optimiser (total loss 1/2 of each)."""

    def __init__(self, config: Config, spec: EnvironmentSpec, device: torch.device, seed: int) -> None:
        check(config)
        check_agreement(config, spec)
        self.config, self.spec, self.device, self.seed = config, spec, device, seed
        self.preprocessing = Preprocessing(spec, config.normalizer).to(device)
        self.networks = make_networks(config, spec, seed).to(device)
        self.schedule = make_schedule(config.schedule, steps=config.diffusion_steps)
        self.parametrization = make_parametrization(config.parametrization, self.schedule)
        self.critic = make_joint_critic(config, spec, device, seed)
        super().__init__(
            self.networks, self.preprocessing,
            torch.optim.Adam(self.networks.parameters(), lr=config.learning_rate, fused=True),
            EMA(self.networks, config.ema_decay, config.ema_every, config.ema_start),
        )  # fmt: skip

    def batches(self, store: EpisodeStore) -> WindowSampler:
        """Fit the normaliser and the return scale; normalise once, so that a batch is one gather."""
        self.preprocessing.fit(store)
        scale = self.config.returns_scale or float(store.returns().max())
        self.preprocessing.returns_scale.fill_(scale if scale > 0 else 1.0)
        self.episode_returns = store.returns().to(self.device)
        if self.critic is not None:
            self.critic.fit(store)
        source = WindowSampler(
            store, history=self.config.history, horizon=self.config.horizon, batch_size=self.config.batch_size,
            device=self.device, discount=self.config.discount,
            observations=self.preprocessing.encode(store.observations.to(self.device)),
            extras=() if self.critic is None else EXTRAS,
        )  # fmt: skip
        self.fit_values(store, source)
        return source

    def update(self, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        diffusion = self._diffusion_loss(batch, generator)
        inverse = self._inverse_loss(batch)
        loss = 0.5 * (diffusion + inverse)
        norm = self.gradient_step(loss, self.config.gradient_clip)
        metrics = {"loss": loss, "diffusion_loss": diffusion, "inverse_loss": inverse, "gradient_norm": norm}
        if self.critic is not None:
            metrics |= self.critic.update(batch, self.config.history)
        metrics |= self.update_values(batch, generator)
        return {name: value.detach() for name, value in metrics.items()}

    def visible(self, n: int, generator: torch.Generator) -> Tensor:
        """(n, agent) bool: all agents for centralised execution, one ego agent drawn per sample otherwise."""
        if self.config.execution == "centralised":
            return torch.ones(n, self.spec.agents, dtype=torch.bool, device=self.device)
        ego = torch.randint(self.spec.agents, (n, 1), generator=generator, device=self.device)
        return torch.arange(self.spec.agents, device=self.device) == ego

    def return_label(self, batch: dict[str, Tensor]) -> Tensor:
        """What a plan is conditioned on, unscaled (B, agent): the return from now on, or of the whole episode."""
        return batch["returns"] if self.config.return_label == "to-go" else self.episode_returns[batch["episode"]]

    def _diffusion_loss(self, batch: dict[str, Tensor], generator: torch.Generator) -> Tensor:
        x, valid, returns = batch["observations"], batch["valid"], self.return_label(batch)
        if not self.config.agreement:
            visible = self.visible(len(x), generator)
            return denoising_loss(**self._task(x, valid, returns, visible, generator), generator=generator)[0]
        half = len(x) // 2
        visible = self.visible(half, generator)
        pair = torch.cat([visible, self.another(visible, generator)])
        task = self._task(x[:half], valid[:half], returns[:half], pair, generator)
        return agreement_loss(**task, agreement=self.config.agreement, generator=generator)[0]

    def another(self, visible: Tensor, generator: torch.Generator) -> Tensor:
        """Another single ego than that of visible (n, agent), any with the same probability."""
        steps = torch.randint(1, self.spec.agents, visible.shape[:1], generator=generator, device=self.device)
        ego = (visible.byte().argmax(-1) + steps) % self.spec.agents
        return torch.arange(self.spec.agents, device=self.device) == ego[:, None]

    def _task(
        self, x: Tensor, valid: Tensor, returns: Tensor, visible: Tensor, generator: torch.Generator
    ) -> dict[str, Any]:  # fmt: skip
        """What both objectives are told of windows x (n, T, agent, F), seen once by each n rows of visible."""
        keep = torch.rand(len(x), generator=generator, device=self.device) >= self.config.condition_dropout
        views = len(visible) // len(x)
        x, valid, returns, keep = (torch.cat([v] * views) for v in (x, valid, returns, keep))
        value, mask = self.preprocessing.condition(x, visible, self.config.history)
        scaled = (returns / self.preprocessing.returns_scale)[..., None]
        return {
            "denoiser": self.networks["denoiser"], "x0": torch.where(mask > 0, value, x),
            "cond": {"returns": scaled, "keep": keep.to(x.dtype)}, "schedule": self.schedule,
            "parametrization": self.parametrization, "known_mask": mask,
            "weight": (1 - mask) * valid[:, :, None, None],
        }  # fmt: skip

    def _inverse_loss(self, batch: dict[str, Tensor]) -> Tensor:
        x, available = batch["observations"], batch.get("available_actions")
        output = self.networks["inverse"](x[:, :-1], x[:, 1:])
        valid = batch["transition_valid"][..., None].expand(output.shape[:-1])
        return action_loss(output, batch["actions"], valid, available, self.spec.discrete)

    @property
    def plan_features(self) -> int:
        return self.preprocessing.features

    @property
    def plan_length(self) -> int:
        return self.config.history + 1 + self.config.horizon

    def plans(self, batch: dict[str, Tensor], generator: torch.Generator) -> tuple[Tensor, Tensor]:
        x = batch["observations"]
        value, mask = self.preprocessing.condition(x, self.visible(len(x), generator), self.config.history)
        return torch.where(mask > 0, value, x), mask

    def layout(self) -> PlanLayout:
        """What the features of a plan mean: identities, then the observation."""
        leading = [f"agent_{i}" for i in range(self.spec.agents)]
        return make_layout(self.spec, leading, self.preprocessing.normalizer, self.config.history)

    def policy(
        self, hooks: Sequence[Hook] = (), *, guide: Hook | None = None, chooser: Chooser | None = None,
        watch: Watch | None = None,
    ) -> MADiffPolicy:  # fmt: skip
        """The hooks run after clipping and after `guide`; the chooser takes the critic's place."""
        hooks = hooks if guide is None else [guide, *hooks]
        return MADiffPolicy(
            self.config, self.spec, self.preprocessing, self.ema.model, self.schedule, self.parametrization,
            self.critic, hooks, chooser, watch,
        )  # fmt: skip

    def weights(self) -> dict[str, Tensor]:
        critic = {} if self.critic is None else self.critic.weights()
        return super().weights() | {f"critic.{key}": value for key, value in critic.items()}

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """Raises UserError where several candidates are to be ranked and the weights hold no critic."""
        super().load_weights(weights)
        critic = {key.removeprefix("critic."): value for key, value in weights.items() if key.startswith("critic.")}
        if self.critic is None:
            return
        if not critic:
            what = f"{self.config.candidates} candidates need a critic, which this training had not"
            raise UserError(what, "algo.candidates", "1, or a training with algo.critic=true")
        self.critic.load_weights(critic)

    def training_state(self) -> dict[str, Any]:
        return super().training_state() | ({} if self.critic is None else {"critic": self.critic.training_state()})

    def load_training_state(self, state: dict[str, Any]) -> None:
        super().load_training_state(state)
        if self.critic is not None:
            self.critic.load_training_state(state["critic"])


def make(config: Config, spec: EnvironmentSpec, device: torch.device, seed: int) -> MADiff:
    return MADiff(config, spec, device, seed)
