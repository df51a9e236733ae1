"""MADiff: one attention-based diffusion model of all agents' joint trajectory (arXiv 2305.17330).

What is diffused: normalised observation windows of `history` past steps, now, and `horizon` future steps. Actions
come from an inverse dynamics model on consecutive planned observations. Centralised execution (MADiff-C) shows the
model every agent's history; decentralised execution (MADiff-D) shows it one agent's, and the model generates the
teammates' present and future: teammate modelling. The two differ in one mask, `visible`.

What differs from the official code is listed in docs/deviations.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from madiff.interfaces import EnvironmentSpec, Hook, PlanLayout, UserError
from madiff.planners.denoisers import make_denoiser
from madiff.planners.inverse_dynamics import InverseDynamics
from madiff.planners.joint_critic import EXTRAS, make_joint_critic
from madiff.planners.madiff_config import Config, check, check_agreement, check_student
from madiff.planners.madiff_policy import MADiffPolicy
from madiff.planners.one_step import OneStep
from madiff.planners.planner import Chooser, Planner, Watch, make_layout
from madiff.planners.preprocessing import Preprocessing
from madiff.values import ActorCritic

TRANSITIONS = ("observations", "actions", "transition_valid", "available_actions")
"""Of a window batch, what the inverse dynamics learns from."""


def make_networks(
    config: Config, spec: EnvironmentSpec, seed: int, conditions: Mapping[str, int], shown: Tensor | None = None
) -> nn.ModuleDict:
    """Denoiser and inverse dynamics with weights drawn from the seed alone; conditions: name -> size per agent.

    shown: what the inverse dynamics sees of the next observation, see `InverseDynamics`.
    """
    features = spec.agents + spec.observation_size
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inverse = InverseDynamics(
            features, spec.action_size, spec.agents, config.inverse_width, config.inverse_dynamics, shown
        )
        length = config.history + 1 + config.horizon
        return nn.ModuleDict({"denoiser": make_denoiser(config, features, length, conditions), "inverse": inverse})


class MADiff(Planner):
    """Learner of the joint diffusion model and the inverse dynamics, with one optimiser (total loss 1/2 of each)."""

    policy_class: ClassVar[type[MADiffPolicy]] = MADiffPolicy
    preprocessing_class: ClassVar[type[Preprocessing]] = Preprocessing
    extras: ClassVar[tuple[str, ...]] = ()  # of a window batch, besides what a critic needs

    def __init__(self, config: Config, spec: EnvironmentSpec, device: torch.device, seed: int) -> None:
        check(config)
        check_agreement(config, spec)
        check_student(config)
        self.config, self.spec, self.device, self.seed = config, spec, device, seed
        self.preprocessing = self.preprocessing_class(spec, config.normalizer).to(device)
        shown = self.preprocessing.shown(config.inverse_sees) if config.inverse_sees else None
        self.networks = make_networks(config, spec, seed, self.condition_sizes, shown).to(device)
        self.schedule = make_schedule(config.schedule, steps=config.diffusion_steps)
        self.parametrization = make_parametrization(config.parametrization, self.schedule)
        self.critic = make_joint_critic(config, spec, device, seed)
        self.student = self._make_student() if config.distill_every else None
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
            extras=tuple(dict.fromkeys((*self.extras, *(EXTRAS if self.critic is not None else ())))),
        )  # fmt: skip
        self.fit_values(store, source)
        return source

    def update(self, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        *earlier, last = self._inverse_parts(batch)
        losses = [self._inverse_step(part) for part in earlier]
        diffusion, ending = self._diffusion_loss(batch, generator), self._inverse_loss(last)
        norm = self.gradient_step(0.5 * (diffusion + ending), self.config.gradient_clip)
        inverse = torch.stack([*losses, ending.detach()]).mean()
        loss = 0.5 * (diffusion + inverse)
        metrics = {"loss": loss, "diffusion_loss": diffusion, "inverse_loss": inverse, "gradient_norm": norm}
        if self.critic is not None:
            metrics |= self.critic.update(batch, self.config.history)
        if self.student is not None and self._student_learns():
            metrics |= self._distill(batch["observations"], self.asked(batch), generator)
        metrics |= self.update_values(batch, generator)
        return {name: value.detach() for name, value in metrics.items()}

    def visible(self, n: int, generator: torch.Generator) -> Tensor:
        """(n, agent) bool: all agents for centralised execution, one ego agent drawn per sample otherwise."""
        if self.config.execution == "centralised":
            return torch.ones(n, self.spec.agents, dtype=torch.bool, device=self.device)
        ego = torch.randint(self.spec.agents, (n, 1), generator=generator, device=self.device)
        return torch.arange(self.spec.agents, device=self.device) == ego

    @property
    def condition_sizes(self) -> dict[str, int]:
        """What plans are conditioned on, and the size of it per agent."""
        return {"returns": 1}

    def conditions(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """What the plans of a window batch are conditioned on, (B, agent, size) each."""
        return {"returns": (self.return_label(batch) / self.preprocessing.returns_scale)[..., None]}

    def return_label(self, batch: dict[str, Tensor]) -> Tensor:
        """What a plan is conditioned on, unscaled (B, agent): the return from now on, or of the whole episode."""
        return batch["returns"] if self.config.return_label == "to-go" else self.episode_returns[batch["episode"]]

    def asked(self, batch: dict[str, Tensor]) -> Tensor:
        """What a policy would ask for at the windows' present, scaled (B, agent): the target less what was paid."""
        config = self.config
        whole = torch.full_like(batch["returns"], config.target_return)
        if not config.track_return or config.return_label == "episode":
            return whole
        paid = self.episode_returns[batch["episode"]] - batch["returns"]
        return (whole - paid / self.preprocessing.returns_scale).clamp(min=0.0).to(whole.dtype)

    def _diffusion_loss(self, batch: dict[str, Tensor], generator: torch.Generator) -> Tensor:
        x, valid, cond = batch["observations"], batch["valid"], self.conditions(batch)
        if not self.config.agreement:
            visible = self.visible(len(x), generator)
            return denoising_loss(**self._task(x, valid, cond, visible, generator), generator=generator)[0]
        half = len(x) // 2
        visible = self.visible(half, generator)
        pair = torch.cat([visible, self.another(visible, generator)])
        cond = {name: value[:half] for name, value in cond.items()}
        task = self._task(x[:half], valid[:half], cond, pair, generator)
        return agreement_loss(**task, agreement=self.config.agreement, generator=generator)[0]

    def another(self, visible: Tensor, generator: torch.Generator) -> Tensor:
        """Another single ego than that of visible (n, agent), any with the same probability."""
        steps = torch.randint(1, self.spec.agents, visible.shape[:1], generator=generator, device=self.device)
        ego = (visible.byte().argmax(-1) + steps) % self.spec.agents
        return torch.arange(self.spec.agents, device=self.device) == ego[:, None]

    def _task(
        self, x: Tensor, valid: Tensor, cond: dict[str, Tensor], visible: Tensor, generator: torch.Generator
    ) -> dict[str, Any]:  # fmt: skip
        """What both objectives are told of windows x (n, T, agent, F), seen once by each n rows of visible."""
        keep = torch.rand(len(x), generator=generator, device=self.device) >= self.config.condition_dropout
        views = len(visible) // len(x)
        x, valid, keep = (torch.cat([v] * views) for v in (x, valid, keep))
        cond = {name: torch.cat([value] * views) for name, value in cond.items()}
        value, mask = self.preprocessing.condition(x, visible, self.config.history)
        return {
            "denoiser": self.networks["denoiser"], "x0": torch.where(mask > 0, value, x),
            "cond": {**cond, "keep": keep.to(x.dtype)}, "schedule": self.schedule,
            "parametrization": self.parametrization, "known_mask": mask,
            "weight": (1 - mask) * valid[:, :, None, None],
        }  # fmt: skip

    def _inverse_parts(self, batch: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        """The transitions of a window batch in `inverse_steps` parts, fewer where there are fewer windows.

        The inverse dynamics is cheap, and learns slower than the denoiser: it gets a step of the optimiser for each.
        """
        names = [name for name in TRANSITIONS if name in batch]
        parts = zip(*(batch[name].chunk(self.config.inverse_steps) for name in names), strict=True)
        return [dict(zip(names, part, strict=True)) for part in parts]

    def _inverse_step(self, batch: dict[str, Tensor]) -> Tensor:
        """A step of the inverse dynamics alone; its loss before."""
        loss = self._inverse_loss(batch)
        self.descend(0.5 * loss, self.config.gradient_clip)
        return loss.detach()

    def _inverse_loss(self, batch: dict[str, Tensor]) -> Tensor:
        x, available = batch["observations"], batch.get("available_actions")
        output = self.networks["inverse"](x[:, :-1], x[:, 1:])
        valid = batch["transition_valid"][..., None].expand(output.shape[:-1])
        return action_loss(output, batch["actions"], valid, available, self.spec.discrete)

    def _make_student(self) -> OneStep:
        return OneStep(
            self.networks["denoiser"], self.schedule, self.parametrization, self.config.learning_rate,
            self.config.gradient_clip,
        )  # fmt: skip

    def _student_learns(self) -> bool:
        return self.updates > self.config.ema_start and self.updates % self.config.distill_every == 0

    def _distill(self, x: Tensor, target: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        ego = torch.randint(self.spec.agents, (len(x),), generator=generator, device=self.device)
        history = x[:, : self.config.history + 1]
        return self.student.update(self._acting(None), history, ego, target, generator)

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
        student = self.student.ema.model if self.config.one_step else None
        return self._acting(student, hooks if guide is None else [guide, *hooks], chooser, watch)

    def _acting(
        self, student: nn.Module | None, hooks: Sequence[Hook] = (), chooser: Chooser | None = None,
        watch: Watch | None = None,
    ) -> MADiffPolicy:  # fmt: skip
        return self.policy_class(
            self.config, self.spec, self.preprocessing, self.ema.model, self.schedule, self.parametrization,
            self.critic, hooks, chooser, watch, student,
        )  # fmt: skip

    @property
    def _beside(self) -> dict[str, ActorCritic | OneStep]:
        """The learners beside the planner, by the name their weights have."""
        beside = {"critic": self.critic, "student": self.student}
        return {name: learner for name, learner in beside.items() if learner is not None}

    def weights(self) -> dict[str, Tensor]:
        own = super().weights()
        return own | {f"{name}.{key}": v for name, one in self._beside.items() for key, v in one.weights().items()}

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """Raises UserError where several candidates are to be ranked and the weights hold no critic."""
        super().load_weights(weights)
        for name, learner in self._beside.items():
            held = {key.removeprefix(f"{name}."): v for key, v in weights.items() if key.startswith(f"{name}.")}
            if not held:
                raise UserError(*self._missing(name))
            learner.load_weights(held)

    def _missing(self, name: str) -> tuple[str, str, str]:
        if name == "student":
            return "there is no student in this training", "algo.distill_every", "0"
        what = f"{self.config.candidates} candidates need a critic, which this training had not"
        return what, "algo.candidates", "1, or a training with algo.critic=true"

    def training_state(self) -> dict[str, Any]:
        return super().training_state() | {name: one.training_state() for name, one in self._beside.items()}

    def load_training_state(self, state: dict[str, Any]) -> None:
        super().load_training_state(state)
        for name, learner in self._beside.items():
            learner.load_training_state(state[name])


def make(config: Config, spec: EnvironmentSpec, device: torch.device, seed: int) -> MADiff:
    return MADiff(config, spec, device, seed)
