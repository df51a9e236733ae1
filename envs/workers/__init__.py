"""Environments that are not written in tensors: any PettingZoo `ParallelEnv`, many copies, one or several processes."""

from .batched import WorkerEnvironment
from .random_policy import RandomPolicy

__all__ = ["RandomPolicy", "WorkerEnvironment"]
