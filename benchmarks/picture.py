"""Pictures of benchmark rows: how many times as fast as the peer, and how a cost grows, on logarithmic axes."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

from madiff.experiment.plots import COLOURS, DPI, Series, look, save

Row = Mapping[str, Any]
TALLEST = 2**15 // DPI  # inches
LONGEST = 48  # letters of why a peer is missing, which fit


def ratios(rows: Sequence[Row], out: Path) -> Path | None:
    """A bar a row that has a peer, from 1 to ours over the peer's, and words where the peer is missing.

    None, and no file, where no row names a peer.
    """
    shown = [row for row in rows if row["peer"] != "none"]
    if not shown:
        return None
    figure = Figure(figsize=(10, min(1.5 + 0.24 * len(shown), TALLEST)), layout="constrained")
    axis = figure.subplots()
    for place, row in enumerate(shown):
        if row["ratio"] is None:
            words = textwrap.shorten(str(row["peer"]), LONGEST, placeholder=" ...")
            axis.text(1, place, f" {words}", va="center", color="grey", fontsize=7)
            continue
        colour = COLOURS[0] if row["ratio"] >= 1 else COLOURS[1]
        axis.barh(place, row["ratio"] - 1, left=1, color=colour, height=0.7)
        axis.text(max(row["ratio"], 1), place, f" {row['ratio']:.3g}", va="center", fontsize=7)
    axis.set_xscale("log")
    found = [row["ratio"] for row in shown if row["ratio"] is not None]
    axis.set_xlim(min([0.5, *(r / 1.5 for r in found)]), max([2, *(r * 2 for r in found)]))
    axis.axvline(1, color="black", linewidth=0.8)
    axis.set_yticks(range(len(shown)), [row["name"] for row in shown], fontsize=7)
    axis.set_ylim(len(shown) - 0.5, -0.5)
    axis.set(xlabel="times as fast as the peer", title="Ours beside its peers")
    return save(figure, out)


def growth(panels: Mapping[str, Mapping[str, Series]], out: Path) -> Path:
    """One panel an ylabel; in it a line a quantity that grows, against how much of it there is, both logarithmic."""
    columns = min(2, len(panels))
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(6 * columns, 4 * lines), layout="constrained")
    for axis, (label, series) in zip(figure.subplots(lines, columns, squeeze=False).flat, panels.items(), strict=False):
        for place, (name, one) in enumerate(series.items()):
            colour, marker, dashes = look(place)
            axis.plot(one.x, one.mean, color=colour, marker=marker, linestyle=dashes, markersize=4, label=name)
        logarithmic(axis)
        axis.set(xlabel="how many", ylabel=label)
        axis.legend()
    return save(figure, out)


def logarithmic(axis: Axes) -> None:
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.grid(alpha=0.3, which="both")
