"""MADiff-C: centralised execution of MADiff; one plan for the whole team from all agents' observations."""

from dataclasses import dataclass
from typing import ClassVar

from madiff.planners import madiff
from madiff.planners.madiff import make

NAME = "madiff-c"
__all__ = ["NAME", "Config", "make"]


@dataclass
class Config(madiff.Config):
    execution: ClassVar[str] = "centralised"
