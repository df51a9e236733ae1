"""Scripted policies that decide from observations and masks alone: random, attack-nearest, focus-fire and kite.

A script is a way to fight; its skill in [0, 1] is the part of the time each agent follows it. The rest are blunders
that last a few steps, as of a policy trained badly rather than of noise: wandering off, freezing, shooting at the wrong
enemy. All agents of all copies decide together, as tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from madiff.interfaces import UserError

from .features import MOVES, Layout
from .rules import LOOPS_PER_STEP
from .scenarios import Scenario
from .units import SIGHT, Unit

BLUNDER_STEPS = 4.0
"""Mean length of a blunder; so below a skill of 0.2 an agent still follows its script one step in five."""
EXPLORATION = 0.02
"""Part of the actions that are random legal ones whatever the skill, as online learners leave in their data."""
FAR_AWAY = 99.0
STOP, EAST, WEST, ATTACK = 1, 4, 5, 6
WANDER, FREEZE, WRONG_TARGET = 0, 1, 2
TOGETHER, MELEE_REACH = 2.0, 4.0
"""Points of strength that one cell of distance weighs in the common choice of a target; so many times for melee."""
HURT, RETREAT_STEPS, SAFE, MELEE_DANGER = 0.5, 1.0, 7.0, 3.0
GOLDEN_RATIO = 1.618034


class Script(NamedTuple):
    """focus: all shoot at the weakest enemy; kite: step back when wounded or while reloading; noise: random actions."""

    focus: bool = False
    kite: bool = False
    noise: bool = False


SCRIPTS = {
    "random": Script(noise=True),
    "attack-nearest": Script(),
    "focus-fire": Script(focus=True),
    "kite": Script(focus=True, kite=True),
}


class Player(NamedTuple):
    """One entry of a mixture: a script and the range its skill is drawn from, once per battle."""

    script: str
    low: float
    high: float
    weight: float = 1.0


class View(NamedTuple):
    """Decoded observations: (n, A, M) distance, dx, dy in cells, seen, strength in points; (n, A) own strength as a
    part of its maximum and alive; (n, A, 4) legal moves; (n, A, M) legal attacks."""

    distance: Tensor
    dx: Tensor
    dy: Tensor
    seen: Tensor
    strength: Tensor
    own: Tensor
    alive: Tensor
    moves: Tensor
    attacks: Tensor


class Memory(NamedTuple):
    """What agents remember, (n, A) each: heading (+1 east, -1 west), steps since the last attack order, own strength
    before, steps of retreat left, and the running blunder: on or off, its kind and its random choice in [0, 1)."""

    heading: Tensor
    since_attack: Tensor
    own: Tensor
    retreat: Tensor
    blundering: Tensor
    kind: Tensor
    choice: Tensor


class Scripted:
    """A `Policy` for one scenario: each copy draws a player from the mixture at reset and keeps it for the battle."""

    def __init__(self, scenario: Scenario, players: Sequence[Player], device: torch.device | str = "cpu") -> None:
        unknown = [player.script for player in players if player.script not in SCRIPTS]
        if unknown:
            raise UserError(f"no script is called {unknown[0]!r}", "script", list(SCRIPTS))
        self.scenario, self.players, self.device = scenario, tuple(players), torch.device(device)
        self.layout = Layout.of(scenario)
        allies, enemies = scenario.ally_units, scenario.enemy_units
        self.healer = self._row(allies, lambda u: u.healer)
        self.ranged = self._row(allies, lambda u: u.reach > 1 and not u.healer)
        self.reload = self._row(allies, lambda u: u.cooldown / LOOPS_PER_STEP)
        self.enemy_health = self._row(enemies, lambda u: float(u.health))
        self.enemy_shield = self._row(enemies, lambda u: float(u.shield))
        self.enemy_melee = self._row(enemies, lambda u: 0 < u.speed and u.reach < 1)
        fastest = max((u.speed for u in enemies if u.reach < 1), default=0.0)
        self.slow = self._row(allies, lambda u: u.speed <= fastest)
        self.health = self._row(allies, lambda u: float(u.health))
        self.shield = self._row(allies, lambda u: float(u.shield))
        self.directions = torch.tensor([(0.0, 1.0), (0.0, -1.0), (1.0, 0.0), (-1.0, 0.0)], device=self.device)

    def _row(self, units: Sequence[Unit], value: Callable[[Unit], object]) -> Tensor:
        return torch.tensor([value(unit) for unit in units], device=self.device)

    def reset(self, seed: int, n: int) -> None:
        """Draw each copy's player and skill, and forget everything."""
        self._generator = torch.Generator(self.device).manual_seed(seed)
        weights = torch.tensor([player.weight for player in self.players], device=self.device)
        self.player = torch.multinomial(weights, n, replacement=True, generator=self._generator)
        scripts = torch.tensor([SCRIPTS[player.script] for player in self.players], device=self.device)
        self.focus, self.kite, self.noise = scripts[self.player][:, :, None].unbind(1)
        low, high = torch.tensor([[p.low, p.high] for p in self.players], device=self.device)[self.player].unbind(1)
        self.skill = (low + (high - low) * self._random(n))[:, None]
        still = torch.zeros(n, self.layout.agents, device=self.device)
        no = still.bool()
        self.memory = Memory(still + 1, still + FAR_AWAY, still + 1, still, no, still.long(), still)

    @torch.no_grad()
    def act(self, observations: Tensor, masks: Tensor | None, active: Tensor | None = None) -> Tensor:
        """One legal action per agent: (n, A) int64."""
        if masks is None:
            raise UserError("None", "masks", "the environment's available actions, (n, agent, actions) bool")
        view = self._decoded(observations, masks)
        score = self._scores(view).masked_fill(~view.attacks, torch.inf)
        can_attack = view.attacks.any(-1)
        retreating = self._retreating(view)
        forward = torch.where(can_attack, ATTACK + score.argmin(-1), self._step_along(view, *self._forward(view)))
        intended = torch.where(retreating, self._step_along(view, *self._away(view)), forward)
        action = self._explored(masks, self._blundered(view, intended))
        attacked = action >= ATTACK
        self.memory = self.memory._replace(
            since_attack=torch.where(attacked, 0.0, self.memory.since_attack) + 1, own=view.own
        )
        return torch.where(view.alive, action, 0)

    def _decoded(self, observations: Tensor, masks: Tensor) -> View:
        _, enemies, _, own = self.layout.split(observations)
        distance, dx, dy, health = (enemies[..., i] for i in range(1, 5))
        seen = distance > 0
        strength = health * self.enemy_health
        if self.layout.enemy_shield:
            strength = strength + enemies[..., 5] * self.enemy_shield
        own_strength = own[..., 0] * self.health
        if self.layout.ally_shield:
            own_strength = own_strength + own[..., 1] * self.shield
        return View(
            torch.where(seen, distance * SIGHT, FAR_AWAY), dx * SIGHT, dy * SIGHT, seen, strength,
            own_strength / (self.health + self.shield), masks[..., STOP], masks[..., 2 : 2 + MOVES],
            masks[..., 2 + MOVES :],
        )  # fmt: skip

    def _scores(self, view: View) -> Tensor:
        """How little each agent wants to shoot at each target slot, (n, A, M)."""
        weakest = view.strength.amax(1, keepdim=True)
        near = (view.distance * view.seen).sum(1, keepdim=True) / view.seen.sum(1, keepdim=True).clamp(min=1)
        shared = weakest + TOGETHER * torch.where(self.ranged[:, None], near, MELEE_REACH * view.distance)
        score = torch.where(self.focus[..., None], shared, view.distance)
        if not self.healer.any():
            return score
        patients = torch.full_like(score, torch.inf)
        patients[..., : self.layout.agents] = view.own[:, None]
        return torch.where(self.healer[:, None], patients, score)

    def _forward(self, view: View) -> tuple[Tensor, Tensor]:
        """Towards the nearest enemy in sight, else along the heading, which turns round at the edge of the map."""
        heading = self.memory.heading
        ahead = torch.where(heading > 0, view.moves[..., EAST - 2], view.moves[..., WEST - 2])
        heading = torch.where(ahead, heading, -heading)
        self.memory = self.memory._replace(heading=heading)
        nearest = view.distance.argmin(-1, keepdim=True)
        any_seen = view.seen.any(-1)
        dx, dy = view.dx.gather(-1, nearest)[..., 0], view.dy.gather(-1, nearest)[..., 0]
        return torch.where(any_seen, dx, heading), torch.where(any_seen, dy, 0.0)

    def _away(self, view: View) -> tuple[Tensor, Tensor]:
        """Away from the enemies in sight, the near ones most."""
        weight = view.seen / view.distance.clamp(min=0.5) ** 3
        return -(view.dx * weight).sum(-1), -(view.dy * weight).sum(-1)

    def _step_along(self, view: View, x: Tensor, y: Tensor) -> Tensor:
        """The legal move most nearly along (x, y), stop where no move is legal."""
        along = x[..., None] * self.directions[:, 0] + y[..., None] * self.directions[:, 1]
        best = along.masked_fill(~view.moves, -torch.inf).argmax(-1)
        return torch.where(view.moves.any(-1), 2 + best, STOP)

    def _retreating(self, view: View) -> Tensor:
        """Whether to step back: hurt more than the others and under fire; or with a melee enemy near, while reloading,
        and all the time if it cannot be outrun but somebody else is free to shoot."""
        memory = self.memory
        hurt = (view.own < memory.own - 1e-4) & (view.own < HURT) & (view.own < view.own.amax(1, keepdim=True) - 1e-4)
        retreat = torch.where(hurt & self.kite & self.ranged, RETREAT_STEPS, (memory.retreat - 1).clamp(min=0))
        self.memory = memory._replace(retreat=retreat)
        nearest = view.distance.amin(-1)
        chased = (view.distance + FAR_AWAY * ~self.enemy_melee).amin(-1) < MELEE_DANGER
        covered = (view.alive & ~chased).any(1, keepdim=True)
        evading = chased & ((self.memory.since_attack < self.reload) | (self.slow & covered))
        return ((retreat > 0) & (nearest < SAFE)) | (evading & self.kite & self.ranged)

    def _blundered(self, view: View, intended: Tensor) -> Tensor:
        """The intended action, or that of a running blunder."""
        shape = intended.shape
        fault = 1 - self.skill
        start = (fault / (BLUNDER_STEPS * (1 - fault).clamp(min=1e-6))).clamp(max=1)
        lasting = self._random(*shape) < torch.where(self.memory.blundering, 1 - 1 / BLUNDER_STEPS, start)
        new = lasting & ~self.memory.blundering
        kind = torch.where(new, (3 * self._random(*shape)).long(), self.memory.kind)
        choice = torch.where(new, self._random(*shape), self.memory.choice)
        self.memory = self.memory._replace(blundering=lasting, kind=kind, choice=choice)
        angle = 2 * torch.pi * choice
        wander = self._step_along(view, angle.cos(), angle.sin())
        ranks = torch.arange(view.attacks.shape[-1], device=self.device) / GOLDEN_RATIO
        wrong = ((ranks + choice[..., None]) % 1).masked_fill(~view.attacks, -1.0).argmax(-1)
        wrong = torch.where(view.attacks.any(-1), ATTACK + wrong, wander)
        blunder = torch.where(kind == WANDER, wander, torch.where(kind == FREEZE, STOP, wrong))
        return torch.where(lasting, blunder, intended)

    def _explored(self, masks: Tensor, action: Tensor) -> Tensor:
        """Now and then, and always for the random script, any legal action."""
        anything = (self._random(*masks.shape) * masks).argmax(-1)
        return torch.where((self._random(*action.shape) < EXPLORATION) | self.noise, anything, action)

    def _random(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self._generator, device=self.device)
