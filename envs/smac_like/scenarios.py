"""The battles: who fights whom, for how long, and how unit types are numbered in the features.

Units, limits and type orders are those of SMAC (arXiv 1902.04043, `smac_maps.py`); `agents=N` is N marines against N.
"""

from __future__ import annotations

from dataclasses import dataclass

from madiff.interfaces import UserError

from .units import UNITS, Unit

MAX_MARINES = 64
WIN_REWARD = 200.0
KILL_REWARD = 10.0
REWARD_SCALE = 20.0

Army = tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Scenario:
    """One battle.

    allies, enemies: (unit name, count) in agent order; limit: longest battle in steps;
    ally_types, enemy_types: order of the one-hot type features, empty where a side has one kind of unit.
    The two orders differ on stalker-and-zealot maps, as in SMAC; recorded data relies on it.
    """

    name: str
    allies: Army
    enemies: Army
    limit: int
    ally_types: tuple[str, ...] = ()
    enemy_types: tuple[str, ...] = ()

    @property
    def ally_units(self) -> tuple[Unit, ...]:
        return _listed(self.allies)

    @property
    def enemy_units(self) -> tuple[Unit, ...]:
        return _listed(self.enemies)

    @property
    def agents(self) -> int:
        return len(self.ally_units)

    @property
    def max_reward(self) -> float:
        """R_max: the raw reward of killing every enemy once and winning; scales returns to 20."""
        enemies = self.enemy_units
        return WIN_REWARD + KILL_REWARD * len(enemies) + sum(unit.strength for unit in enemies)

    @property
    def options(self) -> dict[str, object]:
        """Keyword arguments that select this scenario again."""
        return {"scenario": self.name} if self.name in SCENARIOS else {"agents": self.agents}


def _listed(army: Army) -> tuple[Unit, ...]:
    return tuple(UNITS[name] for name, count in army for _ in range(count))


def _army(text: str) -> Army:
    """Read "2 stalker 3 zealot"."""
    words = text.split(" ")
    return tuple((" ".join(words[i + 1].split("_")), int(words[i])) for i in range(0, len(words), 2))


def _scenario(
    name: str, limit: int, allies: str, enemies: str = "", types: str = "", enemy_types: str = ""
) -> Scenario:
    orders = tuple(types.split()), tuple((enemy_types or types).split())
    return Scenario(name, _army(allies), _army(enemies or allies), limit, *orders)


_STALKER_ZEALOT = {"types": "stalker zealot", "enemy_types": "zealot stalker"}
_MMM = {"types": "marauder marine medivac"}

_LIST = (
    _scenario("3m", 60, "3 marine"),
    _scenario("8m", 120, "8 marine"),
    _scenario("25m", 150, "25 marine"),
    _scenario("5m_vs_6m", 70, "5 marine", "6 marine"),
    _scenario("8m_vs_9m", 120, "8 marine", "9 marine"),
    _scenario("10m_vs_11m", 150, "10 marine", "11 marine"),
    _scenario("27m_vs_30m", 180, "27 marine", "30 marine"),
    _scenario("MMM", 150, "2 marauder 7 marine 1 medivac", **_MMM),
    _scenario("MMM2", 180, "2 marauder 7 marine 1 medivac", "3 marauder 8 marine 1 medivac", **_MMM),
    _scenario("2s3z", 120, "2 stalker 3 zealot", **_STALKER_ZEALOT),
    _scenario("3s5z", 150, "3 stalker 5 zealot", **_STALKER_ZEALOT),
    _scenario("3s5z_vs_3s6z", 170, "3 stalker 5 zealot", "3 stalker 6 zealot", **_STALKER_ZEALOT),
    _scenario("3s_vs_3z", 150, "3 stalker", "3 zealot"),
    _scenario("3s_vs_4z", 200, "3 stalker", "4 zealot"),
    _scenario("3s_vs_5z", 250, "3 stalker", "5 zealot"),
    _scenario("1c3s5z", 180, "1 colossus 3 stalker 5 zealot", types="colossus stalker zealot"),
    _scenario("2m_vs_1z", 150, "2 marine", "1 zealot"),
    _scenario("corridor", 400, "6 zealot", "24 zergling"),
    _scenario("6h_vs_8z", 150, "6 hydralisk", "8 zealot"),
    _scenario("2s_vs_1sc", 300, "2 stalker", "1 spine_crawler"),
    _scenario("so_many_baneling", 100, "7 zealot", "32 baneling"),
    _scenario("bane_vs_bane", 200, "4 baneling 20 zergling", types="baneling zergling"),
    _scenario("2c_vs_64zg", 400, "2 colossus", "64 zergling"),
)

SCENARIOS = {scenario.name: scenario for scenario in _LIST}


def marine_limit(agents: int) -> int:
    """Episode limit of N marines against N: straight lines through 3m (60), 8m (120) and 25m (150), 60 below 3m."""
    return round(60 + 12 * min(max(agents - 3, 0), 5) + 30 / 17 * max(agents - 8, 0))


def marines(agents: int) -> Scenario:
    """N marines against N, for 1 <= N <= 64; the SMAC scenario where there is one."""
    if isinstance(agents, bool) or not isinstance(agents, int) or not 1 <= agents <= MAX_MARINES:
        raise UserError(f"{agents!r} is not a number of marines", "agents", f"1 to {MAX_MARINES}")
    army = (("marine", agents),)
    return SCENARIOS.get(f"{agents}m") or Scenario(f"{agents}m", army, army, marine_limit(agents))


def resolve(scenario: str | None = None, agents: int | None = None) -> Scenario:
    """The scenario asked for by name, by number of marines, or both in agreement; 3m when neither is given."""
    if scenario is None:
        return marines(3 if agents is None else agents)
    if scenario not in SCENARIOS:
        raise UserError(f"no scenario is called {scenario!r}", "scenario", list(SCENARIOS))
    found = SCENARIOS[scenario]
    if agents is not None and agents != found.agents:
        raise UserError(f"{agents!r} disagrees with scenario {scenario}", "agents", f"{found.agents}, or leave it out")
    return found
