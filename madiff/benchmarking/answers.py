"""What was measured of the questions that a suite asks: its effects and its curves, as JSON values and as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from madiff.benchmarking.aggregate import Results, Runs, cell, frozen, interval
from madiff.benchmarking.questions import RULE, verdict
from madiff.benchmarking.table import EMPTY, Table
from madiff.benchmarking.tables import estimate, over
from madiff.experiment.statistics import Interval


def answers(results: Results) -> dict[str, Any]:
    """What `aggregate` does not say: effects and curves by their names in the suite."""
    asked = results.suite
    return {
        "effects": {name: effect(results, one) for name, one in asked.get("effects", {}).items()},
        "curves": {name: curve(results, one) for name, one in asked.get("curves", {}).items()},
    }


def effect(results: Results, asked: Mapping[str, Any]) -> dict[str, Any]:
    """What was seen of a prediction; without a number where a cell of it is missing, see `questions`."""
    ours, theirs = (above_zero(results, *asked[key]) for key in ("cell", "other"))
    common = [seed for seed in ours if seed in theirs]
    told = {"seeds": len(common), "verdict": "not measured"}
    if not common:
        return told
    pairs = [alike(ours[seed], theirs[seed]) for seed in common]
    ones, others = frozen(one for one, _ in pairs), frozen(other for _, other in pairs)
    mean, of = (float(np.mean([np.mean(run) for run in side])) for side in (ones, others))
    least, most = asked["band"]
    margins = [mixed(ones, others, 1.0, -least)] if least is not None else []
    margins += [mixed(ones, others, -1.0, most)] if most is not None else []
    sense = of > 0 or asked["band"] in ([1.0, None], [None, 1.0])  # shares of less than nothing mean nothing
    return told | {
        "difference": mean - of, "difference_ci95": mixed(ones, others, 1.0, -1.0),
        "share": mean / of if of > 0 else None, "margins_ci95": margins,
        "verdict": verdict(margins) if sense else "inconclusive",
    }  # fmt: skip


def above_zero(results: Results, task: str, label: str) -> dict[int, np.ndarray]:
    """seed -> the returns of a cell less the mean return of its task's zero."""
    zero = results.references[task]["zero"]["return_mean"] if task in results.references else 0.0
    return {seed: np.asarray(run) - zero for seed, run in results.runs(task, label).items()}


def alike(ours: np.ndarray, theirs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The episodes of two runs that begin alike: as many as both have."""
    count = min(len(ours), len(theirs))
    return ours[:count], theirs[:count]


def mixed(ones: Runs, others: Runs, of_one: float, of_other: float) -> Interval:
    """Interval of the mean of of_one * one + of_other * other, over seeds and pairs of episodes."""
    pairs = zip(ones, others, strict=True)
    return interval(frozen(of_one * np.asarray(one) + of_other * np.asarray(other) for one, other in pairs))


def curve(results: Results, asked: Mapping[str, Any]) -> dict[str, Any]:
    """task -> line -> points of the return against the option, ascending; what was not measured is left out."""
    told: dict[str, Any] = {}
    for line, tasks in asked["lines"].items():
        for task, values in tasks.items():
            points = []
            for label, value in sorted(values.items(), key=lambda item: item[1] or 0):
                if results.runs(task, label):
                    measured = cell(results, task, label)
                    kept = {key: measured[key] for key in ("return_mean", "return_ci95", "seeds")}
                    points.append({"label": label, "value": value, **kept})
            if points:
                told.setdefault(task, {})[line] = points
    return told


def answer_tables(results: Results, told: Mapping[str, Any]) -> list[Table]:
    """The tables of `answers` that have something to say."""
    curves = (curve_table(results, told, name) for name in results.suite.get("curves", {}))
    return [table for table in (effects_table(results, told), *curves) if table.rows]


def effects_table(results: Results, told: Mapping[str, Any]) -> Table:
    """What was predicted, what was measured, and whether it was seen."""
    rows = []
    for name, asked in results.suite.get("effects", {}).items():
        found = told["effects"][name]
        measured = EMPTY if "difference" not in found else estimate(found["difference"], found["difference_ci95"], "+")
        share = EMPTY if found.get("share") is None else f"{found['share']:.0%}"
        compared = f"{' '.join(asked['cell'])} less {' '.join(asked['other'])}"
        rows.append([name, " ".join(asked["about"].split()), compared, predicted(asked["band"]), share, measured,
                     found["verdict"]])  # fmt: skip
    notes = [
        "Returns are counted from that of random behaviour (or what the suite makes zero). Predicted and measured: one "
        "in parts of the other; difference: with its 95 % interval, by the same seeds and episodes, over "
        f"{over(results)}.",
        RULE,
    ]
    columns = ["effect", "prediction", "compared", "predicted", "measured", "difference", "verdict"]
    return Table("effects", "Effects", columns, rows, notes)


def predicted(band: Sequence[float | None]) -> str:
    """The ends of a prediction, in parts of the other's return."""
    least, most = (None if end is None else f"{end:.0%}" for end in band)
    if least and most:
        return f"{least} to {most}"
    return f"above {least}" if least else f"below {most}"


def curve_table(results: Results, told: Mapping[str, Any], name: str) -> Table:
    """Return against an option, a row a task and a line."""
    option, tasks = results.suite["curves"][name]["option"], told["curves"][name]
    values = sorted({point["value"] for lines in tasks.values() for points in lines.values() for point in points})
    rows = []
    for task, lines in tasks.items():
        for line, points in lines.items():
            at = {point["value"]: estimate(point["return_mean"], point["return_ci95"]) for point in points}
            rows.append([task, line, *(at.get(value, EMPTY) for value in values)])
    about = " ".join(results.suite["curves"][name]["about"].split())
    columns = ["task", "line", *(f"{option}={value:g}" for value in values)]
    return Table(f"curve_{name}", f"Return against {option}", columns, rows, [about] if about else [])
