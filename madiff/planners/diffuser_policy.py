"""Acting with Diffuser: plan for all agents of all environments in one batch, carry out a few steps, plan again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from madiff.diffusion.guidance import ClassifierFree, ClipX0
from madiff.diffusion.networks.action_head import greedy_action, legal_logits
from madiff.diffusion.sampler import Sampler
from madiff.diffusion.solvers import make_solver
from madiff.interfaces import Hook
from madiff.planners.consistent_motion import ConsistentMotion
from madiff.planners.planner import Chooser, Planned, Watch
from madiff.planners.preprocessing import dimensions
from madiff.planners.preview import Preview
from madiff.values.plan_values import ReturnGuidance

if TYPE_CHECKING:
    from madiff.planners.diffuser import Diffuser

# What becomes of a plan: its actions are carried out; the inverse dynamics leads to its observations; its positions are
# followed by a proportional and derivative controller, or by one that looks ahead.
CONTROLLERS = ("plan", "inverse", "track", "preview")


class DiffuserPolicy:
    """One plan for the team every `execute` steps, for all environments in one batch.

    guide: takes the place of the planner's own value guidance; chooser: of its choice of the largest expected return;
    watch is shown every plan that is carried out.
    context: tensors (n, ...) by name that the caller may set before any step; hooks and chooser find them, and `time`,
    the steps since `reset`, of the environment that is planned for.
    """

    def __init__(
        self, learner: Diffuser, hooks: Sequence[Hook] = (), guide: Hook | None = None,
        chooser: Chooser | None = None, watch: Watch | None = None,
    ) -> None:  # fmt: skip
        config = self.config = learner.config
        self.spec, self.encoder, self.values = learner.spec, learner.preprocessing, learner.values
        self.shape = (config.horizon, self.spec.agents, self.encoder.plan_features)
        self.networks, self.chooser, self.watch = learner.ema.model, chooser, watch
        self.candidates = config.candidates if chooser is None else chooser.candidates
        self.shown, self.context = learner.shown, dict[str, Tensor]()
        denoiser = self.networks["denoiser"]
        self.denoiser = ClassifierFree(denoiser, config.guidance_weight) if config.conditions else denoiser
        guide = own_guide(learner) if guide is None else guide
        guides = [] if guide is None else [guide]
        self.position, self.velocity = (
            dimensions(self.spec, names, f"algo.{key}")
            for key, names in (("positions", config.positions), ("velocities", config.velocities))
        )
        solver, ours = make_solver(config.solver), [*self._habits(), *guides]
        self.sampler = Sampler(learner.schedule, learner.parametrization, solver, [*ours, *hooks])
        learner.schedule.grid(config.sampler_steps)  # refuses an impossible number of steps now
        critics = self.values is not None and (self.candidates > 1 or guides)
        self.parameters = parameters(denoiser) + (self.values.parameters if critics else 0)
        inverse = "inverse" in self.networks and config.controller == "inverse"
        self.parameters += parameters(self.networks["inverse"]) if inverse else 0
        calls = 1 + sum(getattr(hook, "repeats", 0) for hook in (*guides, *hooks))
        self.network_calls_per_decision = config.sampler_steps * calls / config.execute

    def _habits(self) -> list[Hook]:
        """Hooks before all guides and safeguards: clean estimates are clipped, the finished plan made to agree."""
        config = self.config
        habits: list[Hook] = [] if config.normalizer == "gaussian" else [ClipX0()]
        if config.motion_seconds:
            seconds, weight = config.motion_seconds, config.motion_weight
            habits.append(ConsistentMotion(self.encoder, self.position, self.velocity, seconds, weight))
        return habits

    def reset(self, seed: int, n: int) -> None:
        self.device = self.encoder.returns_scale.device
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.n, self.steps = n, 0
        self.plans = torch.zeros((n, *self.shape), device=self.device)
        self.target = torch.full((n, self.spec.agents), self.config.target_return, device=self.device)
        self.budget = torch.full((n,), self.config.cost_limit, device=self.device)
        if self.config.controller == "preview":
            motion, ahead = self.encoder.motion, self.config.preview_steps
            self.preview = Preview(motion, self.position, self.velocity, ahead)

    def receive(self, rewards: Tensor) -> None:
        """Lower the return asked for by what has been paid: R <- (R - r) / discount, in the scale of the labels."""
        if self.config.track_return:
            paid = rewards / self.encoder.returns_scale
            self.target = ((self.target - paid) / self.config.discount).clamp(min=0.0)

    def pay(self, costs: Tensor) -> None:
        """Lower the cost that plans are conditioned on: b <- b - c, c the mean over agents; it may become negative."""
        self.budget = self.budget - costs.mean(1)

    @torch.no_grad()
    def act(self, observations: Tensor, masks: Tensor | None, active: Tensor | None = None) -> Tensor:
        step = self.steps % self.config.execute
        if step == 0:
            self._plan(observations, active)
        self.steps += 1
        return self.follow(step, observations, masks)

    def follow(self, step: int, observations: Tensor, masks: Tensor | None) -> Tensor:
        """The actions of the plans made `step` steps ago."""
        controls = {"plan": self._action, "inverse": self._inverse, "track": self._track, "preview": self._preview}
        return controls[self.config.controller](step, observations, masks)

    def sample(
        self, known: tuple[Tensor, Tensor], noise: Tensor, told: dict[str, Tensor], cond: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, list[Tensor]]]:
        """Plans (B, candidates, T, agent, F), and what hooks reported.

        known: value and mask (B, T, agent, F); noise (B, candidates, T, agent, F) ~ N(0, I); told: context of the
        hooks; cond: of the denoiser, led by B.
        """
        drawn = self.sampler.sample(
            self.denoiser, known[0].shape, steps=self.config.sampler_steps, generator=self.generator, cond=cond,
            known=known, candidates=noise.shape[1], temperature=self.config.temperature, noise=noise.flatten(0, 1),
            context=told,
        )  # fmt: skip
        return drawn.x.view_as(noise), drawn.info

    def _known(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        """In-painting of plans (B, T, agent, F) from raw observations (B, agent, O)."""
        nothing = observations.new_zeros(*observations.shape[:-1], self.encoder.action_size)
        start = torch.cat([nothing, self.encoder.encode(observations)], dim=-1)
        return self.encoder.known(start[:, None].expand(-1, self.config.horizon, -1, -1), self._ends(observations))

    def _ends(self, observations: Tensor) -> Tensor | None:
        """Where plans are to end, normalised (B, agent, goals); None where anywhere."""
        return self.encoder.goals(observations) if self.config.goal else None

    def _plan(self, observations: Tensor, active: Tensor | None) -> None:
        """Replace the plans of the environments that still run; noise is drawn for all, so none depends on others."""
        shape = (self.n, self.candidates, *self.shape)
        noise = torch.randn(shape, generator=self.generator, device=self.device)
        told = {"time": observations.new_full((self.n,), self.steps), **self.context}
        running = torch.ones_like(self.budget, dtype=torch.bool) if active is None else active
        for rows in running.nonzero()[:, 0].split(max(1, self.config.plan_batch // self.candidates)):
            mine = {name: value[rows] for name, value in told.items()}
            chosen, known, info = self.draw(observations[rows], rows, noise[rows], mine)
            self.plans[rows] = chosen
            if self.watch is not None:
                self.watch(Planned(chosen, known.bool(), mine, info))

    def draw(
        self, observations: Tensor, rows: Tensor, noise: Tensor, told: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor, dict[str, list[Tensor]]]:
        """Plans (B, T, agent, F) for the environments `rows`, which entries are known, and what hooks reported.

        observations (B, agent, O) raw; noise and told as `sample` takes them.
        """
        known = self._known(observations)
        plans, info = self.sample(known, noise, told, self._conditions(rows))
        return self._choose(plans, told, info), known[1], info

    def _conditions(self, rows: Tensor) -> dict[str, Tensor]:
        """Return and cost still to come, in the scale of the labels, and the time, (B, agent, 1) each."""
        target = self.target[rows, :, None]
        cost = (self.budget.clamp(min=0.0) / self.encoder.costs_scale)[rows, None, None]
        gone = torch.full_like(target, self.steps / self.spec.episode_limit)
        cond = {"return": target, "cost": cost.expand(-1, self.spec.agents, -1), "time": gone}
        return {name: cond[name] for name in self.config.conditions}

    def _choose(self, plans: Tensor, told: dict[str, Tensor], info: dict[str, list[Tensor]]) -> Tensor:
        """One of the candidates (B, k, T, agent, F) of every row: the chooser's, or that of the largest return."""
        if self.candidates == 1:
            return plans[:, 0]
        if self.chooser is not None:
            best = self.chooser(plans, told, info)
        else:
            elapsed = self.values.elapsed(told["time"]).repeat_interleave(self.candidates)
            estimates = self.values.estimates(plans.flatten(0, 1), self.values.clean, elapsed)
            best = estimates["return"].mean.view(plans.shape[:2]).argmax(1)
        return plans[torch.arange(len(plans), device=plans.device), best]

    def _action(self, step: int, observations: Tensor, masks: Tensor | None) -> Tensor:
        action = self.encoder.actions(self.plans[:, step])
        return legal_logits(action, masks).argmax(-1) if self.spec.discrete else action.clamp(-1, 1)

    def _inverse(self, step: int, observations: Tensor, masks: Tensor | None) -> Tensor:
        """From where the agents are to what the plan observes later."""
        later = min(step + self.config.inverse_ahead, self.config.horizon - 1)
        then = self.shown * self.encoder.observations(self.plans[:, later])
        return self.lead(self.encoder.encode(observations), then, masks)

    def lead(self, now: Tensor, then: Tensor, masks: Tensor | None) -> Tensor:
        """The action from encoded observations now to what is shown of later ones, (B, agent, F) each."""
        return greedy_action(self.networks["inverse"](now, then), masks, self.spec.discrete)

    def _track(self, step: int, observations: Tensor, masks: Tensor | None) -> Tensor:
        """gain_p (p* - p) + gain_d (v* - v), p* where the plan is now and v* the next waypoint's; at its end v* = 0."""
        step = min(step // self.config.stride, self.config.horizon - 1)
        following = min(step + 1, self.config.horizon - 1)
        now, then = (
            self.encoder.decode(self.encoder.observations(self.plans[:, waypoint])) for waypoint in (step, following)
        )
        gap = now[..., self.position] - observations[..., self.position]
        speed = then[..., self.velocity] if following > step else 0.0
        rush = speed - observations[..., self.velocity]
        return (self.config.gain_position * gap + self.config.gain_velocity * rush).clamp(-1, 1)

    def _preview(self, step: int, observations: Tensor, masks: Tensor | None) -> Tensor:
        """The action that leads along the plan's next places and velocities; at its end it stands still."""
        ahead = (step + 1 + torch.arange(self.preview.steps, device=self.device)) / self.config.stride
        last = self.config.horizon - 1
        before = ahead.floor().long().clamp(max=last - 1)
        share = (ahead - before).clamp(max=1.0).view(1, -1, 1, 1)
        path = self.encoder.decode(self.encoder.observations(self.plans))
        then = torch.lerp(path[:, before], path[:, before + 1], share)
        moving = (ahead <= last).to(then.dtype).view(1, -1, 1, 1)
        return self.preview.action(observations, then[..., self.position], moving * then[..., self.velocity])


def own_guide(learner: Diffuser) -> Hook | None:
    """The planner's value guidance, where it has critics and a scale above 0."""
    config = learner.config
    if learner.values is None or config.guide_scale == 0:
        return None
    return ReturnGuidance(
        learner.values, config.guide_scale, config.guide_repeats, config.guide_stop, config.guide_variance
    )


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())
