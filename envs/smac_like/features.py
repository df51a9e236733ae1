"""What agents see: action masks, observations and the global state, laid out as in SMAC (arXiv 1902.04043).

Quirks kept on purpose: allies' and enemies' one-hot types are ordered differently on stalker-and-zealot maps; the
"attackable" feature of enemy j is the legality of slot 6 + j even for healers, whose slots are comrades.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .battle import Battle
from .rules import MAP_SIZE, Rules
from .scenarios import Scenario
from .units import ENERGY_MAX, SHOOT, SIGHT, Unit

MOVES = 4


@dataclass(frozen=True)
class Layout:
    """Where each feature lies: counts of units and of the features each is described by.

    An observation is [4 moves legal | per enemy: attackable, distance, dx, dy, health, (shield), (type) | per other
    ally: visible, distance, dx, dy, health, (shield), (type) | own health, (shield), (type)]; distances by 9 cells.
    """

    agents: int
    enemies: int
    ally_shield: int
    enemy_shield: int
    types: int

    @classmethod
    def of(cls, scenario: Scenario) -> Layout:
        shields = [int(any(u.shield for u in side)) for side in (scenario.ally_units, scenario.enemy_units)]
        return cls(scenario.agents, len(scenario.enemy_units), *shields, len(scenario.ally_types))

    @property
    def enemy_features(self) -> int:
        return 5 + self.enemy_shield + self.types

    @property
    def ally_features(self) -> int:
        return 5 + self.ally_shield + self.types

    @property
    def own_features(self) -> int:
        return 1 + self.ally_shield + self.types

    @property
    def actions(self) -> int:
        return 2 + MOVES + self.enemies

    @property
    def observation_size(self) -> int:
        return MOVES + self.enemies * self.enemy_features + (self.agents - 1) * self.ally_features + self.own_features

    @property
    def state_size(self) -> int:
        allies = self.agents * (4 + self.ally_shield + self.types)
        return allies + self.enemies * (3 + self.enemy_shield + self.types) + self.agents * self.actions

    def split(self, observations: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Moves (..., 4), enemies (..., M, features), other allies (..., N-1, features) and own (..., features)."""
        sizes = [MOVES, self.enemies * self.enemy_features, (self.agents - 1) * self.ally_features, self.own_features]
        moves, enemies, allies, own = observations.split(sizes, -1)
        return (
            moves,
            enemies.unflatten(-1, (self.enemies, self.enemy_features)),
            allies.reshape(*allies.shape[:-1], self.agents - 1, self.ally_features),
            own,
        )


class Features:
    """Turns battles of one scenario into masks, observations and states."""

    def __init__(self, rules: Rules) -> None:
        scenario, n = rules.scenario, rules.allies
        self.rules, self.layout = rules, Layout.of(scenario)
        self.ally_types = _one_hot(scenario.ally_types, rules.units[:n]).to(rules.device)
        self.enemy_types = _one_hot(scenario.enemy_types, rules.units[n:]).to(rules.device)
        column = torch.arange(n, device=rules.device)
        others = column[None, :-1] + (column[None, :-1] >= column[:, None])
        self.others = (column[:, None] * n + others).flatten()

    def observations(self, battle: Battle) -> Tensor:
        """(E, N, O) float32: zeros for units dead or out of sight (9 cells), and all zeros for dead agents."""
        n, layout = self.rules.allies, self.layout
        alive = battle.health > 0
        apart, distance = offsets(battle.position, n)
        seen = ((distance < SIGHT) & alive & alive[:n, None])[:, :, None]
        place = torch.stack([distance, apart[0], apart[1]], 2) / SIGHT
        attackable = battle.available[:, 2 + MOVES :, None].float()
        allies, enemies = self._described(battle)
        ally_views, enemy_views = (side.expand(n, -1, -1, -1) for side in (allies, enemies))
        visible = torch.ones_like(distance[:, :n, None])
        near_enemies = torch.cat([attackable, place[:, n:], enemy_views], 2) * seen[:, n:]
        near_allies = torch.cat([visible, place[:, :n], ally_views], 2) * seen[:, :n]
        others = near_allies.flatten(0, 1)[self.others].reshape(n, (n - 1) * layout.ally_features, alive.shape[-1])
        moves = battle.available[:, 2 : 2 + MOVES].float()
        parts = [moves, near_enemies.flatten(1, 2), others, allies * alive[:n, None]]
        return torch.cat(parts, 1).permute(2, 0, 1).contiguous()

    def state(self, battle: Battle) -> Tensor:
        """(E, S) float32: allies, enemies, last actions one-hot; rows of the dead are zeros."""
        rules, n = self.rules, self.rules.allies
        alive = (battle.health > 0)[:, None]
        x, y = ((battle.position[:, :, None] - MAP_SIZE / 2) / MAP_SIZE).unbind(0)
        allies, enemies = self._described(battle)
        load = battle.cooldown[:n] / rules.cooldown_scale[:n]
        if rules.has_healers:
            load = torch.where(rules.healer[:n], battle.energy[:n] / ENERGY_MAX, load)
        ally_rows = torch.cat([allies[:, :1], load[:, None], x[:n], y[:n], allies[:, 1:]], 1) * alive[:n]
        enemy_rows = torch.cat([enemies[:, :1], x[n:], y[n:], enemies[:, 1:]], 1) * alive[n:]
        slots = torch.arange(rules.actions, device=rules.device)[:, None]
        last = (battle.last_actions[:, None] == slots).float()
        return torch.cat([rows.flatten(0, 1) for rows in (ally_rows, enemy_rows, last)]).T.contiguous()

    def masks(self, battle: Battle) -> Tensor:
        """(E, N, actions) bool: the legal actions."""
        return battle.available.permute(2, 0, 1).contiguous()

    def _described(self, battle: Battle) -> tuple[Tensor, Tensor]:
        """Health, (shield) and (type) of allies (N, k, E) and of enemies (M, k, E), as parts of their maxima."""
        rules, n = self.rules, self.rules.allies
        health = (battle.health / rules.health)[:, None]
        sides = []
        for units, shields, types in (
            (slice(0, n), rules.ally_shields, self.ally_types),
            (slice(n, None), rules.enemy_shields, self.enemy_types),
        ):
            parts = [health[units]]
            if shields:
                parts.append((battle.shield[units] / rules.shield[units].clamp(min=1))[:, None])
            if types.shape[1]:
                parts.append(types[..., None].expand(-1, -1, health.shape[-1]))
            sides.append(torch.cat(parts, 1))
        return sides[0], sides[1]


def _one_hot(order: tuple[str, ...], units: tuple[Unit, ...]) -> Tensor:
    return torch.tensor([[float(unit.name == name) for name in order] for unit in units]).view(len(units), len(order))


def offsets(position: Tensor, viewers: int) -> tuple[Tensor, Tensor]:
    """From each of the first `viewers` units to every unit: (2, viewers, U, E) and the distance (viewers, U, E)."""
    apart = position[:, None] - position[:, :viewers, None]
    dx, dy = apart.unbind(0)
    # Four exactly rounded operations: a copy alone and among others sees the same distance, unlike with hypot.
    return apart, torch.sqrt(dx * dx + dy * dy)


def available_actions(rules: Rules, position: Tensor, health: Tensor) -> Tensor:
    """Legal actions (N, 6 + enemies, E) bool: no-op, stop, north, south, east, west, then one slot per target.

    A target is legal within 6 cells between centres, whatever the weapon; a healer's slots are its comrades.
    """
    n = rules.allies
    alive = health > 0
    ours = alive[:n, None]
    mine = position[:, :n]
    below, above = mine - rules.low[:, :n], rules.high[:, :n] - mine
    room = torch.stack([above[1], below[1], above[0], below[0]], 1) >= 1.0
    near = (offsets(position, n)[1] <= SHOOT) & alive
    slots = near[:, n:]
    if rules.has_healers:
        spare = torch.zeros_like(slots[:, n:])
        comrades = torch.cat([near[:, :n] & ~rules.healer[:n], spare], 1)
        slots = torch.where(rules.healer[:n, None], comrades, slots)
    return torch.cat([~ours, ours, room & ours, slots & ours], 1)
