"""AdaptDiffuser: a planner that goes on to learn from those of its own plans that are good (arXiv 2302.01877).

Diffuser, and from `first_round` updates on, every `round_every` of them, a round: plans are drawn with guidance from
states of the data; those are kept that a dynamics model finds reachable and the critic of plans finds worth more than
what the data did from there; `synthetic_share` of every batch are then such plans.

What differs from the official code is listed in docs/deviations.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from madiff.diffusion.networks.mlp import mlp
from madiff.interfaces import EnvironmentSpec, UserError, within
from madiff.planners.diffuser import Diffuser
from madiff.planners.diffuser_config import Unconditional

NAME = "adaptdiffuser"
USUAL = 0.95
"""Share of the data's windows that surprise the dynamics no more than is usual."""


@dataclass
class Config(Unconditional):
    """Options of AdaptDiffuser.

    generate: plans drawn in a round; reach: kept are plans no step of which ends further from where the dynamics say,
    beyond what they miss of the data themselves, than this share of the data's usual step; gain: and whose expected
    return exceeds that of the window they begin like by so many standard deviations of the data's returns; capacity:
    plans kept.
    """

    first_round: int = 2500
    round_every: int = 500
    rounds: int = 3
    generate: int = 512
    reach: float = within(0.0, math.inf, 0.5)
    gain: float = within(0.0, math.inf, 0.1)
    capacity: int = 4096
    synthetic_share: float = within(0.0, 1.0, 0.5)
    dynamics_width: int = 256


class AdaptDiffuser(Diffuser):
    """Learner of the plan model, the dynamics by which plans are judged, and all that Diffuser learns."""

    def __init__(self, config: Config, spec: EnvironmentSpec, device: torch.device, seed: int) -> None:
        super().__init__(config, spec, device, seed)
        self.synthetic = torch.zeros(0, config.horizon, spec.agents, self.plan_features, device=device)

    def make_networks(self) -> dict[str, nn.Module]:
        spec, width = self.spec, self.config.dynamics_width
        joint = spec.agents * (spec.action_size + spec.observation_size)
        sizes = joint, width, width, spec.agents * spec.observation_size
        return {**super().make_networks(), "dynamics": mlp(sizes, nn.ReLU)}

    def update(self, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """One step; before it a round, where one is due."""
        since, every = self.updates - self.config.first_round, self.config.round_every
        if since >= 0 and since % every == 0 and since // every < self.config.rounds:
            self.round(generator)
        count = torch.tensor(float(len(self.synthetic)))
        return {**super().update(batch, generator), "synthetic_plans": count}

    def losses(self, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        losses, taken = super().losses(batch, generator), batch["transition_valid"][:, :-1].to(torch.float32)
        error = self.surprise(self.plans(batch, generator)[0], self.networks["dynamics"]).square()
        return {**losses, "dynamics_loss": (error * taken).sum() / taken.sum().clamp(min=1)}

    def surprise(self, plans: Tensor, dynamics: nn.Module) -> Tensor:
        """How far each next waypoint of plans (B, T, agent, F) is from the predicted one, (B, T - 1).

        Root mean square over agents and normalised dimensions of the observation.
        """
        joint = torch.cat([self.preprocessing.actions(plans).flatten(2), self.observed(plans)], dim=-1)[:, :-1]
        return (self.changes(plans) - dynamics(joint)).square().mean(-1).add(1e-12).sqrt()

    def observed(self, plans: Tensor) -> Tensor:
        """What all agents see in plans (B, T, agent, F): (B, T, agent * observation), normalised."""
        return self.preprocessing.observations(plans)[..., self.spec.agents :].flatten(2)

    def changes(self, plans: Tensor) -> Tensor:
        """Of what all agents see from each waypoint to the next, (B, T - 1, agent * observation)."""
        observed = self.observed(plans)
        return observed[:, 1:] - observed[:, :-1]

    @torch.no_grad()
    def round(self, generator: torch.Generator) -> None:
        """Draw plans from states of the data, and keep the good ones among the last `capacity`."""
        now = torch.randint(
            self.source.transitions, (self.config.generate,), generator=generator, device=generator.device
        )  # fmt: skip
        batch = self.source.gather(now.to(self.device))
        plans = self.drawn(batch, generator)
        chosen = plans[self.kept(plans, batch)]
        self.synthetic = torch.cat([self.synthetic, chosen])[-self.config.capacity :]

    def drawn(self, batch: dict[str, Tensor], generator: torch.Generator) -> Tensor:
        """A plan (B, T, agent, F) from the present of each window, as the policy draws it."""
        policy = self.policy()
        policy.reset(0, len(batch["time"]))
        policy.generator = generator
        observations = self.preprocessing.decode(batch["observations"][:, 0])
        shape = (policy.n, policy.candidates, *policy.shape)
        noise = torch.randn(shape, generator=generator, device=generator.device).to(self.device)
        parts = torch.arange(policy.n, device=self.device).split(max(1, self.config.plan_batch // policy.candidates))
        time = batch["time"].to(noise.dtype)
        return torch.cat([policy.draw(observations[i], i, noise[i], {"time": time[i]})[0] for i in parts])

    def kept(self, plans: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """(B,) bool: which plans are reachable and worth enough, by the measure of the data's windows of the batch."""
        real, dynamics = self.plans(batch, torch.Generator())[0], self.ema.model["dynamics"]
        taken = batch["transition_valid"][:, :-1]
        seen = self.surprise(real, dynamics).masked_fill(~taken, 0.0).amax(1).quantile(USUAL)
        step = self.changes(real).square().mean(-1)[taken].mean().sqrt()
        values, elapsed = self.values, self.values.elapsed(batch["time"])
        worth, usual = (values.estimates(x, values.clean, elapsed)["return"].mean for x in (plans, real))
        reachable = self.surprise(plans, dynamics).amax(1) <= seen + self.config.reach * step
        return reachable & (worth > usual + self.config.gain * values.unit("return"))

    def task(self, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Any]:
        """Diffuser's, with kept plans in place of the first rows once there are some."""
        task = super().task(batch, generator)
        rows = int(self.config.synthetic_share * len(task["x0"])) if len(self.synthetic) else 0
        if not rows:
            return task
        chosen = torch.randint(len(self.synthetic), (rows,), generator=generator, device=generator.device)
        x = self.synthetic[chosen.to(self.device)]
        mask = self.preprocessing.known(x)[1]
        always = torch.ones(rows, x.shape[1] + 1, dtype=torch.bool, device=self.device)
        weight = self._weight(x, {"valid": always, "transition_valid": always[:, 1:]})
        own = {"x0": x, "known_mask": mask, "weight": (1 - mask) * weight}
        return task | {name: torch.cat([value, task[name][rows:]]) for name, value in own.items()}

    def training_state(self) -> dict[str, Any]:
        return super().training_state() | {"synthetic": self.synthetic}

    def load_training_state(self, state: dict[str, Any]) -> None:
        super().load_training_state(state)
        self.synthetic = state["synthetic"].to(self.device)


def make(config: Config, spec: EnvironmentSpec, device: torch.device, seed: int) -> AdaptDiffuser:
    if config.values.learn == "none":
        raise UserError("nothing judges what a plan is worth", "algo.values.learn", ("auto", "return", "both"))
    return AdaptDiffuser(config, spec, device, seed)
