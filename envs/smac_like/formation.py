"""Where the units of one side stand when a battle begins."""

from __future__ import annotations

from .units import Unit

SPAWN_GAP = 0.2


def formation(units: tuple[Unit, ...], centre: tuple[float, float], facing: int) -> list[tuple[float, float]]:
    """A block of columns from the rear to the front (healers, long weapons, short ones), full columns behind.

    The block facing the other way is its mirror image. Listed by type, each sorted by (x, y).
    """
    names = list(dict.fromkeys(unit.name for unit in units))
    kind = {unit.name: unit for unit in units}
    gap = 2 * max(unit.radius for unit in units) + SPAWN_GAP
    columns: list[tuple[str, int]] = []
    for name in sorted(names, key=lambda n: (not kind[n].healer, -kind[n].reach)):
        left = sum(unit.name == name for unit in units)
        rows = max(1, round((2 * left) ** 0.5 + 0.5))
        while left > 0:
            columns.append((name, min(rows, left)))
            left -= rows
    places: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for i, (name, rows) in enumerate(columns):
        x = centre[0] + facing * gap * (i - (len(columns) - 1) / 2)
        places[name] += [(x, centre[1] + gap * (j - (rows - 1) / 2)) for j in range(rows)]
    return [place for name in names for place in sorted(places[name])]
