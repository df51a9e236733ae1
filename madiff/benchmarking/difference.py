"""What changed between two benchmarks, or between two runs: returns, costs, violations, effort, options, versions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from madiff.benchmarking.aggregate import Runs, frozen, interval
from madiff.benchmarking.sides import EFFORT, SHARES, Key, Options, Row, Side
from madiff.benchmarking.table import EMPTY, Table
from madiff.benchmarking.tables import estimate, number
from madiff.experiment import comparison_plots, statistics
from madiff.experiment.statistics import Interval
from madiff.interfaces import UserError

# quantity -> its title, and whether more of it (1) or less (-1) is better.
QUANTITIES = {
    "return": ("Return", 1), "won": ("Win rate", 1), "cost": ("Cost", -1),
    "plans_violating": ("Plans in violation", -1), "episodes_violating": ("Episodes in violation", -1),
}  # fmt: skip
BETTER, WORSE, NONE, FEW = "better", "worse", "no difference shown", "too few episodes"
ROUNDING = 1e-6  # of the larger mean: what sums of float32 rewards leave of nothing
NAMED = 3  # rows named beside an option before the others are counted
STARTS = ("env.", "scenario", "agents", "evaluation.seed", "evaluation.episodes")  # options that episodes begin with


@dataclass(frozen=True)
class Change:
    """A quantity of one row: means of A and of B, B - A with its 95 % interval, what was compared, and the verdict."""

    key: Key
    name: str
    quantity: str
    means: tuple[float, float]
    difference: float
    ends: Interval
    compared: str
    verdict: str


def check_kinds(a: Side, b: Side) -> None:
    """Raise UserError where a benchmark is held against a run."""
    if a.kind != b.kind:
        what = f"{a.path} is a {a.kind} and {b.path} a {b.kind}"
        raise UserError(what, "compare", "two benchmarks, or two runs")


def common(a: Side, b: Side) -> list[Key]:
    return [key for key in a.rows if key in b.rows]


def changes(a: Side, b: Side) -> list[Change]:
    """Every quantity that both sides have, row by row."""
    found = (change(key, quantity, a.rows[key], b.rows[key]) for quantity in QUANTITIES for key in common(a, b))
    return [one for one in found if one is not None]


def change(key: Key, quantity: str, a: Row, b: Row) -> Change | None:
    """B - A: over the same seeds and episodes where both have these, else as two samples with nothing in common."""
    before, after = a.values.get(quantity, {}), b.values.get(quantity, {})
    if not before or not after:
        return None
    seeds = [seed for seed in before if seed in after and len(before[seed]) == len(after[seed])]
    if seeds and quantity not in SHARES and begin_alike(a, b):
        old, new = (tuple(values[seed] for seed in seeds) for values in (before, after))
        ends = interval(frozen(np.subtract(y, x) for x, y in zip(old, new, strict=True)))
        compared = f"{size(old)}, paired"
    else:
        old, new = tuple(before.values()), tuple(after.values())
        ends = apart(new, old)
        compared = size(old) if size(old) == size(new) else f"{size(old)} and {size(new)}"
    means = mean(old), mean(new)
    told = verdict(ends, means, QUANTITIES[quantity][1]) if min(episodes(old), episodes(new)) > 1 else FEW
    return Change(key, name(a, b), quantity, means, means[1] - means[0], ends, compared, told)


def begin_alike(a: Row, b: Row) -> bool:
    """Whether the episodes of the two begin alike, one by one."""
    one, other = ({key: value for key, value in found.items() if key.startswith(STARTS)} for found in settings(a, b))
    return one == other and a.starts == b.starts


def settings(a: Row, b: Row) -> tuple[Options, Options]:
    """The options of both: all of them where both have them, else those that were given."""
    if a.composed is not None and b.composed is not None:
        return a.composed, b.composed
    return a.given, b.given


def verdict(ends: Interval, means: tuple[float, float], sense: int) -> str:
    """better or worse where the interval of the difference lies wholly on one side of 0. sense: 1 if more is better."""
    if max(map(abs, ends)) <= ROUNDING * max(map(abs, means)) or ends[0] <= 0 <= ends[1]:
        return NONE
    return BETTER if (ends[0] > 0) == (sense > 0) else WORSE


@cache
def apart(ours: Runs, theirs: Runs) -> Interval:
    return statistics.difference_ci_over_seeds(ours, theirs)


def mean(runs: Runs) -> float:
    """The mean over runs of their episodes' means."""
    return float(np.mean([np.mean(run) for run in runs]))


def episodes(runs: Runs) -> int:
    return sum(map(len, runs))


def size(runs: Runs) -> str:
    """Seeds and, if all have as many, the episodes of each."""
    counts = {len(run) for run in runs}
    return f"{len(runs)} × {counts.pop() if len(counts) == 1 else f'{min(counts)} to {max(counts)}'}"


def name(a: Row, b: Row) -> str:
    return a.name if a.name == b.name else f"{a.name} → {b.name}"


def difference_tables(a: Side, b: Side, found: Sequence[Change]) -> list[Table]:
    """All that changed, as tables with columns A and B."""
    made = [*(quantity_table(quantity, found) for quantity in QUANTITIES), effort(a, b), lone(a, b)]
    return [summary(found), *(table for table in made if table.rows), option_table(a, b), fact_table(a, b)]


def summary(found: Sequence[Change]) -> Table:
    """How many rows of each quantity are better, worse, or neither."""
    rows = []
    for quantity, (title, _) in QUANTITIES.items():
        verdicts = [one.verdict for one in found if one.quantity == quantity]
        if verdicts:
            rows.append([title, str(len(verdicts)), *(str(verdicts.count(v)) for v in (BETTER, WORSE, NONE, FEW))])
    notes = [
        "Better and worse are of B, and said where the 95 % interval (bootstrap) of B less A does not hold 0: of many "
        "rows that do not differ one in twenty is then said to. No difference shown is not the same as none; more "
        "seeds and episodes may show one.",
        "Paired: by the same training seed and the same episode. With one training seed an interval says nothing of "
        "the luck of training, and with few seeds or episodes it is too narrow.",
    ]
    columns = ["quantity", "rows in both", BETTER, WORSE, NONE, FEW]
    return same("summary", "What changed", columns, rows, notes)


def quantity_table(quantity: str, found: Sequence[Change]) -> Table:
    rows = [
        [one.key[0], one.name, *map(number, one.means), estimate(one.difference, one.ends, "+"), one.compared,
         one.verdict] for one in found if one.quantity == quantity
    ]  # fmt: skip
    kept = "Only their means are kept, so that the interval is the widest that such a share can have."
    notes = [kept] if quantity in SHARES else []
    columns = ["task", "method", "A", "B", "B less A (95 % interval)", "seeds × episodes", "B is"]
    return Table(f"change_{quantity}", QUANTITIES[quantity][0], columns, rows, notes)


def effort(a: Side, b: Side) -> Table:
    """Time and size of the rows in both; two machines, or one that had other work, tell times apart as well."""
    known = [key for key in common(a, b) if any(value is not None for value in a.rows[key].effort.values())]
    rows = [
        [key[0], name(a.rows[key], b.rows[key]), *(moved(a.rows[key].effort[k], b.rows[key].effort[k]) for k in EFFORT)]
        for key in known
    ]
    columns = ["task", "method", "ms a decision", "network calls", "parameters", "training seconds"]
    notes = ["Times depend on the machine and on what else it did."]
    return Table("change_effort", "Effort", columns, rows, notes)


def moved(before: float | None, after: float | None) -> str:
    """Two numbers and the part by which the second is more; one where they are the same."""
    texts = [EMPTY if v is None else f"{v:,.0f}" if abs(v) >= 100 else f"{v:.3g}" for v in (before, after)]
    if texts[0] == texts[1]:
        return texts[0]
    part = f" ({after / before - 1:+.0%})" if before and after is not None else ""
    return f"{texts[0]} → {texts[1]}{part}"


def lone(a: Side, b: Side) -> Table:
    """The rows that have numbers on one side only, and why not on the other."""
    rows = [
        [key[0], one.rows[key].name, *((("has numbers", why), (why, "has numbers"))[at])]
        for at, (one, other) in enumerate(((a, b), (b, a))) for key in one.rows if key not in other.rows
        for why in [other.absent.get(key, "not there")]
    ]  # fmt: skip
    return Table("lone", "Rows in one only", ["task", "method", "A", "B"], rows)


def option_table(a: Side, b: Side) -> Table:
    """The options that differ, and in which of the rows in both."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for key in common(a, b):
        before, after = settings(a.rows[key], b.rows[key])
        for option in sorted({*before, *after}):
            then, now = before.get(option, EMPTY), after.get(option, EMPTY)
            if then != now:
                found.setdefault((option, then, now), []).append(f"{key[0]} {a.rows[key].name}")
    rows = [[*texts, where(names, len(common(a, b)))] for texts, names in found.items()]
    part = any(a.rows[key].composed is None or b.rows[key].composed is None for key in common(a, b))
    notes = ["Of some rows only the options that were given are known, not the defaults."] if part else []
    return same("options", "Changed options", ["option", "A", "B", "rows"], rows, notes)


def where(names: Sequence[str], total: int) -> str:
    if len(names) == total:
        return "all"
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


def fact_table(a: Side, b: Side) -> Table:
    keys = list(dict.fromkeys([*a.facts, *b.facts]))
    rows = [[key, a.facts.get(key, EMPTY), b.facts.get(key, EMPTY)] for key in keys]
    changed = [row for row in rows if row[1] != row[2]]
    alike = [f"{key} {one}" for key, one, other in rows if one == other]
    return same("environment", "Changed versions and environment", ["what", "A", "B"], changed,
                [f"The same: {', '.join(alike)}."] if alike else [])  # fmt: skip


def same(table: str, title: str, columns: Sequence[str], rows: list[list[str]], notes: Iterable[str]) -> Table:
    """A table that says so where nothing differs."""
    return Table(table, title, columns, rows or [["nothing", *[EMPTY] * (len(columns) - 1)]], list(notes))


def draw(found: Sequence[Change], folder: Path) -> list[Path]:
    """Bars of the differences with their intervals, a picture a quantity."""
    made = []
    for quantity, (title, _) in QUANTITIES.items():
        panels: dict[str, dict[str, dict[str, tuple[float, float, float]]]] = {}
        for one in found:
            if one.quantity == quantity:
                panels.setdefault(one.key[0], {"": {}})[""][one.name] = (one.difference, *one.ends)
        methods: Mapping[str, None] = dict.fromkeys(m for groups in panels.values() for m in groups[""])
        if panels:
            made.append(comparison_plots.bars(
                panels, list(methods), folder / f"change_{quantity}.png", ylabel="B less A",
                title=f"{title}: B less A, 95% intervals",
            ))  # fmt: skip
    return made
