"""Shortest ways through a maze by brute force on a fine grid, with and without obstacles."""

from collections.abc import Callable

import numpy as np
from scipy.ndimage import binary_dilation
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import dijkstra

MOVES = [(1, 0), (0, 1), (1, 1), (1, -1), (2, 1), (2, -1), (1, 2), (1, -2), (3, 1), (3, -1), (1, 3), (1, -3),
         (3, 2), (3, -2), (2, 3), (2, -3)]  # fmt: skip
REACH = 3
RADIUS = 0.1


class Grid:
    """Points of a maze given by rows of walls (#); free where the ball, with a radius of 0.1, touches no wall."""

    def __init__(self, rows: tuple[str, ...], spacing: float = 0.05) -> None:
        self.spacing, height, width = spacing, len(rows), len(rows[0])
        self.x = np.arange(-width / 2 + spacing / 2, width / 2, spacing)
        self.y = np.arange(-height / 2 + spacing / 2, height / 2, spacing)
        self.places = np.meshgrid(self.x, self.y, indexing="ij")
        self.free = np.ones(self.places[0].shape, bool)
        for row, cells in enumerate(rows):
            for column, cell in enumerate(cells):
                if cell == "#":
                    left, low = column - width / 2, height / 2 - row - 1
                    beside = np.maximum(np.maximum(left - self.places[0], self.places[0] - left - 1), 0)
                    above = np.maximum(np.maximum(low - self.places[1], self.places[1] - low - 1), 0)
                    self.free &= np.hypot(beside, above) > RADIUS

    def point(self, place: np.ndarray) -> tuple[int, int]:
        """The nearest point to a place."""
        return int(np.abs(self.x - place[0]).argmin()), int(np.abs(self.y - place[1]).argmin())

    def lengths(self, allowed: np.ndarray, pairs: np.ndarray) -> np.ndarray:
        """Length of the shortest way over allowed points for each of the pairs (pairs, 2, 2), infinite without one."""
        ends = np.array([[np.ravel_multi_index(self.point(place), allowed.shape) for place in pair] for pair in pairs])
        starts, which = np.unique(ends[:, 0], return_inverse=True)
        return dijkstra(self._graph(allowed), directed=False, indices=starts)[which, ends[:, 1]]

    def _graph(self, allowed: np.ndarray):
        """Moves between allowed points whose neighbours along the move are allowed too."""
        wide, deep = allowed.shape
        index = np.arange(allowed.size).reshape(allowed.shape)
        padded = np.pad(allowed, REACH)

        def shifted(right: float, up: float) -> np.ndarray:
            i, j = REACH + int(right), REACH + int(up)
            return padded[i : i + wide, j : j + deep]

        entries = []
        for right, up in MOVES:
            good = allowed & shifted(right, up)
            parts = max(abs(right), abs(up))
            for part in range(1, parts):
                for whole in (np.floor, np.ceil):
                    good = good & shifted(whole(right * part / parts), whole(up * part / parts))
            i, j = good.nonzero()
            length = np.full(len(i), self.spacing * np.hypot(right, up))
            entries.append((length, index[i, j], index[i + right, j + up]))
        length, start, end = (np.concatenate(column) for column in zip(*entries, strict=True))
        return coo_matrix((length, (start, end)), (allowed.size, allowed.size)).tocsr()


def earliest(
    grid: Grid, safe: Callable[[int], np.ndarray], start: np.ndarray, goals: np.ndarray, steps: int
) -> list[float]:
    """First step at which each goal can be reached, one point a step, over what is safe at each step."""
    reached = np.zeros_like(grid.free)
    reached[grid.point(start)] = True
    first = {grid.point(goal): np.inf for goal in goals}
    for step in range(1, steps + 1):
        reached = binary_dilation(reached, np.ones((3, 3), bool)) & safe(step)
        first = {point: min(known, step if reached[point] else np.inf) for point, known in first.items()}
    return list(first.values())
