"""The plots of a benchmark, made of what `aggregate` says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from madiff.benchmarking.aggregate import Results
from madiff.experiment import comparison_plots
from madiff.experiment.comparison_plots import Estimate
from madiff.experiment.frontier_plot import frontier
from madiff.experiment.plots import Series


def draw(results: Results, told: Mapping[str, Any], folder: Path) -> list[Path]:
    """Every plot that has something to show."""
    makers = (returns, safety, learning, profile, together, improvement, shifts, shares, curves)
    return [path for maker in makers for path in maker(results, told, folder)]


def returns(results: Results, told: Mapping[str, Any], folder: Path) -> list[Path]:
    panels = {
        task: {"": {label: estimate(cell["return_mean"], cell["return_ci95"]) for label, cell in cells.items()}}
        for task, cells in told["cells"].items() if cells
    }  # fmt: skip
    lines = {task: {"the data's behaviour": told["tasks"][task]["behaviour"]} for task in panels}
    return [] if not panels else [
        comparison_plots.bars(panels, results.labels, folder / "returns.png", references=lines, ylabel="return",
                              title="Mean team return an episode, 95% intervals over seeds and episodes")
    ]  # fmt: skip


def safety(results: Results, told: Mapping[str, Any], folder: Path) -> list[Path]:
    """Return against cost, where cost means anything."""
    panels = {
        task: {label: (estimate(cell["cost_mean"], cell["cost_ci95"]),
                       estimate(cell["return_mean"], cell["return_ci95"]))
               for label, cell in cells.items() if cell["cost_mean"] is not None}
        for task, cells in told["cells"].items()
    }  # fmt: skip
    panels = {task: points for task, points in panels.items() if points}
    limits = {task: sorted({cell["cost_limit"] for cell in told["cells"][task].values()} - {None}) for task in panels}
    return [] if not panels else [
        frontier(panels, results.labels, folder / "return_cost.png", limit=limits,
                 title="Return against cost an episode, 95% intervals over seeds and episodes")
    ]  # fmt: skip


def learning(results: Results, told: Mapping[str, Any], folder: Path) -> list[Path]:
    """The mean over seeds of the learning curve's points, and their range."""
    panels: dict[str, dict[str, Series]] = {}
    for task in results.tasks:
        for label in results.labels:
            found = [record["curve"] for record in results.finished(task, label) if record["curve"]]
            if found and len({tuple(step for step, _ in curve) for curve in found}) == 1:
                values = np.array([[value for _, value in curve] for curve in found])
                panels.setdefault(task, {})[label] = Series(
                    [step for step, _ in found[0]], values.mean(0), values.min(0), values.max(0)
                )
    return [] if not panels else [
        comparison_plots.curves(panels, results.labels, folder / "learning_curves.png", xlabel="updates",
                                ylabel="return", title="Evaluated return while training: mean and range over seeds")
    ]  # fmt: skip


def profile(results: Results, told: Mapping[str, Any], folder: Path) -> list[Path]:
    found = told["profile"]
    if not found:
        return []
    shares = {name(results, told, label): (one["share"], one["low"], one["high"])
              for label, one in found["labels"].items()}  # fmt: skip
    methods = [name(results, told, label) for label in results.labels]
    return [comparison_plots.profiles(shares, found["thresholds"], methods, folder / "performance_profile.png",
                                      title="Performance profile, 95% bands")]  # fmt: skip


def together(results: Results, told: Mapping[str, Any], folder: Path) -> list[Path]:
    values = {label: estimate(row["iqm"], row["iqm_ci95"]) for label, row in told["labels"].items() if row["tasks"]}
    return [] if not values else [
        comparison_plots.intervals(values, results.labels, folder / "iqm.png", notes=notes(results, told),
                                   title="Interquartile mean over tasks, 95% intervals", xlabel="normalised score")
    ]  # fmt: skip


def improvement(results: Results, told: Mapping[str, Any], folder: Path) -> list[Path]:
    values = {label: estimate(row["probability"], row["probability_ci95"])
              for label, row in told["improvement"].items()}  # fmt: skip
    base = results.suite["reference"]
    return [] if not values else [
        comparison_plots.intervals(values, results.labels, folder / "improvement.png", notes=notes(results, told),
                                   title=f"Probability of improvement over {base}, 95% intervals", reference=0.5,
                                   xlabel=f"P(better than {base} on a random task, same seed)")
    ]  # fmt: skip


def shifts(results: Results, told: Mapping[str, Any], folder: Path) -> list[Path]:
    panels = {
        task: {shift: {label: estimate(v["drop"], v["drop_ci95"]) for label, v in lost.items()}
               for shift, lost in found.items() if lost}
        for task, found in told["shifts"].items()
    }  # fmt: skip
    panels = {task: groups for task, groups in panels.items() if groups}
    return [] if not panels else [
        comparison_plots.bars(panels, results.labels, folder / "shifts.png", ylabel="return lost",
                              title="Drop under shift at test time, 95% intervals")
    ]  # fmt: skip


def shares(results: Results, told: Mapping[str, Any], folder: Path) -> list[Path]:
    panels = {
        family: {label: Series([100 * p["share"] for p in points], [p["return_mean"] for p in points],
                               [p["return_ci95"][0] for p in points], [p["return_ci95"][1] for p in points])
                 for label, points in labels.items()}
        for family, labels in told["shares"].items()
    }  # fmt: skip
    return [] if not panels else [
        comparison_plots.curves(panels, results.labels, folder / "shares.png", logarithmic=True, ylabel="return",
                                xlabel="share of the data (%)", title="Return against share of the data, 95% intervals")
    ]  # fmt: skip


def curves(results: Results, told: Mapping[str, Any], folder: Path) -> list[Path]:
    """Return against an option, a picture for each curve that the suite asks for."""
    made = []
    for name, tasks in told.get("curves", {}).items():
        asked = results.suite["curves"][name]
        panels = {
            task: {line: Series([p["value"] for p in points], [p["return_mean"] for p in points],
                                [p["return_ci95"][0] for p in points], [p["return_ci95"][1] for p in points])
                   for line, points in lines.items()}
            for task, lines in tasks.items()
        }  # fmt: skip
        if panels:
            title = f"Return against {asked['option']}, 95% intervals"
            made.append(comparison_plots.curves(panels, list(asked["lines"]), folder / f"curve_{name}.png", title=title,
                                                xlabel=asked["option"], ylabel="return"))  # fmt: skip
    return made


def estimate(mean: float, ends: Any) -> Estimate:
    return mean, ends[0], ends[1]


def notes(results: Results, told: Mapping[str, Any]) -> dict[str, str]:
    """Behind the names of the methods that are not in all tasks: in how many."""
    whole = len(results.tasks)
    counts = {label: row["tasks"] for label, row in told["labels"].items()}
    return {label: f"({count} of {whole} tasks)" for label, count in counts.items() if 0 < count < whole}


def name(results: Results, told: Mapping[str, Any], label: str) -> str:
    return f"{label} {notes(results, told).get(label, '')}".strip()
