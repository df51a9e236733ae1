"""What each robot's drivers do at each dial, in each kind of task: found by trying, to span costs and returns."""

from __future__ import annotations

from .scripts import Manners

HAZARDOUS = {
    "gap": ((0.0, 0.2), (0.3, 0.0), (1.0, 0.0)),
    "fear": ((0.0, 4.0), (0.2, 0.4), (0.3, 0.0), (0.5, -0.4), (0.7, -0.8), (1.0, -0.9)),
    "linger": ((0.0, 1.0), (0.35, 1.0), (0.6, 0.35), (1.0, 0.15)),
}
MANNERS = {
    ("Point", "Goal"): Manners(speed=((0.0, 0.4), (0.4, 0.9), (0.75, 2.0), (1.0, 2.0)), **HAZARDOUS),
    ("Point", "Push"): Manners(speed=((0.0, 0.5), (0.6, 1.0), (1.0, 1.0)), **HAZARDOUS),
    ("Point", "Circle"): Manners(
        speed=((0.0, 1.5), (0.4, 2.0), (1.0, 2.0)), wall=((0.0, 0.65), (0.8, 1.45), (1.0, 1.5))
    ),
    ("Car", "Goal"): Manners(speed=((0.0, 0.3), (0.4, 0.5), (0.75, 1.0), (1.0, 1.0)), **HAZARDOUS),
}
