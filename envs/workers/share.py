"""Copies that are stepped one after the other in one process."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from pettingzoo import ParallelEnv

from .layout import Layout
from .single import Joint, Single

Make = Callable[[], ParallelEnv]


class Share:
    """Some of the copies, one after the other; every method is a command that takes and gives arrays."""

    def __init__(self, make: Make, copies: int, limit: int | None) -> None:
        self.singles = [Single(make(), limit) for _ in range(copies)]

    def layout(self) -> Layout:
        return self.singles[0].layout

    def look(self) -> Joint:
        return stacked([single.last for single in self.singles])

    def reset(self, seeds: Sequence[int]) -> Joint:
        return stacked([single.reset(int(seed)) for single, seed in zip(self.singles, seeds, strict=True)])

    def step(self, actions: np.ndarray) -> Joint:
        return stacked([single.step(rows) for single, rows in zip(self.singles, actions, strict=True)])

    def recordings(self) -> list[tuple[int, np.ndarray]]:
        return [single.recording() for single in self.singles]

    def replay(self, recordings: Sequence[tuple[int, np.ndarray]]) -> Joint:
        for single, (seed, actions) in zip(self.singles, recordings, strict=True):
            single.replay(seed, actions)
        return self.look()

    def frame(self, copy: int) -> np.ndarray:
        return self.singles[copy].frame()

    def close(self) -> None:
        for single in self.singles:
            single.env.close()


def stacked(joints: Sequence[Joint]) -> Joint:
    """One row per copy."""
    return Joint(*map(np.stack, zip(*joints, strict=True)))
