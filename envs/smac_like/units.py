"""The units: strength, weapon and speed of every kind, in engine loops and map cells.

One second of the "faster" game speed has 22.4 loops, one of the "normal" speed 16. Published cooldowns and speeds are
in faster seconds, shield, heal and energy rates in normal seconds; a `Unit` holds everything per loop.
"""

from __future__ import annotations

from dataclasses import dataclass

LOOPS_PER_SECOND = 22.4
LOOPS_PER_NORMAL_SECOND = 16.0

SHIELD_DELAY = 10 * LOOPS_PER_NORMAL_SECOND
SHIELD_REGENERATION = 2 / LOOPS_PER_NORMAL_SECOND
HEALING = 9 / LOOPS_PER_NORMAL_SECOND
HEALTH_PER_ENERGY = 3.0
ENERGY_MAX = 200.0
ENERGY_START = 50.0
ENERGY_REGENERATION = 0.0352
ZERG_REGENERATION = 0.38 / LOOPS_PER_SECOND
LEAST_DAMAGE = 0.5
SIGHT = 9.0
SHOOT = 6.0


@dataclass(frozen=True)
class Unit:
    """One kind of unit.

    damage, bonus: per attack and before armour, the bonus against units with the attribute `bonus_against`;
    attacks: blows of one shot; cooldown: loops between shots before jitter; reach: weapon range between edges;
    speed: cells a loop; scan: how far, between edges, it looks for enemies by itself;
    splash: "" (one victim), "line" (colossus) or "suicide" (baneling);
    layer: units push each other apart within one layer; cooldown_scale: normaliser in the global state.
    """

    name: str
    letter: str
    health: float
    damage: float
    cooldown: float
    reach: float
    speed: float
    radius: float
    attributes: frozenset[str]
    cooldown_scale: float
    scan: float = 5.0
    shield: float = 0.0
    armour: float = 0.0
    attacks: int = 1
    bonus: float = 0.0
    bonus_against: str = ""
    splash: str = ""
    layer: str = "ground"
    hits_air: bool = False
    healer: bool = False
    regeneration: float = 0.0

    @property
    def strength(self) -> float:
        """Health and shield together: what killing the unit pays before the bonus for the kill."""
        return self.health + self.shield


def _unit(name: str, letter: str, attributes: str, *, speed: float, cooldown: float = 1.0, **values: object) -> Unit:
    per_loop = {"speed": speed / LOOPS_PER_SECOND, "cooldown": cooldown * LOOPS_PER_SECOND}
    return Unit(name=name, letter=letter, attributes=frozenset(attributes.split()), **per_loop, **values)  # type: ignore[arg-type]


_KINDS = (
    _unit("marine", "m", "light biological", health=45, damage=6, cooldown=0.61, reach=5, speed=3.15, radius=0.375,
          hits_air=True, cooldown_scale=15),
    _unit("marauder", "M", "armored biological", health=125, armour=1, damage=10, bonus=10, bonus_against="armored",
          cooldown=1.07, reach=6, speed=3.15, radius=0.5625, cooldown_scale=25),
    _unit("medivac", "+", "armored mechanical", health=150, armour=1, damage=0, reach=4, speed=3.5, radius=0.75,
          layer="air", healer=True, cooldown_scale=ENERGY_MAX),
    _unit("stalker", "s", "armored mechanical", health=80, shield=80, armour=1, damage=13, bonus=5,
          bonus_against="armored", cooldown=1.34, reach=6, speed=4.13, radius=0.625, hits_air=True, cooldown_scale=35),
    _unit("zealot", "z", "light biological", health=100, shield=50, armour=1, damage=8, attacks=2, cooldown=0.86,
          reach=0.1, speed=3.15, radius=0.5, cooldown_scale=22),
    _unit("colossus", "C", "armored mechanical", health=200, shield=150, armour=1, damage=10, attacks=2, bonus=5,
          bonus_against="light", cooldown=1.07, reach=7, speed=3.15, radius=1.0, splash="line", layer="above",
          cooldown_scale=24),
    _unit("zergling", "l", "light biological", health=35, damage=5, cooldown=0.497, reach=0.1, speed=4.13,
          radius=0.375, regeneration=ZERG_REGENERATION, cooldown_scale=11),
    _unit("baneling", "b", "biological", health=30, damage=16, bonus=19, bonus_against="light", reach=0.25, speed=3.15,
          radius=0.375, splash="suicide", regeneration=ZERG_REGENERATION, cooldown_scale=1),
    _unit("hydralisk", "h", "light biological", health=80, damage=12, cooldown=0.59, reach=5, speed=3.15,
          radius=0.625, hits_air=True, regeneration=ZERG_REGENERATION, cooldown_scale=10),
    _unit("spine crawler", "S", "structure armored biological", health=300, armour=2, damage=25, bonus=5,
          bonus_against="armored", cooldown=1.32, reach=7, scan=10, speed=0, radius=0.5, regeneration=ZERG_REGENERATION,
          cooldown_scale=30),
)  # fmt: skip

UNITS = {unit.name: unit for unit in _KINDS}

SPLASH_LINE = (1.4, 0.15)
"""Half length and half width of the colossus's line, which lies across the line of fire through the target."""
SPLASH_RADIUS = 2.2
"""Reach of the baneling's burst around itself."""


def can_hit(shooter: Unit, victim: Unit) -> bool:
    """Whether the weapon reaches the victim's layer; the colossus stands on the ground and is hit by every weapon."""
    return shooter.damage > 0 and (victim.layer != "air" or shooter.hits_air)


def damage_per_attack(shooter: Unit, victim: Unit) -> float:
    """Damage of one blow before armour, with the bonus against the victim's attributes."""
    if not can_hit(shooter, victim):
        return 0.0
    return shooter.damage + (shooter.bonus if shooter.bonus_against in victim.attributes else 0.0)
