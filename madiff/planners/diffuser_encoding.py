"""What Diffuser's plans are made of: at every waypoint the action, who the agent is, and its normalised observation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from madiff.data.motion import AffineMotion
from madiff.data.store import EpisodeStore
from madiff.interfaces import EnvironmentSpec, PlanLayout, UserError
from madiff.planners.planner import make_layout
from madiff.planners.preprocessing import Preprocessing, dimensions


class PlanEncoder(Preprocessing):
    """Plans (..., agent, A + agents + O) from actions and observations, and what is known when a plan is made.

    Discrete actions are one-hot, in {-1, 1}. goal: names of the observation's dimensions whose last waypoint is
    given; goal_source: those of the present observation that say where, in the same order; without any, the goal is
    the mean of the last observations of the data's episodes. actions: whether plans hold any (A = 0 otherwise).
    motion: how observations follow actions, for who follows plans; None where actions are discrete.
    Raises UserError for names that are not there.
    """

    costs_scale: Tensor
    last: Tensor

    def __init__(
        self, spec: EnvironmentSpec, normalizer: str, goal: Sequence[str] = (), goal_source: Sequence[str] = (),
        actions: bool = True,
    ) -> None:  # fmt: skip
        super().__init__(spec, normalizer)
        self.action_size = spec.action_size if actions else 0
        self.plan_features = self.action_size + self.features
        self.goal, self.source = dimensions(spec, goal, "algo.goal"), dimensions(spec, goal_source, "algo.goal_source")
        if self.source and len(self.source) != len(self.goal):
            raise UserError(f"{len(self.source)} names for {len(self.goal)} dimensions of algo.goal",
                            "algo.goal_source", "as many, or none")  # fmt: skip
        self.motion = None if spec.discrete else AffineMotion(spec)
        self.register_buffer("costs_scale", torch.ones(()))
        self.register_buffer("last", torch.zeros(spec.agents, spec.observation_size))

    def fit(self, store: EpisodeStore) -> None:
        super().fit(store)
        ends = store.offsets + torch.arange(store.episodes) + store.lengths
        self.last.copy_(store.observations[ends].mean(0))

    def encode_actions(self, actions: Tensor) -> Tensor:
        return encode_actions(self.spec, actions)

    def plan(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Encoded observations (..., agent, agents + O) and actions of the same moments -> (..., agent, features)."""
        if not self.action_size:
            return observations
        return torch.cat([self.encode_actions(actions), observations], dim=-1)

    def actions(self, plan: Tensor) -> Tensor:
        return plan[..., : self.action_size]

    def observations(self, plan: Tensor) -> Tensor:
        """The encoded observations of plans."""
        return plan[..., self.action_size :]

    def goals(self, observations: Tensor) -> Tensor:
        """Where to be at the last waypoint: (..., agent, O) raw -> (..., agent, goals) normalised."""
        told = observations[..., self.source] if self.source else self.last[:, self.goal]
        return self._normalized(told.expand(*observations.shape[:-1], -1), self.goal)

    def known(self, plan: Tensor, goals: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """In-painting of plans (B, T, agent, features): the first observation, identities, and the goal at the end.

        goals (B, agent, goals): None takes them from the plan itself, as training does. Returns (value, mask).
        """
        observed = self.observations(plan)
        everybody = torch.ones(plan.shape[0], self.agents, dtype=torch.bool, device=plan.device)
        value, mask = self.condition(observed, everybody, 0)
        columns = [self.agents + i for i in self.goal]
        value, mask = value.clone(), mask.expand_as(observed).clone()
        value[:, -1][..., columns] = observed[:, -1][..., columns] if goals is None else goals
        mask[:, -1][..., columns] = 1
        return tuple(F.pad(entry, (self.action_size, 0)) for entry in (value, mask))

    def relabel(self, observations: Tensor) -> Tensor:
        """Encoded windows (B, T, agent, F) whose agents are told that they were going where they got to.

        Only where the observation says where the goal is; hindsight as arXiv 1707.01495.
        """
        if not self.source:
            return observations
        reached = self.decode(observations[:, -1])[..., self.goal]
        columns = [self.agents + i for i in self.source]
        changed = observations.clone()
        changed[..., columns] = self._normalized(reached, self.source)[:, None]
        return changed

    def layout(self, dt: float = 1.0) -> PlanLayout:
        leading = [f"action_{i}" for i in range(self.action_size)] + [f"agent_{i}" for i in range(self.agents)]
        return make_layout(self.spec, leading, self.normalizer, dt=dt)

    def _normalized(self, values: Tensor, columns: list[int]) -> Tensor:
        """Raw values (..., agent, k) of these dimensions in normalised units."""
        whole = values.new_zeros(*values.shape[:-1], self.spec.observation_size)
        whole[..., columns] = values
        return self.normalizer.normalize(whole)[..., columns]


def encode_actions(spec: EnvironmentSpec, actions: Tensor) -> Tensor:
    """(..., agent) int64 or (..., agent, D) -> (..., agent, A) in [-1, 1]: discrete ones are one-hot there."""
    return 2 * F.one_hot(actions, spec.action_size).float() - 1 if spec.discrete else actions
