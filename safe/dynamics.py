"""Plans whose positions, velocities and actions agree after a correction.

A projection moves positions alone. `Dynamics.agree` carries the displacement over to velocities (differences in time)
and to actions (a linear model of the motion), so that a plan that obeyed them before obeys them after.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from madiff.data.store import EpisodeStore, ranges
from madiff.interfaces import UserError
from safe.constants import indices


@dataclass(frozen=True)
class LinearMotion:
    """v' = state velocity^T + action force^T + constant, per step: state = (positions, velocities) (..., 2 d).

    velocity (d, 2 d), force (d, action), constant (d,): in real units.
    """

    velocity: Tensor
    force: Tensor
    constant: Tensor

    @cached_property
    def push(self) -> Tensor:
        """(action, d): the least change of the action for a change of the next velocity."""
        return torch.linalg.pinv(self.force)

    @classmethod
    def fit(cls, store: EpisodeStore, positions: Sequence[int], velocities: Sequence[int]) -> LinearMotion:
        """Least squares over all transitions of all agents; dimensions are those of the observations."""
        if store.discrete:
            raise UserError("a linear model of the motion of discrete actions", "safe.dynamics", "continuous actions")
        first = ranges(store.offsets + torch.arange(store.episodes), store.lengths)
        seen = [*positions, *velocities]
        now, then = (store.observations[rows].double() for rows in (first, first + 1))
        inputs = torch.cat([now[..., seen], store.actions.double(), torch.ones_like(now[..., :1])], dim=-1)
        targets = then[..., list(velocities)].flatten(0, 1)
        found = torch.linalg.lstsq(inputs.flatten(0, 1), targets, driver="gelsd").solution.T.float()
        d = len(positions)
        return cls(found[:, : 2 * d], found[:, 2 * d : -1], found[:, -1])


@dataclass(frozen=True)
class Dynamics:
    """Which features of a plan are positions, their velocities, and actions, and how they are tied.

    positions, velocities: as many of each; actions: empty where a plan holds none. dt: time between waypoints.
    motion: None leaves the actions as they are.
    """

    positions: tuple[int, ...]
    velocities: tuple[int, ...]
    actions: tuple[int, ...] = ()
    dt: float = 1.0
    motion: LinearMotion | None = None

    @property
    def dimensions(self) -> tuple[int, ...]:
        return self.positions + self.velocities + self.actions

    def over(self, dimensions: tuple[int, ...]) -> Dynamics:
        """The same for points that hold only these features, in this order."""
        own = (self.positions, self.velocities, self.actions)
        positions, velocities, actions = (tuple(map(dimensions.index, d)) for d in own)
        return Dynamics(positions, velocities, actions, self.dt, self.motion)

    def agree(self, before: Tensor, after: Tensor, movable: Tensor | None = None) -> Tensor:
        """`after` (..., time, agent, D) with velocities and actions moved as its positions were moved from `before`.

        v_k changes by the forward difference of the displacement over dt (the last one as the one before it), an
        action by the least change that the model needs for the next velocity. Both are linear in the displacement:
        what held before holds after, and where no neighbour moved nothing changes. Actions stay within [-1, 1].
        """
        moved = _select(after, self.positions) - _select(before, self.positions)
        faster = moved.diff(dim=-3) / self.dt
        faster = torch.cat([faster, faster[..., -1:, :, :]], dim=-3)
        if movable is not None:
            faster = torch.where(movable[..., None], faster, 0.0)
        result = _replace(after, self.velocities, _select(after, self.velocities) + faster)
        if self.motion is None or not self.actions:
            return result
        change = _push(self.motion, moved, faster)
        action = _select(after, self.actions)
        new = torch.where(change == 0, action, (action + change).clamp(-1, 1))
        return _replace(result, self.actions, new)


def _push(motion: LinearMotion, moved: Tensor, faster: Tensor) -> Tensor:
    """Change of the actions (..., time, agent, action) for displacements and changes of velocity; 0 at the end."""
    free = torch.cat([moved, faster], dim=-1) @ motion.velocity.to(moved).T
    missing = faster[..., 1:, :, :] - free[..., :-1, :, :]
    push = missing @ motion.push.to(moved).T
    return torch.cat([push, torch.zeros_like(push[..., :1, :, :])], dim=-3)

def dynamics_of(names: Sequence[str], dt: float = 1.0, motion: LinearMotion | None = None) -> Dynamics:
    """Positions are the names that have a velocity of the same name after a v (x and vx); actions action_0, ...

    Raises UserError where there is no such pair.
    """
    found = [(i, names.index(f"v{name}")) for i, name in enumerate(names) if f"v{name}" in names]
    if not found:
        raise UserError(f"no position and velocity among {', '.join(names)}", "dynamics", "names such as x and vx")
    positions, velocities = zip(*found, strict=True)
    actions = tuple(i for i, name in enumerate(names) if name.startswith("action_"))
    return Dynamics(positions, velocities, actions, dt, motion)


def fit_dynamics(store: EpisodeStore, observation_names: Sequence[str], names: Sequence[str]) -> Dynamics:
    """The dynamics of plans whose features are called `names`, measured on data whose observations have these names.

    dt: least squares of the displacements of a step on the velocities before it; the linear model where plans hold
    actions. Raises UserError where no dimension has a velocity beside it.
    """
    seen = dynamics_of(observation_names)
    first = ranges(store.offsets + torch.arange(store.episodes), store.lengths)
    now, then = (store.observations[rows].double() for rows in (first, first + 1))
    moved = (then - now)[..., list(seen.positions)]
    speed = now[..., list(seen.velocities)]
    dt = float((moved * speed).sum() / speed.square().sum())
    found = dynamics_of(names, dt)
    if not found.actions:
        return found
    return replace(found, motion=LinearMotion.fit(store, seen.positions, seen.velocities))


def _select(points: Tensor, dimensions: tuple[int, ...]) -> Tensor:
    return points.index_select(-1, indices(dimensions, points))


def _replace(points: Tensor, dimensions: tuple[int, ...], values: Tensor) -> Tensor:
    return points.index_copy(-1, indices(dimensions, points), values)
