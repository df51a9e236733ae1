"""Return against cost: many methods on many tasks, with the front of those that no other beats."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.transforms import Bbox

from madiff.experiment.comparison_plots import Estimate, legend_below, lengths, panel_grid
from madiff.experiment.plots import look, save

Limit = float | Sequence[float] | None
PANEL = (4.6, 3.5)  # with room for names,
ROOMY = 10  # for so many
DOT = 5.0  # pixels from a point that a name leaves free
SIDES = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1))


def frontier(
    panels: Mapping[str, Mapping[str, tuple[Estimate, Estimate]]],
    methods: Sequence[str],
    path: Path,
    title: str,
    limit: Limit | Mapping[str, Limit] = None,
) -> Path:
    """Return against cost, a panel a task: panels[task][method] = (cost, return), each with its interval.

    methods: the look of the points, which have their names beside them. A step line joins what `pareto` finds: the most
    return for each cost. limit: costs that are marked by vertical lines, in all panels or by task.
    """
    grow = max(1.0, math.sqrt(max(map(len, panels.values()), default=0) / ROOMY))
    figure, axes = panel_grid(panels, title, (grow * PANEL[0], grow * PANEL[1]))
    for task, axis in axes.items():
        found = {m: pair for m, pair in panels[task].items() if math.isfinite(pair[0][0]) and math.isfinite(pair[1][0])}
        for method, (cost, value) in found.items():
            colour, marker, _ = look(methods.index(method))
            axis.errorbar(cost[0], value[0], xerr=lengths(cost), yerr=lengths(value), color=colour, marker=marker,
                          markersize=5, linewidth=1, capsize=2, zorder=3)  # fmt: skip
        axis.margins(0.12)
        for at in _limits(limit, task):
            axis.axvline(at, color="black", linestyle="--", linewidth=1, label="cost limit")
        _front(axis, *([pair[i][0] for pair in found.values()] for i in (0, 1)))
        axis.grid(alpha=0.3)
        axis.set_xlabel("mean cost an episode", fontsize=8)
        axis.set_ylabel("mean team return an episode", fontsize=8)
    lines = {h.get_label(): h for axis in axes.values() for h in axis.get_legend_handles_labels()[0]}
    if lines:
        legend_below(figure, list(lines.values()))
    figure.draw_without_rendering()  # so that it is known where points are on paper
    for task, axis in axes.items():
        _name(axis, panels[task], methods)
    return save(figure, path)


def pareto(costs: Sequence[float], returns: Sequence[float]) -> list[int]:
    """The points that no other beats: none has at most their cost and at least their return, and one of both strictly.

    Indices in the order of rising costs; equals stand or fall together; what is not a number is beaten by all.
    """
    there = [i for i in range(len(costs)) if not math.isnan(costs[i]) and not math.isnan(returns[i])]
    front: list[int] = []
    for i in sorted(there, key=lambda i: (costs[i], -returns[i])):
        best = front[-1] if front else None
        if best is None or returns[i] > returns[best] or (costs[i], returns[i]) == (costs[best], returns[best]):
            front.append(i)
    return front


def _front(axis: Axes, costs: Sequence[float], returns: Sequence[float]) -> None:
    """The most return for each cost, up to the right edge."""
    front = pareto(costs, returns)
    left, right = axis.get_xlim()
    if front:
        x, y = [costs[i] for i in front], [returns[i] for i in front]
        axis.plot([*x, right], [*y, y[-1]], drawstyle="steps-post", color="black", linewidth=1, alpha=0.6, zorder=2,
                  label="Pareto front")  # fmt: skip
    axis.set_xlim(left, right)


def _limits(limit: Limit | Mapping[str, Limit], task: str) -> Sequence[float]:
    own = limit.get(task) if isinstance(limit, Mapping) else limit
    if own is None:
        return ()
    return [own] if isinstance(own, int | float) else own


def _name(axis: Axes, points: Mapping[str, tuple[Estimate, Estimate]], methods: Sequence[str]) -> None:
    """Names in the colours of their points, each beside its own and where it covers least of what is there already."""
    middles = {name: (cost[0], value[0]) for name, (cost, value) in points.items()}
    places = {name: axis.transData.transform(at) for name, at in middles.items() if all(map(math.isfinite, at))}
    taken = [Bbox([place - DOT, place + DOT]) for place in places.values()]
    pieces = [ends for name in places for ends in _bars(*points[name])]
    pieces += [ends for line in axis.lines if line.get_drawstyle() == "steps-post" for ends in _steps(line)]
    taken += [_thin(axis, ends) for ends in pieces if np.isfinite(ends).all()]
    for name, place in places.items():
        text = axis.annotate(name, middles[name], (0, 0), textcoords="offset points", fontsize=7, ha="center",
                             va="center", color=look(methods.index(name))[0], zorder=4)  # fmt: skip
        text.set_in_layout(False)
        size = text.get_window_extent().size
        boxes = [
            Bbox.from_bounds(*(place + (x, y) * (size / 2 + gap) - size / 2), *size)
            for gap in (DOT, 3 * DOT, 5 * DOT) for x, y in SIDES
        ]  # fmt: skip
        others = [there for other, there in places.items() if other != name]
        best = min(boxes, key=lambda box: _covered(box, taken) + 2 * (_area(box) - _shared(box, axis.bbox))
                   + _area(box) * _misleads(box, place, others))  # fmt: skip
        taken.append(best)
        text.set_position(((best.p0 + best.p1) / 2 - place) * 72 / axis.figure.dpi)


def _bars(cost: Estimate, value: Estimate) -> list[list[tuple[float, float]]]:
    """The two ends of both error bars of a point."""
    return [[(end, value[0]) for end in cost[1:]], [(cost[0], end) for end in value[1:]]]


def _steps(line: Line2D) -> list[list[tuple[float, float]]]:
    """The two ends of each piece of a line that goes on, then up."""
    corners = line.get_xydata().tolist()
    pairs = list(pairwise(corners))
    return [[(a, b), (c, b)] for (a, b), (c, _) in pairs] + [[(c, b), (c, d)] for (_, b), (c, d) in pairs]


def _thin(axis: Axes, ends: Sequence[tuple[float, float]]) -> Bbox:
    """What a straight piece between two points covers on paper."""
    found = axis.transData.transform(ends)
    return Bbox([found.min(0) - 1, found.max(0) + 1])


def _misleads(box: Bbox, own: np.ndarray, others: Sequence[np.ndarray]) -> bool:
    """Whether a name in this box stands nearer to another point than to its own."""
    return any(_away(box, other) < _away(box, own) for other in others)


def _away(box: Bbox, point: np.ndarray) -> float:
    """Pixels from a point to the nearest edge of a box; 0 within."""
    return float(np.linalg.norm(np.maximum(0, np.maximum(box.p0 - point, point - box.p1))))


def _covered(box: Bbox, taken: Sequence[Bbox]) -> float:
    return sum(_shared(box, other) for other in taken)


def _shared(box: Bbox, other: Bbox) -> float:
    both = Bbox.intersection(box, other)
    return 0.0 if both is None else _area(both)


def _area(box: Bbox) -> float:
    return box.width * box.height
