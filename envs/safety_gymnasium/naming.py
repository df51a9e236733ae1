"""Names of what a robot or body observes, in the order of its observation."""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np

AXES = {3: ("x", "y", "z"), 4: ("w", "x", "y", "z")}
ROOTS = {
    "rootx": "x", "rooty": "angle", "rootz": "z", "slider1": "x", "slider2": "y", "free_body_rot": "angle",
}  # fmt: skip
"""Joints that place a planar body in the world, by what they say of it."""
PLACE = ("x", "y", "heading_cos", "heading_sin")
"""What the option `position` adds: metres in the world, and the direction of the robot's own x axis."""


def sensed(spaces: dict[str, Any]) -> tuple[str, ...]:
    """Of a navigating robot: each sensor's name with its axis or number, as velocimeter_x and hazards_lidar_15."""
    return tuple(name for sensor, space in spaces.items() for name in numbered(sensor, int(np.prod(space.shape))))


def numbered(name: str, size: int) -> list[str]:
    """A name for every number of a quantity; those of vectors in space by axis."""
    if size == 1:
        return [name]
    lidar = name.endswith("_lidar")
    return [f"{name}_{axis}" for axis in (AXES[size] if size in AXES and not lidar else range(size))]


def moved(model: Any, size: int) -> tuple[str, ...]:
    """Of a body from Gymnasium: positions, then velocities; what else it observes by number.

    Joints that Gymnasium leaves out, as how far the body has come, are the first ones: so many as make up the size.
    """
    positions, velocities = [], []
    for joint in range(model.njnt):
        name = mujoco.mj_id2name(model, mujoco.mjtObj.mjOBJ_JOINT, joint)
        if model.jnt_type[joint] == mujoco.mjtJoint.mjJNT_FREE:
            positions += ["x", "y", "z", "qw", "qx", "qy", "qz"]
            velocities += ["vx", "vy", "vz", "wx", "wy", "wz"]
        else:
            root = ROOTS.get(name, name)
            positions.append(root)
            velocities.append(f"v{root}" if root in AXES[3] else f"{root}_velocity")
    hidden = next(i for i, name in enumerate(positions) if name not in ("x", "y"))
    names = positions[hidden:] + velocities
    return tuple(names + [f"observation_{i}" for i in range(len(names), size)])
