"""FISOR: a feasible region found in the data, and a diffusion policy cloned with weights (arXiv 2401.10700).

Q_h values the worst hazard to come, h = 25 where a step costs something and -1 elsewhere, and V_h its least value over
the data's actions; V_h <= 0 says that no cost need come. Outside that region the data is weighted by exp of V_h - Q_h,
inside it, where Q_h <= 0 too, by exp of the advantage of reward. Of several sampled actions the one with the least Q_h
acts. No cost is tolerated: `cost_limit` does not change what is learnt (the released code has it and ignores it too).

Deviations: temperatures of reward in units of the returns' spread; no dropout; learning rate without decay, widths,
batch, updates and target rate are this suite's. Each agent has its own feasible region of the team's cost, its own
weights and its own samples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from baselines.constrained import CandidatePolicy, ConstrainedActorCritic, ConstrainedConfig, team_costs
from madiff.diffusion.ema import EMA
from madiff.diffusion.guidance import ClipX0
from madiff.diffusion.networks.mlp import ResidualBlock, ResidualMLPDenoiser
from madiff.diffusion.objective import denoising_loss
from madiff.diffusion.parametrization import make_parametrization
from madiff.diffusion.sampler import Sampler
from madiff.diffusion.schedule import make_schedule
from madiff.diffusion.solvers import make_solver
from madiff.interfaces import EnvironmentSpec, within
from madiff.values import ActionCritic, QEnsemble, Transitions, expectile_loss, td_target

NAME = "fisor"


@dataclass
class Config(ConstrainedConfig):
    """hazard: h of a step that costs; expectile: of reward's value, and of the other side of the hazard's.

    *_temperature, largest_*: factor in the exponent of a weight, and its upper end.
    """

    hazard: float = within(0.0, math.inf, 25.0)
    expectile: float = within(0.5, 1.0, 0.9)
    cost_temperature: float = within(0.0, math.inf, 5.0)
    reward_temperature: float = within(0.0, math.inf, 10.0)
    largest_unsafe: float = within(0.0, math.inf, 150.0)
    largest_safe: float = within(0.0, math.inf, 100.0)
    blocks: int = 3
    diffusion_steps: int = 5
    ema_decay: float = within(0.0, 1.0, 0.995)
    ema_start: int = within(0, math.inf, 500)
    candidates: int = 16

    ACTING: ClassVar[tuple[str, ...]] = ("candidates",)


class Denoiser(ResidualMLPDenoiser):
    """IDQL's residual network without dropout."""

    def _body(self, inputs: int, width: int, layers: int, features: int) -> nn.Module:
        blocks = [ResidualBlock(width, dropout=0.0) for _ in range(layers)]
        return nn.Sequential(nn.Linear(inputs, width), *blocks, nn.ReLU(), nn.Linear(width, features))


class FISOR(ConstrainedActorCritic):
    """Learner of FISOR."""

    config: Config
    slow = ("critic", "hazard_critic")

    def __init__(self, config: Config, spec: EnvironmentSpec, device: torch.device, seed: int) -> None:
        super().__init__(config, spec, device, seed)
        self.averages["actor"] = EMA(self.networks["actor"], config.ema_decay, 1, config.ema_start)
        self.schedule = make_schedule("vp", config.diffusion_steps)
        self.parametrization = make_parametrization("epsilon", self.schedule)
        self.sampler = Sampler(self.schedule, self.parametrization, make_solver("ddpm"), hooks=[ClipX0()])
        # padded dimensions are known to be 0
        self.known = None if bool(self.real.all()) else (torch.zeros_like(self.real, dtype=torch.float32), ~self.real)

    def make_networks(self) -> dict[str, nn.Module]:
        features, actions, width = self.encoder.features, self.spec.action_size, self.config.width
        return {
            "critic": ActionCritic(features, actions, width),
            "value": QEnsemble(features, 1, width, critics=1),
            "hazard_critic": ActionCritic(features, actions, width),
            "hazard_value": QEnsemble(features, 1, width, critics=1),
            "actor": Denoiser(actions, width, self.config.blocks, conditions={"observation": features}),
        }

    def update(self, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        steps = Transitions.of(batch, self.scale)
        costly = team_costs(batch["costs"][:, 0])[:, None].expand_as(steps.rewards) > 0
        hazards = torch.where(costly, self.config.hazard, -1.0)
        metrics = self.descend({"value": self.value_loss(steps), "hazard_value": self.hazard_value_loss(steps)})
        metrics |= self.descend({"critic": self.critic_loss(steps), "hazard_critic": self.hazard_loss(steps, hazards)})
        weight = self.weights_of(steps)
        metrics |= self.descend({"actor": self.actor_loss(steps, weight, generator)})
        self.finish_update()
        feasible = (self.at("hazard_value", steps.observations) <= 0).float().mean()
        return metrics | {"weight": weight.mean(), "feasible": feasible}

    @torch.no_grad()
    def slow_values(self, steps: Transitions) -> tuple[Tensor, Tensor]:
        """The lesser slow Q and the greater slow Q_h of the data's actions, (B, agent) each."""
        critic, hazard = (self.targets[name].model for name in self.slow)
        seen, done = steps.observations, steps.actions
        return critic(seen, done).amin(0), hazard(seen, done).amax(0)

    def at(self, name: str, observations: Tensor) -> Tensor:
        """State values (B, agent)."""
        return self.networks[name](observations)[0, ..., 0]

    def value_loss(self, steps: Transitions) -> Tensor:
        """Upper expectile of Q (IQL, arXiv 2110.06169)."""
        difference = self.slow_values(steps)[0] - self.at("value", steps.observations)
        return expectile_loss(difference, self.config.expectile).mean()

    def hazard_value_loss(self, steps: Transitions) -> Tensor:
        """Lower expectile of Q_h: near the least hazard among the data's actions."""
        difference = self.slow_values(steps)[1] - self.at("hazard_value", steps.observations)
        return expectile_loss(difference, 1 - self.config.expectile).mean()

    def critic_loss(self, steps: Transitions) -> Tensor:
        """Squared error against r + g V(o'), summed over the critics."""
        following = self.at("value", steps.next_observations).detach()
        target = td_target(steps.rewards, steps.terminated, following, self.config.discount)
        return (self.networks["critic"](steps.observations, steps.actions) - target).square().mean((1, 2)).sum()

    def hazard_loss(self, steps: Transitions, hazards: Tensor) -> Tensor:
        """Squared error against (1 - g) h + g max(h, V_h(o')), and h at the end, summed over the critics."""
        discount = self.config.discount
        following = self.at("hazard_value", steps.next_observations).detach()
        worst = (1 - discount) * hazards + discount * torch.maximum(hazards, following)
        target = torch.where(steps.terminated[:, None], hazards, worst)
        return (self.networks["hazard_critic"](steps.observations, steps.actions) - target).square().mean((1, 2)).sum()

    @torch.no_grad()
    def weights_of(self, steps: Transitions) -> Tensor:
        """How much each of the data's actions (B, agent) is cloned."""
        config = self.config
        value, hazard = self.slow_values(steps)
        least = self.at("hazard_value", steps.observations)
        advantage = value - self.at("value", steps.observations)
        unsafe = (config.cost_temperature * (least - hazard)).exp().clamp(max=config.largest_unsafe)
        safe = (config.reward_temperature * advantage).exp().clamp(max=config.largest_safe)
        return torch.where(least > 0, unsafe, torch.where(hazard <= 0, safe, 0.0))

    def actor_loss(self, steps: Transitions, weight: Tensor, generator: torch.Generator) -> Tensor:
        """Mean over steps and agents of weight times the squared error of the noise, summed over dimensions."""
        weight = weight[:, None, :, None] * self.real
        loss, _ = denoising_loss(
            self.networks["actor"], steps.actions[:, None], {"observation": steps.observations},
            schedule=self.schedule, parametrization=self.parametrization, generator=generator,
            known_mask=None if self.known is None else self.known[1], weight=weight,
        )  # fmt: skip
        return loss * weight.sum((1, 3)).mean()

    def propose(self, observations: Tensor, generator: torch.Generator) -> Tensor:
        """Actions (candidates, n, agent, D) of the averaged policy at observations (n, agent, F)."""
        shape, k = (len(observations), 1, self.spec.agents, self.spec.action_size), self.config.candidates
        x = self.sampler.sample(
            self.averages["actor"].model, shape, steps=self.config.diffusion_steps, generator=generator,
            cond={"observation": observations}, known=self.known, candidates=k, device=observations.device,
        ).x  # fmt: skip
        return x.reshape(len(x), k, *shape[2:]).movedim(1, 0)

    def policy(self) -> CandidatePolicy:
        hazard = self.targets["hazard_critic"].model

        def score(observations: Tensor, actions: Tensor) -> Tensor:
            return -hazard.many(observations, actions).amax(0)

        networks = (self.averages["actor"].model, hazard)
        return CandidatePolicy(self.encoder, self.propose, score, networks, self.config.diffusion_steps + 1)


def make(config: Config, spec: EnvironmentSpec, device: torch.device, seed: int) -> FISOR:
    return FISOR(config, spec, device, seed)
