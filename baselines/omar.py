"""OMAR: MA-CQL whose actor is also pulled towards actions found by a zeroth-order search (arXiv 2111.11188).

search=gaussian is the form of the particle experiments: the next mean is the softmax-weighted mean of the samples;
search=elites that of the MuJoCo experiments: the cross-entropy method, whose best samples are kept.

Deviations: those of MA-CQL; the search runs on a part of the batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from baselines import ma_cql
from baselines.ma_cql import ContinuousCQL
from madiff.interfaces import EnvironmentSpec, UserError, within
from madiff.values import Transitions

NAME = "omar"
Value = Callable[[Tensor], Tensor]  # actions (K, ..., D) -> (K, ...)


@dataclass
class Config(ma_cql.Config):
    """imitation: the weight c of the search's action against the value; deviation: of the first round's samples."""

    imitation: float = within(0.0, 1.0, 0.3)
    search: Literal["gaussian", "elites"] = "gaussian"
    iterations: int = 3
    samples: int = 10
    elites: int = 5
    deviation: float = within(0.0, math.inf, 2.0)
    search_batch: int = 64


class OMAR(ContinuousCQL):
    """Learner of OMAR."""

    config: Config

    def actor_loss(self, steps: Transitions, generator: torch.Generator) -> Tensor:
        """c (pi - a*)^2 - (1 - c) Q_1(o, pi) + penalty on the size of pi (eq. 4 of OMAR)."""
        actions = self.actions(self.actor, steps.observations)
        rows = slice(0, self.config.search_batch)
        found = self.found(steps.observations[rows], actions[rows].detach(), generator)
        pull = (actions[rows] - found).square().mean()
        value = self.value(steps.observations, actions).mean()
        size = actions.square().mean()
        share = self.config.imitation
        return share * pull - (1 - share) * value + self.config.action_penalty * size

    @torch.no_grad()
    def found(self, observations: Tensor, actions: Tensor, generator: torch.Generator) -> Tensor:
        """The best of the search's last samples and the actor's own actions (B, agent, D)."""

        def value(candidates: Tensor) -> Tensor:
            return self.critic.many(observations, candidates * self.real, members=1)[0]

        def draw(mean: Tensor, deviation: Tensor, samples: int) -> Tensor:
            noise = torch.randn((samples, *mean.shape), generator=generator, device=mean.device)
            return (mean + deviation * noise).clamp(-1, 1)

        config, start = self.config, torch.zeros_like(actions)
        deviation = torch.full_like(actions, config.deviation)
        if config.search == "gaussian":
            candidates = soft_search(value, draw, start, deviation, config.iterations, config.samples)
        else:
            candidates = elite_search(value, draw, start, deviation, config.iterations, config.samples, config.elites)
        candidates = torch.cat([candidates, actions[None]])
        return take(candidates, value(candidates).argmax(0, keepdim=True))[0] * self.real


Draw = Callable[[Tensor, Tensor, int], Tensor]  # mean, deviation (..., D), K -> (K, ..., D)


def soft_search(value: Value, draw: Draw, mean: Tensor, deviation: Tensor, iterations: int, samples: int) -> Tensor:
    """The last round's samples (K, ..., D); each round's mean is the softmax-of-values mean of the samples before.

    The deviation is the root mean square distance of the samples to the new mean, in each dimension.
    """
    for _ in range(iterations):
        candidates = draw(mean, deviation, samples)
        share = torch.softmax(value(candidates), dim=0)[..., None]
        mean = (share * candidates).sum(0)
        deviation = (candidates - mean).square().mean(0).sqrt()
    return candidates


def elite_search(
    value: Value, draw: Draw, mean: Tensor, deviation: Tensor, iterations: int, samples: int, elites: int
) -> Tensor:
    """The best `elites` of all rounds (elites, ..., D); mean and deviation of each round are those of the elites."""
    kept = mean.new_empty((0, *mean.shape))
    for _ in range(iterations):
        candidates = torch.cat([kept, draw(mean, deviation, samples)])
        kept = take(candidates, value(candidates).topk(elites, dim=0).indices)
        mean, deviation = kept.mean(0), kept.std(0, correction=0)
    return kept


def take(candidates: Tensor, indices: Tensor) -> Tensor:
    """Candidates (K, ..., D) at indices (k, ...): (k, ..., D)."""
    return candidates.take_along_dim(indices[..., None], dim=0)


def make(config: Config, spec: EnvironmentSpec, device: torch.device, seed: int) -> OMAR:
    limits = {"conservative_batch": config.batch_size, "search_batch": config.batch_size, "elites": config.samples}
    for key, largest in limits.items():
        if getattr(config, key) > largest:
            raise UserError(f"{getattr(config, key)} is too large", f"algo.{key}", f"at most {largest}")
    return OMAR(config, spec, device, seed)
