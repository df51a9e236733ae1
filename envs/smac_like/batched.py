"""Thousands of smac-like battles stepped together: `BatchedEnvironment` over the pure step function."""

from __future__ import annotations

from functools import cached_property, partial

import numpy as np
import torch
from torch import Tensor

from madiff.interfaces import EnvironmentSpec, TimeStep, UserError

from .battle import Battle
from .features import Features, available_actions
from .rendering import Picture
from .rules import Rules
from .scenarios import resolve
from .spawn import begin
from .step import first_step, legalised, step_function

NAME = "smac-like"
STATE = tuple(name for name in Battle._fields if name != "available")
"""Parts of the state dict; the legal actions follow from positions and health."""


class SmacLike:
    """A battle of scripted enemies against learning allies, after SMAC (arXiv 1902.04043), without an engine.

    scenario: a SMAC map name, or agents: N marines against N; auto_reset: start finished copies anew at once;
    strict: raise on an illegal action instead of playing stop (no-op for the dead); compile: run the step function
    through `torch.compile` (a minute at the first step, twice as fast afterwards). New ones stand as after `reset(0)`.
    """

    def __init__(
        self,
        copies: int = 1,
        device: str | torch.device = "cpu",
        *,
        scenario: str | None = None,
        agents: int | None = None,
        auto_reset: bool = False,
        strict: bool = False,
        compile: bool = False,
    ) -> None:
        if copies < 1:
            raise UserError(f"{copies!r} is not a number of copies", "copies", "1 or more")
        self.copies, self.device, self.strict, self.auto_reset = copies, torch.device(device), strict, auto_reset
        self.scenario = resolve(scenario, agents)
        self.rules = Rules(self.scenario, self.device)
        self.features = Features(self.rules)
        layout = self.features.layout
        self.spec = EnvironmentSpec(
            NAME, self.scenario.name, layout.agents, layout.observation_size, layout.actions, True, layout.state_size,
            self.scenario.limit, self.scenario.options,
        )  # fmt: skip
        step = partial(step_function, self.features, auto_reset)
        self._step = torch.compile(step, fullgraph=True, dynamic=False) if compile else step
        self._battle = begin(self.rules, 0, copies)

    @torch.no_grad()
    def reset(self, seed: int) -> TimeStep:
        """Begin all battles; the seed and each copy's index fix all its randomness."""
        self._battle = begin(self.rules, seed, self.copies)
        return first_step(self.features, self._battle)

    @torch.no_grad()
    def step(self, actions: Tensor) -> TimeStep:
        """Play one step of every copy; actions (copies, agent) of any integer type."""
        actions = torch.as_tensor(actions, device=self.device).long()
        if actions.shape != (self.copies, self.spec.agents):
            raise UserError(f"shape {tuple(actions.shape)}", "actions", f"{(self.copies, self.spec.agents)}")
        if self.strict:
            self._refuse_illegal(actions)
        self._battle, step = self._step(self._battle, actions)
        return step

    def _refuse_illegal(self, actions: Tensor) -> None:
        battle = self._battle
        illegal = legalised(battle, actions.T)[1].T & ~(battle.terminated | battle.truncated)[:, None]
        if illegal.any():
            copy, agent = illegal.nonzero()[0].tolist()
            legal = battle.available[agent, :, copy].nonzero().flatten().tolist()
            what = f"action {int(actions[copy, agent])} of agent {agent} in copy {copy} is illegal"
            raise UserError(what, NAME, legal)

    @property
    def state(self) -> dict[str, Tensor]:
        """The whole battle by name, led by the copies axis; rows may be changed or moved between environments."""
        values = self._battle._asdict()
        return {name: values[name].movedim(-1, 0).clone(memory_format=torch.contiguous_format) for name in STATE}

    @torch.no_grad()
    def set_state(self, state: dict[str, Tensor]) -> None:
        """Continue from a state of this scenario, with as many copies as this environment has."""
        if set(state) != set(STATE):
            raise UserError(f"keys {sorted(state)}", "state", list(STATE))
        begun = begin(self.rules, 0, self.copies)._asdict()
        expected = {name: value.movedim(-1, 0).shape for name, value in begun.items()}
        wrong = [name for name in STATE if state[name].shape != expected[name]]
        if wrong:
            raise UserError(f"{wrong[0]} has shape {tuple(state[wrong[0]].shape)}", "state", tuple(expected[wrong[0]]))
        values = {
            name: state[name].to(self.device).movedim(0, -1).clone(memory_format=torch.contiguous_format)
            for name in STATE
        }
        available = available_actions(self.rules, values["position"], values["health"])
        self._battle = Battle(available=available, **values)

    def frame(self, copy: int = 0) -> np.ndarray:
        """A picture of one battle: (height, width, 3) uint8."""
        return self._picture.draw(Battle(*(value[..., copy].cpu() for value in self._battle)))

    @cached_property
    def _picture(self) -> Picture:
        return Picture(self.rules)
