"""Pictures of a particle world: agents with their velocities, what they cover or catch, what is in the way."""

from __future__ import annotations

import math

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle

from .scene import HORIZON, Plan

SIZE_INCHES, DPI = (5.2, 5.8), 100
GROUND, INK = "#f3f1ea", "#333333"
AGENTS = ("#1f6fb4", "#d9822b", "#7a4fa3", "#2a9d8f", "#c8452f", "#8d6e4a")
COLOURS = {"prey": "#3a9a4a", "landmark": "#333333", "obstacle": "#8a8a86", "food": "#2f4b9e", "forest": "#9fcf9a"}
MARKERS = {"landmark": "x"}
HALF_SIDE, FURTHER = 1.25, 0.5
"""Half the side of the shown square; it grows by steps when somebody leaves."""

SLOW, ARROW_SECONDS = 0.05, 0.15
"""An arrow shows how far a mover gets in this time; none for one slower than this."""


class Picture:
    """Draws copies of one plan on one canvas, which is cleared between frames."""

    def __init__(self, plan: Plan, title: str) -> None:
        self.plan, self.title = plan, title
        self.canvas = FigureCanvasAgg(Figure(SIZE_INCHES, DPI))
        self.axes = self.canvas.figure.add_axes((0.02, 0.07, 0.96, 0.87))
        shown = [("agents, by number", AGENTS[0], "o")]
        shown += [(role, colour, MARKERS.get(role, "o")) for role, colour in COLOURS.items() if plan.rows(role)]
        marks = [Line2D([], [], ls="", color=colour, marker=marker, label=label) for label, colour, marker in shown]
        self.canvas.figure.legend(handles=marks, loc="lower center", ncols=6, fontsize=8, frameon=False)

    def draw(self, position: np.ndarray, velocity: np.ndarray, elapsed: int) -> np.ndarray:
        """position (body, 2), velocity (mover, 2), elapsed steps: (height, width, 3) uint8."""
        axes = self.axes
        axes.clear()
        reach = float(np.abs(position[: self.plan.movers]).max())
        side = HALF_SIDE + FURTHER * max(0, math.ceil((reach + 0.1 - HALF_SIDE) / FURTHER))
        axes.set(xlim=(-side, side), ylim=(-side, side), xticks=[], yticks=[], aspect="equal")
        axes.set_facecolor(GROUND)
        axes.set_title(f"{self.title}   step {elapsed} of {HORIZON}", size=10)
        axes.plot([-1, 1, 1, -1, -1], [-1, -1, 1, 1, -1], color="#d8d4c6", lw=1, zorder=0)
        for i in range(self.plan.movers, len(self.plan.bodies)):
            self._still(i, position[i])
        for i in range(self.plan.movers):
            self._mover(i, position[i], velocity[i])
        self.canvas.draw()
        return np.asarray(self.canvas.buffer_rgba())[..., :3].copy()

    def _still(self, i: int, place: np.ndarray) -> None:
        body = self.plan.bodies[i]
        colour = COLOURS[body.role]
        if body.role == "landmark":
            self.axes.add_patch(Circle(place, 0.1, fill=False, ls=":", ec=colour, lw=1, zorder=1))
            self.axes.plot(*place, marker=MARKERS[body.role], color=colour, ms=8, mew=2, zorder=4)
            return
        alpha = 0.5 if body.role == "forest" else 1.0
        self.axes.add_patch(Circle(place, body.size, fc=colour, ec=INK, lw=0.6, alpha=alpha, zorder=1))

    def _mover(self, i: int, place: np.ndarray, velocity: np.ndarray) -> None:
        body = self.plan.bodies[i]
        colour = COLOURS["prey"] if i >= self.plan.controlled or body.role == "prey" else AGENTS[i % len(AGENTS)]
        self.axes.add_patch(Circle(place, body.size, fc=colour, ec="white", lw=1.2, alpha=0.85, zorder=3))
        speed = float(np.linalg.norm(velocity))
        if speed > SLOW:
            edge = place + velocity * (body.size / speed)
            arrow = {"arrowstyle": "->", "color": INK, "lw": 1.2, "shrinkA": 0, "shrinkB": 0}
            self.axes.annotate("", edge + velocity * ARROW_SECONDS, edge, arrowprops=arrow, zorder=5)
        if i < self.plan.controlled:
            self.axes.text(*place, str(i), color="white", size=8, ha="center", va="center", zorder=6)
