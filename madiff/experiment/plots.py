"""Pictures of a run: its learning curve, its returns beside the others', and sweeps with intervals."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from madiff.experiment import durable
from madiff.experiment.run_directory import read_records
from madiff.interfaces import UserError

# Okabe and Ito's palette: told apart by colour-blind readers too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
RETURN, LOW, HIGH = "eval/return_mean", "eval/return_ci95_low", "eval/return_ci95_high"
SIZE, DPI = (6.0, 4.0), 120


@dataclass(frozen=True)
class Series:
    """Points with intervals: `low` and `high` are absolute ends, None where there is no interval."""

    x: Sequence[float]
    mean: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


def learning_curve(metrics: Path, out: Path, title: str, references: Mapping[str, float] | None = None) -> Path:
    """Loss, and evaluated team return where metrics.jsonl has it, against training steps.

    references: dashed lines in the return panel, e.g. {"behaviour": 12.3, "bc": 10.1} (mean returns).
    The interval of the return is drawn where the records hold eval/return_ci95_low and _high.
    """
    records = read_records(metrics)
    losses = [record for record in records if record.get("loss") is not None]
    returns = [record for record in records if record.get(RETURN) is not None]
    if not losses and not returns:
        raise UserError(f"{metrics} has neither a loss nor a return to plot", "plots")
    panels = [panel for panel in ("loss", "return") if (losses if panel == "loss" else returns)]
    figure = Figure(figsize=(SIZE[0] * len(panels), SIZE[1]), layout="constrained")
    axes = dict(zip(panels, figure.subplots(1, len(panels), squeeze=False)[0], strict=True))
    figure.suptitle(title, wrap=True)
    if losses:
        _loss(axes["loss"], losses)
    if returns:
        low_high = [[r.get(key) for r in returns] for key in (LOW, HIGH)]
        low, high = low_high if all(None not in ends for ends in low_high) else (None, None)
        series = Series([r["step"] for r in returns], [r[RETURN] for r in returns], low, high)
        axis = axes["return"]
        _draw(axis, {"this run": series}, "line")
        _references(axis, references or {}, first=1)
        shown = "mean team return an episode" + ("" if low is None else ", 95% interval")
        axis.set(title="Evaluated return", xlabel="training step", ylabel=shown)
        axis.legend()
    return save(figure, out)


def return_bars(
    results: Sequence[Mapping[str, Any]], out: Path, title: str, behaviour: float | None = None, seeds: int = 1
) -> Path:
    """One bar a method with its interval, and the data's own mean return as a dashed line.

    results: {"method": name, "return_mean": float, "return_ci95": (low, high) or None}, in the order to show.
    """
    if not results:
        raise UserError("there are no results to plot", "plots", "at least one method")
    figure = Figure(figsize=(max(SIZE[0], 1.5 + 0.9 * len(results)), SIZE[1]), layout="constrained")
    figure.suptitle(title, wrap=True)
    axis = figure.subplots()
    axis.margins(y=0.12)
    for i, result in enumerate(results):
        mean = result["return_mean"]
        low, high = result.get("return_ci95") or (mean, mean)
        axis.bar(i, mean, width=0.6, color=COLOURS[0] if i == 0 else "#9FB4C7")
        if high > low:
            axis.errorbar(i, mean, yerr=[[max(mean - low, 0)], [max(high - mean, 0)]], color="black", capsize=5)
        end, offset, side = (high, 4, "bottom") if mean >= 0 else (low, -4, "top")
        paper = {"facecolor": "white", "edgecolor": "none", "pad": 1}
        axis.annotate(
            f"{mean:.3g}", (i, end), (0, offset), textcoords="offset points", ha="center", va=side, bbox=paper
        )
    axis.axhline(0, color="black", linewidth=0.8)
    if behaviour is not None:
        axis.axhline(behaviour, color=COLOURS[1], linestyle="--", label=f"the data's behaviour ({behaviour:.3g})")
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), frameon=False)
    axis.set_xticks(range(len(results)), [str(result["method"]) for result in results])
    over = "episodes" if seeds == 1 else f"{seeds} seeds"
    axis.set(ylabel=f"mean team return an episode\n(95% interval over {over})")
    return save(figure, out)


def sweep(
    series: Mapping[str, Series],
    out: Path,
    *,
    title: str,
    xlabel: str,
    ylabel: str,
    style: Literal["line", "scatter"] = "line",
    references: Mapping[str, float] | None = None,
    identity: str | None = None,
) -> Path:
    """Curves or points with intervals over a swept quantity, e.g. return obtained against return asked for.

    references: dashed horizontal lines by name. identity: name of the line y = x, drawn where given.
    """
    if not any(len(one.x) for one in series.values()):
        raise UserError("there are no points to plot", "plots", "at least one point")
    figure = Figure(figsize=SIZE, layout="constrained")
    axis = figure.subplots()
    _draw(axis, series, style)
    _references(axis, references or {}, first=len(series))
    if identity is not None:
        ends = min(min(one.x) for one in series.values()), max(max(one.x) for one in series.values())
        axis.plot(ends, ends, color="grey", linestyle=":", label=identity)
    axis.set(title=title, xlabel=xlabel, ylabel=ylabel)
    axis.legend()
    return save(figure, out)


def _loss(axis: Axes, records: Sequence[Mapping[str, Any]]) -> None:
    values = [record["loss"] for record in records]
    axis.plot([record["step"] for record in records], values, color=COLOURS[0])
    if min(values) > 0 and max(values) > 10 * min(values):
        axis.set_yscale("log")
    axis.set(title="Training loss", xlabel="training step", ylabel="loss, mean since the last record")
    axis.grid(alpha=0.3)


def _draw(axis: Axes, series: Mapping[str, Series], style: str) -> None:
    for i, (name, one) in enumerate(series.items()):
        colour, marker, dashes = look(i)
        axis.plot(one.x, one.mean, color=colour, marker=marker, markersize=4, label=name,
                  linestyle=dashes if style == "line" else "none")  # fmt: skip
        if one.low is None or one.high is None:
            continue
        if style == "line":
            axis.fill_between(one.x, one.low, one.high, color=colour, alpha=0.2, linewidth=0)
        else:
            axis.vlines(one.x, one.low, one.high, color=colour, linewidth=1)
    axis.grid(alpha=0.3)


def look(i: int) -> tuple[str, str, str]:
    """(colour, marker, dashes) of the i-th of many; the colours begin anew with other markers and dashes."""
    turn = i // len(COLOURS)
    return COLOURS[i % len(COLOURS)], "os^D"[turn % 4], ("-", "--", ":", "-.")[turn % 4]


def _references(axis: Axes, references: Mapping[str, float], first: int) -> None:
    for i, (name, value) in enumerate(references.items(), first):
        axis.axhline(value, color=COLOURS[i % len(COLOURS)], linestyle="--", label=f"{name} ({value:.3g})")


def save(figure: Figure, out: Path) -> Path:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    with durable.disk_errors("write", out):
        out.parent.mkdir(parents=True, exist_ok=True)
        durable.replace(out, buffer.getvalue())
    return out
