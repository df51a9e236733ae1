"""What a noisy plan will be worth, and will cost, by the end of its episode (arXiv 2205.09991; costs: 2306.00603).

Regression on the data's own rest-of-episode sums, at all noise levels, with the known entries of a plan kept clean
exactly as in sampling. Values are the team's: means over agents. Time matters where episodes end by a clock, so the
critics are told how much of the episode is over.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from madiff.data.store import EpisodeStore
from madiff.data.windows import returns_to_go
from madiff.diffusion.ema import EMA
from madiff.diffusion.guidance import GradientGuidance
from madiff.diffusion.inpainting import repeat_rows
from madiff.diffusion.parametrization import Parametrization
from madiff.diffusion.sampler import Hook
from madiff.diffusion.schedule import Level, Schedule
from madiff.interfaces import EnvironmentSpec, UserError, within
from madiff.values.actor_critic import ActorCritic
from madiff.values.limits import Calibration, held_out
from madiff.values.plan_critic import PlanCritic, pinball

QUANTITIES = ("return", "cost")
LEVELS = tuple((i + 0.5) / 10 for i in range(10))  # quantiles whose mean is that of the distribution, nearly
CLIP = 10.0


@dataclass
class PlanValueConfig:
    """Options of critics of plans.

    learn: "auto" learns costs where the data has some; head: "quantile" regresses on quantiles, "ensemble" on the
    mean by `members` networks, "mean" by one (as released); terminal_penalty: taken from the return, and added to the
    cost, of an episode that terminates; held_out: share of the episodes kept for calibration, which critics never see.
    """

    learn: Literal["auto", "none", "return", "both"] = "auto"
    head: Literal["quantile", "ensemble", "mean"] = "quantile"
    members: int = 3
    width: int = 16
    multipliers: tuple[int, ...] = (1, 2, 4)
    learning_rate: float = within(0.0, math.inf, 1e-3)
    discount: float = within(0.0, 1.0, 1.0)
    terminal_penalty: float = within(0.0, math.inf, 0.0)
    held_out: float = within(0.0, 0.5, 0.1)

    def quantities(self, costs: bool, returns: bool) -> tuple[str, ...]:
        """What is learnt from data that has costs or not; returns: whether auto learns returns without costs."""
        if self.learn == "auto":
            return QUANTITIES if costs else QUANTITIES[:1] if returns else ()
        return {"none": (), "return": QUANTITIES[:1], "both": QUANTITIES}[self.learn]


class Estimate(NamedTuple):
    """mean: the expected rest-of-episode sum (rows,); out: all that the critics say, (rows, members, outputs).

    Both in real units; outputs are quantiles, or one mean.
    """

    mean: Tensor
    out: Tensor


class Caution(NamedTuple):
    """How an upper bound is made of an estimate: of which quantile, and what is added to it; see `PlanValues.caution`.

    coverage: None takes the mean, and adds nothing.
    """

    coverage: float | None = None
    margin: float = 0.0


class PlanValues(ActorCritic):
    """Learner of the critics of plans, and their estimates with averaged weights.

    features, length: of a plan (rows, length, agent, features); quantities: "return", or "return" and "cost".
    """

    def __init__(
        self, config: PlanValueConfig, spec: EnvironmentSpec, features: int, length: int,
        quantities: tuple[str, ...], schedule: Schedule, parametrization: Parametrization, device: torch.device,
        seed: int,
    ) -> None:  # fmt: skip
        self.config, self.spec, self.quantities, self.device = config, spec, quantities, device
        self.schedule, self.parametrization = schedule, parametrization
        self.each = config.members if config.head == "ensemble" else 1
        outputs = len(LEVELS) if config.head == "quantile" else 1
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.critic = make_critic(config, features, length, self.each * len(quantities), outputs).to(device)
        self.scales, self.calibration = Scales(len(quantities)).to(device), Calibration(self.each * outputs).to(device)
        self.average = EMA(self.critic, decay=0.995, every=1, start=100)
        self.levels = torch.tensor(LEVELS, device=device)
        (self.clean,) = schedule.levels(torch.tensor([schedule.t_min]))
        super().__init__(
            {"critic": self.critic}, {"critic": config.learning_rate},
            {"scales": self.scales, "calibration": self.calibration}, averages={"critic": self.average},
        )  # fmt: skip

    def fit(self, store: EpisodeStore) -> None:
        """Label every transition, measure the labels, and set episodes aside for calibration."""
        labels = plan_labels(store, self.config.discount, self.config.terminal_penalty)[:, : len(self.quantities)]
        self.labels, self.first = labels.to(self.device), store.offsets.to(self.device)
        self.scales.shift.copy_(labels.mean(0))
        deviation = labels.std(0, correction=0)
        self.scales.scale.copy_(torch.where(deviation > 0, deviation, 1.0))
        chosen, time = held_out(store.lengths, self.config.held_out, torch.Generator().manual_seed(0))
        self.aside = torch.zeros(store.episodes, dtype=torch.bool)
        self.aside[chosen] = True
        self.aside = self.aside.to(self.device)
        self.calibration_rows = (store.offsets[chosen] + time).to(self.device)

    def update(
        self, x0: Tensor, known_mask: Tensor | None, batch: dict[str, Tensor], generator: torch.Generator
    ) -> dict[str, Tensor]:
        """One step on plans x0 (B, T, agent, F) of a window batch, noised to random levels, the known entries clean."""
        level = self.schedule.level(self.schedule.sample_times(len(x0), generator, x0.device).to(x0.dtype))
        noise = torch.randn(x0.shape, generator=generator, device=generator.device).to(x0)
        x = level.alpha * x0 + level.sigma * noise
        if known_mask is not None:
            x = torch.where(known_mask.bool(), x0, x)
        out = self._forward(self.critic, x, level, self.elapsed(batch["time"]))
        losses = self._losses(out, (self._labels(batch) - self.scales.shift) / self.scales.scale)
        learnt = (~self.aside[batch["episode"]]).to(losses)[:, None]
        losses = (losses * learnt).sum(0) / learnt.sum().clamp(min=1)
        self.gradient_step("critic", losses.sum(), CLIP)
        self.finish_update()
        return {f"plan_{name}_loss": loss for name, loss in zip(self.quantities, losses.detach(), strict=True)}

    def elapsed(self, time: Tensor) -> Tensor:
        """Steps since the episode began as a share of the longest one."""
        return time / self.spec.episode_limit

    def estimates(self, x: Tensor, level: Level, elapsed: Tensor) -> dict[str, Estimate]:
        """Of every quantity for noisy plans x (rows, T, agent, F) at one level, by one forward of all critics."""
        return self._read(self._forward(self.average.model, x, level, elapsed))

    @torch.no_grad()
    def calibrate(self, x0: Tensor, batch: dict[str, Tensor]) -> None:
        """Note the cost's estimates for the held-out episodes: x0 and batch of the windows `calibration_rows`."""
        if "cost" not in self.quantities:
            return
        cost = self.estimates(x0, self.clean, self.elapsed(batch["time"]))["cost"]
        self.calibration.fit(cost.out.flatten(1), self._labels(batch)[:, 1])

    def caution(self, coverage: float | None) -> Caution:
        """What makes bounds on costs cover the truth this often on episodes never seen; None: no caution.

        Raises UserError where the held-out episodes are too few.
        """
        if coverage is None:
            return Caution()
        margin = self.calibration.margin(lambda out: self._bound(out.unflatten(1, (self.each, -1)), coverage), coverage)
        return Caution(coverage, margin)

    def bound(self, estimate: Estimate, caution: Caution) -> Tensor:
        """What a cost is taken to be, (rows,): its mean, or its quantile at the coverage and the margin."""
        if caution.coverage is None:
            return estimate.mean
        return self._bound(estimate.out, caution.coverage) + caution.margin

    def unit(self, quantity: str) -> Tensor:
        """The data's standard deviation of a quantity (), by which gradients are made comparable."""
        return self.scales.scale[self.quantities.index(quantity)]

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.critic.parameters())

    def _labels(self, batch: dict[str, Tensor]) -> Tensor:
        return self.labels[self.first[batch["episode"]] + batch["time"]]

    def _forward(self, critic: nn.Module, x: Tensor, level: Level, elapsed: Tensor) -> Tensor:
        """(rows, quantities, members, outputs); level as floats, or as a tensor per row."""
        time = self.parametrization.network_time(level)
        time = time.view(-1) if isinstance(time, Tensor) else x.new_full((len(x),), time)
        out = critic(self.parametrization.inputs(x, level), time, elapsed.to(x.dtype))
        return out.unflatten(1, (len(self.quantities), self.each))

    def _losses(self, out: Tensor, target: Tensor) -> Tensor:
        """(B, quantities) for targets (B, quantities) in units of the scales."""
        if self.config.head == "quantile":
            return pinball(out, target[..., None].expand(out.shape[:-1]), self.levels).mean((-1, -2))
        return (out - target[..., None, None]).square().mean((-1, -2))

    def _read(self, out: Tensor) -> dict[str, Estimate]:
        out = self.scales.shift[:, None, None] + self.scales.scale[:, None, None] * out
        return {name: Estimate(out[:, i].mean((-1, -2)), out[:, i]) for i, name in enumerate(self.quantities)}

    def _bound(self, out: Tensor, coverage: float) -> Tensor:
        """The quantile at this level of out (rows, members, outputs): learnt, or of a normal law over the members."""
        if self.config.head == "quantile":
            place = min(max(coverage * len(LEVELS) - 0.5, 0.0), len(LEVELS) - 1.0)
            below = min(int(place), len(LEVELS) - 2)
            quantiles = out[:, 0].sort(-1).values
            return torch.lerp(quantiles[:, below], quantiles[:, below + 1], place - below)
        mean = out.mean((-1, -2))
        if self.config.head == "mean":
            return mean
        deviation = (out[..., 0] - mean[:, None]).square().mean(-1).add(1e-12).sqrt()
        return mean + statistics.NormalDist().inv_cdf(coverage) * deviation


class Scales(nn.Module):
    """Mean and standard deviation of the labels of every quantity."""

    shift: Tensor
    scale: Tensor

    def __init__(self, quantities: int) -> None:
        super().__init__()
        self.register_buffer("shift", torch.zeros(quantities))
        self.register_buffer("scale", torch.ones(quantities))


class ReturnGuidance(Hook):
    """Diffuser's value guidance (arXiv 2205.09991, algorithm 1): up the gradient of the expected return.

    The return is in units of the data's standard deviation; `repeats` is how often the critics are asked in a
    denoising step. ctx["time"] (B,): steps since the episode began.
    """

    def __init__(
        self, values: PlanValues, scale: float, repeats: int = 2, t_stop: float = 0.0, variance: str = "posterior"
    ) -> None:
        self.values, self.repeats = values, repeats if scale else 0  # no critic is asked where nothing is climbed
        self.climb = partial(GradientGuidance, scale=scale, repeats=self.repeats, t_stop=t_stop, variance=variance)
        self.climb(lambda x, t: x)  # refuses an unknown variance now

    def before(self, x: Tensor, t: Tensor, ctx: dict[str, Any]) -> Tensor:
        elapsed = self.values.elapsed(repeat_rows(ctx["time"], ctx["candidates"]))
        return self.climb(lambda x, t: self.objective(x, ctx, elapsed)).before(x, t, ctx)

    def objective(self, x: Tensor, ctx: dict[str, Any], elapsed: Tensor) -> Tensor:
        """What is climbed, (rows,)."""
        return self.values.estimates(x, ctx["level"], elapsed)["return"].mean / self.values.unit("return")


def make_critic(config: PlanValueConfig, features: int, length: int, members: int, outputs: int) -> PlanCritic:
    """The network the options name; an impossible width becomes a user's error."""
    try:
        return PlanCritic(features, length, members, outputs, config.width, config.multipliers)
    except ValueError as error:
        raise UserError(str(error), "algo.values") from error


def plan_labels(store: EpisodeStore, discount: float, penalty: float = 0.0) -> Tensor:
    """(sum T, 2): the team's discounted return and cost from every transition to the end of its episode.

    penalty: taken from the reward, and added to the cost, of the step that terminates an episode.
    """
    rewards, costs = store.rewards.clone(), store.costs.clone()
    last = (store.offsets + store.lengths - 1)[store.terminated]
    rewards[last] -= penalty
    costs[last] += penalty
    sums = [returns_to_go(replace(store, rewards=paid), discount).mean(1) for paid in (rewards, costs)]
    return torch.stack(sums, dim=1)
