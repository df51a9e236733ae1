"""Acting with MADiff: plan for all agents of all environments in one batch, execute the first planned step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from madiff.diffusion.guidance import ClassifierFree, ClipX0
from madiff.diffusion.networks.action_head import greedy_action
from madiff.diffusion.parametrization import Parametrization
from madiff.diffusion.sampler import Sampler
from madiff.diffusion.schedule import Schedule
from madiff.diffusion.solvers import make_solver
from madiff.interfaces import EnvironmentSpec

if TYPE_CHECKING:
    from madiff.planners.madiff import Config, Preprocessing

# What becomes of the planned next observation before the inverse dynamics reads it: kept; replaced by the current
# observation (does the plan matter?); replaced by another battle's plan (does it matter which?).
ABLATIONS = ("none", "frozen", "shuffled")


class MADiffPolicy:
    """Receding-horizon execution: one plan per team (centralised) or per agent (decentralised) at every step.

    Decentralised agents of one environment share their initial noise when `common_noise` is set: common random
    numbers cost no communication and keep the agents' plans consistent. An agent with one legal action (a dead
    one) needs no plan and gets none.
    """

    def __init__(
        self, config: Config, spec: EnvironmentSpec, preprocessing: Preprocessing, networks: nn.ModuleDict,
        schedule: Schedule, parametrization: Parametrization,
    ) -> None:  # fmt: skip
        self.config, self.spec, self.preprocessing = config, spec, preprocessing
        self.inverse = networks["inverse"]
        self.denoiser = ClassifierFree(networks["denoiser"], config.guidance_weight)
        self.sampler = Sampler(schedule, parametrization, make_solver(config.solver), hooks=[ClipX0()])
        schedule.grid(config.sampler_steps)  # refuses an impossible number of steps now, not after training
        self.decentralised = config.execution == "decentralised"
        self.parameters = sum(p.numel() for p in networks.parameters())
        self.network_calls_per_decision = config.sampler_steps

    def reset(self, seed: int, n: int) -> None:
        device = self.preprocessing.returns_scale.device
        self.generator = torch.Generator(device).manual_seed(seed)
        self.history: Tensor | None = None
        self.n = n
        self.target = torch.full((n, self.spec.agents), self.config.target_return, device=device)

    def receive(self, rewards: Tensor) -> None:
        """Lower the return asked for by what has been paid: R <- (R - r) / discount, in the scale of the labels.

        Only where the labels are returns-to-go and `track_return` is set; it never falls below 0.
        """
        if self.config.track_return and self.config.return_label == "to-go":
            paid = rewards / self.preprocessing.returns_scale
            self.target = ((self.target - paid) / self.config.discount).clamp(min=0.0)

    @torch.no_grad()
    def act(self, observations: Tensor, masks: Tensor | None, active: Tensor | None = None) -> Tensor:
        self._remember(observations)
        environment, ego = self._planning_rows(masks, active)
        output = torch.zeros(self.n, self.spec.agents, self.spec.action_size, device=observations.device)
        noise = self._noise()
        chunks = torch.arange(len(environment)).split(self.config.plan_batch) if len(environment) else ()
        for rows in chunks:
            e, a = environment[rows], ego[rows]
            plan = self.plan(self.history[e], a, noise[e, a % noise.shape[1]], self.target[e])
            actions = self.inverse(*self._transition(plan, e))
            if self.decentralised:
                output[e, a] = actions[torch.arange(len(a)), a]
            else:
                output[e] = actions
        return greedy_action(output, masks, self.spec.discrete)

    def plan(self, history: Tensor, ego: Tensor, noise: Tensor, target: Tensor) -> Tensor:
        """Sample joint plans (B, T, agent, F) from encoded histories (B, history + 1, agent, F).

        ego (B,): the agent whose observations are visible, ignored when centralised; noise (B, T, agent, F) ~ N(0, I);
        target (B, agent): the return asked for, 1 = the best in the data.
        """
        now, horizon = self.config.history, self.config.horizon
        x = torch.cat([history, history[:, -1:].expand(-1, horizon, -1, -1)], dim=1)
        visible = torch.ones(x.shape[0], x.shape[2], dtype=torch.bool, device=x.device)
        if self.decentralised:
            visible = torch.arange(x.shape[2], device=x.device) == ego[:, None]
        cond = {"returns": target[..., None], "keep": x.new_ones(x.shape[0])}
        sample = self.sampler.sample(
            self.denoiser, x.shape, steps=self.config.sampler_steps, cond=cond, noise=noise,
            known=self.preprocessing.condition(x, visible, now), temperature=self.config.temperature,
            generator=self.generator,
        )  # fmt: skip
        return sample.x

    def _transition(self, plan: Tensor, environment: Tensor) -> tuple[Tensor, Tensor]:
        """The planned observations now and one step on, (B, agent, F) each, under the ablation chosen.

        shuffled: the plan half the batch away, so one of another battle where any other is planned for.
        """
        now, then = plan[:, self.config.history], plan[:, self.config.history + 1]
        if self.config.plan_ablation == "frozen":
            return now, now
        if self.config.plan_ablation == "shuffled":
            battles, number = environment.unique(return_inverse=True)
            donors = torch.searchsorted(number, (number + (len(battles) + 1) // 2) % len(battles))
            return now, torch.cat([now[..., : self.spec.agents], then[donors][..., self.spec.agents :]], dim=-1)
        return now, then

    def _remember(self, observations: Tensor) -> None:
        encoded = self.preprocessing.encode(observations)[:, None]
        if self.history is None:
            self.history = encoded.expand(-1, self.config.history + 1, -1, -1)
        else:
            self.history = torch.cat([self.history[:, 1:], encoded], dim=1)

    def _planning_rows(self, masks: Tensor | None, active: Tensor | None) -> tuple[Tensor, Tensor]:
        """The (environment, ego) pairs that need a plan; one pair with ego 0 per environment when centralised."""
        needed = torch.ones(self.n, self.spec.agents, dtype=torch.bool, device=self.history.device)
        if masks is not None:
            needed = masks.sum(-1) > 1
        if active is not None:
            needed = needed & active[:, None]
        if self.decentralised:
            return needed.nonzero(as_tuple=True)
        environment = needed.any(1).nonzero()[:, 0]
        return environment, torch.zeros_like(environment)

    def _noise(self) -> Tensor:
        """(n, 1 or agent, T, agent, F): drawn for all environments, so that no battle's plan depends on the others."""
        copies = self.spec.agents if self.decentralised and not self.config.common_noise else 1
        length = self.config.history + 1 + self.config.horizon
        shape = (self.n, copies, length, self.spec.agents, self.preprocessing.features)
        return torch.randn(shape, generator=self.generator, device=self.generator.device)
