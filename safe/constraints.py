"""Constraint files: sets stated by the names of features, in real units; read strictly.

sets:
  - {type: ellipse, outside: true, dimensions: [x, y], center: [0, 0], radii: [1, 2], velocity: [0.1, 0]}
  - {type: box, dimensions: [vx], low: [-1], high: [null]}

A mistake gives one line that names the file, the set and the key.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from madiff.data import stored
from madiff.interfaces import UserError
from safe.distance import Distance
from safe.sets import Ball, Box, Ceiling, Ellipse, HalfSpace, Obstacles, SafeSet, Superellipse

Reader = Callable[[Any, int], Any]  # value, number of dimensions -> value as the set wants it; ValueError says what


def number(value: Any, d: int) -> float:
    """A finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError("a finite number")
    return float(value)


def positive(value: Any, d: int) -> float:
    """A finite number above 0."""
    if number(value, d) <= 0:
        raise ValueError("a number above 0")
    return float(value)


def power(value: Any, d: int) -> float:
    """A finite number from 2."""
    if number(value, d) < 2:
        raise ValueError("a number, 2 or more")
    return float(value)


def switch(value: Any, d: int) -> bool:
    """true or false."""
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


def vector(value: Any, d: int) -> tuple[float, ...]:
    """One finite number per dimension."""
    return _listed(value, d, number, f"{d} finite number{'s' * (d > 1)}")


def lengths(value: Any, d: int) -> tuple[float, ...]:
    """One positive number per dimension."""
    return _listed(value, d, positive, f"{d} number{'s' * (d > 1)} above 0")


def normal(value: Any, d: int) -> tuple[float, ...]:
    """One finite number per dimension, not all 0."""
    if not any(found := vector(value, d)):
        raise ValueError(f"{d} finite numbers, not all 0")
    return found


def low(value: Any, d: int) -> tuple[float, ...]:
    """One finite number per dimension, null where unbounded below."""
    return _listed(value, d, lambda v, d: -math.inf if v is None else number(v, d), f"{d} finite numbers or null")


def high(value: Any, d: int) -> tuple[float, ...]:
    """One finite number per dimension, null where unbounded above."""
    return tuple(-bound if bound == -math.inf else bound for bound in low(value, d))


def centers(value: Any, d: int) -> tuple[tuple[float, ...], ...]:
    """At least one vector."""
    if not isinstance(value, list | tuple) or not value:
        raise ValueError(f"a list of points of {d} finite numbers")
    return tuple(vector(center, d) for center in value)


def many_lengths(value: Any, d: int) -> tuple[float, ...]:
    """At least one positive number."""
    if not isinstance(value, list | tuple) or not value:
        raise ValueError("a list of numbers above 0")
    return tuple(positive(radius, d) for radius in value)


def _listed(value: Any, d: int, read: Reader, allowed: str) -> tuple:
    if not isinstance(value, list | tuple) or len(value) != d:
        raise ValueError(allowed)
    try:
        return tuple(read(entry, d) for entry in value)
    except ValueError as error:
        raise ValueError(allowed) from error


CURVE = {"outside": switch, "center": vector, "velocity": vector}
# type -> the set, how each of its keys is read, and which keys must be there
TYPES: dict[str, tuple[type[SafeSet], dict[str, Reader], tuple[str, ...]]] = {
    "half-space": (HalfSpace, {"normal": normal, "offset": number, "velocity": vector}, ("normal", "offset")),
    "box": (Box, {"low": low, "high": high, "velocity": vector}, ("low", "high")),
    "ball": (Ball, {**CURVE, "radius": positive}, ("center", "radius")),
    "ellipse": (Ellipse, {**CURVE, "radii": lengths}, ("center", "radii")),
    "superellipse": (Superellipse, {**CURVE, "radii": lengths, "power": power}, ("center", "radii")),
    "ceiling": (Ceiling, {"limit": number, "velocity_weight": number}, ("limit",)),
    "distance": (Distance, {"minimum": positive}, ("minimum",)),
    "obstacles": (
        Obstacles, {"centers": centers, "radii": many_lengths, "velocity": vector}, ("centers", "radii")
    ),
}  # fmt: skip
DIMENSIONS = {"superellipse": 2, "ceiling": 2}


def load(source: str | os.PathLike[str] | Mapping[str, Any], names: Sequence[str]) -> list[SafeSet]:
    """The sets of a YAML file or of a mapping like it, on points whose features are called `names`.

    Raises UserError for a file that cannot be read, and for an unknown type, key or dimension, a wrong length, a
    value that is not finite, a radius that is not positive: with the file, the number of the set (from 0) and the key.
    """
    entries, where = _entries(source)
    return [_set(entry, names, f"{where}: sets[{i}]") for i, entry in enumerate(entries)]


def speaks_of(source: str | os.PathLike[str] | Mapping[str, Any]) -> set[str]:
    """The names of all features that the sets of a valid file are stated on."""
    return {name for entry in _entries(source)[0] for name in entry["dimensions"]}


def _entries(source: str | os.PathLike[str] | Mapping[str, Any]) -> tuple[Sequence[Any], str]:
    """The list of sets as it was written, and where."""
    if isinstance(source, Mapping):
        content, where = source, "constraints"
    else:
        content, where = _read(Path(os.path.expanduser(source))), str(source)
    if not isinstance(content, Mapping) or set(content) != {"sets"}:
        found = ", ".join(map(str, content)) if isinstance(content, Mapping) else type(content).__name__
        raise UserError(f"holds {found or 'nothing'}", where, "one key, sets, with a list of sets")
    if not isinstance(content["sets"], list | tuple):
        raise UserError(f"sets is {content['sets']!r}", where, "a list of sets")
    return content["sets"], where


def _read(path: Path) -> Any:
    try:
        return stored.read_yaml(path)
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})", str(path)) from error
    except ValueError as error:
        problem = " ".join(str(error).split())
        raise UserError(f"is not YAML ({problem})", str(path)) from error


def _set(entry: Any, names: Sequence[str], where: str) -> SafeSet:
    if not isinstance(entry, Mapping) or "type" not in entry:
        raise UserError(f"{entry!r} has no type", where, list(TYPES))
    kind = entry["type"]
    if not isinstance(kind, str) or kind not in TYPES:
        raise UserError(f"unknown type {kind!r}", f"{where}.type", list(TYPES))
    made, readers, required = TYPES[kind]
    for key in entry:
        if key not in ("type", "dimensions", *readers):
            raise UserError(f"unknown key {key!r} of {kind}", where, ["type", "dimensions", *readers])
    for key in ("dimensions", *required):
        if key not in entry:
            raise UserError(f"{kind} without {key}", where, ["type", "dimensions", *readers])
    dimensions = _dimensions(entry["dimensions"], names, kind, where)
    values = {key: _value(readers[key], entry, key, len(dimensions), where) for key in readers if key in entry}
    _check(kind, values, where)
    return made(dimensions=dimensions, **values)


def _dimensions(given: Any, names: Sequence[str], kind: str, where: str) -> tuple[int, ...]:
    where = f"{where}.dimensions"
    if not isinstance(given, list | tuple) or not given:
        raise UserError(f"{given!r} names no dimension", where, list(names))
    for name in given:
        if name not in names:
            raise UserError(f"there is no dimension {name!r}", where, list(names))
    if len(set(given)) < len(given):
        raise UserError(f"{given!r} names a dimension twice", where, "each once")
    if len(given) != DIMENSIONS.get(kind, len(given)):
        raise UserError(f"{len(given)} dimensions for {kind}", where, [f"{DIMENSIONS[kind]} names"])
    return tuple(list(names).index(name) for name in given)


def _value(read: Reader, entry: Mapping[str, Any], key: str, d: int, where: str) -> Any:
    try:
        return read(entry[key], d)
    except (ValueError, OverflowError) as error:
        raise UserError(f"{entry[key]!r}", f"{where}.{key}", str(error)) from error


def _check(kind: str, values: Mapping[str, Any], where: str) -> None:
    """What concerns two keys at once."""
    if kind == "obstacles" and len(values["centers"]) != len(values["radii"]):
        what = f"{len(values['radii'])} radii for {len(values['centers'])} centers"
        raise UserError(what, f"{where}.radii", "one per center")
    if kind == "box" and any(a > b for a, b in zip(values["low"], values["high"], strict=True)):
        raise UserError(f"{values['low']} is above {values['high']}", f"{where}.low", "at most high")
