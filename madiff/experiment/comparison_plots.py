"""Pictures of many methods on many tasks: small panels, one look a method in all of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from madiff.experiment.plots import Series, look, save
from madiff.interfaces import UserError

Estimate = tuple[float, float, float]  # mean, low end, high end
PANEL = (3.6, 2.7)
MOST_COLUMNS = 4
WIDEST = 20.0  # inches
HATCHES = ("", "///", "...", "xx")


def bars(
    panels: Mapping[str, Mapping[str, Mapping[str, Estimate]]],
    methods: Sequence[str],
    out: Path,
    *,
    title: str,
    ylabel: str,
    references: Mapping[str, Mapping[str, float]] | None = None,
) -> Path:
    """A panel a task, in it groups of bars with intervals: panels[task][group][method].

    methods: the order and the look of the bars. references: task -> name -> a horizontal line in its panel.
    """
    figure, axes = panel_grid(panels, title)
    for name, axis in axes.items():
        for at, (_, values) in enumerate(panels[name].items()):
            _group(axis, at, values, methods)
        for i, (line, value) in enumerate((references or {}).get(name, {}).items()):
            axis.axhline(value, color="black", linewidth=1, linestyle=(":", "--", "-.")[i % 3], label=line)
        groups = list(panels[name])
        axis.set_xticks(range(len(groups)) if len(groups) > 1 else [], groups if len(groups) > 1 else [])
        axis.axhline(0, color="black", linewidth=0.6)
        axis.set_ylabel(ylabel, fontsize=8)
    shown = [m for m in methods if any(m in group for panel in panels.values() for group in panel.values())]
    handles = [Patch(facecolor=look(methods.index(m))[0], hatch=_hatch(methods.index(m)), edgecolor="white", label=m)
               for m in shown]  # fmt: skip
    lines = {h.get_label(): h for axis in axes.values() for h in axis.get_legend_handles_labels()[0]}
    legend_below(figure, [*handles, *lines.values()])
    return save(figure, out)


def curves(
    panels: Mapping[str, Mapping[str, Series]],
    methods: Sequence[str],
    out: Path,
    *,
    title: str,
    xlabel: str,
    ylabel: str,
    logarithmic: bool = False,
) -> Path:
    """A panel a task, in it a curve a method. logarithmic: in x, which is marked where there are points."""
    figure, axes = panel_grid(panels, title)
    for name, axis in axes.items():
        for method, one in panels[name].items():
            colour, marker, dashes = look(methods.index(method))
            axis.plot(one.x, one.mean, color=colour, marker=marker, markersize=3, linestyle=dashes, label=method)
            if one.low is not None and one.high is not None:
                axis.fill_between(one.x, one.low, one.high, color=colour, alpha=0.15, linewidth=0)
        if logarithmic:
            values = sorted({x for one in panels[name].values() for x in one.x})
            axis.set_xscale("log")
            axis.set_xticks(values, [f"{value:g}" for value in values])
            axis.set_xticks([], minor=True)
        axis.grid(alpha=0.3)
        axis.set_xlabel(xlabel, fontsize=8)
        axis.set_ylabel(ylabel, fontsize=8)
    lines = {h.get_label(): h for axis in axes.values() for h in axis.get_legend_handles_labels()[0]}
    legend_below(figure, [lines[method] for method in methods if method in lines])
    return save(figure, out)


def profiles(
    shares: Mapping[str, tuple[Sequence[float], Sequence[float], Sequence[float]]],
    thresholds: Sequence[float],
    methods: Sequence[str],
    out: Path,
    *,
    title: str,
) -> Path:
    """Performance profiles (2108.13264, section 4.2): the share of runs above each score, with bands."""
    _something(shares)
    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    axis = figure.subplots()
    for method, (share, low, high) in shares.items():
        colour, _, dashes = look(methods.index(method))
        axis.plot(thresholds, share, color=colour, linestyle=dashes, label=method)
        axis.fill_between(thresholds, low, high, color=colour, alpha=0.12, linewidth=0)
    axis.set(title=title, xlabel="normalised score", ylabel="share of runs above it", ylim=(-0.02, 1.02))
    axis.grid(alpha=0.3)
    axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9)
    return save(figure, out)


def intervals(
    values: Mapping[str, Estimate],
    methods: Sequence[str],
    out: Path,
    *,
    title: str,
    xlabel: str,
    reference: float | None = None,
    notes: Mapping[str, str] | None = None,
) -> Path:
    """A row a method: its value and interval. reference: a vertical line; notes: method -> words behind its name."""
    _something(values)
    figure = Figure(figsize=(6.5, 1.3 + 0.36 * len(values)), layout="constrained")
    axis = figure.subplots()
    for row, (method, (mean, low, high)) in enumerate(values.items()):
        colour, marker, _ = look(methods.index(method))
        axis.hlines(row, low, high, color=colour, linewidth=6, alpha=0.35)
        axis.plot([mean], [row], color=colour, marker=marker, markersize=7)
    if reference is not None:
        axis.axvline(reference, color="black", linestyle="--", linewidth=1)
    names = [f"{method} {(notes or {}).get(method, '')}".strip() for method in values]
    axis.set_yticks(range(len(values)), names)
    axis.set_ylim(len(values) - 0.4, -0.6)
    axis.set(xlabel=xlabel)
    figure.suptitle(title)  # of the whole width: the axes' own is cut off beside long names
    axis.grid(alpha=0.3, axis="x")
    return save(figure, out)


def panel_grid(
    panels: Mapping[str, object], title: str, panel: tuple[float, float] = PANEL
) -> tuple[Figure, dict[str, Axes]]:
    _something(panels)
    columns = max(1, min(MOST_COLUMNS, len(panels), int(WIDEST / panel[0])))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(max(6.0, panel[0] * columns), panel[1] * rows + 1.0), layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots(rows, columns, squeeze=False).flat
    used = {name: axis for name, axis in zip(panels, axes, strict=False)}
    for axis in list(figure.axes)[len(panels) :]:
        axis.set_visible(False)
    for name, axis in used.items():
        axis.set_title(name, fontsize=10)
        axis.tick_params(labelsize=8)
    return figure, used


def _group(axis: Axes, at: int, values: Mapping[str, Estimate], methods: Sequence[str]) -> None:
    """Bars side by side around x = at."""
    width = 0.8 / max(len(values), 1)
    for i, method in enumerate(m for m in methods if m in values):
        x, number = at - 0.4 + (i + 0.5) * width, methods.index(method)
        mean = values[method][0]
        axis.bar(x, mean, width * 0.92, color=look(number)[0], hatch=_hatch(number), edgecolor="white", linewidth=0.3)
        axis.errorbar(x, mean, yerr=lengths(values[method]), color="black", linewidth=1, capsize=2)


def lengths(estimate: Estimate) -> list[list[float]]:
    """Lengths below and above the mean, as error bars want them."""
    mean, low, high = estimate
    return [[max(mean - low, 0)], [max(high - mean, 0)]]


def _hatch(number: int) -> str:
    return HATCHES["os^D".index(look(number)[1])]


def legend_below(figure: Figure, handles: Sequence[object]) -> None:
    figure.legend(handles=handles, loc="outside lower center", ncols=min(7, len(handles)), frameon=False, fontsize=9)


def _something(values: Mapping[str, object]) -> None:
    if not values:
        raise UserError("there are no results to plot", "plots", "at least one method")
