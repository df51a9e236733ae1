"""Thousands of copies of one particle scene stepped together: the `BatchedEnvironment` behind particle and mpe2."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from envs.randomness import keys
from madiff.interfaces import EnvironmentSpec, TimeStep, UserError

from .rendering import Picture
from .scene import HORIZON, Scene

STATE = ("position", "velocity", "elapsed", "key", "episode")
MOVES = ((0.0, 0.0), (-1.0, 0.0), (1.0, 0.0), (0.0, -1.0), (0.0, 1.0))
"""Directions of the discrete actions: stay, left, right, down, up."""

Advanced = tuple[Tensor, Tensor, Tensor, Tensor]


class Simulation:
    """Copies of a scene; an episode is truncated after 25 steps and never terminates. New ones stand as after
    `reset(0)`.

    Where the spec has a state, it is all that the agents observe; an unknown discrete action is played as stay. prey:
    acts for the movers that are no agents, from their own observations (copies, mover, features) to actions (copies,
    mover, 2) in [-1, 1]; auto_reset: start finished copies anew at once; compile: run the dynamics through
    `torch.compile` (half a minute at the first step).
    """

    def __init__(
        self,
        scene: Scene,
        spec: EnvironmentSpec,
        copies: int,
        *,
        prey: Callable[[Tensor], Tensor] | None = None,
        auto_reset: bool = False,
        compile: bool = False,
    ) -> None:
        if copies < 1:
            raise UserError(f"{copies!r} is not a number of copies", "copies", "1 or more")
        self.scene, self.spec, self.copies, self.device = scene, spec, copies, scene.device
        self.auto_reset, self._prey = auto_reset, prey
        self._moves = torch.tensor(MOVES, device=self.device, dtype=scene.dtype).T.contiguous()
        available = torch.ones(1, 1, len(MOVES), dtype=torch.bool, device=self.device)
        self._available = available.expand(copies, spec.agents, -1) if spec.discrete else None
        seen = torch.arange(scene.width) < torch.tensor(scene.sizes[: spec.agents])[:, None]
        self._seen = seen.flatten().nonzero()[:, 0].to(self.device) if spec.state_size else None
        self._advance = torch.compile(self._advanced, fullgraph=True, dynamic=False) if compile else self._advanced
        self.reset(0)

    @torch.no_grad()
    def reset(self, seed: int) -> TimeStep:
        """Begin all episodes; the seed and each copy's index fix where everything starts."""
        self._key = keys(seed, self.copies, self.device)
        self._episode = torch.zeros_like(self._key)
        self._elapsed = torch.zeros_like(self._key)
        self._position = self.scene.begin(self._key, self._episode)
        self._velocity = torch.zeros_like(self._position[:, : self.scene.plan.movers])
        self._certain = HORIZON  # steps for which no copy is over yet; saves asking the device
        rewards = torch.zeros_like(self._position[0, : self.spec.agents])
        return self._time_step(self.scene.observations(self._position, self._velocity), rewards)

    @torch.no_grad()
    def step(self, actions: Tensor) -> TimeStep:
        """Play one step of every copy; actions (copies, agent) integers, or (copies, agent, 2) clipped to [-1, 1]."""
        before = self._position, self._velocity
        position, velocity, observations, rewards = self._advance(*before, self._thrust(actions))
        elapsed = self._elapsed + 1
        if self._certain == 0:
            over = self._elapsed >= HORIZON
            position, velocity = torch.where(over, before[0], position), torch.where(over, before[1], velocity)
            observations = self.scene.observations(position, velocity)
            rewards, elapsed = rewards * ~over, torch.where(over, self._elapsed, elapsed)
        self._position, self._velocity, self._elapsed = position, velocity, elapsed
        self._certain = max(0, self._certain - 1)
        step = self._time_step(observations, rewards)
        return self._restarted(step) if self.auto_reset and self._certain == 0 else step

    def _thrust(self, actions: Tensor) -> Tensor:
        """Actions as forces in units of each agent's own, (2, agent, copies)."""
        actions = torch.as_tensor(actions, device=self.device)
        expected = (self.copies, self.spec.agents) + (() if self.spec.discrete else (2,))
        if actions.shape != expected:
            raise UserError(f"shape {tuple(actions.shape)}", "actions", f"{expected}")
        if not self.spec.discrete:
            return actions.to(self.scene.dtype).permute(2, 1, 0).clamp(-1, 1).contiguous()
        known = actions.long() * ((actions >= 0) & (actions < len(MOVES)))
        return self._moves[:, known.T]

    def _advanced(self, position: Tensor, velocity: Tensor, thrust: Tensor) -> Advanced:
        """The next positions and velocities, and what agents then observe and are paid; a pure function."""
        if self._prey is not None:
            fleeing = self._prey(self.scene.scripted_observations(position, velocity))
            thrust = torch.cat([thrust, fleeing.permute(2, 1, 0)], 1)
        position, velocity = self.scene.mechanics.move(position, velocity, thrust)
        return position, velocity, self.scene.observations(position, velocity), self.scene.rewards(position)

    def _restarted(self, step: TimeStep) -> TimeStep:
        """The step with new episodes in the copies that have just ended."""
        over = step.truncated
        self._episode = self._episode + over
        self._position = torch.where(over, self.scene.begin(self._key, self._episode), self._position)
        self._velocity = torch.where(over, 0.0, self._velocity)
        self._elapsed = self._elapsed * ~over
        self._certain = self._remaining()
        observations = self.scene.observations(self._position, self._velocity)
        final = {"final_observations": step.observations, "final_state": step.state}
        return step._replace(observations=observations, state=self._joined(observations), info=final)

    def _remaining(self) -> int:
        return max(0, HORIZON - int(self._elapsed.max()))

    def _time_step(self, observations: Tensor, rewards: Tensor) -> TimeStep:
        paid = rewards.T.contiguous()
        truncated = self._elapsed >= HORIZON
        return TimeStep(
            observations, self._joined(observations), self._available, paid, torch.zeros_like(paid),
            torch.zeros_like(truncated), truncated, {},
        )  # fmt: skip

    def _joined(self, observations: Tensor) -> Tensor:
        """The global state (copies, S), nothing where there is none."""
        if self._seen is None:
            return observations.new_zeros(self.copies, 0)
        return observations.flatten(1)[:, self._seen]

    @property
    def state(self) -> dict[str, Tensor]:
        """Everything by name, led by the copies axis; rows may be changed or moved between environments."""
        rows = (self._position, self._velocity, self._elapsed, self._key, self._episode)
        copied = (row.permute(2, 1, 0) if row.ndim == 3 else row for row in rows)
        return {name: row.clone(memory_format=torch.contiguous_format) for name, row in zip(STATE, copied, strict=True)}

    @torch.no_grad()
    def set_state(self, state: dict[str, Tensor]) -> None:
        """Continue from a state of this scene, with as many copies as this environment has."""
        if set(state) != set(STATE):
            raise UserError(f"keys {sorted(state)}", "state", list(STATE))
        present = self.state
        wrong = [name for name in STATE if state[name].shape != present[name].shape]
        if wrong:
            shape, expected = (tuple(given[wrong[0]].shape) for given in (state, present))
            raise UserError(f"{wrong[0]} has shape {shape}", "state", expected)
        given = {name: state[name].to(self.device, present[name].dtype, copy=True) for name in STATE}
        self._position, self._velocity = (given[name].permute(2, 1, 0).contiguous() for name in STATE[:2])
        self._elapsed, self._key, self._episode = (given[name] for name in STATE[2:])
        self._certain = self._remaining()

    def frame(self, copy: int = 0) -> np.ndarray:
        """A picture of one copy: (height, width, 3) uint8."""
        position, velocity = (value[..., copy].double().cpu().numpy().T for value in (self._position, self._velocity))
        return self._picture.draw(position, velocity, int(self._elapsed[copy]))

    @cached_property
    def _picture(self) -> Picture:
        return Picture(self.scene.plan, f"{self.spec.name} {self.spec.scenario}")
