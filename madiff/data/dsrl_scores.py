"""DSRL's way of comparing methods (arXiv 2306.09303, `dsrl/infos.py`): normalised returns and costs, cost limits.

Returns are scaled by the extremes of each task's data, safe or not, so they may lie below 0 and above 1; costs by the
limit, so a method is safe where its mean normalised cost is at most 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from madiff.interfaces import UserError


@dataclass(frozen=True)
class Task:
    """What DSRL publishes of a task's data.

    observations, actions: dimensions; horizon: steps of an episode; episodes: in the data; largest_cost: of an episode
    in the data; lowest, highest: returns that are scaled to 0 and 1. The lowest cost is 0 everywhere.
    """

    observations: int
    actions: int
    horizon: int
    episodes: int
    largest_cost: int
    lowest: float
    highest: float


GYMNASIUM = {
    "PointGoal1": Task(60, 2, 1000, 2022, 100, 0.011960128, 30.0711149),
    "PointGoal2": Task(60, 2, 1000, 3442, 200, 0.0026169598, 27.7177098),
    "PointButton1": Task(76, 2, 1000, 2268, 200, 0.008822109, 41.1930157),
    "PointButton2": Task(76, 2, 1000, 3288, 250, 0.014114166, 42.8985954),
    "PointPush1": Task(76, 2, 1000, 2379, 150, 0.0014001545, 16.5186543),
    "PointPush2": Task(76, 2, 1000, 3242, 200, 0.0012438183, 14.6910391),
    "PointCircle1": Task(28, 2, 500, 1098, 200, 20.067627, 61.7281952),
    "PointCircle2": Task(28, 2, 500, 895, 299, 20.478348, 54.021843),
    "CarGoal1": Task(72, 2, 1000, 1671, 120, 0.01223282, 39.9078092),
    "CarGoal2": Task(72, 2, 1000, 4105, 200, 0.0010328745, 28.902898),
    "CarButton1": Task(88, 2, 1000, 2656, 250, 0.0028926207, 44.4200033),
    "CarButton2": Task(88, 2, 1000, 3755, 300, 0.0017673917, 41.9951382),
    "CarPush1": Task(88, 2, 1000, 2871, 200, 0.013700174, 16.3044676),
    "CarPush2": Task(88, 2, 1000, 4407, 250, 0.00029391134, 15.1416485),
    "CarCircle1": Task(40, 2, 500, 1271, 250, 8.0370731, 24.941555),
    "CarCircle2": Task(40, 2, 500, 940, 398, 5.1133862, 25.950098),
    "AntVelocity": Task(27, 8, 1000, 2249, 250, 6.1519012, 2976.27661),
    "HalfCheetahVelocity": Task(17, 6, 1000, 2495, 250, 5.7509766, 2806.93311),
    "HopperVelocity": Task(11, 3, 1000, 2240, 250, 37.051548, 1911.39673),
    "SwimmerVelocity": Task(8, 2, 1000, 1686, 200, 0.071144581, 238.958313),
    "Walker2dVelocity": Task(17, 6, 1000, 2729, 300, 18.668499, 3418.22388),
}
"""The tasks of Safety-Gymnasium, by their names there; velocity tasks are version 1."""
BULLET = {
    "BallRun": Task(7, 2, 100, 940, 80, 26.339754, 1327.44556),
    "CarRun": Task(7, 2, 200, 651, 40, 204.28726, 574.65332),
    "DroneRun": Task(17, 4, 200, 1990, 140, 10.55703, 682.833008),
    "AntRun": Task(33, 8, 200, 1816, 150, 0.0017673917, 955.481873),
    "BallCircle": Task(8, 2, 200, 886, 80, 0.38312244, 881.463379),
    "CarCircle": Task(8, 2, 300, 1450, 100, 3.4844198, 534.306091),
    "DroneCircle": Task(18, 4, 300, 1923, 100, 207.79419, 996.38916),
    "AntCircle": Task(34, 8, 500, 5728, 200, 0.017703101, 460.709198),
}
"""The tasks of Bullet-Safety-Gym, of which only data may be at hand."""
TASKS = GYMNASIUM | BULLET

LIMITS = {
    "dsrl": ((20, 40, 80), (10, 20, 40)),
    "tight": ((10,), (5,)),
    "budgets": ((10, 20, 40, 80), (10, 20, 40, 80)),
}
"""Cost limits of an episode by protocol, for Safety-Gymnasium and for Bullet: DSRL's own, FISOR's (arXiv 2401.10700),
and several budgets for one model."""


def task(name: str) -> Task:
    """The published figures of a task; UserError where there are none."""
    if name not in TASKS:
        raise UserError(f"DSRL has no task {name!r}", "task", list(TASKS))
    return TASKS[name]


def cost_limits(name: str, protocol: str = "dsrl") -> tuple[int, ...]:
    """The limits at which a task is evaluated, in costs of an episode."""
    if protocol not in LIMITS:
        raise UserError(f"no protocol is called {protocol!r}", "protocol", list(LIMITS))
    task(name)
    return LIMITS[protocol][name in BULLET]


def normalised_return(name: str, value: float) -> float:
    """(R - lowest) / (highest - lowest) of an undiscounted return."""
    found = task(name)
    return (value - found.lowest) / (found.highest - found.lowest)


def normalised_cost(cost: float | Tensor, limit: float) -> float | Tensor:
    """(C + e) / (limit + e) of an undiscounted cost, e = 1 where the limit is 0, else 0; the limit is met up to 1."""
    if not limit >= 0 or math.isinf(limit):
        raise UserError(f"is {limit:g}", "cost limit", "0 or more")
    extra = 1.0 if limit == 0 else 0.0
    return (cost + extra) / (limit + extra)


def discounted_limit(limit: float, discount: float, horizon: int) -> float:
    """What a limit on an episode's cost is for a discounted critic: limit (1 - g^T) / ((1 - g) T), the limit at g = 1.

    The discounted cost of an episode that spends the limit evenly, in its first step's view.
    """
    if not 0 <= discount <= 1 or horizon < 1:
        what = f"discount {discount:g}, horizon {horizon}"
        raise UserError(what, "discounted limit", "0 <= discount <= 1, horizon >= 1")
    if discount == 1:
        return limit
    return limit * (1 - discount**horizon) / ((1 - discount) * horizon)
