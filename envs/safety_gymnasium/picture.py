"""Pictures of a navigation task from above, drawn without a graphics driver."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Patch, Rectangle

SIZE_INCHES, DPI = 4.4, 80
HALF = 2.6
"""What is seen at least, in metres from the middle; farther robots shift the view."""
ROBOT, PAPER, REGION = "#c0202f", "#f3f1ea", 0.45
COLOURS = {
    "hazards": "#2b5fc7", "goal": "#1d9a3f", "vases": "#26b4c4", "pillars": "#5c4aa8", "push_box": "#d9a514",
    "buttons": "#e07b1a", "gremlins": "#8b2fb8", "circle": "#1d9a3f", "sigwalls": "#b04a4a",
}  # fmt: skip
FLAT = ("hazards", "goal", "circle")
"""Regions of the floor, which a robot can enter; other objects are bodies."""
ROBOT_RADIUS, ARROW = 0.1, 0.28


def draw_arena(task: Any) -> np.ndarray:
    """The task as it stands, (height, width, 3) uint8: regions pale, objects full, the robot with its heading."""
    axes = canvas_axes()
    axes.clear()
    middle = task.agent.pos[:2]
    middle = np.where(np.abs(middle) > HALF - 0.3, middle, 0.0)
    axes.set(xlim=middle[0] + np.array([-HALF, HALF]), ylim=middle[1] + np.array([-HALF, HALF]), aspect="equal",
             xticks=[], yticks=[], facecolor=PAPER)  # fmt: skip
    for thing in task._obstacles:
        if thing.name == "sigwalls":
            draw_walls(axes, thing)
            continue
        places = np.atleast_2d(np.asarray(thing.pos, float))[:, :2]
        shade = REGION if thing.name in FLAT else 1.0
        colour = COLOURS.get(thing.name, "#777777")
        axes.add_collection(PatchCollection([shape(thing, place) for place in places], color=colour, alpha=shade))
    draw_robot(axes, task.agent)
    hurt = "   cost" if float(task.calculate_cost()["cost_sum"]) > 0 else ""
    axes.set_title(f"{task.data.time:.2f} s{hurt}", size=9)
    canvas: Any = axes.figure.canvas
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def shape(thing: Any, place: np.ndarray) -> Patch:
    """A disc, or for boxes a square, of the object's own size."""
    size = float(getattr(thing, "radius", None) or thing.size)
    if thing.name in ("vases", "push_box", "gremlins"):
        return Rectangle((place[0] - size, place[1] - size), 2 * size, 2 * size)
    return Circle((place[0], place[1]), size)


def draw_walls(axes: Axes, walls: Any) -> None:
    """The lines that cost to be beyond: at x, and where there are four at y too."""
    for side in (-walls.locate_factor, walls.locate_factor):
        axes.axvline(side, color=COLOURS["sigwalls"], linewidth=2)
        if walls.num == 4:
            axes.axhline(side, color=COLOURS["sigwalls"], linewidth=2)


def draw_robot(axes: Axes, agent: Any) -> None:
    place, heading = agent.pos[:2], agent.mat[:2, 0]
    axes.add_patch(Circle((place[0], place[1]), ROBOT_RADIUS, color=ROBOT))
    tip = place + ARROW * heading
    axes.plot([place[0], tip[0]], [place[1], tip[1]], color=ROBOT, linewidth=2)


@cache
def canvas_axes() -> Axes:
    return FigureCanvasAgg(Figure((SIZE_INCHES, SIZE_INCHES), DPI)).figure.add_axes((0.0, 0.0, 1.0, 0.93))
