"""What a suite asks of its results beyond the tables: effects that its author predicts, and curves over an option.

    effects:
      values: {about: "...", cell: hopper/diffusion-ql, relation: above, other: hopper/bc, share: 0.5}
    curves:
      executed: {about: "...", over: algo.execute, lines: {plain: [every-step, every-2nd]}}

An effect puts what a cell returns within a band around what another returns. Both are counted from the zero of their
tasks (random behaviour), seed by seed and episode by episode, since these begin alike, and the band has ends at shares
of the other's return:

    above      more than (1 + share) times as much      share: 0 unless given
    below      less than (1 - share) times as much      0
    about      between (1 - share) and (1 + share)      0.1
    at-least   more than `share` times as much          1

For each end there is the interval of how far within it the cell lies. `verdict` is the only rule. Where the other is no
better than random, shares of it mean nothing: only `above` and `below` without a share are then decided.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Literal

from madiff.experiment.statistics import Interval
from madiff.interfaces import UserError
from madiff.schema import option

if TYPE_CHECKING:
    from madiff.benchmarking.suite import Method, Suite

SHARES = {"above": 0.0, "below": 0.0, "about": 0.1, "at-least": 1.0}
RULE = (
    "Seen: the whole 95 % interval lies within what was predicted; not seen: it lies wholly on the other side of an "
    "end; inconclusive: it holds an end."
)  # fmt: skip


@dataclass(frozen=True)
class Effect:
    """A prediction. cell, other: TASK/METHOD; share: what the relation makes of it, see above."""

    name: str
    about: str = option("the prediction in words")
    cell: str = option("TASK/METHOD")
    relation: Literal["above", "below", "about", "at-least"] = option("how it returns compared with `other`")
    other: str = option("TASK/METHOD")
    share: float | None = field(default=None, metadata={"minimum": 0})

    @property
    def band(self) -> tuple[float, float]:
        """The ends of what is predicted, in shares of the other's return; infinite where there is none."""
        share = SHARES[self.relation] if self.share is None else self.share
        return {
            "above": (1 + share, math.inf), "below": (-math.inf, 1 - share), "about": (1 - share, 1 + share),
            "at-least": (share, math.inf),
        }[self.relation]  # fmt: skip

    @property
    def told(self) -> dict[str, Any]:
        """What suite.json says of it; null for an end that is not there."""
        ends = [end if math.isfinite(end) else None for end in self.band]
        return {"about": self.about, "cell": parts(self.cell), "other": parts(self.other), "relation": self.relation,
                "band": ends}  # fmt: skip


@dataclass(frozen=True)
class Curve:
    """Return over an option. lines: name -> labels of the methods that differ in it; tasks: patterns, all if empty."""

    name: str
    over: str = option("an option of the methods, as algo.execute")
    lines: Mapping[str, Any] = option("name of a line -> labels of its points")
    about: str = ""
    tasks: tuple[str, ...] = ()

    def told(self, suite: Suite) -> dict[str, Any]:
        """What suite.json says of it: for every line and task the value of the option at each label."""
        tasks = [task for task in suite.tasks if not self.tasks or any(fnmatchcase(task, p) for p in self.tasks)]
        points = {
            line: {task: {label: value(suite, suite.methods[label], task, self.over) for label in labels}
                   for task in tasks}
            for line, labels in self.lines.items()
        }  # fmt: skip
        return {"about": self.about, "option": self.over, "lines": points}


def parts(cell: str) -> list[str]:
    """TASK/METHOD as the two; what has no slash is a task alone."""
    return list(cell.partition("/")[::2])


def value(suite: Suite, method: Method, task: str, option: str) -> Any:
    """An option of a method on a task, its own or that of the method whose run it takes; None where nothing says it."""
    for one in (method, *([suite.methods[method.of]] if method.of else [])):
        if option in (options := one.options_on(task)):
            return options[option]
    return None


def verdict(margins: Sequence[Interval]) -> str:
    """seen, not seen or inconclusive. margins: for each end of the prediction, the interval of how far within it the
    measured lies, below 0 for outside.
    """
    if all(low > 0 for low, _ in margins):
        return "seen"
    return "not seen" if any(high < 0 for _, high in margins) else "inconclusive"


def check(suite: Suite) -> None:
    """Raise UserError for names in `effects` and `curves` that stand for nothing, and for cells that are left out."""
    for effect in suite.effects.values():
        for key in ("cell", "other"):
            check_cell(suite, getattr(effect, key), f"effects.{effect.name}.{key}")
    for curve in suite.curves.values():
        check_curve(suite, curve, f"curves.{curve.name}")


def check_cell(suite: Suite, cell: str, where: str) -> None:
    task, label = parts(cell)
    if task not in suite.tasks:
        raise UserError(f"'{cell}' names no task", where, [f"{name}/METHOD" for name in suite.tasks])
    if label not in suite.methods:
        raise UserError(f"'{cell}' names no method", where, [f"{task}/{name}" for name in suite.methods])
    if excuse := excuse_of(suite, label, task):
        raise UserError(f"{label} is not run on {task} ({excuse})", where, "a cell that is run")


def excuse_of(suite: Suite, label: str, task: str) -> str | None:
    """Why a method, or the one whose run it takes, is not run on a task; None where it is."""
    method = suite.methods[label]
    return method.excuse(task) or (suite.methods[method.of].excuse(task) if method.of else None)


def check_curve(suite: Suite, curve: Curve, where: str) -> None:
    for pattern in curve.tasks:
        if not any(fnmatchcase(task, pattern) for task in suite.tasks):
            raise UserError(f"'{pattern}' is no task", f"{where}.tasks", list(suite.tasks))
    for line, labels in curve.lines.items():
        if not isinstance(labels, list) or not labels:
            raise UserError("is no list of methods", f"{where}.lines.{line}", list(suite.methods))
        for label in labels:
            if label not in suite.methods:
                raise UserError(f"there is no method '{label}'", f"{where}.lines.{line}", list(suite.methods))
    for line, tasks in curve.told(suite)["lines"].items():
        for task, points in tasks.items():
            for label, found in points.items():
                if excuse_of(suite, label, task) is None and not is_number(found):
                    raise UserError(f"{label} says no number for {curve.over} on {task}", f"{where}.lines.{line}",
                                    f"methods with {curve.over}=NUMBER")  # fmt: skip


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
