"""Diffuser: planning states and actions together by guided denoising (arXiv 2205.09991), for one agent or a team.

What is diffused: windows of [action, observation] per waypoint, the first of them now. The present is in-painted, and
so is the goal where one is named; a learnt return guides the denoising; classifier-free conditions on the return and
on the cost still to come (arXiv 2211.15657) let one model serve all budgets of cost.

What differs from the official code is listed in docs/deviations.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from madiff.data.store import EpisodeStore
from madiff.data.windows import WindowSampler
from madiff.diffusion.ema import EMA
from madiff.diffusion.networks.action_head import action_loss
from madiff.diffusion.objective import denoising_loss
from madiff.diffusion.parametrization import make_parametrization
from madiff.diffusion.schedule import make_schedule
from madiff.interfaces import EnvironmentSpec, Hook, PlanLayout, UserError
from madiff.planners.denoisers import make_denoiser
from madiff.planners.diffuser_config import Config, check, check_controller
from madiff.planners.diffuser_encoding import PlanEncoder
from madiff.planners.diffuser_policy import DiffuserPolicy
from madiff.planners.inverse_dynamics import InverseDynamics
from madiff.planners.planner import Chooser, Planner, Watch
from madiff.values.plan_values import PlanValueConfig, plan_labels

NAME = "diffuser"
__all__ = ["NAME", "Config", "Diffuser", "PlanValueConfig", "make"]


class Diffuser(Planner):
    """Learner of the plan model, the inverse dynamics (total loss: their sum), and the critics of plans.

    A method made of it says what it adds: `make_networks`, `losses`, `task` (what is denoised), `policy_class`.
    """

    values_of_returns = True
    policy_class: ClassVar[type[DiffuserPolicy]] = DiffuserPolicy
    carried_out = True  # whether its plans are acted on, and not only handed to another planner

    def __init__(self, config: Config, spec: EnvironmentSpec, device: torch.device, seed: int) -> None:
        self.config, self.spec, self.device, self.seed = config, spec, device, seed
        self.check()
        self.preprocessing = PlanEncoder(
            spec, config.normalizer, config.goal, config.goal_source, config.plans_actions
        ).to(device)
        self.shown = self.preprocessing.shown(config.inverse_sees).to(device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.networks = nn.ModuleDict(self.make_networks()).to(device)
        self.schedule = make_schedule(config.schedule, steps=config.diffusion_steps)
        self.parametrization = make_parametrization(config.parametrization, self.schedule)
        super().__init__(
            self.networks, self.preprocessing,
            torch.optim.Adam(self.networks.parameters(), lr=config.learning_rate, fused=True),
            EMA(self.networks, config.ema_decay, config.ema_every, config.ema_start),
        )  # fmt: skip

    def check(self) -> None:
        """Refuse what no run could use, before anything is built."""
        check(self.config)
        if self.carried_out:
            check_controller(self.config, self.spec)

    def make_networks(self) -> dict[str, nn.Module]:
        """Denoiser and inverse dynamics, drawn from torch's own generator."""
        config, spec = self.config, self.spec
        conditions = {name: 1 for name in config.conditions}
        networks = {"denoiser": make_denoiser(config, self.plan_features, config.horizon, conditions)}
        if config.inverse_dynamics != "none" and self.carried_out:
            networks["inverse"] = InverseDynamics(
                self.preprocessing.features, spec.action_size, spec.agents, config.inverse_width,
                config.inverse_dynamics,
            )  # fmt: skip
        return networks

    @property
    def plan_features(self) -> int:
        return self.preprocessing.plan_features

    @property
    def plan_length(self) -> int:
        return self.config.horizon

    def layout(self) -> PlanLayout:
        """What the features of a plan mean: actions, where it holds some, identities, then the observation."""
        return self.preprocessing.layout(self.config.stride)

    def batches(self, store: EpisodeStore) -> WindowSampler:
        """Fit the normaliser and the scales; normalise once, so that a batch is one gather."""
        encoder = self.preprocessing
        encoder.fit(store)
        if encoder.motion is not None and self.config.positions:
            encoder.motion.fit(store)
        for scale, given, seen in ((encoder.returns_scale, self.config.returns_scale, store.returns()),
                                   (encoder.costs_scale, self.config.costs_scale, store.team_costs())):  # fmt: skip
            largest = given or float(seen.max())
            scale.fill_(largest if largest > 0 else 1.0)
        self.costs = plan_labels(store, 1.0)[:, 1].to(self.device)
        self.first = store.offsets.to(self.device)
        source = WindowSampler(
            store, history=0, horizon=self.config.horizon, batch_size=self.config.batch_size, device=self.device,
            discount=self.config.discount, stride=self.config.stride,
            observations=encoder.encode(store.observations.to(self.device)),
        )  # fmt: skip
        self.fit_values(store, source)
        return source

    def plans(self, batch: dict[str, Tensor], generator: torch.Generator) -> tuple[Tensor, Tensor]:
        x = self.preprocessing.plan(batch["observations"][:, :-1], batch["actions"])
        return x, self.preprocessing.known(x)[1]

    def update(self, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        losses = self.losses(batch, generator)
        loss = sum(losses.values())
        norm = self.gradient_step(loss, self.config.gradient_clip)
        metrics = {"loss": loss, **losses, "gradient_norm": norm, **self.update_values(batch, generator)}
        return {name: value.detach() for name, value in metrics.items()}

    def losses(self, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """What the networks minimise together, by name."""
        losses = {"diffusion_loss": self._diffusion_loss(batch, generator)}
        if "inverse" in self.networks:
            losses["inverse_loss"] = self._inverse_loss(batch, generator)
        return losses

    def conditions(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return and the team's cost from now on, in units of their scales, and the time: (B, agent, 1) each."""
        paid = self.costs[self.first[batch["episode"]] + batch["time"]] / self.preprocessing.costs_scale
        gone = batch["time"] / self.spec.episode_limit
        told = {
            "return": (batch["returns"] / self.preprocessing.returns_scale)[..., None],
            "cost": paid[:, None, None].expand(-1, self.spec.agents, -1),
            "time": gone[:, None, None].expand(-1, self.spec.agents, -1),
        }
        return {name: told[name] for name in self.config.conditions}

    def task(self, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Any]:
        """What of a window batch is denoised: the plans x0, what is known of them, what it counts, and conditions."""
        observations = batch["observations"][:, :-1]
        if self.config.relabel:
            observations = self.preprocessing.relabel(observations)
        x = self.preprocessing.plan(observations, batch["actions"])
        mask = self.preprocessing.known(x)[1]
        cond = self.conditions(batch)
        if cond:
            kept = torch.rand(len(x), generator=generator, device=self.device) >= self.config.condition_dropout
            cond["keep"] = kept.to(x.dtype)
        return {"x0": x, "cond": cond, "known_mask": mask, "weight": (1 - mask) * self._weight(x, batch)}

    def _diffusion_loss(self, batch: dict[str, Tensor], generator: torch.Generator) -> Tensor:
        return denoising_loss(
            self.networks["denoiser"], schedule=self.schedule, parametrization=self.parametrization,
            generator=generator, **self.task(batch, generator),
        )[0]  # fmt: skip

    def _weight(self, x: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """What every entry of the plans counts, before the known ones are left out."""
        actions, observations = self.preprocessing.actions(x), self.preprocessing.observations(x)
        taken = batch["transition_valid"].to(x.dtype)[..., None, None].expand_as(actions).clone()
        taken[:, 0] *= self.config.action_weight
        seen = batch["valid"][:, :-1].to(x.dtype)[..., None, None].expand_as(observations)
        return torch.cat([taken, torch.ones_like(seen) if self.config.past_end == "stay" else seen], dim=-1)

    def _inverse_loss(self, batch: dict[str, Tensor], generator: torch.Generator) -> Tensor:
        now, then, actions, valid = self.moves(batch)
        output = self.networks["inverse"](now, then)
        available = batch["available_actions"][:, : now.shape[1]] if "available_actions" in batch else None
        return action_loss(output, actions, valid[..., None].expand(output.shape[:-1]), available, self.spec.discrete)

    def moves(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What the inverse dynamics learns from: now, then (B, n, agent, F), the actions now, and which there are."""
        ahead, x = self.config.inverse_ahead, batch["observations"]
        count = x.shape[1] - ahead
        valid = batch["transition_valid"][:, :count] & batch["valid"][:, ahead:]
        return x[:, :count], self.shown * x[:, ahead:], batch["actions"][:, :count], valid

    def policy(
        self, hooks: Sequence[Hook] = (), *, guide: Hook | None = None, chooser: Chooser | None = None,
        watch: Watch | None = None,
    ) -> DiffuserPolicy:  # fmt: skip
        """The hooks run after clipping and after `guide`, which takes the place of the value guidance."""
        return self.policy_class(self, hooks, guide, chooser, watch)

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """Raises UserError where several candidates are to be ranked and the weights hold no critic."""
        super().load_weights(weights)
        if self.config.candidates > 1 and self.values is None:
            what = f"{self.config.candidates} candidates need a critic of plans, which this training had not"
            raise UserError(what, "algo.candidates", "1, or a training with algo.values.learn=return")


def make(config: Config, spec: EnvironmentSpec, device: torch.device, seed: int) -> Diffuser:
    return Diffuser(config, spec, device, seed)
