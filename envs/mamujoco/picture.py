"""Pictures of a MuJoCo body as thick lines, seen from the side and a little from above."""

from __future__ import annotations

from functools import cache
from typing import Any

import mujoco
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

SIZE_INCHES, DPI = (4.8, 3.0), 80
WIDTH, HEIGHT = 4.0, 2.5
"""What is seen, in metres; the body's root stays in the middle."""
SLANT = np.array([[1.0, 0.35, 0.0], [0.0, 0.25, 1.0]])
POINTS_PER_METRE = 72 * SIZE_INCHES[0] / WIDTH


def draw(model: Any, data: Any) -> np.ndarray:
    """The body as it stands, (height, width, 3) uint8: capsules as lines, spheres as points, a mark a metre."""
    axes = canvas_axes()
    axes.clear()
    shape = model.geom_type
    bones = np.flatnonzero((shape == mujoco.mjtGeom.mjGEOM_CAPSULE) | (shape == mujoco.mjtGeom.mjGEOM_SPHERE))
    reach = np.where(shape == mujoco.mjtGeom.mjGEOM_CAPSULE, model.geom_size[:, 1], 0.0)[bones, None]
    along = data.geom_xmat.reshape(-1, 3, 3)[bones, :, 2] * reach
    ends = np.stack([data.geom_xpos[bones] - along, data.geom_xpos[bones] + along], 1) @ SLANT.T
    left = data.xpos[1, 0] - WIDTH / 2
    axes.set(xlim=(left, left + WIDTH), ylim=(-0.7, HEIGHT - 0.7), xticks=[], yticks=[], facecolor="#f3f1ea")
    marks = np.arange(np.ceil(left - 1), left + WIDTH + 1)
    axes.add_collection(LineCollection([((x - 0.35, -0.25), (x, 0)) for x in marks], colors="#999999"))
    axes.axhline(0.0, color="#999999", zorder=0)
    thickness = 2 * model.geom_size[bones, 0] * POINTS_PER_METRE
    axes.add_collection(LineCollection(list(ends), colors="#1f6fb4", linewidths=thickness, capstyle="round"))
    axes.set_title(f"{data.time:.2f} s   {data.xpos[1, 0]:.1f} m", size=9)
    canvas: Any = axes.figure.canvas
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


@cache
def canvas_axes() -> Axes:
    return FigureCanvasAgg(Figure(SIZE_INCHES, DPI)).figure.add_axes((0.0, 0.0, 1.0, 0.9))
