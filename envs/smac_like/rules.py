"""The constant tensors of one scenario on one device: what the dynamics look up instead of computing.

Allies come first in every unit axis, enemies after them; a last axis of 1 stands for the copies. Flags say which
mechanics a scenario has at all, so that the others cost nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .formation import formation
from .scenarios import Scenario
from .units import LEAST_DAMAGE, Unit, can_hit, damage_per_attack

MAP_SIZE = 32.0
WALKABLE = ((0.0, 32.0), (8.0, 24.0))
ALLY_SPAWN, ENEMY_SPAWN = (9.0, 16.0), (23.0, 16.0)
MOVE_CELLS = 2.0
LOOPS_PER_STEP = 8
FAR = 1e4
"""Where the dead stand during a step: beyond every range, each at a place of its own."""


class Side(NamedTuple):
    """One side's weapons against the other: tables (shooters, victims, 1), (shooters, 1, 1) or (victims, 1)."""

    shooters: slice
    victims: slice
    victim_index: Tensor
    net_damage: Tensor
    damage: Tensor
    attacks: Tensor
    armour: Tensor
    hits: Tensor
    victim_radius: Tensor
    line: Tensor
    suicides: Tensor


class Rules:
    """Tables led by the unit axis (U = allies + enemies) and flags of one scenario."""

    def __init__(self, scenario: Scenario, device: torch.device) -> None:
        self.scenario, self.device = scenario, device
        self.units = scenario.ally_units + scenario.enemy_units
        self.allies, self.enemies = len(scenario.ally_units), len(scenario.enemy_units)
        self.count = self.allies + self.enemies
        self.actions = 6 + self.enemies
        self.index = torch.arange(self.count, device=device)[:, None]
        self._bodies()
        self._weapons()
        self._enemy_eyes()
        self._places()

    def _row(self, value: Callable[[Unit], float | bool]) -> Tensor:
        return torch.tensor([[value(unit)] for unit in self.units], device=self.device)

    def _pairs(self, value: Callable[[Unit, Unit], float | bool]) -> Tensor:
        return torch.tensor([[[value(a, b)] for b in self.units] for a in self.units], device=self.device)

    def _bodies(self) -> None:
        units, allies = self.units, self.allies
        self.health, self.shield = self._row(lambda u: float(u.health)), self._row(lambda u: float(u.shield))
        self.radius, self.regeneration = self._row(lambda u: u.radius), self._row(lambda u: u.regeneration)
        self.cooldown_scale = self._row(lambda u: float(u.cooldown_scale))
        self.healer = self._row(lambda u: u.healer)
        self.has_healers = bool(self.healer.any())
        self.regenerates = bool(self.regeneration.any())
        self.ally_shields, self.enemy_shields = bool(self.shield[:allies].any()), bool(self.shield[allies:].any())
        self.shields = self.ally_shields or self.enemy_shields
        # The enemy's healers walk no faster than the fighters they go with.
        escort = min((unit.speed for unit in units[allies:] if not unit.healer), default=0.0)
        speeds = [min(u.speed, escort) if u.healer and i >= allies else u.speed for i, u in enumerate(units)]
        self.speed = torch.tensor(speeds, device=self.device)[:, None]
        self.touch = self.radius[:, None] + self.radius[None]
        mobile = (self.speed > 0).float()
        others = 1 - torch.eye(self.count, device=self.device)[..., None]
        same_layer = self._pairs(lambda a, b: float(a.layer == b.layer))
        self.push = others * same_layer * mobile[:, None] / (mobile[:, None] + mobile[None]).clamp(min=1)

    def _weapons(self) -> None:
        self.cooldown = self._row(lambda u: u.cooldown)
        self.armed = self._row(lambda u: u.damage > 0)
        self.within_reach = self._row(lambda u: float(u.reach))[:, None] + self.touch
        self.hits = self._pairs(can_hit)
        unhurt = (self.armed[:, None] & ~self.hits)[..., 0]
        n = self.allies
        self.some_cannot_hurt = bool(unhurt[:n, n:].any() or unhurt[n:, :n].any())
        self.splashes = any(unit.splash for unit in self.units)
        self.has_suicides = any(unit.splash == "suicide" for unit in self.units)
        self.most_attacks = max(unit.attacks for unit in self.units)
        allies, enemies = slice(0, self.allies), slice(self.allies, None)
        self.sides = (self._side(allies, enemies), self._side(enemies, allies))

    def _side(self, shooters: slice, victims: slice) -> Side:
        block = shooters, victims
        return Side(
            shooters,
            victims,
            victim_index=self.index[victims],
            net_damage=self._pairs(_net_damage)[block],
            damage=self._pairs(damage_per_attack)[block],
            attacks=self._row(lambda u: float(u.attacks))[shooters, None],
            armour=self._row(lambda u: float(u.armour))[victims],
            hits=self.hits[block],
            victim_radius=self.radius[victims],
            line=self._row(lambda u: u.splash == "line")[shooters, None],
            suicides=self._row(lambda u: u.splash == "suicide")[shooters],
        )

    def _enemy_eyes(self) -> None:
        """What the enemies' targeting reads, (enemies, allies): scan and weapon range between centres, preferences."""
        n = self.allies
        block = slice(n, None), slice(0, n)
        nothing = torch.full_like(self.touch, -1.0)
        least = self._row(lambda u: max(u.reach, u.scan))[:, None] + self.touch
        self.enemy_scan = torch.where(self.hits, least, nothing)[block]
        self.enemy_reach = torch.where(self.hits, self.within_reach, nothing)[block]
        # Distance counts between edges, and any healer in sight before any fighter.
        self.enemy_preference = (self.touch + FAR / 10 * self.healer[None])[block]
        self.enemy_index = self.index[n:]
        self.enemy_healer, self.enemy_health = self.healer[n:], self.health[n:]

    def _places(self) -> None:
        self.far = (FAR * (1 + self.index)).float()
        # Edges differ by a thousandth from unit to unit: no two units ever stand on one point, where none could yield.
        low, high = torch.tensor(WALKABLE, device=self.device)[:, :, None, None].unbind(1)
        self.low, self.high = low + 1e-3 * self.index, high - 1e-3 * self.index
        allies = formation(self.scenario.ally_units, ALLY_SPAWN, facing=1)
        enemies = formation(self.scenario.enemy_units, ENEMY_SPAWN, facing=-1)
        self.spawn = torch.tensor(allies + enemies, device=self.device).T[..., None].contiguous()
        self.march = torch.tensor(ALLY_SPAWN, device=self.device)[:, None, None]
        ways = [(0.0, 0.0), (0.0, 0.0), (0.0, MOVE_CELLS), (0.0, -MOVE_CELLS), (MOVE_CELLS, 0.0), (-MOVE_CELLS, 0.0)]
        self.way_of_action = torch.tensor(ways + [(0.0, 0.0)] * self.enemies, device=self.device).T.contiguous()


def _net_damage(shooter: Unit, victim: Unit) -> float:
    """Damage of one shot after armour, to a victim without shields."""
    if not can_hit(shooter, victim):
        return 0.0
    return shooter.attacks * max(damage_per_attack(shooter, victim) - victim.armour, LEAST_DAMAGE)
