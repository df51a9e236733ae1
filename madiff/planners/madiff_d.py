"""MADiff-D: decentralised execution of MADiff; every agent plans from its own observations and models its teammates."""

from dataclasses import dataclass
from typing import ClassVar

from madiff.planners import madiff
from madiff.planners.madiff import make

NAME = "madiff-d"
__all__ = ["NAME", "Config", "make"]


@dataclass
class Config(madiff.Config):
    execution: ClassVar[str] = "decentralised"
